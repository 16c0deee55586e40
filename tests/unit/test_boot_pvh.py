"""PVH: the note, the machine state and the start info that Xen's direct boot ABI describes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import LoadError
from tests.support import elfbuild as build
from tests.support.boot import MIB, allocate, load_bytes, text, untouched
from tests.support.elfbuild import Part, elf, note, patched, pvh_elf, pvh_note

CODE = b"\x90" * 15 + b"\xf4"


def with_notes(notes: bytes, align: int = 4, entry: int = MIB) -> bytes:
    return elf([Part(MIB, CODE), Part(0, notes, type=build.PT_NOTE, align=align)], entry)


def refused(folder: Path, kernel: bytes, words: str, **settings: Any) -> LoadError:
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(folder, kernel, **settings)
    assert caught.value.exit_status == 127
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("size", [4, 8])
def test_entry_of_the_note(tmp_path: Path, bits: int, size: int) -> None:
    kernel = elf([Part(MIB, CODE), Part(0, pvh_note(MIB + 3, size), type=build.PT_NOTE)], MIB, bits=bits)
    loaded, memory = load_bytes(tmp_path, kernel)
    assert (loaded.format, loaded.entry) == ("pvh", MIB + 3)
    assert untouched(memory, loaded)


def test_machine_state(tmp_path: Path) -> None:
    state = load_bytes(tmp_path, pvh_elf(MIB))[0].state
    assert state.mode == "protected"
    assert state.cr0 & ~0x10 == 1  # PE alone; ET cannot be written
    assert state.cr4 == 0
    assert (state.cs.base, state.cs.limit, state.cs.db, state.cs.type & 0xA) == (0, 0xFFFFFFFF, 1, 0xA)
    for name in ("ds", "es"):
        segment = getattr(state, name)
        assert (segment.base, segment.limit, segment.type & 0xA) == (0, 0xFFFFFFFF, 2)
    assert (state.tr.base, state.tr.limit, state.tr.type) == (0, 0x67, 0xB)
    assert state.rflags & (1 << 17 | 1 << 9 | 1 << 8) == 0


def test_start_info(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, pvh_elf(MIB), allocate(5 << 30), append="console=ttyS0", initrd=b"i" * 5000)
    fields = struct.unpack("<IIIIQQQQII", memory.read(loaded.state.rbx, 56))
    magic, version, flags, modules, module_list, command_line, rsdp, memory_map, entries, reserved = fields
    assert (magic, version, flags, modules, reserved) == (0x336EC578, 1, 0, 1, 0)
    assert memory.read(rsdp, 8) == b"RSD PTR "
    assert text(memory, command_line) == "console=ttyS0"
    gpa, size, string, zero = struct.unpack("<QQQQ", memory.read(module_list, 32))
    assert memory.read(gpa, size) == b"i" * 5000
    assert gpa == (3 << 30) - 8192
    assert (string, zero) == (0, 0)
    entry = struct.Struct("<QQII")
    assert [entry.unpack(memory.read(memory_map + i * 24, 24)) for i in range(entries)] == [
        (*described, 0) for described in loaded.memory_map
    ]


def test_start_info_with_nothing_to_say(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, pvh_elf(MIB))
    fields = struct.unpack("<IIIIQQQQII", memory.read(loaded.state.rbx, 56))
    assert fields[3:6] == (0, 0, 0)
    assert loaded.command_line is None
    assert fields[8] == len(loaded.memory_map)


@pytest.mark.parametrize(
    "notes",
    [
        note(b"GNU\0", 5, b"build id") + pvh_note(MIB),
        note(b"Xen\0", 6, b"FreeBSD\0") + note(b"", 1, b"") + pvh_note(MIB, 4) + note(b"Xen\0", 5, b"2.6\0"),
        note(b"Linux\0", 18, bytes(8)) + pvh_note(MIB),
        pvh_note(MIB) + pvh_note(0),
    ],
)
def test_among_other_notes(tmp_path: Path, notes: bytes) -> None:
    assert load_bytes(tmp_path, with_notes(notes, entry=MIB + 1))[0].entry == MIB


def test_notes_aligned_to_8(tmp_path: Path) -> None:
    notes = note(b"GNU\0", 5, b"12345", align=8) + note(b"Xen\0", 18, struct.pack("<Q", MIB), align=8)
    assert load_bytes(tmp_path, with_notes(notes, align=8))[0].format == "pvh"


@pytest.mark.parametrize(
    "notes", [b"", note(b"Xen\0", 5, b"x"), note(b"Xen", 18, bytes(8)), note(b"GNU\0", 18, bytes(8))]
)
def test_no_such_note(tmp_path: Path, notes: bytes) -> None:
    assert load_bytes(tmp_path, with_notes(notes))[0].format == "elf"
    refused(tmp_path, with_notes(notes), "has no PVH entry.*type 18", kernel_format="pvh")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 7, 9, 16])
def test_note_of_a_wrong_size(tmp_path: Path, size: int) -> None:
    refused(tmp_path, with_notes(note(b"Xen\0", 18, bytes(size))), f"PVH note of {size} bytes.*4 or 8")


@pytest.mark.parametrize("entry", [0, MIB - 1, MIB + 16, 16 * MIB, 1 << 32, (1 << 64) - 1])
def test_note_that_points_nowhere(tmp_path: Path, entry: int) -> None:
    error = refused(tmp_path, with_notes(pvh_note(entry)), f"PVH entry {entry:#x} is in no segment")
    assert error.offset == 64 + 2 * 56 + len(CODE) + 16


def test_entry_beyond_4_gib(tmp_path: Path) -> None:
    kernel = elf([Part(1 << 32, CODE), Part(0, pvh_note(1 << 32), type=build.PT_NOTE)], 1 << 32)
    with pytest.raises(LoadError, match="PVH entry 0x100000000 is beyond 4 GiB"):
        load_bytes(tmp_path, kernel, allocate(5 << 30))


@pytest.mark.parametrize("length", [1, 4, 11, 12, 15, 16, 23])
def test_note_cut_short(tmp_path: Path, length: int) -> None:
    refused(tmp_path, with_notes(pvh_note(MIB)[:length]), "has a note (cut short|of 4 \\+ 8 bytes)")


@pytest.mark.parametrize(("field", "value"), [(0, 1 << 20), (0, 0xFFFFFFFF), (4, 1 << 20), (4, 0xFFFFFFFF)])
def test_note_longer_than_its_segment(tmp_path: Path, field: int, value: int) -> None:
    refused(tmp_path, with_notes(patched(pvh_note(MIB), field, "<I", value)), "has a note of .*ends with its segment")


def test_note_segment_beyond_the_file(tmp_path: Path) -> None:
    kernel = with_notes(pvh_note(MIB))
    refused(
        tmp_path, patched(kernel, build.phdr(1, build.P_OFFSET), "<Q", len(kernel)), "segment 1 .*beyond the file's end"
    )


def test_too_many_notes(tmp_path: Path) -> None:
    refused(tmp_path, with_notes(note(b"GNU\0", 1, bytes(65536))), "65552 bytes of notes.*at most 65536")
    many = elf([Part(MIB, CODE)] + [Part(0, note(b"GNU\0", 1, bytes(4000)), type=build.PT_NOTE)] * 20, MIB)
    refused(tmp_path, many, "bytes of notes up to segment 17")


@pytest.mark.parametrize("gpa", [0x500, 0x600, 0x6B7])
def test_kernel_on_what_the_protocol_needs(tmp_path: Path, gpa: int) -> None:
    refused(tmp_path, pvh_elf(gpa), "segment 0 .* overlaps (boot GDT|PVH start info)")


@pytest.mark.parametrize("append", ["x" * 65536, "a\0b"])
def test_command_line_refused(tmp_path: Path, append: str) -> None:
    refused(tmp_path, pvh_elf(MIB), "--append: the command line", append=append)


def test_ram_too_small_for_kernel_and_initrd(tmp_path: Path) -> None:
    refused(tmp_path, pvh_elf(MIB), "initrd: .* no room in RAM", initrd=bytes(15 * MIB))


def test_empty_initrd(tmp_path: Path) -> None:
    refused(tmp_path, pvh_elf(MIB), "initrd: is empty", initrd=b"")
