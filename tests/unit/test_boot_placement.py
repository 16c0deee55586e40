"""Claims on guest memory, the memory map, modules and the command line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from pyvmm import layout
from pyvmm.boot.placement import RAM, RESERVED, Placement, memory_map
from pyvmm.errors import LoadError
from tests.support.boot import MIB, allocate, text

GIB = 1 << 30
RESERVED_ENTRIES = [(0x9FC00, 0x60400, RESERVED), (0xFFFBC000, 0x4000, RESERVED)]


def placement(size: int = 16 * MIB) -> Placement:
    return Placement(allocate(size), "kernel")


@pytest.mark.parametrize(
    ("size", "ram"),
    [
        (64 << 10, [(0, 64 << 10)]),
        (MIB, [(0, 0x9FC00)]),
        (MIB + 4096, [(0, 0x9FC00), (MIB, 4096)]),
        (16 * MIB, [(0, 0x9FC00), (MIB, 15 * MIB)]),
        (3 * GIB, [(0, 0x9FC00), (MIB, 3 * GIB - MIB)]),
        (4 * GIB, [(0, 0x9FC00), (MIB, 3 * GIB - MIB), (4 * GIB, GIB)]),
    ],
)
def test_memory_map(size: int, ram: list[tuple[int, int]]) -> None:
    entries = memory_map(allocate(size))
    assert entries == sorted([(base, length, RAM) for base, length in ram] + RESERVED_ENTRIES)


def test_memory_map_never_overlaps() -> None:
    entries = memory_map(allocate(5 * GIB))
    for (base, size, _), (following, _, _) in pairwise(entries):
        assert base + size <= following


def test_claims_may_touch() -> None:
    place = placement()
    place.claim(0x200000, 0x1000, "b")
    place.claim(0x201000, 0x1000, "c")
    place.claim(0x1FF000, 0x1000, "a")
    assert [piece.what for piece in place.pieces] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(0x200000, 1), (0x200FFF, 1), (0x1FFFFF, 2), (0x200FFF, 2), (0x1FF000, 0x3000), (0x200000, 0x1000), (0x200400, 8)],
)
def test_overlap_is_refused(gpa: int, length: int) -> None:
    place = placement()
    place.claim(0x100000, 0x1000, "below")
    place.claim(0x200000, 0x1000, "first")
    place.claim(0x300000, 0x1000, "above")
    with pytest.raises(LoadError, match=r"second \(0x.*\) overlaps first \(0x200000-0x200fff\) at offset 0x40"):
        place.claim(gpa, length, "second", offset=0x40)
    assert len(place.pieces) == 3


def test_a_claim_over_several_is_refused() -> None:
    place = placement()
    place.claim(0x300000, 0x1000, "first")
    place.claim(0x400000, 0x1000, "second")
    with pytest.raises(LoadError, match="overlaps"):
        place.claim(0x200000, 0x400000, "large")


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (16 * MIB - 1, 2),
        (16 * MIB, 1),
        (1 << 63, 1),
        (MIB, 1 << 64),
    ],
)
def test_outside_ram_is_refused(gpa: int, length: int) -> None:
    with pytest.raises(LoadError, match=r"does not lie in RAM.*within 0x0-0xffffff"):
        placement().claim(gpa, length, "piece")


@pytest.mark.parametrize(("end", "size"), [(16 * MIB + 1, "17M"), (17 * MIB, "17M"), (3 * GIB, "3072M")])
def test_the_memory_that_would_do_is_named(end: int, size: str) -> None:
    with pytest.raises(LoadError, match=rf"within 0x0-0xffffff, or --mem {size}\)"):
        placement().claim(2 * MIB, end - 2 * MIB, "kernel")


def test_ram_that_the_map_reserves_may_be_claimed() -> None:
    place = placement()
    place.claim(0xFF000, 0x120, "ELF header of a kernel at 1 MiB")
    place.claim(0x9FC00, 0x400, "EBDA")
    assert [piece.gpa for piece in place.pieces] == [0x9FC00, 0xFF000]


@pytest.mark.parametrize(("gpa", "length"), [(3 * GIB - 1, 2), (4 * GIB, 1)])
def test_no_memory_would_do(gpa: int, length: int) -> None:
    with pytest.raises(LoadError, match=r"does not lie in RAM \(expected a place within 0x0-0xffffff\)"):
        placement().claim(gpa, length, "kernel")


def test_command_line() -> None:
    place = placement()
    gpa = place.put_command_line("console=ttyS0 größe")
    assert text(place.memory, gpa) == "console=ttyS0 größe"
    assert place.command_line == "console=ttyS0 größe"


def test_command_line_keeps_bytes_of_no_encoding() -> None:
    place = placement()
    gpa = place.put_command_line("a=\udcff")
    assert place.memory.read(gpa, 4) == b"a=\xff\0"


def test_command_line_at_the_limit_and_over() -> None:
    most = layout.COMMAND_LINE_SIZE - 1
    place = placement()
    gpa = place.put_command_line("x" * most)
    assert place.memory.read(gpa, most + 1) == b"x" * most + b"\0"
    with pytest.raises(LoadError, match=f"--append.*{most + 1} bytes.*at most {most}") as caught:
        placement().put_command_line("x" * (most + 1))
    assert caught.value.exit_status == 127
    with pytest.raises(LoadError, match="at most 2047"):
        placement().put_command_line("x" * 2048, limit=2048)


def test_command_line_with_nul() -> None:
    with pytest.raises(LoadError, match="--append: the command line has a NUL at offset 0x3"):
        placement().put_command_line("abc\0def")


def test_command_line_that_no_encoding_has() -> None:
    with pytest.raises(LoadError, match="cannot be encoded"):
        placement().put_command_line("\ud800")


def module(folder: Path, data: bytes) -> str:
    (folder / "initrd").write_bytes(data)
    return str(folder / "initrd")


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 100_000])
def test_module_goes_as_high_as_it_can(tmp_path: Path, size: int) -> None:
    place = placement()
    data = bytes(range(256)) * (size // 256) + b"m" * (size % 256)
    piece = place.load_module(module(tmp_path, data))
    assert piece.gpa % 4096 == 0
    assert piece.gpa == (16 * MIB - size) & ~4095
    assert place.memory.read(piece.gpa, piece.length) == data


def test_module_stays_below_4_gib(tmp_path: Path) -> None:
    piece = placement(5 * GIB).load_module(module(tmp_path, bytes(8192)))
    assert piece.end == 3 * GIB


def test_module_goes_around_what_is_there(tmp_path: Path) -> None:
    place = placement()
    place.claim(16 * MIB - 0x1800, 0x1800, "kernel")
    piece = place.load_module(module(tmp_path, bytes(5000)))
    assert piece.end <= 16 * MIB - 0x2000
    assert piece.gpa == 16 * MIB - 0x4000


def test_module_above_the_kernel(tmp_path: Path) -> None:
    place = placement()
    place.claim(2 * MIB, 5000, "kernel")
    piece = place.load_module(module(tmp_path, bytes(5000)), above=2 * MIB + 5000)
    assert piece.gpa == 2 * MIB + 8192


def test_ram_too_small_for_kernel_and_initrd(tmp_path: Path) -> None:
    place = placement(4 * MIB)
    place.claim(MIB, 2 * MIB, "kernel")
    path = module(tmp_path, bytes(MIB + 1))
    with pytest.raises(LoadError, match=r"initrd: 1048577 bytes have no room.*--mem.*at most 1048576 bytes") as caught:
        place.load_module(path)
    assert caught.value.exit_status == 127
    assert "\n" not in str(caught.value)


def test_module_of_exactly_what_is_left(tmp_path: Path) -> None:
    place = placement(4 * MIB)
    place.claim(MIB, 2 * MIB, "kernel")
    assert place.load_module(module(tmp_path, bytes(MIB))).gpa == 3 * MIB


def test_no_room_at_all(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="at most 0 bytes"):
        placement(MIB).load_module(module(tmp_path, b"x"))
