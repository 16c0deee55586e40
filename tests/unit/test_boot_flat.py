"""Flat binaries in each mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.errors import LoadError, UsageError
from tests.support.boot import MIB, load_bytes, untouched

CODE = bytes(range(1, 200))
BOOT_SECTOR = b"\xfa\xf4".ljust(510, b"\x90") + b"\x55\xaa"


def test_real_mode_is_the_default(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, CODE)
    state = loaded.state
    assert loaded.format == "flat"
    assert (state.mode, loaded.entry) == ("real", 0x7C00)
    assert (state.cs.selector, state.rip) == (0, 0x7C00)
    assert (state.ss.selector, state.rsp) == (0, 0x7C00)
    assert state.rdx & 0xFF == 0x80
    assert memory.read(0x7C00, len(CODE)) == CODE
    assert untouched(memory, loaded)


@pytest.mark.parametrize("size", [512, 2048])
def test_boot_sector_is_flat(tmp_path: Path, size: int) -> None:
    loaded, memory = load_bytes(tmp_path, BOOT_SECTOR.ljust(size, b"\xcc"))
    assert (loaded.format, loaded.entry) == ("flat", 0x7C00)
    assert memory.read(0x7C00 + 510, 2) == b"\x55\xaa"
    assert memory.read(0x7C00 + size - 1, 1) != b"\0"


def test_protected_mode(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, CODE, flat_mode="protected")
    assert (loaded.state.mode, loaded.entry, loaded.state.rip) == ("protected", MIB, MIB)
    assert memory.read(MIB, len(CODE)) == CODE
    assert memory.read_u64(loaded.state.gdt_base + loaded.state.cs.selector) == loaded.state.cs.descriptor()
    assert memory.read_u64(loaded.state.gdt_base + loaded.state.ds.selector) == loaded.state.ds.descriptor()
    assert untouched(memory, loaded)


def test_long_mode(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, CODE, flat_mode="long")
    assert (loaded.state.mode, loaded.entry) == ("long", MIB)
    assert memory.read_u64(loaded.state.gdt_base + loaded.state.cs.selector) == loaded.state.cs.descriptor()
    pml4 = memory.read_u64(loaded.state.cr3)
    pdpt = memory.read_u64(pml4 & -4096)
    assert memory.read_u64(pdpt & -4096) == 0x83  # the first 2 MiB: present, writable, large
    assert untouched(memory, loaded)


@pytest.mark.parametrize("mode", ["real", "protected", "long"])
def test_load_address(tmp_path: Path, mode: str) -> None:
    loaded, memory = load_bytes(tmp_path, CODE, flat_mode=mode, load_addr=0x9000)
    assert loaded.entry == 0x9000
    assert memory.read(0x9000, len(CODE)) == CODE


@pytest.mark.parametrize(
    ("gpa", "cs", "ip", "ds"),
    [
        (0, 0, 0, 0),
        (0x600, 0, 0x600, 0),
        (0xFFFF, 0, 0xFFFF, 0),
        (0x10000, 0x1000, 0, 0x1000),
        (0x81230, 0x8123, 0, 0x8123),
        (0xFFFF0, 0xFFFF, 0, 0xFFFF),
    ],
)
def test_real_mode_address_as_segment_and_offset(tmp_path: Path, gpa: int, cs: int, ip: int, ds: int) -> None:
    loaded, memory = load_bytes(tmp_path, CODE, load_addr=gpa)
    state = loaded.state
    assert (state.cs.selector, state.rip, state.ds.selector, state.es.selector) == (cs, ip, ds, ds)
    assert state.cs.base + state.rip == loaded.entry == gpa
    assert state.ss.selector == 0
    assert memory.read(gpa, len(CODE)) == CODE


@pytest.mark.parametrize(
    ("mode", "gpa", "words"),
    [
        ("real", 0x100000, "below 1 MiB"),
        ("real", 1 << 40, "below 1 MiB"),
        ("real", 0x10001, "multiple of 16"),
        ("protected", 1 << 32, "below 4 GiB"),
        ("long", 1 << 32, "below 4 GiB"),
    ],
)
def test_address_that_the_mode_cannot_start_at(tmp_path: Path, mode: str, gpa: int, words: str) -> None:
    with pytest.raises(UsageError, match=f"--load-addr {gpa:#x}: .*{words}") as caught:
        load_bytes(tmp_path, CODE, flat_mode=mode, load_addr=gpa)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("size", "settings", "words"),
    [
        (16 * MIB - 0x7BFF, {}, r"flat binary \(0x7c00-0x1000000\) does not lie in RAM.*--mem 17M"),
        (15 * MIB + 1, {"flat_mode": "protected"}, "does not lie in RAM"),
        (1, {"flat_mode": "long", "load_addr": 16 * MIB}, "does not lie in RAM"),
        (0x6401, {"load_addr": 0xC00}, "overlaps boot stack"),
        (1, {"flat_mode": "long", "load_addr": 0x1000}, "overlaps boot page tables"),
        (1, {"flat_mode": "protected", "load_addr": 0x510}, "overlaps boot GDT"),
    ],
)
def test_no_room(tmp_path: Path, size: int, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(tmp_path, bytes(size), kernel_format="flat", **settings)
    assert caught.value.exit_status == 127
    assert "\n" not in str(caught.value)


def test_the_last_byte_that_fits(tmp_path: Path) -> None:
    loaded, _ = load_bytes(tmp_path, bytes(16 * MIB - 0x7C00))
    assert loaded.pieces[-1].end == 16 * MIB
    loaded, _ = load_bytes(tmp_path, bytes(15 * MIB), flat_mode="long")
    assert loaded.pieces[-1].end == 16 * MIB


@pytest.mark.parametrize("settings", [{"append": "quiet"}, {"initrd": b"initrd"}])
def test_a_flat_binary_can_be_told_of_nothing(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"--(append|initrd): .*flat binary"):
        load_bytes(tmp_path, CODE, **settings)


def test_describe(tmp_path: Path) -> None:
    loaded, _ = load_bytes(tmp_path, CODE, name="hello.bin")
    lines = loaded.describe().splitlines()
    assert lines[0].endswith("hello.bin: flat binary")
    assert lines[1] == "entry         0x7c00 in 16-bit real mode"
    assert lines[2] == "command line  (none)"
    assert "loaded        0x0000007c00-0x0000007cc6        199 bytes  flat binary" in lines
    assert "memory map    0x0000100000-0x0000ffffff      15360 KiB    RAM" in lines
