"""Kernels that gcc and ld make, and the numbers of the headers that toolchains come with: second sources."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from pyvmm import cpubits
from pyvmm.boot import detect, elf, load, pvh
from pyvmm.config import VmConfig
from pyvmm.errors import LoadError
from tests.support import elfbuild
from tests.support.boot import MIB, allocate, text, untouched
from tests.support.headers import macros

pytestmark = pytest.mark.needs("gcc")

SOURCE = """
    .section .head, "ax"
    .globl start
{head}
start:
    hlt
    jmp start
    .data
word:
    .long 0x600df00d
    .bss
    .skip 12345
    .globl after
after:
    .long 0
"""
MULTIBOOT = """
    .p2align 2
    .long 0x1badb002, 3, -(0x1badb002 + 3)
"""
PVH = """
    .pushsection .note.pvh, "a", @note
    .long 4, {size}, 18
    .asciz "Xen"
    .{word} start_physical
    .popsection
"""
SCRIPT = """
ENTRY({entry})
PHDRS {{ all PT_LOAD; notes PT_NOTE; }}
SECTIONS {{
    virtual = {virtual:#x};
    . = {start:#x};
    .text : AT(ADDR(.text) - virtual) {{ *(.head) *(.text) }} : all
    .note : AT(ADDR(.note) - virtual) {{ KEEP(*(.note.pvh)) }} : all : notes
    .data : AT(ADDR(.data) - virtual) {{ *(.data) }} : all
    .bss : AT(ADDR(.bss) - virtual) {{ *(.bss) }} : all
    start_physical = start - virtual;
    /DISCARD/ : {{ *(.note.gnu*) *(.comment) *(.eh_frame) }}
}}
"""


def build(folder: Path, *, bits: int = 64, head: str = "", virtual: int = 0, entry: str = "start") -> Path:
    """Assemble SOURCE and link it by SCRIPT."""
    (folder / "kernel.S").write_text(SOURCE.format(head=head))
    (folder / "kernel.ld").write_text(SCRIPT.format(virtual=virtual, start=virtual + MIB, entry=entry))
    command = ["gcc", f"-m{bits}", "-nostdlib", "-static", "-no-pie", "-Wl,-T,kernel.ld", "-Wl,--build-id=none"]
    subprocess.run(
        [*command, "-Wl,-z,max-page-size=4096", "-Wl,-z,noexecstack", "-o", "kernel", "kernel.S"],
        cwd=folder, check=True, timeout=60,
    )  # fmt: skip
    return folder / "kernel"


def readelf(path: Path, *options: str) -> str:
    return subprocess.run(
        ["readelf", "-W", *options, str(path)], check=True, capture_output=True, text=True, timeout=60
    ).stdout


@pytest.mark.parametrize(
    ("bits", "virtual"), [(32, 0), (64, 0), (32, 0xC0000000), (64, 0xFFFFFFFF80000000), (64, 0xFFFF800000000000)]
)
def test_linked_executable(tmp_path: Path, bits: int, virtual: int) -> None:
    path = build(tmp_path, bits=bits, virtual=virtual)
    memory = allocate()
    memory.fill(MIB, MIB, 0xFF)
    loaded = load(VmConfig(path), memory)
    assert (loaded.format, loaded.entry) == ("elf", MIB)
    assert memory.read(MIB, 3) == b"\xf4\xeb\xfd"
    # What readelf says of the one segment is what was claimed and filled.
    offset, _, physical, filesz, memsz = (
        int(word, 16) for word in re.findall(r"LOAD +(0x\w+) (0x\w+) (0x\w+) (0x\w+) (0x\w+)", readelf(path, "-l"))[0]
    )
    piece = next(piece for piece in loaded.pieces if piece.what == "segment 0")
    assert (piece.gpa, piece.length) == (physical, memsz)
    assert memory.read(physical, filesz) == path.read_bytes()[offset : offset + filesz]
    assert memsz - filesz > 12345
    assert memory.read(physical + filesz, memsz - filesz) == bytes(memsz - filesz)


@pytest.mark.parametrize(("bits", "word"), [(32, "long"), (64, "quad")])
def test_pvh_note_of_the_assembler(tmp_path: Path, bits: int, word: str) -> None:
    virtual = {32: 0xC0000000, 64: 0xFFFFFFFF80000000}[bits]
    path = build(tmp_path, bits=bits, virtual=virtual, head=PVH.format(size=bits // 8, word=word))
    assert "0x00000012" in readelf(path, "-n")
    memory = allocate()
    loaded = load(VmConfig(path, append="word"), memory)
    assert (loaded.format, loaded.entry) == ("pvh", MIB)
    assert untouched(memory, loaded)


@pytest.mark.parametrize("bits", [32, 64])
def test_multiboot_header_of_the_assembler(tmp_path: Path, bits: int) -> None:
    path = build(tmp_path, bits=bits, head=MULTIBOOT)
    memory = allocate()
    loaded = load(VmConfig(path, append="word"), memory)
    assert (loaded.format, loaded.entry) == ("multiboot", MIB + 12)
    assert text(memory, memory.read_u32(loaded.state.rbx + 16)) == f"{path} word"


def test_without_a_linker_script(tmp_path: Path) -> None:
    """The shortest way to a kernel; ld puts a segment with the ELF header below the code."""
    (tmp_path / "kernel.S").write_text(".globl _start\n_start: hlt\n")
    command = ["gcc", "-nostdlib", "-static", "-no-pie", "-Wl,-Ttext=0x100000", "-o", "kernel", "kernel.S"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    memory = allocate()
    loaded = load(VmConfig(tmp_path / "kernel"), memory)
    assert (loaded.format, loaded.entry) == ("elf", MIB)
    assert memory.read(MIB, 1) == b"\xf4"


def test_physical_entry_of_the_linker(tmp_path: Path) -> None:
    """As Linux links itself: ENTRY is the physical address of the start."""
    path = build(tmp_path, virtual=0xFFFFFFFF80000000, entry="start_physical")
    assert load(VmConfig(path), allocate()).entry == MIB


def test_stripped_and_flattened(tmp_path: Path) -> None:
    path = build(tmp_path)
    subprocess.run(["strip", str(path)], check=True, timeout=60)
    assert load(VmConfig(path), allocate()).format == "elf"
    subprocess.run(["objcopy", "-O", "binary", str(path), str(path)], check=True, timeout=60)
    loaded = load(VmConfig(path, flat_mode="long"), allocate())
    assert (loaded.format, loaded.entry) == ("flat", MIB)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-c"], "ET_REL"),
        (["-nostdlib", "-shared"], "ET_DYN"),
        (["-nostdlib", "-static-pie"], "ET_DYN"),
        (["-nostdlib", "-pie"], "ET_DYN"),
    ],
)
def test_what_else_gcc_makes(tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "x.c").write_text("void _start(void) { for (;;); }\n")
    subprocess.run(["gcc", *options, "-fPIC", "-o", "out", "x.c"], cwd=tmp_path, check=True, timeout=60)
    with pytest.raises(LoadError, match=words):
        load(VmConfig(tmp_path / "out"), allocate())


def test_the_interpreter_is_no_kernel() -> None:
    with pytest.raises(LoadError, match=r"ET_DYN|linked dynamically"):
        load(VmConfig("/bin/sh"), allocate())


# --- Numbers, against the headers of this machine --------------------------------------------------------


def test_constants_of_elf_h(tmp_path: Path) -> None:
    names = [name for name in vars(elf) if re.fullmatch(r"(ELFCLASS|ELFDATA|EV_|ET_|EM_|PT_)\w+", name)]
    assert len(names) > 10
    assert macros(tmp_path, "elf.h", names) == {name: getattr(elf, name) for name in names}
    sizes = macros(
        tmp_path,
        "elf.h",
        ["sizeof(Elf32_Ehdr)", "sizeof(Elf64_Ehdr)", "sizeof(Elf32_Phdr)", "sizeof(Elf64_Phdr)", "sizeof(Elf64_Nhdr)"],
    )
    assert list(sizes.values()) == [52, 64, 32, 56, 12]


def test_constants_of_linux_processor_flags(tmp_path: Path) -> None:
    header = "asm/processor-flags.h"
    for ours, theirs in (("CR0_", "X86_CR0_"), ("CR4_", "X86_CR4_")):
        names = [name for name in vars(cpubits) if name.startswith(ours)]
        values = macros(tmp_path, header, [theirs + name.removeprefix(ours) for name in names])
        assert list(values.values()) == [getattr(cpubits, name) for name in names]


def test_constants_of_xen_headers(tmp_path: Path) -> None:
    if not os.path.exists("/usr/include/xen/arch-x86/hvm/start_info.h"):
        pytest.skip("the headers of Xen (libxen-dev) are not installed")
    note = macros(tmp_path, "xen/elfnote.h", ["XEN_ELFNOTE_PHYS32_ENTRY"])
    assert list(note.values()) == [pvh.XEN_ELFNOTE_PHYS32_ENTRY]
    header = "xen/arch-x86/hvm/start_info.h"
    names = ["XEN_HVM_START_MAGIC_VALUE", "sizeof(struct hvm_start_info)", "sizeof(struct hvm_modlist_entry)"]
    names += ["sizeof(struct hvm_memmap_table_entry)"]
    values = macros(tmp_path, header, names)
    assert list(values.values()) == [
        pvh.START_MAGIC,
        pvh.START_INFO_LENGTH,
        pvh.MODULE_LENGTH,
        pvh.MEMORY_ENTRY_LENGTH,
    ]


def test_constants_of_the_linux_boot_header(tmp_path: Path) -> None:
    values = macros(
        tmp_path,
        "asm/bootparam.h",
        ["offsetof(struct boot_params, hdr.header)", "sizeof(struct boot_params)"],
    )
    assert list(values.values()) == [detect.LINUX_HEADER, 4096]


@pytest.mark.parametrize("bits", [32, 64])
def test_readelf_reads_what_the_tests_build(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elfbuild.pvh_elf(MIB, bits=bits, size=bits // 8))
    result = subprocess.run(
        ["readelf", "-W", "-h", "-l", "-n", str(path)], check=True, capture_output=True, text=True, timeout=60
    )
    assert result.stderr == ""
    assert re.search(r"Entry point 0x100000|Entry point address: +0x100000", result.stdout)
    assert re.search(r"LOAD +0x\w+ 0x0*100000 0x0*100000 0x0*10 0x0*10 RWE", result.stdout)
    assert re.search(r"Xen +0x0*" + f"{bits // 8:x}", result.stdout)
