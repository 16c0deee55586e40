"""Detection: by content, never by name, and nothing that is known as no kernel is ever run as code."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from pyvmm.errors import LoadError
from tests.support.boot import MIB, load_bytes
from tests.support.bzimagebuild import SALT, bzimage, vmlinux
from tests.support.elfbuild import (
    PT_NOTE,
    Part,
    elf,
    multiboot2_header,
    multiboot_elf,
    multiboot_flat,
    multiboot_header,
    note,
    patched,
    pvh_elf,
    pvh_note,
)

CODE = b"\x90" * 15 + b"\xf4"


@pytest.mark.parametrize(
    ("kernel", "format"),
    [
        (CODE, "flat"),
        (CODE.ljust(510, b"\0") + b"\x55\xaa", "flat"),
        (b"\x7fEL", "flat"),
        (b"\x5d\x00\x00 is code too", "flat"),
        (b"of printing bytes, in few bytes", "flat"),
        (b"a sentence, and what halts the processor: \xf4", "flat"),
        (elf([Part(MIB, CODE)], MIB), "elf"),
        (elf([Part(MIB, CODE)], MIB, bits=32), "elf"),
        (multiboot_elf(), "multiboot"),
        (multiboot_flat(), "multiboot"),
        (pvh_elf(MIB), "pvh"),
        (bzimage(), "bzimage"),
        (b"MZ" + bzimage()[2:], "bzimage"),
        (multiboot_flat()[:0x1F1].ljust(0x1F1, b"\0") + bzimage()[0x1F1:], "bzimage"),
        (vmlinux(), "linux"),
        (vmlinux(bits=32), "linux"),
        (vmlinux(notes=pvh_note(2 * MIB) + SALT), "linux"),
        (vmlinux(notes=note(b"Xen\0", 6, b"linux\0") + pvh_note(2 * MIB)), "linux"),
        (vmlinux(notes=note(b"Xen\0", 6, b"FreeBSD\0") + pvh_note(2 * MIB)), "pvh"),
        (vmlinux(notes=note(b"GNU\0", 0x100, b"")), "elf"),
    ],
)
@pytest.mark.parametrize("name", ["kernel", "kernel.bin", "kernel.elf", "bzImage", "x.gz"])
def test_format(tmp_path: Path, kernel: bytes, format: str, name: str) -> None:
    assert load_bytes(tmp_path, kernel, name=name)[0].format == format


def both(bits: int) -> bytes:
    """A kernel with a multiboot header and a PVH note."""
    code = multiboot_header() + CODE
    return elf([Part(MIB, code), Part(0, pvh_note(MIB + 12), type=PT_NOTE)], MIB + 12, bits=bits)


@pytest.mark.parametrize("bits", [32, 64])
def test_multiboot_comes_before_pvh(tmp_path: Path, bits: int) -> None:
    assert load_bytes(tmp_path, both(bits))[0].format == "multiboot"


@pytest.mark.parametrize("format", ["flat", "elf", "multiboot", "pvh", "linux"])
def test_forced(tmp_path: Path, format: str) -> None:
    assert load_bytes(tmp_path, both(32), kernel_format=format)[0].format == format


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("elf", "no ELF magic"),
        ("pvh", "no ELF magic"),
        ("linux", "no ELF magic"),
        ("multiboot", "no multiboot header"),
        ("bzimage", "ends within the setup header"),
    ],
)
def test_forced_to_what_it_is_not(tmp_path: Path, format: str, words: str) -> None:
    with pytest.raises(LoadError, match=words):
        load_bytes(tmp_path, CODE, kernel_format=format)


KERNEL = elf([Part(MIB, CODE * 100)], MIB)
LZ4_FRAME = bytes.fromhex("04224d18 6440a7 00000000")  # an empty frame (LZ4 frame format 1.6.1)
ZSTD_FRAME = bytes.fromhex("28b52ffd 0400 0100 00 99e9d851")  # an empty frame (RFC 8878)


def at(offset: int, magic: bytes) -> bytes:
    return bytes(offset) + magic + bytes(64)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (gzip.compress(KERNEL, mtime=0), "compressed with gzip"),
        (lzma.compress(KERNEL), "compressed with xz"),
        (lzma.compress(KERNEL, lzma.FORMAT_ALONE), "compressed with lzma"),
        (bz2.compress(KERNEL), "compressed with bzip2"),
        (LZ4_FRAME, "compressed with lz4"),
        (b"\x02\x21\x4c\x18" + bytes(20), r"compressed with lz4 \(legacy"),
        (ZSTD_FRAME, "compressed with zstd"),
        (b"\x89LZO\0\r\n\x1a\n", "compressed with lzop"),
        (b"MZ" + bytes(200), "PE file"),
        (at(56, b"ARM\x64"), "AArch64"),
        (b"070701" + b"0" * 104, "cpio archive.*--initrd"),
        (at(257, b"ustar"), "tar archive"),
        (b"PK\x03\x04" + bytes(30), "zip archive"),
        (b"!<arch>\n" + bytes(60), "ar archive"),
        (b"QFI\xfb" + bytes(100), "qcow2"),
        (b"#!/bin/sh\n", "script"),
        (b"[build]\r\n\toutput = 'elf'\n" * 2, "is text"),
        (at(0x8001, b"CD001"), "CD image"),
        (at(0x8001, b"CD001")[:0x8006], "CD image"),
        (elf([Part(MIB, bytes(8) + multiboot2_header() + CODE)], MIB), "multiboot 2 header only"),
        (bytes(64) + multiboot2_header(), "multiboot 2 header only"),
    ],
)
def test_known_and_refused(tmp_path: Path, kernel: bytes, words: str) -> None:
    with pytest.raises(LoadError, match=words) as caught:
        load_bytes(tmp_path, kernel)
    assert caught.value.exit_status == 127
    assert "expected" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_bytes(tmp_path, kernel, kernel_format="flat")[0].format == "flat"


def test_multiboot_2_beside_another_entry_is_no_obstacle(tmp_path: Path) -> None:
    code = multiboot_header() + bytes(4) + multiboot2_header() + CODE
    assert load_bytes(tmp_path, elf([Part(MIB, code)], MIB))[0].format == "multiboot"
    code = bytes(8) + multiboot2_header() + CODE
    kernel = elf([Part(MIB, code), Part(0, pvh_note(MIB), type=PT_NOTE)], MIB)
    assert load_bytes(tmp_path, kernel)[0].format == "pvh"


def test_multiboot_2_magic_that_is_no_header(tmp_path: Path) -> None:
    header = multiboot2_header()
    for data in (bytes(4) + header, bytes(8) + patched(header, 12, "<I", 7), header[:8]):
        loaded, _ = load_bytes(tmp_path, elf([Part(MIB, data + CODE)], MIB))
        assert loaded.format == "elf"


def test_an_unsound_elf_is_not_run_as_flat(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="ends within the ELF header"):
        load_bytes(tmp_path, KERNEL[:40])
