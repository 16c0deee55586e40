"""Multiboot 1: the header, the machine state of 3.2, the information of 3.3. Sections are those of 0.6.96."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from pyvmm.boot import LoadedKernel
from pyvmm.errors import LoadError, UsageError
from pyvmm.memory import GuestMemory
from tests.support import elfbuild as build
from tests.support.boot import MIB, allocate, load_bytes, text, untouched
from tests.support.elfbuild import Part, elf, multiboot_elf, multiboot_flat, multiboot_header, patched

CODE = b"\x90" * 15 + b"\xf4"


def refused(folder: Path, kernel: bytes, words: str, **settings: Any) -> LoadError:
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(folder, kernel, **settings)
    assert caught.value.exit_status == 127
    assert "\n" not in str(caught.value)
    return caught.value


def info(loaded: LoadedKernel, memory: GuestMemory) -> dict[str, int]:
    """The fields of the information structure that are valid, read as the table of 3.3 has them."""
    at = loaded.state.rbx
    flags = memory.read_u32(at)
    fields = {"flags": flags}
    for bit, names in (
        (0, {"mem_lower": 4, "mem_upper": 8}),
        (1, {"boot_device": 12}),
        (2, {"cmdline": 16}),
        (3, {"mods_count": 20, "mods_addr": 24}),
        (4, {"aout_syms": 28}),
        (5, {"elf_shdr": 28}),
        (6, {"mmap_length": 44, "mmap_addr": 48}),
        (7, {"drives_length": 52}),
        (8, {"config_table": 60}),
        (9, {"boot_loader_name": 64}),
        (10, {"apm_table": 68}),
        (11, {"vbe": 72}),
        (12, {"framebuffer": 88}),
    ):
        if flags >> bit & 1:
            fields |= {name: memory.read_u32(at + offset) for name, offset in names.items()}
    return fields


@pytest.mark.parametrize("bits", [32, 64])
def test_elf_of_either_class(tmp_path: Path, bits: int) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_elf(bits=bits, code=CODE))
    assert (loaded.format, loaded.entry) == ("multiboot", MIB + 12)
    assert memory.read(MIB + 12, len(CODE)) == CODE
    assert untouched(memory, loaded)


def test_machine_state(tmp_path: Path) -> None:
    """3.2: EAX, EBX, flat 32-bit segments, PE without PG, no VM and IF in EFLAGS."""
    loaded, _ = load_bytes(tmp_path, multiboot_elf())
    state = loaded.state
    assert state.mode == "protected"
    assert state.rax == 0x2BADB002
    assert state.rbx < 1 << 32
    assert state.cr0 & 0x80000001 == 1
    assert state.rflags & (1 << 17 | 1 << 9) == 0
    assert (state.cs.base, state.cs.limit, state.cs.db, state.cs.type & 0xA) == (0, 0xFFFFFFFF, 1, 0xA)
    for name in ("ds", "es", "fs", "gs", "ss"):
        segment = getattr(state, name)
        assert (segment.base, segment.limit, segment.db, segment.type & 0xA) == (0, 0xFFFFFFFF, 1, 2)


def test_information(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_elf(flags=3), append="one two", initrd=b"module data")
    fields = info(loaded, memory)
    assert fields["flags"] == 0b1001001101
    assert (fields["mem_lower"], fields["mem_upper"]) == (639, 15 * 1024)
    assert text(memory, fields["cmdline"]) == f"{tmp_path / 'kernel'} one two"
    assert text(memory, fields["boot_loader_name"]) == "pyvmm"
    assert fields["mods_count"] == 1
    start, end, string, reserved = struct.unpack("<4I", memory.read(fields["mods_addr"], 16))
    assert memory.read(start, end - start) == b"module data"
    assert start % 4096 == 0
    assert text(memory, string) == str(tmp_path / "initrd")
    assert reserved == 0


def test_memory_map(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_elf(), allocate(5 << 30))
    fields = info(loaded, memory)
    at, end, entries = fields["mmap_addr"], fields["mmap_addr"] + fields["mmap_length"], []
    while at < end:
        size = memory.read_u32(at)
        entries.append(struct.unpack("<QQI", memory.read(at + 4, 20)))
        at += size + 4
    assert at == end
    assert tuple(entries) == loaded.memory_map
    assert [entry[:2] for entry in entries if entry[2] == 1] == [
        (0, 0x9FC00),
        (MIB, (3 << 30) - MIB),
        (4 << 30, 2 << 30),
    ]
    assert fields["mem_upper"] == ((3 << 30) - MIB) >> 10


def test_without_append_and_module(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_elf(), name="my kernel")
    fields = info(loaded, memory)
    assert text(memory, fields["cmdline"]) == str(tmp_path / "my kernel")
    assert fields["mods_count"] == 0


def test_module_is_behind_the_kernel(tmp_path: Path) -> None:
    kernel = elf([Part(4 * MIB, multiboot_header() + CODE, memsz=5000)], 4 * MIB + 12, bits=32)
    loaded, memory = load_bytes(tmp_path, kernel, initrd=b"m" * 5000)
    start, end = struct.unpack("<2I", memory.read(info(loaded, memory)["mods_addr"], 8))
    assert (start, end) == (4 * MIB + 8192, 4 * MIB + 8192 + 5000)


def test_module_behind_a_low_kernel_is_above_1_mib(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_elf(0x30000), initrd=b"m")
    assert memory.read_u32(info(loaded, memory)["mods_addr"]) == MIB


def test_a_long_module_name_fits(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 250) / ("e" * 250) / ("f" * 250) / ("g" * 250)
    folder.mkdir(parents=True)
    loaded, memory = load_bytes(folder, multiboot_elf(), initrd=b"m")
    string = memory.read_u32(info(loaded, memory)["mods_addr"] + 8)
    assert text(memory, string) == str(folder / "initrd")
    assert untouched(memory, loaded)


def test_ram_too_small_for_kernel_and_module(tmp_path: Path) -> None:
    error = refused(tmp_path, multiboot_elf(), "initrd: .* no room in RAM beside the kernel", initrd=bytes(15 * MIB))
    assert error.path == str(tmp_path / "initrd")


@pytest.mark.parametrize("padding", [0, 4, 100, 8192 - 16 - 12 - 88, 8192 - 12 - 88])
def test_header_wherever_it_may_be(tmp_path: Path, padding: int) -> None:
    data = b"\x90" * padding + multiboot_header() + CODE
    loaded, _ = load_bytes(tmp_path, elf([Part(MIB, data)], MIB + padding + 12, bits=32))
    assert loaded.format == "multiboot"


@pytest.mark.parametrize("padding", [1, 2, 3, 8192 - 8 - 88, 8192 - 88, 9000])
def test_header_where_none_may_be(tmp_path: Path, padding: int) -> None:
    data = b"\x90" * padding + multiboot_header() + CODE
    kernel = elf([Part(MIB, data)], MIB + padding + 12, bits=32)
    loaded, _ = load_bytes(tmp_path, kernel)
    assert (loaded.format, loaded.notes) == ("elf", ())
    refused(tmp_path, kernel, "has no multiboot header.*02 b0 ad 1b.*8192", kernel_format="multiboot")


def test_wrong_checksum(tmp_path: Path) -> None:
    kernel = multiboot_elf()
    at = kernel.index(multiboot_header())
    kernel = patched(kernel, at + 8, "<I", 12345)
    loaded, _ = load_bytes(tmp_path, kernel)
    assert loaded.format == "elf"
    assert loaded.notes == (f"{tmp_path / 'kernel'}: multiboot magic with a wrong checksum at offset {at:#x}, ignored",)
    error = refused(tmp_path, kernel, "wrong checksum", kernel_format="multiboot")
    assert error.offset == at + 8


def test_a_second_header_counts_when_the_first_is_none(tmp_path: Path) -> None:
    data = struct.pack("<III", 0x1BADB002, 0, 1) + multiboot_header() + CODE
    loaded, _ = load_bytes(tmp_path, elf([Part(MIB, data)], MIB + 24, bits=32))
    assert (loaded.format, loaded.entry) == ("multiboot", MIB + 24)


@pytest.mark.parametrize("bit", range(3, 16))
def test_requirement_that_is_unknown(tmp_path: Path, bit: int) -> None:
    """3.1.2: bits 0 to 15 are requirements; a loader that cannot fulfil one must say so and stop."""
    kernel = multiboot_elf(flags=1 << bit)
    error = refused(tmp_path, kernel, f"requires flag {bit} ")
    assert error.offset == kernel.index(multiboot_header(1 << bit)) + 4


def test_several_unknown_requirements(tmp_path: Path) -> None:
    refused(tmp_path, multiboot_elf(flags=1 << 5 | 1 << 9 | 1), "requires flag 5, 9 ")


@pytest.mark.parametrize("bit", range(17, 32))
def test_optional_flag_that_is_unknown(tmp_path: Path, bit: int) -> None:
    assert load_bytes(tmp_path, multiboot_elf(flags=1 << bit))[0].format == "multiboot"


def test_video_mode_is_noted_and_not_given(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_elf(flags=1 << 2))
    assert "video mode" in loaded.notes[0]
    assert not info(loaded, memory)["flags"] & (1 << 11 | 1 << 12)


# --- Address fields ("a.out kludge", 3.1.3) -----------------------------------------------------------


@pytest.mark.parametrize("before", [0, 4, 4096])
def test_addresses_in_the_header(tmp_path: Path, before: int) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_flat(MIB, before=before, code=CODE, bss=1000))
    assert (loaded.format, loaded.entry) == ("multiboot", MIB + before + 32)
    assert memory.read(loaded.entry, len(CODE)) == CODE
    kernel = next(piece for piece in loaded.pieces if piece.what == "kernel")
    assert (kernel.gpa, kernel.length) == (MIB, before + 32 + len(CODE) + 1000)


def test_loading_starts_inside_the_file(tmp_path: Path) -> None:
    header = multiboot_header(1 << 16, (MIB + 16, MIB, 0, 0, MIB + 48))
    loaded, memory = load_bytes(tmp_path, b"J" * 100 + b"\x90" * 16 + header + CODE)
    assert memory.read(MIB, 16) == b"\x90" * 16
    assert memory.read(loaded.entry, len(CODE)) == CODE


def test_load_end_of_zero_is_the_end_of_the_file(tmp_path: Path) -> None:
    header = multiboot_header(1 << 16, (MIB, MIB, 0, 0, MIB + 32))
    loaded, memory = load_bytes(tmp_path, header + CODE + b"tail")
    assert memory.read(MIB + 32 + len(CODE), 4) == b"tail"
    assert loaded.pieces[-1].length == 32 + len(CODE) + 4


def test_load_end_leaves_the_rest_of_the_file_out(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, multiboot_flat(MIB, code=CODE) + b"debug information")
    assert memory.read(loaded.pieces[-1].end, 16) == bytes(16)


def test_bss_is_zero_whatever_was_there(tmp_path: Path) -> None:
    memory = allocate()
    memory.fill(MIB, 8192, 0xFF)
    load_bytes(tmp_path, multiboot_flat(MIB, code=CODE, bss=100), memory)
    assert memory.read(MIB + 32 + len(CODE), 101) == bytes(100) + b"\xff"


def test_addresses_count_even_in_an_elf_file(tmp_path: Path) -> None:
    header = multiboot_header(1 << 16, (2 * MIB, 2 * MIB, 2 * MIB + 48, 0, 2 * MIB + 32))
    kernel = elf([Part(MIB, header + CODE)], MIB + 32, bits=64)
    loaded, memory = load_bytes(tmp_path, kernel)
    assert loaded.entry == 2 * MIB + 32
    assert memory.read(MIB, 64) == bytes(64)


@pytest.mark.parametrize(
    ("addresses", "words", "field"),
    [
        ((MIB - 4, MIB, 0, 0, MIB), "header_addr 0xffffc and load_addr 0x100000", 12),
        ((MIB + 4, MIB, 0, 0, MIB), "header_addr 0x100004 and load_addr 0x100000", 12),
        ((MIB, MIB, MIB, 0, MIB), "load_end_addr 0x100000", 20),
        ((MIB, MIB, MIB - 1, 0, MIB), "load_end_addr", 20),
        ((MIB, MIB, MIB + 49, 0, MIB), "load_end_addr 0x100031.*0x100030, where the file ends", 20),
        ((MIB, MIB, MIB + 48, MIB + 47, MIB), "bss_end_addr 0x10002f", 24),
        ((MIB, MIB, 0, MIB + 47, MIB), "bss_end_addr", 24),
        ((MIB, MIB, 0, 0, MIB + 48), "entry_addr 0x100030", 28),
        ((MIB, MIB, 0, 0, MIB - 1), "entry_addr", 28),
        ((MIB, MIB, 0, 0, 0), "entry_addr 0x0", 28),
        ((MIB, MIB, 0, 0xFFFFFFFF, MIB), "kernel .* does not lie in RAM", 16),
        ((0x1000000, 0x1000000, 0, 0, 0x1000000), "does not lie in RAM", 16),
        ((0xFFFFFFF0, 0xFFFFFFF0, 0, 0, 0xFFFFFFF4), "does not lie in RAM", 16),
        ((0x800, 0x800, 0, 0, 0x800), "overlaps multiboot information", 16),
        ((0x20000, 0x20000, 0, 0, 0x20000), "overlaps command line", 16),
    ],
)
def test_addresses_refused(tmp_path: Path, addresses: tuple[int, ...], words: str, field: int) -> None:
    error = refused(tmp_path, multiboot_header(1 << 16, addresses) + CODE, words)
    assert error.offset == field


@pytest.mark.parametrize("length", [12, 13, 31])
def test_header_with_addresses_cut_short(tmp_path: Path, length: int) -> None:
    refused(tmp_path, multiboot_flat()[:length], "cut short.*32 bytes")


def test_addresses_beyond_the_search_length(tmp_path: Path) -> None:
    refused(tmp_path, multiboot_flat(before=8192 - 28), "cut short")


def test_no_addresses_and_no_elf(tmp_path: Path) -> None:
    refused(tmp_path, multiboot_header() + CODE, "without addresses and is no ELF file.*flag 16")


def test_elf_that_is_not_sound(tmp_path: Path) -> None:
    kernel = multiboot_elf()
    refused(tmp_path, patched(kernel, build.E_MACHINE, "<H", 40), "for Arm")
    refused(tmp_path, patched(kernel, build.E_ENTRY, "<I", 0), "e_entry 0x0 is in no segment")


@pytest.mark.parametrize("gpa", [0x500, 0x800, 0x20000])
def test_kernel_on_what_the_protocol_needs(tmp_path: Path, gpa: int) -> None:
    refused(tmp_path, multiboot_elf(gpa), "segment 0 .* overlaps (boot GDT|multiboot information|command line)")


@pytest.mark.parametrize("append", ["x" * 65536, "a\0b"])
def test_command_line_refused(tmp_path: Path, append: str) -> None:
    refused(tmp_path, multiboot_elf(), "--append: the command line", append=append)


def test_options_of_flat_binaries(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--flat-mode is for flat binaries.*multiboot kernel"):
        load_bytes(tmp_path, multiboot_flat(), flat_mode="protected")
    loaded, _ = load_bytes(tmp_path, multiboot_flat(), flat_mode="protected", kernel_format="flat")
    assert loaded.format == "flat"
