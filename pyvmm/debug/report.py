"""The crash report: everything about a guest that ended badly that helps to see why.

Imports the rest of debug, memory and the exits of kvm. `build` takes plain inputs and never raises for what the
guest or a half-broken VM is like; what could not be read is named in the report.
"""

from __future__ import annotations

from itertools import groupby

from pyvmm.debug import reasons, render
from pyvmm.debug.disasm import disassemble
from pyvmm.debug.evidence import Evidence
from pyvmm.debug.state import capture
from pyvmm.errors import MissingExtraError
from pyvmm.kvm.exits import InternalError, Interrupted, Mmio, Pio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pyvmm.debug.disasm import Instruction
    from pyvmm.debug.evidence import Reason
    from pyvmm.debug.state import Inspectable, VcpuState
    from pyvmm.kvm.exits import Exit
    from pyvmm.memory import GuestMemory

STACK_WORDS = 16
CODE_BEFORE = 16
CODE_AFTER = 32
"""Bytes shown before RIP and from RIP on."""


class Stack:
    """Words at RSP: the linear `address` of the first, its `gpa` (None if not mapped), `width` bytes each."""

    __slots__ = ("address", "gpa", "width", "words")

    def __init__(self, address: int, gpa: int | None, width: int, words: Sequence[int]) -> None:
        self.address = address
        self.gpa = gpa
        self.width = width
        self.words = tuple(words)


class Code:
    """What lies around RIP: `before` and `after` it, and the `instructions` from RIP on.

    `after` are KVM's own bytes where it handed over an instruction that it could not emulate and memory has none.
    `hint` says what would bring a disassembly, if it is missing.
    """

    __slots__ = ("address", "after", "before", "gpa", "hint", "instructions")

    def __init__(self, address: int, gpa: int | None, before: bytes, after: bytes, bits: int) -> None:
        self.address = address
        self.gpa = gpa
        self.before = before
        self.after = after
        self.hint = ""
        self.instructions: list[Instruction] = []
        try:
            self.instructions = disassemble(after, address, bits)
        except MissingExtraError as error:
            self.hint = str(error)


class VcpuReport:
    """One vCPU: its `state`, the last `exits` in words, and where the state is whole, `stack` and `code`.

    With symbols, `place` is the function that RIP is in, and `callers` are those whose addresses are on the stack.
    """

    __slots__ = ("callers", "code", "exits", "place", "reasons", "stack", "state")

    def __init__(
        self, state: VcpuState, memory: GuestMemory, history: Sequence[Exit], name: Callable[[int], str]
    ) -> None:
        self.state = state
        self.exits = [(text, len(list(same))) for text, same in groupby(exit.describe() for exit in history)]
        self.reasons: list[Reason] = []
        self.stack: Stack | None = None
        self.code: Code | None = None
        self.place = ""
        self.callers: list[str] = []
        if state.whole:
            self._look(memory, history[-1] if history else None)
            self.place = name(state.linear_rip)
            words = self.stack.words if self.stack is not None else ()
            self.callers = [found for found in map(name, words) if found]

    def _look(self, memory: GuestMemory, last: Exit | None) -> None:
        state, paging = self.state, self.state.paging
        width = state.stack_bits // 8
        top = state.linear_rsp
        raw = paging.read(memory, top, STACK_WORDS * width)
        words = [int.from_bytes(raw[at : at + width], "little") for at in range(0, len(raw) // width * width, width)]
        self.stack = Stack(top, paging.translate(memory, top), width, words)
        rip = state.linear_rip
        after = paging.read(memory, rip, CODE_AFTER)
        if not after and isinstance(last, InternalError):
            after = last.insn_bytes
        start = max(rip - CODE_BEFORE, 0)
        before = paging.read(memory, start, rip - start)
        if len(before) < rip - start:  # a hole in between: what is before it does not lead here
            before = b""
        self.code = Code(rip, paging.translate(memory, rip), before, after, state.code_bits)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; see `render.state_dict`."""
        return {
            **render.state_dict(self.state, self.place),
            "callers": list(self.callers),
            "stack": None if self.stack is None else render.stack_dict(self.stack),
            "code": None if self.code is None else render.code_dict(self.code),
            "exits": [{"text": text, "times": times} for text, times in self.exits],
        }


class CrashReport:
    """How a run ended and what the machine looked like then.

    reason, detail   the outcome's, see `pyvmm.runloop.Outcome`
    vcpus            one `VcpuReport` each, the one that crashed first
    hints            what the guest's console makes likely
    console          lines of the guest's console that tell of a panic or oops
    """

    __slots__ = ("console", "detail", "hints", "reason", "vcpus")

    def __init__(
        self,
        reason: str,
        detail: str,
        vcpus: Sequence[VcpuReport],
        hints: Sequence[Reason] = (),
        console: Sequence[str] = (),
    ) -> None:
        self.reason = reason
        self.detail = detail
        self.vcpus = tuple(vcpus)
        self.hints = tuple(hints)
        self.console = tuple(console)

    def text(self) -> str:
        """The report for people: how the run ended, the likely reasons, and what they rest on; no prefixes."""
        return "\n".join(render.lines(self))

    def as_dict(self) -> dict[str, Any]:
        """The report for programs: JSON types only."""
        return {
            "reason": self.reason,
            "detail": self.detail,
            "likely": [{"vcpu": None, "text": hint.text, "detail": list(hint.detail)} for hint in self.hints]
            + [
                {"vcpu": vcpu.state.index, "text": reason.text, "detail": list(reason.detail)}
                for vcpu in self.vcpus
                for reason in vcpu.reasons
            ],
            "console": list(self.console),
            "vcpus": [vcpu.as_dict() for vcpu in self.vcpus],
        }


def build(
    reason: str,
    detail: str,
    vcpus: Sequence[Inspectable],
    memory: GuestMemory,
    histories: Sequence[Sequence[Exit]],
    samples: Sequence[Sequence[int]] = (),
    armed: Sequence[Sequence[str] | None] = (),
    hints: Sequence[Reason] = (),
    console: Sequence[str] = (),
    name: Callable[[int], str] = lambda address: "",
    *,
    guess: bool = True,
) -> CrashReport:
    """Look at a VM all of whose vCPUs stand still.

    `reason` and `detail` are the outcome's. `histories` are each vCPU's last exits, oldest first, and `samples`
    values of each vCPU's RIP seen since its last exit, if anybody took some; `armed` is what could wake it (see
    `Evidence`); all in the order of `vcpus`. `hints` and `console` are the report's; `name` gives the function at a
    linear address, or "". Without `guess` nothing is said of why a vCPU is where it is.
    """
    crashed = reason == "crash"
    guilty: list[VcpuReport] = []
    others: list[VcpuReport] = []
    for at, vcpu in enumerate(vcpus):
        history = histories[at] if at < len(histories) else ()
        report = VcpuReport(capture(vcpu), memory, history, name)
        # A vCPU whose last exit was served did not end the run; it was only stopped with the one that did.
        concerned = not crashed or (bool(history) and not isinstance(history[-1], Pio | Mmio | Interrupted))
        if concerned and report.state.whole and reason != "panic" and guess:
            seen = samples[at] if at < len(samples) else ()
            wakers = armed[at] if at < len(armed) else None
            evidence = Evidence(report.state, memory, history, seen, wakers)
            report.reasons = reasons.likely(evidence, stalled=not crashed)
        (guilty if concerned else others).append(report)
    return CrashReport(reason, detail, guilty + others, hints, console)
