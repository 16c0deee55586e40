"""The payload of a bzImage: every format unpacked, within bounds, and entered as the vmlinux that it is."""

from __future__ import annotations

import struct
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from pyvmm.boot import LoadedKernel, Surroundings, load
from pyvmm.config import VmConfig
from pyvmm.errors import LoadError, MissingExtraError
from pyvmm.memory import GuestMemory
from tests.support.boot import MIB, allocate, load_bytes, untouched
from tests.support.bzimagebuild import CODE, INIT_SIZE, bzimage, lz4_legacy, pack, vmlinux
from tests.support.elfbuild import elf

FORMATS = ["gzip", "bzip2", "xz", "lzma", "lz4", "zstd"]
KERNEL = vmlinux()
PAYLOAD_AT = 5 * 512 + 1600
"""The setup code, and what unpacks the kernel."""


def unpacked(folder: Path, payload: bytes, **settings: Any) -> tuple[LoadedKernel, GuestMemory]:
    return load_bytes(folder, bzimage(payload=payload), kernel_entry="payload", **settings)


def refused(folder: Path, payload: bytes, words: str, offset: int | None = PAYLOAD_AT) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        unpacked(folder, payload)
    assert caught.value.exit_status == 127
    assert caught.value.offset == offset
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("behind", [b"", bytes(range(256)) * 64])
def test_format(tmp_path: Path, format: str, behind: bytes) -> None:
    """`behind` are relocations, which a kernel has no use for where it was linked to run."""
    loaded, memory = unpacked(tmp_path, pack(KERNEL + behind, format), append="quiet", initrd=b"initrd")
    assert (loaded.format, loaded.state.mode, loaded.entry) == ("bzimage", "long", 2 * MIB)
    assert memory.read(2 * MIB, len(CODE)) == memory.read(3 * MIB, len(CODE)) == CODE
    assert untouched(memory, loaded)
    # The bzImage's own header, not one made up.
    assert memory.read(loaded.state.rsi + 0x230, 8) == struct.pack("<IBBH", 2 * MIB, 1, 21, 1)
    assert memory.read_u32(loaded.state.rsi + 0x218) == 16 * MIB - 4096


def test_32_bit_kernel(tmp_path: Path) -> None:
    loaded, _ = unpacked(tmp_path, pack(vmlinux(bits=32), "gzip"))
    assert (loaded.state.mode, loaded.entry) == ("protected", 2 * MIB)


def test_lz4_of_several_blocks(tmp_path: Path) -> None:
    data = KERNEL + bytes(range(256)) * 1000
    packed = lz4_legacy(data, 65536) + struct.pack("<I", len(data))
    assert unpacked(tmp_path, packed)[0].entry == 2 * MIB


@pytest.mark.parametrize("emulated", [False, True])
def test_auto_unpacks_where_ring_0_is_emulated(tmp_path: Path, emulated: bool) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(bzimage(payload=pack(KERNEL, "gzip")))
    loaded = load(VmConfig(path), allocate(), Surroundings(emulated=emulated))
    assert loaded.entry == (2 * MIB if emulated else 2 * MIB + 0x200)
    assert ("this host emulates ring 0" in loaded.describe()) is emulated


@pytest.mark.parametrize("kernel", [bzimage(), bzimage(version=0x206)])
def test_no_payload(tmp_path: Path, kernel: bytes) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(kernel)
    load(VmConfig(path), allocate(), Surroundings(emulated=True))
    with pytest.raises(LoadError, match="does not say where its payload is"):
        load(VmConfig(path, kernel_entry="payload"), allocate())


@pytest.mark.parametrize("format", FORMATS)
def test_missing_size(tmp_path: Path, format: str) -> None:
    packed = pack(KERNEL, format)
    for size in (0, 0xFFFFFFFF, 4 * MIB + 1):
        wrong = packed[:-4] + struct.pack("<I", size)
        refused(tmp_path, wrong, f"unpacks to {size} bytes .*1 to {4 * MIB}", PAYLOAD_AT + len(packed) - 4)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("error", [-1, 1, 1000, -len(KERNEL) + 1])
def test_wrong_size(tmp_path: Path, format: str, error: int) -> None:
    wrong = pack(KERNEL, format)[:-4] + struct.pack("<I", len(KERNEL) + error)
    refused(tmp_path, wrong, f"has a {format} payload that (cannot be unpacked|does not unpack to the)")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("cut", [10, 40, 100])
def test_cut_short(tmp_path: Path, format: str, cut: int) -> None:
    packed = pack(KERNEL, format)
    refused(tmp_path, packed[:-cut] + struct.pack("<I", len(KERNEL)), f"has a {format} payload that")


@pytest.mark.parametrize("format", ["gzip", "bzip2", "xz"])
def test_damage_is_found_by_the_checksum(tmp_path: Path, format: str) -> None:
    packed = bytearray(pack(bytes(range(256)) * 20, format))
    packed[len(packed) // 2] ^= 0x10
    refused(tmp_path, bytes(packed), f"has a {format} payload that cannot be unpacked")


@pytest.mark.parametrize("format", FORMATS)
def test_a_bomb_is_not_unpacked(tmp_path: Path, format: str) -> None:
    """256 MiB of zeros that say they are 64 KiB."""
    if format == "lz4":
        block = lz4_legacy(bytes(8 * MIB))[4:]
        bomb = b"\x02\x21\x4c\x18" + block * 32
    else:
        bomb = pack(bytes(256 * MIB), format)[:-4]
    bomb += struct.pack("<I", 65536)
    path = tmp_path / "kernel"
    path.write_bytes(bzimage(payload=bomb))
    memory = allocate()
    tracemalloc.start()
    try:
        with pytest.raises(LoadError):
            load(VmConfig(path, kernel_entry="payload"), memory)
        assert tracemalloc.get_traced_memory()[1] < 32 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "block", [b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f" + bytes(16), b"\x04\0\0\0\xff\xff", b"\0\0"]
)
def test_lz4_blocks_that_lie(tmp_path: Path, block: bytes) -> None:
    packed = b"\x02\x21\x4c\x18" + block + struct.pack("<I", 1000)
    refused(tmp_path, packed, "has a lz4 payload that")


def test_unknown_and_unsupported(tmp_path: Path) -> None:
    refused(tmp_path, b"\x89LZO\0\r\n\x1a\n" + bytes(50), "compressed with lzo, .*--kernel-entry bzimage")
    refused(tmp_path, b"hello" + bytes(50), "begins with 68 65 6c 6c .*gzip, xz, lzma, lz4, zstd, bzip2")
    refused(tmp_path, b"\x1f\x8b", "unpacks to 0 bytes", PAYLOAD_AT - 2)


@pytest.mark.parametrize(("format", "library"), [("lz4", "lz4"), ("zstd", "zstandard")])
def test_missing_library(tmp_path: Path, format: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(KERNEL, format)
    for name in [library, f"{library}.block"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"compressed with {format} needs {library}: .*pyvmm-kvm\[kernel\]"):
        unpacked(tmp_path, packed)


def test_what_is_inside_is_judged_like_any_elf(tmp_path: Path) -> None:
    refused(tmp_path, pack(b"not a kernel" * 10, "gzip"), r"kernel \(gzip payload\): has no ELF magic", 0)
    refused(tmp_path, pack(elf([], 0), "gzip"), r"kernel \(gzip payload\): has no program headers", 56)
    refused(tmp_path, pack(KERNEL[:-4], "xz"), r"\(xz payload\): segment 2 is .* beyond the file.s end", 64 + 2 * 56)


def test_old_headers_give_no_bound_but_ours(tmp_path: Path) -> None:
    kernel = bzimage(version=0x208, payload=pack(KERNEL, "gzip"))
    assert load_bytes(tmp_path, kernel, kernel_entry="payload")[0].entry == 2 * MIB
    huge = pack(KERNEL, "gzip")[:-4] + struct.pack("<I", (1 << 30) + 1)
    with pytest.raises(LoadError, match="unpacks to 1073741825 bytes"):
        load_bytes(tmp_path, bzimage(version=0x208, payload=huge), kernel_entry="payload")


def test_init_size_bounds_it(tmp_path: Path) -> None:
    kernel = bzimage(payload=pack(KERNEL, "gzip"), changed={INIT_SIZE: len(KERNEL) - 1})
    with pytest.raises(LoadError, match=f"unpacks to {len(KERNEL)} bytes .*1 to {len(KERNEL) - 1}"):
        load_bytes(tmp_path, kernel, kernel_entry="payload")


def test_libraries_are_imported_when_needed() -> None:
    import subprocess

    program = "import sys, pyvmm.boot.payload; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", program]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not {"zlib", "lzma", "bz2", "lz4", "zstandard"} & set(run.stdout.split())
