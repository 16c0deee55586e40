"""Whatever a file holds: it is loaded soundly or refused with a LoadError, in bounded time, inside RAM."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot import load
from pyvmm.config import VmConfig
from pyvmm.errors import LoadError
from tests.support.boot import MIB, allocate, untouched
from tests.support.bzimagebuild import INIT_SIZE, bzimage, pack, vmlinux
from tests.support.elfbuild import (
    PT_NOTE,
    Part,
    elf,
    multiboot2_header,
    multiboot_elf,
    multiboot_flat,
    note,
    pvh_elf,
    pvh_note,
)

CODE = b"\x90" * 15 + b"\xf4"
HIGH = 0xFFFFFFFF80000000
SEEDS = [
    elf([Part(MIB, CODE), Part(2 * MIB, CODE, memsz=5000)], MIB),
    elf([Part(MIB, CODE, vaddr=HIGH + MIB), Part(2 * MIB, CODE, vaddr=0)], HIGH + MIB),
    elf([Part(MIB, CODE), Part(MIB + 4096, CODE, memsz=5000)], MIB, bits=32),
    multiboot_elf(flags=3),
    multiboot_elf(bits=64),
    multiboot_flat(before=8, bss=500),
    pvh_elf(MIB),
    pvh_elf(MIB, bits=32, size=4),
    elf(
        [
            Part(MIB, CODE),
            Part(0, note(b"GNU\0", 5, b"123", 8) + note(b"Xen\0", 18, bytes(8), 8), type=PT_NOTE, align=8),
        ],
        MIB,
    ),
    elf([Part(MIB, multiboot2_header() + CODE), Part(0, pvh_note(MIB), type=PT_NOTE)], MIB),
    vmlinux(MIB),
    vmlinux(MIB, bits=32),
]

FORMATS = st.sampled_from(["auto", "flat", "elf", "multiboot", "pvh", "linux"])
BZIMAGES = [
    bzimage(payload=pack(vmlinux(), "gzip"), changed={INIT_SIZE: MIB}),
    bzimage(payload=pack(vmlinux(), "lzma"), changed={INIT_SIZE: MIB}, setup_sects=0),
    bzimage(payload=pack(vmlinux(), "lz4"), version=0x20C, changed={INIT_SIZE: MIB}),
    bzimage(payload=pack(vmlinux(), "zstd"), version=0x208),
    bzimage(version=0x202),
]
HEADER_FIELDS = [0x1F1, 0x1F4, 0x1FE, 0x201, 0x206, 0x20E, 0x211, 0x214, 0x22C, 0x230, 0x234, 0x235, 0x236, 0x238]
HEADER_FIELDS += [0x248, 0x24C, 0x258, 0x260]
EDGES = [0, 1, 2, 3, 4, 0x7F, 0xFFFF, MIB - 1, MIB, 4 * MIB - 1, 4 * MIB, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
EDGES += [1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 16, (1 << 64) - 1]
VALUES = st.one_of(st.sampled_from(EDGES), st.integers(0, (1 << 64) - 1))
MUTATION = st.tuples(st.integers(0, 400), st.sampled_from([1, 2, 4, 8]), VALUES)


@st.composite
def mutated(draw: Callable[..., object]) -> bytes:
    """A sound image with some fields overwritten, and perhaps cut."""
    image = bytearray(draw(st.sampled_from(SEEDS)))  # type: ignore[call-overload]
    for offset, width, value in draw(st.lists(MUTATION, max_size=4)):  # type: ignore[attr-defined]
        offset %= len(image)
        image[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    if draw(st.booleans()):
        del image[draw(st.integers(1, len(image))) :]
    return bytes(image)


@st.composite
def mutated_bzimage(draw: Callable[..., object]) -> bytes:
    """A sound bzImage with fields of its header, or bytes of its payload, overwritten, and perhaps cut."""
    image = bytearray(draw(st.sampled_from(BZIMAGES)))  # type: ignore[call-overload]
    where = st.one_of(st.integers(0x1F1, 0x26C), st.sampled_from(HEADER_FIELDS), st.integers(2560, 5000))
    for offset, width, value in draw(st.lists(st.tuples(where, st.sampled_from([1, 2, 4, 8]), VALUES), max_size=4)):  # type: ignore[attr-defined]
        offset %= len(image)
        image[offset : offset + width] = (value % (1 << 8 * width)).to_bytes(width, "little")
    if draw(st.integers(0, 5)) == 0:
        del image[draw(st.integers(1, len(image))) :]
    return bytes(image)


SPLICED = st.tuples(
    st.sampled_from([b"", b"\x7fELF", b"\x7fELF\x01\x01\x01", b"\x7fELF\x02\x01\x01", b"\x02\xb0\xad\x1b"]),
    st.binary(max_size=300),
).map(b"".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def check(folder: Path, kernel: bytes, format: str, extras: bool, entry: str = "auto") -> None:
    path = folder / "kernel"
    path.write_bytes(kernel)
    (folder / "initrd").write_bytes(b"initrd")
    told = extras and format in ("multiboot", "pvh", "linux", "bzimage")
    config = VmConfig(
        path,
        kernel_format=format,
        kernel_entry=entry,
        mem="4M",
        append="quiet" if told else "",
        initrd=folder / "initrd" if told else None,
    )
    memory = allocate(config.mem)
    started = time.thread_time()
    try:
        loaded = load(config, memory)
    except LoadError as error:
        assert "\n" not in str(error)
        assert error.path.split(" (")[0] in (str(path), str(folder / "initrd"), "--append")
    else:
        assert untouched(memory, loaded)
        assert any(piece.gpa <= loaded.entry < piece.end for piece in loaded.pieces)
        assert loaded.describe()
    finally:
        assert time.thread_time() - started < 1
        memory.close()  # BufferError if a loader still held a view


@settings(max_examples=300, deadline=None)
@given(kernel=mutated(), format=FORMATS, extras=st.booleans())
def test_mutated_images(folder: Path, kernel: bytes, format: str, extras: bool) -> None:
    check(folder, kernel, format, extras)


@settings(max_examples=300, deadline=None)
@given(kernel=mutated_bzimage(), entry=st.sampled_from(["bzimage", "payload"]), extras=st.booleans())
def test_mutated_bzimages(folder: Path, kernel: bytes, entry: str, extras: bool) -> None:
    check(folder, kernel, "bzimage", extras, entry)


@settings(max_examples=150, deadline=None)
@given(kernel=SPLICED.filter(bool), format=FORMATS)
def test_random_bytes(folder: Path, kernel: bytes, format: str) -> None:
    check(folder, kernel, format, False)


@pytest.mark.parametrize("kernel", SEEDS)
def test_the_seeds_themselves_are_judged(folder: Path, kernel: bytes) -> None:
    """All but the one whose note points at 0 are sound, so that mutations start from inside."""
    path = folder / "kernel"
    path.write_bytes(kernel)
    memory = allocate()
    if kernel is SEEDS[8]:
        with pytest.raises(LoadError, match="PVH entry 0x0"):
            load(VmConfig(path), memory)
    else:
        load(VmConfig(path), memory)


def test_worst_case_is_bounded(folder: Path) -> None:
    """The most headers, notes and candidates that are let in at once."""
    parts = [Part(MIB + 16 * i, CODE) for i in range(1000)]
    parts += [Part(0, note(b"", 1, b"") * 200, type=PT_NOTE) for _ in range(24)]
    check(folder, elf(parts, MIB), "auto", False)
    check(folder, b"\x02\xb0\xad\x1b" * 4000, "auto", False)
    check(folder, b"\xd6\x50\x52\xe8" * 8192, "auto", False)
