"""Instructions that KVM's x86 emulator refuses, and what a guest can do without them.

Pure Python, imports nothing. On VT-x and AMD-V the emulator meets little more than device accesses; a KVM without
them (`pvm`, and any nested one that shadows page tables) runs all of ring 0 and real mode through it. What it does
not know ends in KVM_EXIT_INTERNAL_ERROR, suberror 1 (KVM API, 5). The classes below were found by running one
instruction each in ring 0 of a 64-bit guest on Linux 6.18's `kvm_pvm`. The table only names what has been refused
already: an instruction in it may work elsewhere. A few of them pyvmm completes (completion.py). Encodings: Intel SDM
volume 2, chapter 2 and appendix A.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
LONGEST = 15
"""Bytes of the longest x86 instruction (SDM volume 2, 2.3.11)."""


class Opcode:
    """What identifies an instruction.

    table     the opcode map: "", "0f", "0f38", "0f3a", "vex" or "evex"
    byte      the opcode byte in that map
    prefixes  the legacy prefixes before it
    rex       the REX prefix, or 0
    modrm     the byte after the opcode, or 0 where the code ends; only some opcodes have it as a ModRM byte
    """

    __slots__ = ("byte", "modrm", "prefixes", "rex", "table")

    def __init__(self, table: str, byte: int, prefixes: bytes, rex: int, modrm: int) -> None:
        self.table = table
        self.byte = byte
        self.prefixes = prefixes
        self.rex = rex
        self.modrm = modrm

    @property
    def extension(self) -> int:
        """ModRM bits 5:3, the "/digit" of the SDM's opcode notation."""
        return self.modrm >> 3 & 7

    @property
    def memory(self) -> bool:
        """Whether the ModRM byte names memory, not a register."""
        return self.modrm < 0xC0


def decode(code: bytes, bits: int) -> Opcode | None:
    """The opcode that `code` begins with, run as 16-, 32- or 64-bit code; None where it is cut short."""
    code = code[:LONGEST]
    at = 0
    while at < len(code) and code[at] in _LEGACY_PREFIXES:
        at += 1
    prefixes = code[:at]
    rex = 0
    if bits == 64 and code[at : at + 1] and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    rest = code[at:] + b"\0"
    if len(rest) < 2:
        return None
    first, second = rest[0], rest[1]
    # In 16- and 32-bit code these are lds, les and bound, unless the ModRM byte would name a register.
    if first in (0xC4, 0xC5, 0x62) and (bits == 64 or second >= 0xC0):
        return Opcode("evex" if first == 0x62 else "vex", first, prefixes, rex, second)
    if first != 0x0F:
        return Opcode("", first, prefixes, rex, second)
    if second in (0x38, 0x3A):
        table, rest = f"0f{second:x}", rest[2:]
    else:
        table, rest = "0f", rest[1:]
    if len(rest) < 2:
        return None
    return Opcode(table, rest[0], prefixes, rex, rest[1])


class Refusal:
    """A class of instructions that the emulator refuses: their `name`, and in `avoid` how to do without them."""

    __slots__ = ("avoid", "name")

    def __init__(self, name: str, avoid: str) -> None:
        self.name = name
        self.avoid = avoid


_NO_INT = "call the handler instead; Linux needs its int3 self-test left out"
_NO_FPU = "build ring-0 code with -mgeneral-regs-only"
_NO_XSAVE = "do not enable XSAVE in ring 0; on a Linux command line: noxsave"
_NO_CX16 = "start the guest with --cpu host,-cx16, or build it with -mno-cx16"
_NO_SMAP = "leave CR4.SMAP alone; on a Linux command line: clearcpuid=smap"
_NO_POPCNT = "build with -mno-popcnt; on a Linux command line: clearcpuid=popcnt"
_NO_TSCP = "use rdtsc and cpuid; Linux needs a kernel without it"
_NO_PCID = "leave CR4.PCIDE alone; on a Linux command line: nopcid noinvpcid"
_NO_MWAIT = "idle with hlt; on a Linux command line: idle=halt"
_NO_PKEYS = "leave CR4.PKE alone; on a Linux command line: nopku"
_NO_FENCE = "use clflush or clflushopt"
_NO_NESTED = "there is no nested virtualization on this host"
_NO_IRET = "there are no interrupts in 32-bit protected mode on this host; 64-bit mode and real mode have them"
_NO_CET = "build with -fcf-protection=none"
_RING3 = "run it in ring 3, where the processor itself executes the guest"


def _always(_: Opcode) -> bool:
    return True


def _modrm(*values: int) -> Callable[[Opcode], bool]:
    return lambda op: op.modrm in values


def _memory(*extensions: int) -> Callable[[Opcode], bool]:
    return lambda op: op.memory and op.extension in extensions


def _prefix(prefix: int) -> Callable[[Opcode], bool]:
    return lambda op: prefix in op.prefixes


def _clwb(op: Opcode) -> bool:
    return op.memory and op.extension == 6 and 0x66 in op.prefixes


_ANY = range(0x100)
# What MMX and SSE own of the two-byte map (SDM volume 2D, table A-3).
_SIMD = (*range(0x10, 0x18), *range(0x28, 0x30), *range(0x50, 0x80), 0xC2, *range(0xC4, 0xC7), *range(0xD0, 0x100))

_RULES: tuple[tuple[str, Container[int], Callable[[Opcode], bool], Refusal], ...] = (
    ("", (0xCC,), _always, Refusal("int3, a breakpoint", _NO_INT)),
    ("", (0xCD, 0xCE), _always, Refusal("int n, a software interrupt", _NO_INT)),
    ("", (0xF1,), _always, Refusal("int1", _NO_INT)),
    ("", (0x9B,), _always, Refusal("fwait", _NO_FPU)),
    ("", range(0xD8, 0xE0), _always, Refusal("x87 floating point", _NO_FPU)),
    ("", (0xCF,), _always, Refusal("iret in protected mode", _NO_IRET)),
    ("", (0x62,), _always, Refusal("bound", _RING3)),
    ("0f", (0x00,), lambda op: op.extension in (4, 5), Refusal("verr / verw", _RING3)),
    ("0f", (0x02, 0x03), _always, Refusal("lar / lsl", _RING3)),
    ("0f", (0x01,), _modrm(0xCA, 0xCB), Refusal("clac / stac (SMAP)", _NO_SMAP)),
    ("0f", (0x01,), _modrm(0xD0), Refusal("xgetbv", _NO_XSAVE)),
    ("0f", (0x01,), _modrm(0xF9), Refusal("rdtscp", _NO_TSCP)),
    ("0f", (0x01,), _modrm(0xC8, 0xC9), Refusal("monitor / mwait", _NO_MWAIT)),
    ("0f", (0x01,), _modrm(0xEE, 0xEF), Refusal("rdpkru / wrpkru", _NO_PKEYS)),
    ("0f", (0x01,), _modrm(*range(0xD8, 0xE0)), Refusal("an SVM instruction", _NO_NESTED)),
    ("0f", (0x01,), _modrm(0xC2, 0xC3, 0xC4), Refusal("a VMX instruction", _NO_NESTED)),
    ("0f", (0x78, 0x79), _always, Refusal("vmread / vmwrite", _NO_NESTED)),
    ("0f", (0x34, 0x35), _always, Refusal("sysenter / sysexit", "use iret or sysret")),
    ("0f", (0x1E,), lambda op: op.extension == 1 and not op.memory, Refusal("rdssp (shadow stacks)", _NO_CET)),
    ("0f", (0xB8,), _prefix(0xF3), Refusal("popcnt", _NO_POPCNT)),
    ("0f", (0xAE,), _memory(2, 3), Refusal("ldmxcsr / stmxcsr", _NO_FPU)),
    ("0f", (0xAE,), _clwb, Refusal("clwb", _NO_FENCE)),
    ("0f", (0xAE,), _memory(4, 5, 6), Refusal("xsave / xrstor / xsaveopt", _NO_XSAVE)),
    ("0f", (0xC7,), _memory(1), Refusal("cmpxchg8b / cmpxchg16b", _NO_CX16)),
    ("0f", (0xC7,), _memory(3, 4, 5), Refusal("xsavec / xsaves / xrstors", _NO_XSAVE)),
    ("0f", _SIMD, _always, Refusal("MMX or SSE", _NO_FPU)),
    ("0f38", (0x80, 0x81), _always, Refusal("invept / invvpid", _NO_NESTED)),
    ("0f38", (0x82,), _always, Refusal("invpcid", _NO_PCID)),
    ("0f38", _ANY, _always, Refusal("SSSE3, SSE4, CRC32, ADX, AES or SHA", _NO_FPU)),
    ("0f3a", _ANY, _always, Refusal("SSSE3, SSE4, AES or carry-less multiplication", _NO_FPU)),
    ("vex", _ANY, _always, Refusal("AVX or BMI (VEX encoding)", _NO_FPU)),
    ("evex", _ANY, _always, Refusal("AVX-512 (EVEX encoding)", _NO_FPU)),
)


def refusal(code: bytes, bits: int) -> Refusal | None:
    """The class of the refused instruction that `code` begins with; None where the table does not know it.

    `bits` is the code's default operand size: 16, 32 or 64.
    """
    opcode = decode(code, bits)
    if opcode is None:
        return None
    for table, opcodes, applies, found in _RULES:
        if table == opcode.table and opcode.byte in opcodes and applies(opcode):
            return found
    return None
