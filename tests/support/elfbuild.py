"""Building ELF and multiboot files byte by byte, sound ones and broken ones.

Written from the specifications and not from the loaders, which it is to check.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4

# Offsets of ELF header fields by class, for tests that break one.
E_TYPE, E_MACHINE, E_VERSION, E_ENTRY = 16, 18, 20, 24
E_PHOFF = {32: 28, 64: 32}
E_PHENTSIZE = {32: 42, 64: 54}
E_PHNUM = {32: 44, 64: 56}
EHDR_SIZE = {32: 52, 64: 64}
PHDR_SIZE = {32: 32, 64: 56}
# Offsets of program header fields.
P_OFFSET = {32: 4, 64: 8}
P_VADDR = {32: 8, 64: 16}
P_PADDR = {32: 12, 64: 24}
P_FILESZ = {32: 16, 64: 32}
P_MEMSZ = {32: 20, 64: 40}
WORD = {32: "<I", 64: "<Q"}


@dataclass
class Part:
    """A program header and its bytes. `memsz` None is the length of `data`, `vaddr` None the same as `paddr`."""

    paddr: int
    data: bytes
    memsz: int | None = None
    vaddr: int | None = None
    type: int = PT_LOAD
    align: int = 4


def elf(parts: list[Part], entry: int, *, bits: int = 64, machine: int | None = None) -> bytes:
    """An ET_EXEC file: header, program headers, then each part's bytes at a multiple of 8."""
    body = bytearray(EHDR_SIZE[bits] + PHDR_SIZE[bits] * len(parts))
    headers = b""
    for part in parts:
        body += bytes(-len(body) % 8)
        vaddr = part.paddr if part.vaddr is None else part.vaddr
        memsz = len(part.data) if part.memsz is None else part.memsz
        sizes = (len(part.data), memsz)
        if bits == 64:
            headers += struct.pack("<IIQQQQQQ", part.type, 7, len(body), vaddr, part.paddr, *sizes, part.align)
        else:
            headers += struct.pack("<8I", part.type, len(body), vaddr, part.paddr, *sizes, 7, part.align)
        body += part.data
    ident = b"\x7fELF" + bytes([{32: 1, 64: 2}[bits], 1, 1]).ljust(12, b"\0")
    body[:16] = ident
    fields = struct.pack("<HHI", 2, machine or {32: 3, 64: 62}[bits], 1)
    fields += struct.pack(WORD[bits][0] + WORD[bits][1] * 3, entry, EHDR_SIZE[bits], 0)
    fields += struct.pack("<IHHHHHH", 0, EHDR_SIZE[bits], PHDR_SIZE[bits], len(parts), 0, 0, 0)
    body[16 : EHDR_SIZE[bits]] = fields
    body[EHDR_SIZE[bits] : EHDR_SIZE[bits] + len(headers)] = headers
    return bytes(body)


def phdr(index: int, field: dict[int, int], bits: int = 64) -> int:
    """The offset in the file of a field of program header `index`."""
    return EHDR_SIZE[bits] + PHDR_SIZE[bits] * index + field[bits]


def patched(image: bytes, offset: int, format: str, *values: int) -> bytes:
    """`image` with `values` packed over the bytes at `offset`."""
    new = struct.pack(format, *values)
    assert offset + len(new) <= len(image)
    return image[:offset] + new + image[offset + len(new) :]


def note(owner: bytes, type: int, descriptor: bytes, align: int = 4) -> bytes:
    """One ELF note. `owner` comes with its NUL."""
    record = struct.pack("<III", len(owner), len(descriptor), type) + owner
    record += bytes(-len(record) % align) + descriptor
    return record + bytes(-len(record) % align)


def pvh_note(entry: int, size: int = 8) -> bytes:
    """Xen's PHYS32_ENTRY note with an address of `size` bytes."""
    return note(b"Xen\0", 18, entry.to_bytes(size, "little"))


def pvh_elf(entry: int, code: bytes = b"\xf4" * 16, *, bits: int = 64, size: int = 8) -> bytes:
    """An ELF file with one segment at `entry` and the note that names it."""
    return elf([Part(entry, code), Part(0, pvh_note(entry, size), type=PT_NOTE)], entry, bits=bits)


def multiboot_header(flags: int = 0, addresses: tuple[int, ...] = ()) -> bytes:
    """A multiboot 1 header; `addresses` are header, load, load_end, bss_end and entry address."""
    checksum = -(0x1BADB002 + flags) & 0xFFFFFFFF
    return struct.pack("<III", 0x1BADB002, flags, checksum) + struct.pack(f"<{len(addresses)}I", *addresses)


def multiboot_elf(load: int = 0x100000, flags: int = 0, *, bits: int = 32, code: bytes = b"\xf4" * 16) -> bytes:
    """An ELF file whose one segment begins with a multiboot header and is entered behind it."""
    header = multiboot_header(flags)
    return elf([Part(load, header + code)], load + len(header), bits=bits)


def multiboot_flat(
    load: int = 0x100000, *, before: int = 0, code: bytes = b"\xf4" * 16, flags: int = 0, bss: int = 0
) -> bytes:
    """A file that is no ELF, with `before` bytes ahead of a header that carries the addresses."""
    entry = load + before + 32
    end = entry + len(code)
    header = multiboot_header(flags | 1 << 16, (load + before, load, end, end + bss if bss else 0, entry))
    return b"\x90" * before + header + code


def multiboot2_header() -> bytes:
    """A multiboot 2 header with the end tag alone."""
    head = struct.pack("<III", 0xE85250D6, 0, 24)
    checksum = -sum(struct.unpack("<III", head)) & 0xFFFFFFFF
    return head + struct.pack("<IHHI", checksum, 0, 0, 8)
