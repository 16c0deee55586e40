"""How an exception became a triple fault: which it was, why it could not be delivered, what the stack was like.

Imports evidence, bits, descriptors and raised. Follows the Intel SDM volume 3A, 6.15 (double fault) and 6.14.2
(stack frames).
"""

from __future__ import annotations

from pyvmm.debug.bits import exception_name
from pyvmm.debug.descriptors import gate_problem
from pyvmm.debug.evidence import Evidence, Reason, show
from pyvmm.debug.raised import BP, GP, UD, raised

DF, PF = 8, 14


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
    state = evidence.state
    if evidence.fetch.gpa is None:
        return PF, "from fetching the instruction"
    found = raised(evidence)
    if found is not None:
        return found
    if state.reg("cr2") and state.paging.kind != "none":
        walk = evidence.walk(state.reg("cr2"))
        if walk.gpa is None:
            return PF, f"at the address in CR2, {walk.gva:#x}: {walk.problem}"
    if state.exception is not None and state.exception[0] != DF:
        return state.exception[0], "which KVM was about to deliver"
    return None


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
