"""Runs one instruction on this machine's own processor, with chosen registers and flags: what it does is the truth.

Only for unprivileged instructions that do not fault, branch or use the stack. x86-64 alone.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct

REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""Every general register but RSP, which stays the host's."""
_NUMBERS = (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_SAVED = (3, 5, 12, 13, 14, 15)  # those that a function keeps (System V ABI)
_DATA = 2048
"""Where the values lie in the page: the registers, RFLAGS, and the host's RSP."""
STATUS_FLAGS = 0x8D5


def available() -> bool:
    return platform.machine() in ("x86_64", "AMD64")


class HostCpu:
    """A page of code, and one of data for memory operands at `address`."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.data = mmap.mmap(-1, 4096)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        self._entry = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(self._code)))

    def run(self, instruction: bytes, registers: dict[str, int]) -> dict[str, int]:
        """Execute `instruction`; gives all of REGISTERS and "rflags", the status flags alone, as it left them."""
        code = bytearray()

        def at(slot: int, opcode: bytes, number: int, rex_w: bool = True) -> None:
            """An instruction with a register and the 8 bytes of data number `slot`, RIP-relative."""
            rex = 0x40 | (8 if rex_w else 0) | (4 if number >= 8 else 0)
            head = bytes([rex]) + opcode + bytes([5 | (number & 7) << 3])
            code.extend(head + struct.pack("<i", _DATA + 8 * slot - (len(code) + len(head) + 4)))

        flags, stack = len(_NUMBERS), len(_NUMBERS) + 1
        for number in _SAVED:
            code.extend(bytes([0x41, 0x50 | number & 7]))
            code[-2] = 0x41 if number >= 8 else 0x40
        at(stack, b"\x89", 4)
        at(flags, b"\xff", 6)  # push
        code.append(0x9D)  # popfq
        for slot, number in enumerate(_NUMBERS):
            at(slot, b"\x8b", number)
        code.extend(instruction)
        for slot, number in enumerate(_NUMBERS):
            at(slot, b"\x89", number)
        code.append(0x9C)  # pushfq
        at(flags, b"\x8f", 0)  # pop
        code.extend(b"\x6a\x02\x9d")  # what C wants of the flags
        for number in reversed(_SAVED):
            code.extend(bytes([0x41 if number >= 8 else 0x40, 0x58 | number & 7]))
        code.append(0xC3)
        assert len(code) <= _DATA
        values = [registers.get(name, 0) for name in REGISTERS]
        self._code[: len(code)] = bytes(code)
        initial = registers.get("rflags", 0) & STATUS_FLAGS | 0x202
        self._code[_DATA : _DATA + 8 * stack] = struct.pack(f"<{stack}Q", *values, initial)
        self._entry()
        *after, rflags = struct.unpack(f"<{stack}Q", self._code[_DATA : _DATA + 8 * stack])
        return dict(zip(REGISTERS, after, strict=True)) | {"rflags": rflags & STATUS_FLAGS}
