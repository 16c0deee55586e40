"""Building Linux bzImages byte by byte, sound ones and broken ones, and the vmlinux that is in them.

Written from Documentation/arch/x86/boot.rst and not from the loader, which it is to check.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct

from tests.support.elfbuild import PT_NOTE, Part, elf, note

MIB = 1 << 20
CODE = b"\x90" * 15 + b"\xf4"

# Offsets of the fields that tests change, with the struct format of each.
SETUP_SECTS = (0x1F1, "<B")
SYSSIZE = (0x1F4, "<I")
BOOT_FLAG = (0x1FE, "<H")
JUMP = (0x200, "<H")
MAGIC = (0x202, "<I")
VERSION = (0x206, "<H")
KERNEL_VERSION = (0x20E, "<H")
TYPE_OF_LOADER = (0x210, "<B")
LOADFLAGS = (0x211, "<B")
CODE32_START = (0x214, "<I")
INITRD_ADDR_MAX = (0x22C, "<I")
KERNEL_ALIGNMENT = (0x230, "<I")
RELOCATABLE_KERNEL = (0x234, "<B")
MIN_ALIGNMENT = (0x235, "<B")
XLOADFLAGS = (0x236, "<H")
CMDLINE_SIZE = (0x238, "<I")
PAYLOAD_OFFSET = (0x248, "<I")
PAYLOAD_LENGTH = (0x24C, "<I")
PREF_ADDRESS = (0x258, "<Q")
INIT_SIZE = (0x260, "<I")

HEADER_END = {0x202: 0x22C, 0x203: 0x230, 0x204: 0x230, 0x205: 0x235, 0x206: 0x23C, 0x209: 0x258, 0x20A: 0x264}
"""Where the header of a protocol version ends at least; from 2.11 on at 0x268, from 2.15 on at 0x26c."""

SALT = note(b"Linux\0", 0x100, b"")
RELEASE = "6.1.0-test (someone@somewhere) #1"


def bzimage(
    kernel: bytes = CODE * 100,
    *,
    version: int = 0x20F,
    setup_sects: int = 4,
    payload: bytes | None = None,
    changed: dict[tuple[int, str], int] | None = None,
) -> bytes:
    """A relocatable 64-bit kernel for 2 MiB, if its `version` can say so. `payload` stands behind `kernel`.

    `changed` are fields with other values, set last.
    """
    setup = bytearray(((setup_sects or 4) + 1) * 512)
    setup[0x1EF] = 0xFF  # the sentinel, which a loader must not copy
    payload_at = len(kernel)
    body = kernel + (payload or b"")
    body += bytes(-len(body) % 16)
    end = HEADER_END.get(version, 0x26C if version >= 0x20F else 0x268)
    release = 0x300
    fields = {
        SETUP_SECTS: setup_sects,
        SYSSIZE: len(body) // 16,
        BOOT_FLAG: 0xAA55,
        JUMP: 0xEB | end - 0x202 << 8,
        MAGIC: int.from_bytes(b"HdrS", "little"),
        VERSION: version,
        KERNEL_VERSION: release - 0x200,
        LOADFLAGS: 0x81,
        CODE32_START: MIB,
        INITRD_ADDR_MAX: 0x7FFFFFFF,
        KERNEL_ALIGNMENT: 2 * MIB,
        RELOCATABLE_KERNEL: 1,
        MIN_ALIGNMENT: 21,
        XLOADFLAGS: 1,
        CMDLINE_SIZE: 2047,
        PAYLOAD_OFFSET: payload_at if payload else 0,
        PAYLOAD_LENGTH: len(payload or b""),
        PREF_ADDRESS: 2 * MIB,
        INIT_SIZE: 4 * MIB,
    }
    for (at, format), value in fields.items():
        if at + struct.calcsize(format) <= end:
            struct.pack_into(format, setup, at, value)
    setup[release : release + len(RELEASE)] = RELEASE.encode()
    for (at, format), value in (changed or {}).items():
        struct.pack_into(format, setup, at, value)
    return bytes(setup) + body


def vmlinux(load: int = 2 * MIB, *, bits: int = 64, notes: bytes = SALT) -> bytes:
    """A kernel linked for the top 2 GiB that begins at `load` and enters there."""
    high = 0xFFFFFFFF80000000 if bits == 64 else 0xC0000000
    parts = [Part(load, CODE * 4, vaddr=high + load), Part(load + MIB, CODE, memsz=8192, vaddr=high + load + MIB)]
    return elf([*parts, Part(0, notes, type=PT_NOTE)], load, bits=bits)


def lz4_legacy(data: bytes, block: int = 8 << 20) -> bytes:
    """`data` as lz4 -l packs it."""
    import lz4.block

    packed = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), block):
        piece = lz4.block.compress(data[at : at + block], store_size=False)
        packed += struct.pack("<I", len(piece)) + piece
    return packed


def pack(data: bytes, format: str) -> bytes:
    """`data` as the kernel's build packs it in `format`, its length at the end."""
    size = struct.pack("<I", len(data))
    if format == "gzip":
        return gzip.compress(data, mtime=0)
    if format == "xz":
        # scripts/xz_wrap.sh for x86; a small dictionary, to be quick.
        filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": MIB}]
        return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters) + size
    if format == "lzma":
        return lzma.compress(data, lzma.FORMAT_ALONE) + size
    if format == "bzip2":
        return bz2.compress(data) + size
    if format == "lz4":
        return lz4_legacy(data) + size
    if format == "zstd":
        import zstandard

        stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
        return stream.compress(data) + stream.flush() + size
    raise ValueError(format)
