"""Guests of a few bytes for tests of the VMM around them. Each is a flat binary for the mode it names."""

from __future__ import annotations

EXIT_5 = bytes.fromhex("b005 e6f4 f4")
"""Real mode: mov $5, %al; out %al, $0xf4; hlt. Ends with status 11."""

SPIN = bytes.fromhex("ebfe")
"""Any mode: 1: jmp 1b."""

HALT = bytes.fromhex("fa f4 ebfd")
"""Any mode: cli; 1: hlt; jmp 1b. Nothing can wake it."""

CHATTER = bytes.fromhex("baf803 b078 ee ebfd")
"""Real mode: mov $0x3f8, %dx; mov $'x', %al; 1: out %al, (%dx); jmp 1b."""

PAGE_CROSSING = bytes.fromhex("b844332211 a3fe0f00d0 ebf9")
"""Protected mode: mov $0x11223344, %eax; 1: mov %eax, 0xd0000ffe; jmp 1b. Every store crosses a page."""


def says(text: bytes, status_value: int = 0) -> bytes:
    """Real mode: write `text` (under 64 KiB) to COM1 and end with `status_value` at the debug-exit port.

    mov $text, %si; mov $len, %cx; mov $0x3f8, %dx; 1: lodsb; out %al, (%dx); loop 1b; mov $value, %al;
    out %al, $0xf4; hlt; text:
    """
    head = 3 + 3 + 3 + 1 + 1 + 2 + 2 + 2 + 1
    return (
        b"\xbe" + (0x7C00 + head).to_bytes(2, "little")
        + b"\xb9" + len(text).to_bytes(2, "little")
        + bytes.fromhex("baf803 ac ee e2fc")
        + b"\xb0" + bytes([status_value])
        + bytes.fromhex("e6f4 f4")
        + text
    )  # fmt: skip


DRIVER_OK_FIRST = bytes.fromhex("c705700000d004000000 b005 e6f4 f4")
"""Protected mode: movl $4, 0xd0000070; mov $5, %al; out %al, $0xf4; hlt. A virtio driver of the worst kind: DRIVER_OK,
and nothing before it."""
