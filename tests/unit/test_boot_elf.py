"""ELF executables: what is loaded where, and everything that is refused."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pyvmm.boot.elf import MAX_PROGRAM_HEADERS
from pyvmm.errors import LoadError, UsageError
from tests.support import elfbuild as build
from tests.support.boot import MIB, allocate, load_bytes, untouched
from tests.support.elfbuild import Part, elf, patched

CODE = bytes(range(1, 100))
BITS = pytest.mark.parametrize("bits", [32, 64])


def refused(folder: Path, kernel: bytes, words: str | None, offset: int | None = None, **settings: Any) -> LoadError:
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(folder, kernel, kernel_format="elf", **settings)
    error = caught.value
    assert error.exit_status == 127
    assert str(error).startswith(f"{folder / 'kernel'}: ")
    assert "\n" not in str(error)
    if offset is not None:
        assert error.offset == offset
    return error


@pytest.mark.parametrize(("bits", "mode"), [(32, "protected"), (64, "long")])
def test_mode_by_class(tmp_path: Path, bits: int, mode: str) -> None:
    loaded, memory = load_bytes(tmp_path, elf([Part(MIB, CODE)], MIB + 4, bits=bits))
    assert (loaded.format, loaded.state.mode, loaded.entry) == ("elf", mode, MIB + 4)
    assert memory.read(MIB, len(CODE)) == CODE
    assert memory.read_u64(loaded.state.gdt_base + loaded.state.cs.selector) == loaded.state.cs.descriptor()
    assert untouched(memory, loaded)


@BITS
def test_bss_is_zero_whatever_was_there(tmp_path: Path, bits: int) -> None:
    memory = allocate()
    memory.fill(MIB, MIB, 0xFF)
    load_bytes(tmp_path, elf([Part(MIB, CODE, memsz=10_000)], MIB, bits=bits), memory)
    assert memory.read(MIB, len(CODE)) == CODE
    assert memory.read(MIB + len(CODE), 10_000 - len(CODE)) == bytes(10_000 - len(CODE))
    assert memory.read_u8(MIB + 10_000) == 0xFF


def test_several_segments_touching(tmp_path: Path) -> None:
    parts = [Part(2 * MIB, b"b" * 4096), Part(MIB, b"a" * 100), Part(2 * MIB + 4096, b"", memsz=4096)]
    loaded, memory = load_bytes(tmp_path, elf(parts, MIB))
    assert memory.read(2 * MIB, 4096) == b"b" * 4096
    assert [piece.what for piece in loaded.pieces[-3:]] == ["segment 1", "segment 0", "segment 2"]


def test_segments_go_to_their_physical_address(tmp_path: Path) -> None:
    virtual = 0xFFFFFFFF80000000
    parts = [Part(MIB, CODE, vaddr=virtual + MIB), Part(3 * MIB, CODE, vaddr=virtual + 3 * MIB)]
    loaded, memory = load_bytes(tmp_path, elf(parts, virtual + 3 * MIB + 5))
    assert loaded.entry == 3 * MIB + 5
    assert memory.read(3 * MIB, len(CODE)) == CODE


def test_entry_at_the_end_of_one_segment_and_the_start_of_another(tmp_path: Path) -> None:
    parts = [Part(MIB, CODE, vaddr=0x1000), Part(3 * MIB, CODE, vaddr=0x1000 + len(CODE))]
    loaded, _ = load_bytes(tmp_path, elf(parts, 0x1000 + len(CODE)))
    assert loaded.entry == 3 * MIB


def test_physical_entry_as_linux_has_it(tmp_path: Path) -> None:
    """A vmlinux gives a physical e_entry beside virtual segments, and a per-CPU segment at virtual 0."""
    parts = [
        Part(MIB, CODE, vaddr=0xFFFFFFFF81000000),
        Part(2 * MIB, CODE, vaddr=0, memsz=0x20000),
    ]
    loaded, _ = load_bytes(tmp_path, elf(parts, MIB + 8))
    assert loaded.entry == MIB + 8


def test_segment_above_4_gib(tmp_path: Path) -> None:
    memory = allocate(5 << 30)
    kernel = elf([Part(MIB, CODE), Part(1 << 32, b"high")], MIB)
    load_bytes(tmp_path, kernel, memory)
    assert memory.read(1 << 32, 4) == b"high"


def test_empty_segments_and_other_types_are_passed_over(tmp_path: Path) -> None:
    parts = [Part(MIB, CODE), Part(1 << 60, b"", memsz=0), Part(0, b"x", type=0x6474E551, memsz=1 << 40)]
    loaded, memory = load_bytes(tmp_path, elf(parts, MIB))
    assert untouched(memory, loaded)


@BITS
def test_truncated_at_every_header_byte(tmp_path: Path, bits: int) -> None:
    kernel = elf([Part(MIB, CODE)], MIB, bits=bits)
    for length in range(1, len(kernel)):
        refused(tmp_path, kernel[:length], None)
    load_bytes(tmp_path, kernel, kernel_format="elf")


GOOD64 = elf([Part(MIB, CODE)], MIB)
GOOD32 = elf([Part(MIB, CODE)], MIB, bits=32)


@pytest.mark.parametrize(
    ("kernel", "words", "offset"),
    [
        (b"\x7fELG" + GOOD64[4:], "no ELF magic.*7f 45 4c 46", 0),
        (patched(GOOD64, 4, "B", 0), "unknown ELF class 0", 4),
        (patched(GOOD64, 4, "B", 3), "unknown ELF class 3", 4),
        (patched(GOOD64, 5, "B", 2), "big-endian", 5),
        (patched(GOOD64, 5, "B", 7), "unknown ELF byte order 7", 5),
        (patched(GOOD64, 6, "B", 0), "ELF version 0", 6),
        (patched(GOOD64, build.E_VERSION, "<I", 2), "e_version 2", 20),
        (patched(GOOD64, build.E_MACHINE, "<H", 183), "64-bit ELF file for AArch64.*62, x86-64", 18),
        (patched(GOOD64, build.E_MACHINE, "<H", 3), "64-bit ELF file for i386", 18),
        (patched(GOOD32, build.E_MACHINE, "<H", 62), "32-bit ELF file for x86-64.*3, i386", 18),
        (patched(GOOD32, build.E_MACHINE, "<H", 999), "another machine", 18),
        (patched(GOOD64, build.E_TYPE, "<H", 1), "ET_REL", 16),
        (patched(GOOD64, build.E_TYPE, "<H", 3), "ET_DYN.*-no-pie", 16),
        (patched(GOOD64, build.E_TYPE, "<H", 4), "ET_CORE", 16),
        (patched(GOOD64, build.E_TYPE, "<H", 0xFE00), "ELF type 65024", 16),
        (patched(GOOD64, build.E_PHNUM[64], "<H", 0), "no program headers", 56),
        (patched(GOOD32, build.E_PHNUM[32], "<H", 0), "no program headers", 44),
        (patched(GOOD64, build.E_PHNUM[64], "<H", 0xFFFF), "65535 program headers.*at most 1024", 56),
        (patched(GOOD64, build.E_PHNUM[64], "<H", 100), "program headers at 0x40-0x", 32),
        (patched(GOOD64, build.E_PHENTSIZE[64], "<H", 0), "program headers of 0 bytes.*56", 54),
        (patched(GOOD64, build.E_PHENTSIZE[64], "<H", 64), "program headers of 64 bytes", 54),
        (patched(GOOD32, build.E_PHENTSIZE[32], "<H", 56), "program headers of 56 bytes.*32", 42),
        (patched(GOOD64, build.E_PHOFF[64], "<Q", 0), "program headers at 0x0", 32),
        (patched(GOOD64, build.E_PHOFF[64], "<Q", 1 << 63), "program headers at 0x8000000000000000", 32),
        (patched(GOOD64, build.E_PHOFF[64], "<Q", (1 << 64) - 56), "program headers at", 32),
        (patched(GOOD32, build.E_PHOFF[32], "<I", 0xFFFFFFE0), "program headers at", 28),
    ],
)  # fmt: skip
def test_header_refused(tmp_path: Path, kernel: bytes, words: str, offset: int) -> None:
    refused(tmp_path, kernel, words, offset)


@BITS
@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (build.P_OFFSET, 1 << 20, "beyond the file's end"),
        (build.P_OFFSET, -1, "beyond the file's end"),
        (build.P_FILESZ, 1000, "beyond the file's end"),
        (build.P_FILESZ, -1, "beyond the file's end"),
        (build.P_MEMSZ, 98, "takes 99 bytes of the file.*its 98 of memory"),
        (build.P_MEMSZ, -1, r"wraps: 0xf+ bytes from p_paddr 0x100000"),
        (build.P_MEMSZ, 16 * MIB, r"segment 0 \(0x100000-0x10fffff\) does not lie in RAM"),
        (build.P_PADDR, -50, "wraps"),
        (build.P_PADDR, 16 * MIB, "does not lie in RAM"),
        (build.P_PADDR, 16 * MIB - 98, "does not lie in RAM"),
        (build.P_PADDR, 0xFEE00000, "does not lie in RAM"),
        (build.P_PADDR, 0x4FF, r"overlaps boot GDT \(0x500-0x52f\)"),
        (build.P_PADDR, 0x7B00, r"overlaps boot stack \(0x7000-0x7bff\)"),
        (build.P_VADDR, -50, "wraps: .* p_vaddr"),
    ],
)
def test_segment_refused(tmp_path: Path, bits: int, field: dict[int, int], value: int, words: str) -> None:
    kernel = elf([Part(MIB, CODE)], MIB, bits=bits)
    at = build.phdr(0, field, bits)
    kernel = patched(kernel, at, build.WORD[bits], value % (1 << bits))
    if field is build.P_PADDR:  # the entry goes along
        kernel = patched(kernel, build.E_ENTRY, build.WORD[bits], value % (1 << bits))
        kernel = patched(kernel, build.phdr(0, build.P_VADDR, bits), build.WORD[bits], 0)
    refused(tmp_path, kernel, words, build.EHDR_SIZE[bits])


def test_page_tables_are_in_the_way_in_long_mode_only(tmp_path: Path) -> None:
    refused(tmp_path, elf([Part(0x3000, CODE)], 0x3000), "overlaps boot page tables", 64)
    loaded, _ = load_bytes(tmp_path, elf([Part(0x3000, CODE)], 0x3000, bits=32))
    assert loaded.entry == 0x3000


@pytest.mark.parametrize("second", [2 * MIB, 2 * MIB - 98, 2 * MIB + 98, 2 * MIB + 50])
def test_overlapping_segments(tmp_path: Path, second: int) -> None:
    kernel = elf([Part(2 * MIB, CODE), Part(second, CODE)], 2 * MIB)
    refused(tmp_path, kernel, r"segment 1 \(.*\) overlaps segment 0 \(0x200000-0x200062\)", 64 + 56)


@pytest.mark.parametrize("entry", [0, MIB - 1, MIB + 99, MIB + 200, 1 << 63])
def test_entry_outside_of_what_was_loaded(tmp_path: Path, entry: int) -> None:
    refused(tmp_path, elf([Part(MIB, CODE, memsz=4096)], entry), f"e_entry {entry:#x} is in no segment", 24)


def test_entry_beyond_4_gib(tmp_path: Path) -> None:
    kernel = elf([Part(1 << 32, CODE)], 1 << 32)
    with pytest.raises(LoadError, match="e_entry 0x100000000 is beyond 4 GiB"):
        load_bytes(tmp_path, kernel, allocate(5 << 30))


@pytest.mark.parametrize("type", [build.PT_INTERP, build.PT_DYNAMIC])
def test_dynamic_linking(tmp_path: Path, type: int) -> None:
    kernel = elf([Part(MIB, CODE), Part(0, b"/lib/ld.so\0", type=type)], MIB)
    refused(tmp_path, kernel, "linked dynamically.*-static", 64 + 56)


def test_nothing_to_load(tmp_path: Path) -> None:
    refused(tmp_path, elf([Part(0, CODE, type=build.PT_NOTE)], 0), "nothing to load")


def test_the_most_program_headers(tmp_path: Path) -> None:
    parts = [Part(MIB + i * 16, b"\xf4" * 16) for i in range(MAX_PROGRAM_HEADERS)]
    loaded, _ = load_bytes(tmp_path, elf(parts, MIB))
    assert len(loaded.pieces) == MAX_PROGRAM_HEADERS + 3
    refused(tmp_path, elf([*parts, Part(8 * MIB, b"x")], MIB), f"{MAX_PROGRAM_HEADERS + 1} program headers")


@pytest.mark.parametrize("settings", [{"append": "quiet"}, {"initrd": b"initrd"}])
def test_an_executable_without_protocol_can_be_told_of_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--(append|initrd): .*ELF executable"):
        load_bytes(tmp_path, GOOD64, **settings)


@pytest.mark.parametrize("settings", [{"flat_mode": "long"}, {"load_addr": 0x200000}])
def test_options_of_flat_binaries(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--(flat-mode|load-addr) is for flat binaries.*ELF executable"):
        load_bytes(tmp_path, GOOD64, **settings)


def test_a_large_kernel_is_not_copied(tmp_path: Path) -> None:
    """64 MiB of kernel and 16 MiB of initrd pass from the page cache to guest RAM and nowhere else."""
    header = build.multiboot_elf(code=bytes(64 * MIB))
    memory = allocate(128 * MIB)
    (tmp_path / "initrd").write_bytes(bytes(16 * MIB))
    (tmp_path / "big").write_bytes(header)
    del header
    from pyvmm.boot import load
    from pyvmm.config import VmConfig

    config = VmConfig(tmp_path / "big", initrd=tmp_path / "initrd")
    tracemalloc.start()
    try:
        load(config, memory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MIB


def test_the_line_that_a_user_reads(tmp_path: Path) -> None:
    error = refused(tmp_path, patched(GOOD64, 5, "B", 2), None)
    assert re.fullmatch(r".*/kernel: is big-endian at offset 0x5 \(expected 1 \(little-endian\)\)", str(error))
