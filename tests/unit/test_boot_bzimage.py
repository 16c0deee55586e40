"""bzImages: every field of the setup header that counts, and the kernel in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyvmm.boot import load
from pyvmm.config import VmConfig
from pyvmm.errors import LoadError
from tests.support import bzimagebuild as build
from tests.support.boot import MIB, allocate, load_bytes, text, untouched
from tests.support.bzimagebuild import CODE, RELEASE, bzimage

KERNEL = CODE * 100


def refused(folder: Path, kernel: bytes, words: str, offset: int | None = None, **settings: Any) -> LoadError:
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(folder, kernel, kernel_format="bzimage", **settings)
    assert caught.value.exit_status == 127
    assert caught.value.offset == offset
    assert "\n" not in str(caught.value)
    return caught.value


def test_64_bit_entry(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, bzimage())
    state = loaded.state
    assert (loaded.format, state.mode, loaded.entry) == ("bzimage", "long", 2 * MIB + 0x200)
    assert (state.cs.selector, state.ds.selector) == (0x10, 0x18)
    assert memory.read(2 * MIB, len(KERNEL)) == KERNEL
    piece = next(piece for piece in loaded.pieces if piece.what == "kernel")
    assert (piece.gpa, piece.length) == (2 * MIB, 4 * MIB)  # init_size
    assert untouched(memory, loaded)
    assert f"Linux {RELEASE}, boot protocol 2.15" in loaded.describe()


@pytest.mark.parametrize("version", [0x202, 0x203, 0x204, 0x205, 0x206, 0x209, 0x20A, 0x20B])
def test_32_bit_entry_of_old_kernels(tmp_path: Path, version: int) -> None:
    loaded, memory = load_bytes(tmp_path, bzimage(version=version))
    at = MIB if version < 0x205 else 2 * MIB  # relocatable from 2.05 on
    assert (loaded.state.mode, loaded.entry) == ("protected", at)
    assert (loaded.state.rbp, loaded.state.rdi, loaded.state.rbx) == (0, 0, 0)
    assert memory.read(at, len(KERNEL)) == KERNEL


@pytest.mark.parametrize("flags", [0, 0xFFFE])
def test_32_bit_entry_where_there_is_no_other(tmp_path: Path, flags: int) -> None:
    loaded, _ = load_bytes(tmp_path, bzimage(changed={build.XLOADFLAGS: flags}))
    assert (loaded.state.mode, loaded.entry) == ("protected", 2 * MIB)


def test_the_header_is_copied_and_filled_in(tmp_path: Path) -> None:
    kernel = bzimage(changed={build.CODE32_START: 0x12345678, (0x1FA, "<H"): 0xFFFD, (0x250, "<Q"): 77})
    loaded, memory = load_bytes(tmp_path, kernel, initrd=b"i" * 100)
    page = memory.read(loaded.state.rsi, 4096)
    assert page[:0x70].strip(b"\0") == b""
    assert page[0x1EF] == 0  # the sentinel says that nothing else of the file was taken
    assert page[0x26C:0x2D0] == bytes(0x64)
    assert page[0x1F1:0x210] == kernel[0x1F1:0x210]
    assert page[0x210:0x212] == b"\xff\x01"  # loader; loadflags without CAN_USE_HEAP
    assert page[0x22C:0x250] == kernel[0x22C:0x250]
    assert page[0x258:0x26C] == kernel[0x258:0x26C]
    assert page[0x250:0x258] == bytes(8)
    assert memory.read_u32(loaded.state.rsi + 0x214) == 2 * MIB
    assert text(memory, memory.read_u32(loaded.state.rsi + 0x228)) == loaded.command_line
    assert memory.read(memory.read_u32(loaded.state.rsi + 0x218), 100) == b"i" * 100


def test_a_short_header_leaves_the_rest_zero(tmp_path: Path) -> None:
    loaded, memory = load_bytes(tmp_path, bzimage(version=0x202))
    assert memory.read(loaded.state.rsi + 0x22C, 0x64) == bytes(0x64)


@pytest.mark.parametrize("sectors", [0, 1, 4, 39, 64])
def test_setup_sects(tmp_path: Path, sectors: int) -> None:
    loaded, memory = load_bytes(tmp_path, bzimage(setup_sects=sectors))
    assert memory.read(2 * MIB, len(KERNEL)) == KERNEL
    assert loaded.entry == 2 * MIB + 0x200


@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ({}, 2 * MIB),
        ({build.PREF_ADDRESS: 0}, 2 * MIB),  # code32_start, aligned
        ({build.PREF_ADDRESS: 3 * MIB}, 4 * MIB),
        ({build.PREF_ADDRESS: 3 * MIB, build.RELOCATABLE_KERNEL: 0}, 3 * MIB),
        ({build.PREF_ADDRESS: 0, build.RELOCATABLE_KERNEL: 0}, MIB),
        ({build.PREF_ADDRESS: 0, build.RELOCATABLE_KERNEL: 0, build.CODE32_START: 5 * MIB}, 5 * MIB),
        ({build.KERNEL_ALIGNMENT: 8 * MIB}, 8 * MIB),
        ({build.KERNEL_ALIGNMENT: 0, build.RELOCATABLE_KERNEL: 0}, 2 * MIB),
    ],
)
def test_load_address(tmp_path: Path, changed: dict[tuple[int, str], int], at: int) -> None:
    loaded, memory = load_bytes(tmp_path, bzimage(changed=changed))
    assert loaded.entry == at + 0x200
    assert memory.read_u32(loaded.state.rsi + 0x214) == at


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        (build.BOOT_FLAG, 0xAA54, "has boot_flag 0xaa54 .*0xaa55"),
        (build.MAGIC, 0, "has no setup header magic .*HdrS"),
        (build.VERSION, 0, "boot protocol 0.00"),
        (build.VERSION, 0x201, r"boot protocol 2.01 .*2\.02 \(Linux 2\.4\)"),
        (build.VERSION, 0x300, "boot protocol 3.00"),
        (build.JUMP, 0x6AE9, "has e9 6a where the length of the setup header is told"),
        (build.JUMP, 0x69EB, "has eb 69 .*eb 6a or up to eb 7f"),
        (build.JUMP, 0x00EB, "has eb 00 "),
        (build.JUMP, 0x80EB, "has eb 80 "),
        (build.JUMP, 0xFFEB, "has eb ff "),
        (build.SETUP_SECTS, 65, "setup_sects of 65 .*at most 64"),
        (build.SYSSIZE, 0, "syssize of 0"),
        (build.LOADFLAGS, 0x80, "is a zImage, .*LOADED_HIGH"),
        (build.KERNEL_ALIGNMENT, 0, "kernel_alignment of 0x0 .*power of 2"),
        (build.KERNEL_ALIGNMENT, 3 * MIB, "kernel_alignment of 0x300000 .*power of 2"),
        (build.MIN_ALIGNMENT, 22, r"min_alignment of 2\^22 .*0x200000"),
        (build.MIN_ALIGNMENT, 255, "min_alignment"),
        (build.PREF_ADDRESS, 1 << 32, "pref_address of 0x100000000 .*between 1 MiB and 4 GiB"),
        (build.PREF_ADDRESS, (1 << 64) - 1, "pref_address"),
        (build.INIT_SIZE, 0, "init_size of 0"),
        (build.PAYLOAD_OFFSET, 1 << 31, r"payload, 0 bytes, at 0x80000a00 "),
    ],
)
def test_field_refused(tmp_path: Path, field: tuple[int, str], value: int, words: str) -> None:
    refused(tmp_path, bzimage(changed={field: value}), words, field[0])


@pytest.mark.parametrize("field", [build.PREF_ADDRESS, build.CODE32_START])
def test_a_place_below_1_mib(tmp_path: Path, field: tuple[int, str]) -> None:
    changed = {build.RELOCATABLE_KERNEL: 0, build.PREF_ADDRESS: 0} | {field: MIB - 4096}
    refused(tmp_path, bzimage(changed=changed), "of 0xff000 .*between 1 MiB and 4 GiB", field[0])


@pytest.mark.parametrize(("offset", "length"), [(16, 1600 - 15), (1600, 1), (16, 0), (16, 0xFFFFFFFF)])
def test_payload_beyond_the_file(tmp_path: Path, offset: int, length: int) -> None:
    changed = {build.PAYLOAD_OFFSET: offset, build.PAYLOAD_LENGTH: length}
    refused(tmp_path, bzimage(changed=changed), f"has its payload, {length} bytes", 0x248)


@pytest.mark.parametrize("pointer", [0, 0x9F0, 0xA00, 0xFFFF])
def test_version_string_that_is_none(tmp_path: Path, pointer: int) -> None:
    """It is only for show: a wrong pointer is no reason not to boot."""
    kernel = bzimage(changed={build.KERNEL_VERSION: pointer})
    assert "a Linux kernel of unknown version, boot protocol 2.15" in load_bytes(tmp_path, kernel)[0].describe()


def test_version_string_with_controls_is_not_shown(tmp_path: Path) -> None:
    kernel = bzimage().replace(RELEASE.encode(), b"6.1\x1b[2J".ljust(len(RELEASE), b"\0"))
    assert "unknown version" in load_bytes(tmp_path, kernel)[0].describe()


@pytest.mark.parametrize("length", [1, 0x1F1, 0x1FF, 0x201, 0x205, 0x207, 0x20D])
def test_ends_within_the_header(tmp_path: Path, length: int) -> None:
    refused(tmp_path, bzimage()[:length], "ends within the setup header", length)


@pytest.mark.parametrize("length", [0x20E, 0x26B])
def test_ends_within_a_later_field(tmp_path: Path, length: int) -> None:
    refused(tmp_path, bzimage()[:length], "ends within the setup header at .*0x26c bytes", length)


@pytest.mark.parametrize("length", [0x26C, 1024, 5 * 512])
def test_ends_within_the_setup_code(tmp_path: Path, length: int) -> None:
    refused(tmp_path, bzimage()[:length], "ends within its 2560 bytes of setup code", length)


def test_cut_short(tmp_path: Path) -> None:
    kernel = bzimage()
    refused(tmp_path, kernel[:-16], f"is cut short: {len(kernel) - 16} bytes .expected {len(kernel)} by its syssize")
    load_bytes(tmp_path, kernel[:-15])  # syssize is rounded up
    load_bytes(tmp_path, kernel + bytes(5000))  # a signature may follow


def test_before_2_04_syssize_says_nothing(tmp_path: Path) -> None:
    load_bytes(tmp_path, bzimage(version=0x203, changed={build.SYSSIZE: 0xFFFFFFFF}))


def test_ram_too_small(tmp_path: Path) -> None:
    kernel = bzimage(changed={build.INIT_SIZE: 20 * MIB})
    refused(tmp_path, kernel, r"kernel \(0x200000-0x15fffff\) does not lie in RAM .*--mem 22M", 0x260)
    kernel = bzimage(b"k" * 16 * MIB, version=0x205)
    refused(tmp_path, kernel, r"kernel \(0x200000-0x11fffff\) does not lie in RAM", 0x1F4)


def test_a_forced_bzimage_on_this_kind_of_host_unpacks_itself(tmp_path: Path) -> None:
    from pyvmm.boot import Surroundings

    path = tmp_path / "kernel"
    path.write_bytes(bzimage(payload=b"no known format"))
    loaded = load(VmConfig(path, kernel_entry="bzimage"), allocate(), Surroundings(emulated=True))
    assert loaded.entry == 2 * MIB + 0x200
    assert "emulates" not in loaded.describe()
