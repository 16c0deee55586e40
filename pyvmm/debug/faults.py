"""How an exception becomes a triple fault: the descriptor tables as the processor would have used them.

Imports evidence and bits. Follows the Intel SDM volume 3A: 6.10 to 6.12 (IDT and gates), 6.14 (64-bit mode), 6.15
(double fault), 3.4.5 (segment descriptors), 21.1.4 (real mode's vector table).
"""

from __future__ import annotations

from pyvmm.boot.segments import Segment
from pyvmm.debug.bits import exception_name, segment_type
from pyvmm.debug.evidence import Evidence, Reason, show

BP, UD, DF, GP, PF = 3, 6, 8, 13, 14
GATES = {5: "task", 6: "interrupt", 7: "trap", 14: "interrupt", 15: "trap"}
LONG_GATES = (14, 15)


def triple_fault(evidence: Evidence) -> list[Reason]:
    """What the first exception probably was, and why neither it nor the double fault could be delivered."""
    reasons: list[Reason] = []
    first = first_exception(evidence)
    if first is not None:
        vector, why = first
        problem = gate_problem(evidence, vector)
        text = f"the first exception was {exception_name(vector)}, {why}"
        if problem:
            text += f"; {problem}"
            second = gate_problem(evidence, DF)
            if second and second != problem:
                text += f"; nor could a double fault be delivered: {second}"
        cr2 = evidence.state.reg("cr2")
        shown = vector == PF and cr2 not in (0, evidence.state.linear_rip)
        reasons.append(Reason(text, show(evidence.walk(cr2)) if shown else ()))
        if vector in (BP, UD) and evidence.state.idt.limit == 0:
            reasons.append(Reason("with the IDT removed on purpose this is how many kernels reset a PC"))
    else:
        problems = {gate_problem(evidence, vector) for vector in (UD, DF, GP, PF)} - {""}
        reasons += [Reason(f"an exception could not be delivered: {text}") for text in sorted(problems)]
    reasons += stack(evidence)
    return reasons


def first_exception(evidence: Evidence) -> tuple[int, str] | None:
    """The vector of the exception that began it, as far as it can be told, and what speaks for it."""
    state, code = evidence.state, evidence.code
    if evidence.fetch.gpa is None:
        return PF, "from fetching the instruction"
    here = f"from the instruction at RIP{evidence.instruction()}"
    if code[:2] == b"\x0f\x0b":
        return UD, here
    if code[:1] == b"\xcc":
        return BP, here
    if code[:1] == b"\xcd" and len(code) > 1:
        return code[1], here
    if state.reg("cr2") and state.paging.kind != "none":
        walk = evidence.walk(state.reg("cr2"))
        if walk.gpa is None:
            return PF, f"at the address in CR2, {walk.gva:#x}: {walk.problem}"
    if state.exception is not None and state.exception[0] != DF:
        return state.exception[0], "which KVM was about to deliver"
    return None


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
    gate = int.from_bytes(raw, "little")
    kind = gate >> 40 & 0x1F
    if not gate:
        return f"the IDT's gate for vector {vector} is empty"
    if not gate >> 47 & 1:
        return f"the IDT's gate for vector {vector} is not present"
    if kind not in (LONG_GATES if len(raw) == 16 else GATES):
        return f"the IDT's entry for vector {vector} is no gate ({segment_type(kind & 0xF, kind >> 4)})"
    if kind == 5:
        return ""  # what a task gate needs is not looked at
    selector = gate >> 16 & 0xFFFF
    problem = code_segment_problem(evidence, selector)
    if problem:
        return f"the gate for vector {vector} wants code segment {selector:#x}, and {problem}"
    offset = gate & 0xFFFF | gate >> 32 & 0xFFFF_0000
    if len(raw) == 16:
        offset |= gate >> 64 << 32 & 0xFFFF_FFFF_0000_0000
    elif not kind & 8:
        offset &= 0xFFFF
    walk = evidence.walk(offset)  # a handler's segment is flat in every kernel worth guessing about
    if walk.gpa is None:
        return f"the handler for vector {vector} at {offset:#x} is not mapped ({walk.problem})"
    if not evidence.in_ram(walk.gpa):
        return f"the handler for vector {vector} at {offset:#x} is outside RAM"
    return ""


def code_segment_problem(evidence: Evidence, selector: int) -> str:
    """Why `selector` cannot be loaded into CS from the GDT, one phrase; "" where it can (or is in an LDT)."""
    gdt = evidence.state.gdt
    if selector & 4:
        return ""
    if selector < 8:
        return "that is the null selector"
    offset = selector & ~7
    if offset + 7 > gdt.limit:
        return f"the GDT at {gdt.base:#x} is too short for it (limit {gdt.limit:#x})"
    raw = evidence.read(gdt.base + offset, 8)
    if len(raw) < 8:
        return f"the GDT at {gdt.base:#x} is not in mapped RAM"
    segment = Segment.from_descriptor(int.from_bytes(raw, "little"), selector)
    if not (segment.s and segment.type & 8):
        return f"the GDT has {segment_type(segment.type, segment.s) if any(raw) else 'an empty entry'} there"
    if not segment.present:
        return "the GDT's entry there is not present"
    if evidence.state.mode == "long" and not segment.l:
        return "the GDT's entry there is not 64-bit code"
    return ""


def stack(evidence: Evidence) -> list[Reason]:
    """What is wrong with where the next push would go."""
    state = evidence.state
    word = state.stack_bits // 8
    rsp = state.reg("rsp") & (1 << state.stack_bits) - 1
    top = state.linear("ss", (rsp - word) & (1 << state.stack_bits) - 1)
    walk = evidence.walk(top)
    if walk.gpa is not None and evidence.in_ram(walk.gpa) and (walk.writable or not walk.entries):
        return []
    if rsp == 0:
        return [Reason("RSP is 0 and a push would go to the end of the address space: nothing set up a stack")]
    detail = show(walk) if walk.entries else []
    above = evidence.walk(top + 4096)
    if walk.gpa is None:
        text = f"RSP {rsp:#x} is not mapped ({walk.problem})"
        if above.gpa is not None:
            text += ", while the page above it is: the stack overflowed"
        return [Reason(text, detail)]
    if not walk.writable:
        return [Reason(f"the page at RSP {rsp:#x} is read-only", detail)]
    text = f"RSP {rsp:#x} is outside RAM, which is {evidence.ram()}"
    if rsp > 1 << (state.stack_bits - 1) or (above.gpa is not None and evidence.in_ram(above.gpa)):
        text += ": the stack grew down past its end"
    return [Reason(text, detail)]
