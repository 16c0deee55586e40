"""What a guest that does not end is probably doing.

Imports evidence, watch, and the exits and constants of kvm.
"""

from __future__ import annotations

from pyvmm.cpubits import RFLAGS_IF
from pyvmm.debug.evidence import Evidence, Reason
from pyvmm.debug.watch import HYPERCALLS, LOOP_SPAN, SAMPLES_LEAST, loop_start
from pyvmm.kvm.constants import KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED
from pyvmm.kvm.exits import Mmio, Pio

TO_ITSELF = (b"\xeb\xfe", b"\xe9\xfb\xff\xff\xff", b"\xf3\x90\xeb\xfc")
"""A jump to itself, short and near, and one over `pause`."""
HLT = 0xF4
POLLS = 8
"""So many equal exits in a row are polling."""


def stall(evidence: Evidence) -> list[Reason]:
    """The first of these that fits."""
    for look in (_not_started, _halted, _hypercall, _polling, _loop):
        reason = look(evidence)
        if reason is not None:
            return [reason]
    if evidence.samples or not evidence.history:
        return [Reason("the guest computes without any exit: no port, no device register")]
    return [Reason("the guest was still making exits: perhaps it only needs more time")]


def _not_started(evidence: Evidence) -> Reason | None:
    if evidence.state.mp_state in (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED):
        return Reason("this processor was never started by the guest (no INIT and SIPI)")
    return None


def _halted(evidence: Evidence) -> Reason | None:
    state = evidence.state
    before = evidence.read(max(state.linear_rip - 1, 0), 1)
    if state.mp_state != KVM_MP_STATE_HALTED:
        return None
    if state.reg("rflags") & RFLAGS_IF and evidence.armed:
        return Reason(f"idle: halted with interrupts on, waiting for {', '.join(evidence.armed)}")
    if state.reg("rflags") & RFLAGS_IF and evidence.armed is not None:
        return Reason("halted with interrupts on, but nothing is armed that could wake it: no timer, no input")
    if state.reg("rflags") & RFLAGS_IF:
        return Reason("halted with interrupts on, waiting for an interrupt that did not come: idle, or lost")
    hlt = "after a `hlt`, " if before and before[0] == HLT else ""
    return Reason(f"halted {hlt}with interrupts off: nothing but an NMI, INIT or reset can wake it")


def _hypercall(evidence: Evidence) -> Reason | None:
    if evidence.code.startswith(HYPERCALLS):
        return Reason("RIP is on a hypercall (`vmcall`): some KVM hosts without VT-x never get past one in ring 0")
    return None


def _polling(evidence: Evidence) -> Reason | None:
    last = evidence.history[-POLLS:]
    if evidence.samples or len(last) < POLLS or len({exit.describe() for exit in last}) != 1:
        return None
    exit = last[0]
    if isinstance(exit, Pio | Mmio) and not exit.is_write:  # the same byte written again may well be output
        return Reason(f"the guest polls: {exit.describe()}, again and again")
    return None


def _loop(evidence: Evidence) -> Reason | None:
    state = evidence.state
    off = "" if state.reg("rflags") & RFLAGS_IF else ", with interrupts off"
    if evidence.code.startswith(TO_ITSELF):
        return Reason(f"an endless loop at {state.linear_rip:#x}{evidence.instruction()}{off}: it jumps to itself")
    rips = (*evidence.samples, state.linear_rip)
    low = loop_start(rips)
    loop = [rip for rip in rips if low <= rip < low + LOOP_SPAN]
    if len(rips) >= SAMPLES_LEAST and 4 * len(loop) >= 3 * len(rips):
        return Reason(f"a loop: {len(loop)} samples of RIP lie between {low:#x} and {max(loop):#x}{off}")
    return None
