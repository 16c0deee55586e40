"""A vCPU's state and a crash report's parts as text and as JSON types.

Imports bits and state.
"""

from __future__ import annotations

from pyvmm.boot.x86 import GENERAL_REGISTERS
from pyvmm.debug import bits
from pyvmm.debug.state import MP_STATES
from pyvmm.kvm.constants import KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from pyvmm.boot.segments import Segment
    from pyvmm.debug.report import Code, CrashReport, Stack, VcpuReport
    from pyvmm.debug.state import VcpuState
    from pyvmm.registers import Register

TITLES = {
    "crash": "the guest crashed",
    "time-limit": "the guest did not end",
    "stuck": "the guest is stuck",
    "panic": "the guest's kernel panicked",
}
CONTROL_BITS = {"cr0": bits.CR0, "cr4": bits.CR4, "efer": bits.EFER}


def control_bits(name: str, value: int) -> str:
    """The names of a control register's bits, or "" for one that is no set of bits."""
    table = CONTROL_BITS.get(name)
    return bits.names(value, table) if table else ""


def rflags(state: VcpuState) -> str:
    """RFLAGS by name."""
    return bits.rflags_names(state.regs["rflags"]) if state.regs else ""


def mp_state(state: VcpuState) -> str:
    """What the vCPU is doing, in KVM's view."""
    if state.mp_state is None:
        return "state unknown"
    return MP_STATES.get(state.mp_state, f"MP state {state.mp_state}")


def segment_text(segment: Segment) -> str:
    """What a segment register's hidden part says."""
    if segment.unusable:
        return "unusable"
    size = "64-bit" if segment.l else "32-bit" if segment.db else "16-bit"
    parts = [bits.segment_type(segment.type, segment.s), f"DPL {segment.dpl}"]
    if segment.s:
        parts.insert(1, size)
    if not segment.present:
        parts.append("not present")
    return ", ".join(parts)


def segment_dict(segment: Segment) -> dict[str, Any]:
    """A segment register for JSON."""
    return {
        "selector": hex(segment.selector),
        "base": hex(segment.base),
        "limit": hex(segment.limit),
        "text": segment_text(segment),
    }


def register_dict(register: Register, value: int) -> dict[str, Any]:
    """A register of a device or a chip for JSON, with what its fields say and where they are specified."""
    return {
        "name": register.name,
        "value": hex(value),
        "fields": [text for field in register.fields if (text := field.describe(value))],
        "spec": register.spec,
    }


def ranges(numbers: Iterable[int], show: Callable[[int], str] = str) -> list[str]:
    """Rising `numbers`, each as `show` writes it, neighbours as one: "1-7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ["-".join(map(show, run)) for run in runs]


def stack_dict(stack: Stack) -> dict[str, Any]:
    """The stack for JSON."""
    return {
        "address": hex(stack.address),
        "gpa": None if stack.gpa is None else hex(stack.gpa),
        "width": stack.width,
        "words": [hex(word) for word in stack.words],
    }


def code_dict(code: Code) -> dict[str, Any]:
    """The code around RIP for JSON."""
    return {
        "address": hex(code.address),
        "gpa": None if code.gpa is None else hex(code.gpa),
        "before": code.before.hex(),
        "bytes": code.after.hex(),
        "instructions": [
            {"address": hex(found.address), "bytes": found.code.hex(), "text": found.text}
            for found in code.instructions
        ],
        "hint": code.hint,
    }


def lines(report: CrashReport) -> Iterator[str]:
    """The whole report."""
    yield f"{TITLES.get(report.reason, report.reason)}: {report.detail}"
    for hint in report.hints:
        yield f"likely: {hint.text}"
        yield from (f"  {line}" for line in hint.detail)
    for vcpu in report.vcpus:
        whose = f" (vcpu {vcpu.state.index})" if len(report.vcpus) > 1 else ""
        for reason in vcpu.reasons:
            yield f"likely{whose}: {reason.text}"
            yield from (f"  {line}" for line in reason.detail)
    if report.console:
        yield ""
        yield "what the guest's kernel said:"
        yield from (f"  | {line}" for line in report.console)
    for vcpu in report.vcpus:
        yield ""
        yield from _vcpu(vcpu)


def state_lines(state: VcpuState, place: str) -> Iterator[str]:
    """A vCPU's registers; `place` is the function that RIP is in, or ""."""
    mode = state.describe_mode() + ", " if state.whole else ""
    yield f"vcpu {state.index}: {mode}{mp_state(state)}"
    for part, error in state.unread.items():
        yield f"  {part} could not be read: {error}"
    if not started(state):
        return
    if state.regs is not None:
        yield from _registers(state, place)
    if state.control is not None:
        yield from _system(state)
    if state.exception is not None:
        vector, code = state.exception
        yield f"  exception under delivery: {bits.exception_name(vector)}" + (
            "" if code is None else f", error code {code:#x}"
        )


def started(state: VcpuState) -> bool:
    """Whether the guest has started this vCPU: else nothing in it was set by the guest."""
    return state.mp_state not in (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED)


def state_dict(state: VcpuState, place: str) -> dict[str, Any]:
    """A vCPU's registers for JSON: numbers are hexadecimal strings, for 64 bits are more than JSON's readers keep."""
    return {
        "index": state.index,
        "mode": state.describe_mode() if state.whole else None,
        "mp_state": mp_state(state),
        "place": place or None,
        "registers": {name: hex(value) for name, value in (state.regs or {}).items()},
        "control": {
            name: {"value": hex(value), "bits": control_bits(name, value).split()}
            for name, value in (state.control or {}).items()
        },
        "rflags": rflags(state).split(),
        "segments": {name: segment_dict(segment) for name, segment in state.segments.items()},
        "gdt": {"base": hex(state.gdt.base), "limit": hex(state.gdt.limit)},
        "idt": {"base": hex(state.idt.base), "limit": hex(state.idt.limit)},
        "exception": None if state.exception is None else state.exception[0],
        "unread": dict(state.unread),
    }


def _vcpu(vcpu: VcpuReport) -> Iterator[str]:
    yield from state_lines(vcpu.state, vcpu.place)
    if not started(vcpu.state):
        return
    if vcpu.stack is not None:
        yield from _stack(vcpu.stack)
    for caller in vcpu.callers:
        yield f"    on the stack: {caller}"
    if vcpu.code is not None:
        yield from _code(vcpu.code)
    yield "  last exits, oldest first:" if vcpu.exits else "  no exits"
    for text, times in vcpu.exits:
        yield f"    {text}" + (f"  ({times} times)" if times > 1 else "")


def _registers(state: VcpuState, place: str) -> Iterator[str]:
    assert state.regs is not None
    digits = 16 if any(value >> 32 for value in state.regs.values()) or (state.whole and state.mode == "long") else 8
    names = GENERAL_REGISTERS[: 16 if digits == 16 else 8]
    for at in range(0, len(names), 4):
        yield "  " + "  ".join(f"{name:<3} {state.regs[name]:0{digits}x}" for name in names[at : at + 4])
    yield f"  rip {state.regs['rip']:0{digits}x}  {place}".rstrip()
    yield f"  rflags {state.regs['rflags']:#x}  {rflags(state) or 'none set'}"


def _system(state: VcpuState) -> Iterator[str]:
    assert state.control is not None
    for name in ("cr0", "cr4", "efer"):
        yield f"  {name:<4} {state.control[name]:#010x}  {control_bits(name, state.control[name])}".rstrip()
    yield "  " + "  ".join(f"{name} {state.control[name]:#x}" for name in ("cr2", "cr3", "cr8", "apic_base"))
    digits = 16 if any(segment.base >> 32 for segment in state.segments.values()) else 8
    for name, segment in state.segments.items():
        place = f"base {segment.base:0{digits}x} limit {segment.limit:08x}"
        yield f"  {name:<3} {segment.selector:04x}  {place}  {segment_text(segment)}"
    for name, table in (("gdt", state.gdt), ("idt", state.idt)):
        yield f"  {name:<9} base {table.base:0{digits}x} limit {table.limit:08x}"


def _place(address: int, gpa: int | None) -> str:
    if gpa is None:
        return f"{address:#x} (not mapped)"
    return f"{address:#x}" + (f" (gpa {gpa:#x})" if gpa != address else "")


def _rows(items: Sequence[str], per_row: int) -> Iterator[str]:
    for at in range(0, len(items), per_row):
        yield " ".join(items[at : at + per_row])


def _stack(stack: Stack) -> Iterator[str]:
    yield f"  stack at {_place(stack.address, stack.gpa)}:" + ("" if stack.words else " nothing to read")
    per_row = 32 // stack.width if stack.width > 2 else 8
    for row in _rows([f"{word:0{2 * stack.width}x}" for word in stack.words], per_row):
        yield f"    {row}"


def _code(code: Code) -> Iterator[str]:
    yield f"  code at {_place(code.address, code.gpa)}:" + ("" if code.after else " nothing to read")
    if code.after:
        # As in a kernel's oops: the byte at RIP is the one in brackets.
        row = (code.before.hex(" "), f"<{code.after[:1].hex()}>", code.after[1:].hex(" "))
        yield "    " + " ".join(filter(None, row))
    for at, found in enumerate(code.instructions):
        yield f"    {'->' if at == 0 else '  '} {found.address:#x}: {found.code.hex(' '):<24} {found.text}"
    if code.hint:
        yield f"    {code.hint}"
    elif code.after and not code.instructions:
        yield "    which is no instruction"
