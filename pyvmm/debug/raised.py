"""The exception that the instruction at RIP itself must, or probably did, raise.

Imports evidence, descriptors, and kvm's opcode decoder. Only what can be told from registers, stack and
descriptor tables is: most instructions raise nothing, and then this says nothing. Follows the Intel SDM volume 2
(the exceptions of each instruction) and volume 3A, 2.5 (control registers).
"""

from __future__ import annotations

from pyvmm.cpubits import CR0_PE, CR0_PG, CR4_PAE, EFER_LME
from pyvmm.debug.descriptors import code_segment_problem, segment_problem
from pyvmm.debug.evidence import Evidence
from pyvmm.kvm.emulate import Opcode, decode

DE, DB, BP, OF, UD, GP = 0, 1, 3, 4, 6, 13

REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""By the number that a ModRM byte gives them (SDM volume 2A, table 2-2)."""
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")


def raised(evidence: Evidence) -> tuple[int, str] | None:
    """A vector, and what raised it as a phrase that continues "the first exception was #UD, "."""
    opcode = decode(evidence.code, evidence.state.code_bits)
    if opcode is None:
        return None
    here = f"from the instruction at RIP{evidence.instruction()}"
    if opcode.table == "0f":
        return _two_bytes(evidence, opcode, here)
    if opcode.table:
        return None
    simple = {0xCC: BP, 0xF1: DB, 0xCE: OF, 0xCD: opcode.modrm}
    if opcode.byte in simple:
        return simple[opcode.byte], here
    if opcode.byte in (0xF6, 0xF7) and opcode.extension >= 6 and not opcode.memory:
        divisor = _register(evidence, opcode) & (0xFF if opcode.byte == 0xF6 else (1 << 64) - 1)
        return None if divisor else (DE, f"{here}: the divisor is 0")
    problem = _far(evidence, opcode)
    return (GP, f"{here}: {problem}") if problem else None


def _register(evidence: Evidence, opcode: Opcode) -> int:
    """The register that the rm field of a ModRM byte names."""
    return evidence.state.reg(REGISTERS[opcode.modrm & 7 | (opcode.rex & 1) << 3])


def _two_bytes(evidence: Evidence, opcode: Opcode, here: str) -> tuple[int, str] | None:
    if opcode.byte in (0x0B, 0xB9, 0xFF):
        return UD, here
    if opcode.byte == 0x22:
        return GP, f"{here}: {_control_register(evidence, opcode)}"
    if opcode.byte in (0x30, 0x32):
        verb = "writes" if opcode.byte == 0x30 else "reads"
        index = evidence.state.reg("rcx") & 0xFFFF_FFFF
        return GP, f"{here}: it {verb} MSR {index:#x}, which may not exist here or not take that value"
    if opcode.byte == 0x00 and opcode.extension in (2, 3) and not opcode.memory:
        selector = _register(evidence, opcode) & 0xFFFF
        problem = segment_problem(evidence, selector)
        return (GP, f"{here}: it loads selector {selector:#x}, and {problem}") if problem else None
    return None


def _control_register(evidence: Evidence, opcode: Opcode) -> str:
    """Why a value may not be moved to a control register, as far as it can be told."""
    state = evidence.state
    value, number = _register(evidence, opcode), opcode.extension | (opcode.rex & 4) << 1
    text = f"it moves {value:#x} to CR{number}"
    if number == 0 and value & CR0_PG and not value & CR0_PE:
        return f"{text}, and PG needs PE"
    if number == 0 and value & CR0_PG and not state.reg("cr0") & CR0_PG:
        if state.reg("efer") & EFER_LME:
            return f"{text}, and long mode needs CR4.PAE" if not state.reg("cr4") & CR4_PAE else text
        return f"{text}, which turns on 32-bit or PAE paging: a KVM without VT-x or AMD-V may have it in long mode only"
    return f"{text}, which has a bit that this processor or KVM does not take"


def _far(evidence: Evidence, opcode: Opcode) -> str:
    """What is wrong with the selector that a segment load or a far transfer takes; "" where nothing is seen."""
    state = evidence.state
    if state.mode in ("real", "virtual-8086"):
        return ""
    if opcode.byte == 0x8E and not opcode.memory and opcode.extension < len(SEGMENTS):
        selector = _register(evidence, opcode) & 0xFFFF
        name = SEGMENTS[opcode.extension]
        if selector < 4 and name != "ss":
            return ""  # a null selector may stay there until it is used
        problem = segment_problem(evidence, selector)
        return f"it loads {name.upper()} with {selector:#x}, and {problem}" if problem else ""
    if opcode.byte in (0xCA, 0xCB, 0xCF):
        # A far return pops RIP, then CS, each as wide as its operands: those of iret follow the code's size.
        wide = 8 if opcode.rex & 8 else 2 if (state.code_bits == 16) != (0x66 in opcode.prefixes) else 4
        raw = evidence.read(state.linear_rsp + wide, 2)
        selector = int.from_bytes(raw, "little")
        problem = code_segment_problem(evidence, selector) if len(raw) == 2 else "the stack is not mapped"
        return f"it returns to code segment {selector:#x}, and {problem}" if problem else ""
    if opcode.byte == 0xEA:
        start = len(opcode.prefixes) + (3 if (state.code_bits == 16) != (0x66 in opcode.prefixes) else 5)
        selector = int.from_bytes(evidence.code[start : start + 2], "little")
        problem = code_segment_problem(evidence, selector)
        return f"it jumps to code segment {selector:#x}, and {problem}" if problem else ""
    return ""
