"""A decoder for the few instructions that pyvmm completes where KVM's emulator refuses them, and for no others.

Imports emulate. Pure Python: bytes in, an `Instruction` or None out; it never raises and never reads beyond the bytes
it is given. Follows the Intel SDM volume 2A, chapter 2: prefixes 2.1.1, ModRM and SIB 2.1.5 (tables 2-1 to 2-3),
64-bit mode 2.2.1; the instructions' own pages are cited where they are completed, in completion.py.
"""

from __future__ import annotations

from pyvmm.kvm.emulate import LONGEST, Opcode
from pyvmm.kvm.emulate import decode as decode_opcode

GENERAL_REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""By the number that ModRM, SIB and REX make (table 2-4)."""
_SEGMENT_PREFIXES = {0x26: "es", 0x2E: "cs", 0x36: "ss", 0x3E: "ds", 0x64: "fs", 0x65: "gs"}
_OPERAND_SIZE, _ADDRESS_SIZE, _LOCK, _REPNE, _REP = 0x66, 0x67, 0xF0, 0xF2, 0xF3
_REX_W, _REX_R, _REX_X, _REX_B = 8, 4, 2, 1
_PAIRS_16 = (
    ("rbx", "rsi"), ("rbx", "rdi"), ("rbp", "rsi"), ("rbp", "rdi"),
    ("rsi", ""), ("rdi", ""), ("rbp", ""), ("rbx", ""),
)  # fmt: skip
"""Base and index of 16-bit addressing by ModRM's r/m (table 2-1)."""


class Operand:
    """A memory operand: base + index * scale + displacement, in `bits` bits, in `segment`.

    `base` and `index` are names of 64-bit registers, "rip" (of the next instruction) or ""; `displacement` is signed.
    """

    __slots__ = ("base", "bits", "displacement", "index", "scale", "segment")

    def __init__(self, bits: int, base: str, index: str, scale: int, displacement: int) -> None:
        self.bits = bits
        self.base = base
        self.index = index
        self.scale = scale
        self.displacement = displacement
        self.segment = "ss" if base in ("rsp", "rbp") else "ds"


class Instruction:
    """A decoded instruction.

    length    bytes, prefixes included
    size      bytes of its operand; 0 where it has none
    lock      whether it has a LOCK prefix
    register  the register that ModRM's reg names, or ""
    source    the register that ModRM's r/m names, or ""
    memory    the memory that ModRM's r/m names, or None
    """

    __slots__ = ("length", "lock", "memory", "name", "register", "size", "source")

    def __init__(self, name: str, length: int, lock: bool, size: int = 0) -> None:
        self.name = name
        self.length = length
        self.lock = lock
        self.size = size
        self.register = ""
        self.source = ""
        self.memory: Operand | None = None


_ONE_BYTE = {0xCC: "int3", 0x9B: "fwait"}
_GROUP_7 = {0xCA: "clac", 0xCB: "stac", 0xF9: "rdtscp"}
"""0F 01, by ModRM."""


def decode(code: bytes, bits: int) -> Instruction | None:
    """The instruction that `code` begins with, run as 16-, 32- or 64-bit code.

    None where it is none of those that are completed, or is cut short.
    """
    code = code[:LONGEST]
    opcode = decode_opcode(code, bits)
    if opcode is None:
        return None
    prefixes = opcode.prefixes
    lock = _LOCK in prefixes
    after = len(prefixes) + bool(opcode.rex) + len(opcode.table) // 2 + 1  # "0f" is one byte of escape
    if opcode.table == "":
        name = _ONE_BYTE.get(opcode.byte, "")
        return Instruction(name, after, lock) if name else None
    if opcode.table != "0f" or after >= len(code):
        return None
    mandatory = [prefix for prefix in prefixes if prefix in (_REPNE, _REP)][-1:]  # the last of them counts
    if opcode.byte == 0x01:
        name = _GROUP_7.get(opcode.modrm, "")
        # With any of these prefixes it is another instruction, or none.
        if not name or mandatory or _OPERAND_SIZE in prefixes:
            return None
        return Instruction(name, after + 1, lock)
    wide = bool(opcode.rex & _REX_W)
    if opcode.byte == 0xB8 and mandatory == [_REP]:
        short = (_OPERAND_SIZE in prefixes) != (bits == 16)
        found = Instruction("popcnt", after, lock, 8 if wide else 2 if short else 4)
        found.register = GENERAL_REGISTERS[opcode.extension | (8 if opcode.rex & _REX_R else 0)]
    elif opcode.byte == 0xC7 and opcode.extension == 1 and opcode.memory:
        found = Instruction("cmpxchg16b" if wide else "cmpxchg8b", after, lock, 16 if wide else 8)
    else:
        return None
    return found if _modrm(found, code, opcode, bits) else None


def _modrm(found: Instruction, code: bytes, opcode: Opcode, bits: int) -> bool:
    """Add what ModRM's mod and r/m name, and the length that it takes; False where the code is cut short."""
    if not opcode.memory:
        found.source = GENERAL_REGISTERS[opcode.modrm & 7 | (8 if opcode.rex & _REX_B else 0)]
        found.length += 1
        return True
    address_bits = bits
    if _ADDRESS_SIZE in opcode.prefixes:
        address_bits = 16 if bits == 32 else 32
    mode, low = opcode.modrm >> 6, opcode.modrm & 7
    at = found.length + 1
    base, index, scale = "", "", 1
    width = (0, 1, 2 if address_bits == 16 else 4)[mode]
    if address_bits == 16:
        base, index = _PAIRS_16[low]
        if mode == 0 and low == 6:
            base, width = "", 2
    elif low == 4:
        if at >= len(code):
            return False
        sib = code[at]
        at += 1
        scale = 1 << (sib >> 6)
        number = sib >> 3 & 7 | (8 if opcode.rex & _REX_X else 0)
        index = "" if number == 4 else GENERAL_REGISTERS[number]
        if mode == 0 and sib & 7 == 5:
            width = 4
        else:
            base = GENERAL_REGISTERS[sib & 7 | (8 if opcode.rex & _REX_B else 0)]
    elif mode == 0 and low == 5:
        base, width = ("rip" if bits == 64 else ""), 4
    else:
        base = GENERAL_REGISTERS[low | (8 if opcode.rex & _REX_B else 0)]
    end = at + width
    if end > len(code):
        return False
    found.length = end
    found.memory = Operand(address_bits, base, index, scale, int.from_bytes(code[at:end], "little", signed=True))
    for prefix in opcode.prefixes:
        # In 64-bit mode the other four are ignored (2.1.1).
        if prefix in _SEGMENT_PREFIXES and (bits != 64 or prefix in (0x64, 0x65)):
            found.memory.segment = _SEGMENT_PREFIXES[prefix]
    return True
