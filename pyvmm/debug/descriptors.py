"""The descriptor tables as the processor would have used them.

Imports evidence and bits. Follows the Intel SDM volume 3A: 6.10 to 6.12 (IDT and gates), 6.14 (64-bit mode), 3.4.5
(segment descriptors); volume 3B: 21.1.4 (real mode's vector table).
"""

from __future__ import annotations

from pyvmm.boot.segments import Segment
from pyvmm.debug.bits import segment_type
from pyvmm.debug.evidence import Evidence

GATES = (5, 6, 7, 14, 15)
"""Types of an IDT entry: task gate, 16-bit interrupt and trap gates, 32-bit ones."""
TASK_GATE = 5
LONG_GATES = (14, 15)


class Gate:
    """An IDT entry of protected mode (8 bytes) or IA-32e mode (16), decoded (figures 6-2 and 6-8).

    `type` is the 5 bits that say what it is, S among them; `ist` the stack of IA-32e mode, 0 for none.
    """

    __slots__ = ("dpl", "ist", "long", "offset", "present", "selector", "type")

    def __init__(self, raw: bytes) -> None:
        value = int.from_bytes(raw, "little")
        self.long = len(raw) == 16
        self.type = value >> 40 & 0x1F
        self.present = bool(value >> 47 & 1)
        self.dpl = value >> 45 & 3
        self.selector = value >> 16 & 0xFFFF
        self.ist = value >> 32 & 7 if self.long else 0
        offset = value & 0xFFFF | value >> 32 & 0xFFFF_0000
        if self.long:
            offset |= value >> 64 << 32 & 0xFFFF_FFFF_0000_0000
        elif not self.type & 8:
            offset &= 0xFFFF
        self.offset = offset

    @property
    def is_gate(self) -> bool:
        """Whether the processor takes it for a gate at all."""
        return self.type in (LONG_GATES if self.long else GATES)

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return segment_type(self.type & 0xF, self.type >> 4)


def gate_problem(evidence: Evidence, vector: int) -> str:
    """Why the processor could not deliver `vector` through the IDT, one phrase; "" where it looks sound."""
    state = evidence.state
    idt = state.idt
    size = 4 if state.mode == "real" else 16 if state.mode == "long" else 8
    table = "the vector table" if size == 4 else "the IDT"
    if idt.limit < size - 1:
        return f"there is no IDT (limit {idt.limit:#x}), so no exception can be handled"
    if vector * size + size - 1 > idt.limit:
        return f"{table} ends before vector {vector} (limit {idt.limit:#x})"
    raw = evidence.read(idt.base + vector * size, size)
    if len(raw) < size:
        return f"{table} at {idt.base:#x} is not in mapped RAM"
    if size == 4:
        return "" if any(raw) else f"vector {vector} is empty"
    return _protected_gate_problem(evidence, vector, raw)


def _protected_gate_problem(evidence: Evidence, vector: int, raw: bytes) -> str:
    gate = Gate(raw)
    if not any(raw):
        return f"the IDT's gate for vector {vector} is empty"
    if not gate.present:
        return f"the IDT's gate for vector {vector} is not present"
    if not gate.is_gate:
        return f"the IDT's entry for vector {vector} is no gate ({gate.kind})"
    if gate.type == TASK_GATE:
        return ""  # what a task gate needs is not looked at
    problem = code_segment_problem(evidence, gate.selector)
    if problem:
        return f"the gate for vector {vector} wants code segment {gate.selector:#x}, and {problem}"
    walk = evidence.walk(gate.offset)  # a handler's segment is flat in every kernel worth guessing about
    if walk.gpa is None:
        return f"the handler for vector {vector} at {gate.offset:#x} is not mapped ({walk.problem})"
    if not evidence.in_ram(walk.gpa):
        return f"the handler for vector {vector} at {gate.offset:#x} is outside RAM"
    return ""


def segment_problem(evidence: Evidence, selector: int) -> str:
    """Why the GDT has nothing to load for `selector`, one phrase; "" where it has (or the LDT is meant)."""
    gdt = evidence.state.gdt
    if selector & 4:
        return ""
    if selector < 8:
        return "that is the null selector"
    if (selector | 7) > gdt.limit:
        return f"the GDT at {gdt.base:#x} is too short for it (limit {gdt.limit:#x})"
    raw = evidence.read(gdt.base + (selector & ~7), 8)
    if len(raw) < 8:
        return f"the GDT at {gdt.base:#x} is not in mapped RAM"
    if not any(raw):
        return "the GDT has an empty entry there"
    if not raw[5] & 0x80:
        return "the GDT's entry there is not present"
    return ""


def code_segment_problem(evidence: Evidence, selector: int) -> str:
    """Why `selector` cannot be loaded into CS from the GDT, one phrase; "" where it can (or the LDT is meant)."""
    problem = segment_problem(evidence, selector)
    if problem or selector & 4:
        return problem
    raw = evidence.read(evidence.state.gdt.base + (selector & ~7), 8)
    segment = Segment.from_descriptor(int.from_bytes(raw, "little"), selector)
    if not (segment.s and segment.type & 8):
        return f"the GDT has {segment_type(segment.type, segment.s)} there"
    return ""
