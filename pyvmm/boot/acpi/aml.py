"""AML, the byte code of ACPI's namespace, as far as a description of devices needs it; and resource descriptors.

Imports nothing. Every function returns the bytes of one term. ACPI specification 6.5, chapter 20 (grammar and opcodes)
and 6.4 (resources).
"""

from __future__ import annotations

from struct import pack

# Opcodes: table 20.1.
ZERO_OP, ONE_OP = 0x00, 0x01
NAME_OP = 0x08
BYTE_PREFIX, WORD_PREFIX, DWORD_PREFIX, STRING_PREFIX, QWORD_PREFIX = 0x0A, 0x0B, 0x0C, 0x0D, 0x0E
SCOPE_OP, BUFFER_OP, PACKAGE_OP, METHOD_OP = 0x10, 0x11, 0x12, 0x14
NOTIFY_OP = 0x86
EXT_OP_PREFIX, DEVICE_OP = 0x5B, 0x82

# Resource descriptors: table 6.27 (small) and 6.40 (large).
IRQ_DESCRIPTOR = 0x22
IO_DESCRIPTOR = 0x47
END_TAG = 0x79
MEMORY32_FIXED_DESCRIPTOR = 0x86
DWORD_ADDRESS_SPACE_DESCRIPTOR = 0x87
WORD_ADDRESS_SPACE_DESCRIPTOR = 0x88
EXTENDED_INTERRUPT_DESCRIPTOR = 0x89
MEMORY_RANGE, BUS_NUMBER_RANGE = 0, 2
RANGE_IS_FIXED = 1 << 2 | 1 << 3
"""Types and flags of address space descriptors (6.4.3.5): both ends are fixed, and the device hands the range on to
those behind it (the producer's bit is 0). For memory: not cacheable (0) and MEMORY_WRITABLE."""
MEMORY_WRITABLE = 1
INTERRUPT_CONSUMER, INTERRUPT_EDGE = 1 << 0, 1 << 1
"""Flags of the extended interrupt descriptor (6.4.3.6). Active high is 0."""


def package_length(length: int) -> bytes:
    """PkgLength in front of `length` bytes; it counts itself (20.2.4)."""
    if length + 1 < 1 << 6:
        return bytes([length + 1])
    for extra in (1, 2, 3):
        total = length + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 0xF]) + (total >> 4).to_bytes(extra, "little")
    raise ValueError(f"{length} bytes are more than a package holds")


def name_path(path: str) -> bytes:
    """A NameString (20.2.2): segments of up to four characters, separated by dots, `\\` in front for the root."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.removeprefix("\\").split(".")]
    if any(len(segment) != 4 for segment in segments) or len(segments) > 2:
        raise ValueError(f"{path!r} is no name")
    return root + (b"\x2e" if len(segments) == 2 else b"") + b"".join(segments)


def integer(value: int) -> bytes:
    """An integer of 0 to 2**64 - 1, in its shortest form (20.2.3)."""
    if value in (0, 1):
        return bytes([ONE_OP if value else ZERO_OP])
    for prefix, size in ((BYTE_PREFIX, 1), (WORD_PREFIX, 2), (DWORD_PREFIX, 4), (QWORD_PREFIX, 8)):
        if value < 1 << (8 * size):
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value} does not fit 64 bits")


def string(text: str) -> bytes:
    """A string of ASCII characters."""
    return bytes([STRING_PREFIX]) + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA id such as PNP0501 (19.3.4): three letters of five bits, four hexadecimal digits."""
    letters = 0
    for letter in text[:3]:
        letters = letters << 5 | ord(letter) - 0x40
    number = letters << 16 | int(text[3:], 16)
    return bytes([DWORD_PREFIX]) + number.to_bytes(4, "big")


def package(*elements: bytes) -> bytes:
    """A package of up to 255 elements."""
    body = bytes([len(elements)]) + b"".join(elements)
    return bytes([PACKAGE_OP]) + package_length(len(body)) + body


def buffer(data: bytes) -> bytes:
    """A buffer that holds `data`."""
    body = integer(len(data)) + data
    return bytes([BUFFER_OP]) + package_length(len(body)) + body


def name(path: str, value: bytes) -> bytes:
    """Name (path, value)."""
    return bytes([NAME_OP]) + name_path(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    body = name_path(path) + b"".join(terms)
    return bytes([SCOPE_OP]) + package_length(len(body)) + body


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }."""
    body = name_path(path) + b"".join(terms)
    return bytes([EXT_OP_PREFIX, DEVICE_OP]) + package_length(len(body)) + body


def method(path: str, *terms: bytes) -> bytes:
    """Method (path, 0, NotSerialized) { terms }."""
    body = name_path(path) + b"\0" + b"".join(terms)
    return bytes([METHOD_OP]) + package_length(len(body)) + body


def notify(path: str, value: int) -> bytes:
    """Notify (path, value)."""
    return bytes([NOTIFY_OP]) + name_path(path) + integer(value)


def resources(*descriptors: bytes) -> bytes:
    """A resource template: `descriptors`, and the end tag, whose checksum of 0 means that there is none (6.4.2.9)."""
    return buffer(b"".join(descriptors) + bytes([END_TAG, 0]))


def io(port: int, length: int) -> bytes:
    """Ports decoded with 16 bits (6.4.2.5)."""
    return pack("<BBHHBB", IO_DESCRIPTOR, 1, port, port, 1, length)


def irq(number: int) -> bytes:
    """An ISA interrupt: edge, active high, not shared (6.4.2.1)."""
    return pack("<BH", IRQ_DESCRIPTOR, 1 << number)


def memory32(gpa: int, length: int) -> bytes:
    """Registers in memory below 4 GiB, readable and writable (6.4.3.4)."""
    return pack("<BHBII", MEMORY32_FIXED_DESCRIPTOR, 9, 1, gpa, length)


def edge_interrupt(gsi: int) -> bytes:
    """A GSI: edge, active high, not shared (6.4.3.6)."""
    flags = INTERRUPT_CONSUMER | INTERRUPT_EDGE
    return pack("<BHBBI", EXTENDED_INTERRUPT_DESCRIPTOR, 6, flags, 1, gsi)


def memory_window(gpa: int, length: int) -> bytes:
    """Memory below 4 GiB that a bridge hands on to the devices behind it (6.4.3.5.2)."""
    head = pack("<BHBBB", DWORD_ADDRESS_SPACE_DESCRIPTOR, 23, MEMORY_RANGE, RANGE_IS_FIXED, MEMORY_WRITABLE)
    return head + pack("<IIIII", 0, gpa, gpa + length - 1, 0, length)


def bus_numbers(first: int, last: int) -> bytes:
    """The numbers of the buses behind a bridge (6.4.3.5.3)."""
    head = pack("<BHBBB", WORD_ADDRESS_SPACE_DESCRIPTOR, 13, BUS_NUMBER_RANGE, RANGE_IS_FIXED, 0)
    return head + pack("<HHHHH", 0, first, last, 0, last - first + 1)
