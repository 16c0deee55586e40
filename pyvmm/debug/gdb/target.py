"""The VM as the debugger has it: it stands still, or some of its vCPUs run until one of them comes to a stop.

Imports points, inject, debug.state, paging, typed exits and KVM's constants. What is called `on_` is called on a vCPU's
thread, all else on the server's. `Target` holds the VM (`Control.hold_soon`) as long as the debugger wants it to stand;
that is counted apart from `pause()`, so neither undoes the other. KVM_SET_GUEST_DEBUG: KVM API, 4.87.
"""

from __future__ import annotations

import time

from pyvmm.cpubits import CR0_PE, DR6_BS
from pyvmm.debug.gdb.inject import BP, DB, pass_on, take_back
from pyvmm.debug.gdb.points import ACCESS, EXECUTE, WRITE, Points
from pyvmm.debug.state import capture
from pyvmm.errors import KvmError
from pyvmm.kvm.constants import (
    KVM_CAP_SET_GUEST_DEBUG2,
    KVM_GUESTDBG_BLOCKIRQ,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
)
from pyvmm.kvm.exits import Debug, InternalError
from pyvmm.paging import Paging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from pyvmm.debug.state import VcpuState
    from pyvmm.kvm.exits import Exit
    from pyvmm.kvm.host import DebugAbilities
    from pyvmm.memory import GuestMemory
    from pyvmm.runloop import Outcome
    from pyvmm.steering import Control

MOST_STEPS = 5_000_000
"""Steps after which a search by stepping stops to ask whether it shall go on: minutes."""
NOTICED = 1.0
"""Seconds of standing still of which a guest with kvmclock is told."""


class Stop:
    """Why a vCPU stopped.

    kind     "break" (planted), "hardware", "write", "access", "step", "interrupt", "crash" or "refused"
    address  of a watchpoint
    text     what the user should know of it, or ""
    """

    __slots__ = ("address", "kind", "text")

    def __init__(self, kind: str, address: int = 0, text: str = "") -> None:
        self.kind = kind
        self.address = address
        self.text = text


class Action:
    """What a vCPU does next: run on, or, with `step`, one instruction, or as many as lie in `within`, [first, end)."""

    __slots__ = ("left", "step", "within")

    def __init__(self, *, step: bool = False, within: tuple[int, int] = (0, 0)) -> None:
        self.step = step
        self.within = within
        self.left = MOST_STEPS


class Target:
    """One VM. `wake()` tells the server of a stop, from any thread; `quiet(bool)` stops data planes or lets them go."""

    def __init__(self, can: DebugAbilities, wake: Callable[[], None], quiet: Callable[[bool], None]) -> None:
        self.can = can
        self.connected = False
        self.held = True
        self.over: Outcome | None = None
        """How the run ended: set when every vCPU stands still for good."""
        self._wake = wake
        self._quiet = quiet
        self._actions: dict[int, Action] = {}
        self._stops: dict[int, Stop] = {}
        self._fatal: Outcome | None = None
        self._states: dict[int, VcpuState] = {}
        self._stood = 0.0
        self._since = time.monotonic()

    def begin(
        self, control: Control, vcpus: Sequence[Any], memory: GuestMemory, complete: Callable[[], None] = lambda: None
    ) -> None:
        """Take the VM, whose threads are about to start: its vCPUs stand before their first instruction."""
        self.control = control
        self.vcpus = tuple(vcpus)
        self.memory = memory
        self.points = Points(memory, self.can)
        self._blocking = bool(vcpus[0].vm.check_extension(KVM_CAP_SET_GUEST_DEBUG2) & KVM_GUESTDBG_BLOCKIRQ)
        control.on_still, control.on_moving = self.points.withdraw, self.points.plant
        control.hold_soon()

    # --- What the server asks ----------------------------------------------------------------------------------------

    @property
    def stood(self) -> float:
        """Seconds that the VM has stood still for a debugger that was connected."""
        return self._stood + (time.monotonic() - self._since if self.held and self.connected else 0.0)

    def connect(self, connected: bool) -> None:
        """A debugger has come or gone. Without one nothing stops the guest any more."""
        self._stood = self.stood
        self._since = time.monotonic()
        self.connected = connected

    def state(self, index: int) -> VcpuState:
        """What vCPU `index` looks like at this stop."""
        if index not in self._states:
            self._states[index] = capture(self.vcpus[index])
        return self._states[index]

    def forget(self) -> None:
        """Registers have been changed."""
        self._states.clear()

    def halt(self) -> None:
        """Let every vCPU stand still."""
        self._hold()
        self.settle()

    def settle(self) -> None:
        """After a stop: return when every vCPU stands still, and the data planes. Raises VcpuStuckError, KvmError."""
        self.control.await_still()
        if self.control.outcome is None:
            self._quiet(True)
            for vcpu in self.vcpus:
                vcpu.guest_debug(0)
            self.control.keep(())
        self._actions = {}
        self.forget()

    def take_stop(self) -> tuple[int, Stop] | None:
        """A vCPU that has stopped, and why. Others that met a breakpoint are forgotten: they will meet it again."""
        stops, self._stops = self._stops, {}
        if not stops:
            return None
        found = next(iter(stops))
        again = ("break", "hardware", "interrupt")
        self._stops = {at: stop for at, stop in stops.items() if at != found and stop.kind not in again}
        return found, stops[found]

    def resume(self, actions: Mapping[int, Action]) -> None:
        """Let the vCPUs do what `actions` says; the others stand. What cannot be is a stop at once."""
        if self._fatal is not None:
            self.control.end(self._fatal)
            return
        if self._stops:  # one that has been waiting to be told
            self._wake()
            return
        stepped = {index: action.step or bool(self.points.watched) for index, action in actions.items()}
        for index, stepping in stepped.items():
            text = self._no_step(index) if stepping else ""
            if text:
                self._stops[index] = Stop("refused", text=text)
                self._wake()
                return
        try:
            for index, stepping in stepped.items():
                self._debug(self.vcpus[index], stepping)
        except KvmError as error:
            self._stops[next(iter(actions))] = Stop("refused", text=str(error))
            self._wake()
            return
        self._actions = dict(actions)
        self.forget()
        seconds = time.monotonic() - self._since
        self._stood = self.stood
        if seconds > NOTICED:
            self._tell_stopped()
        self.control.keep(index for index in range(len(self.vcpus)) if index not in actions)
        self._quiet(False)
        with self.control.condition:
            self.held = False
            self.control.release()

    def run_free(self) -> None:
        """Let all run, and stop nowhere."""
        self.halt()
        self.points.clear()
        self._stops = {}
        if self.control.outcome is None:
            self.resume({index: Action() for index in range(len(self.vcpus))})

    def _debug(self, vcpu: Any, stepping: bool) -> None:
        control = 0
        if self.points.planted and 3 in self.can.planted:
            control |= KVM_GUESTDBG_USE_SW_BP
        if self.points.hardware:
            control |= KVM_GUESTDBG_USE_HW_BP
        if stepping:
            control |= KVM_GUESTDBG_SINGLESTEP | (KVM_GUESTDBG_BLOCKIRQ if self._blocking else 0)
        if control:
            registers = self.points.debug_registers() if self.points.hardware else ()
            vcpu.guest_debug(control | KVM_GUESTDBG_ENABLE, registers)

    def _no_step(self, index: int) -> str:
        state = self.state(index)
        if not state.whole or state.cpl in self.can.step:
            return ""
        if self.points.watched:
            return (
                f"vCPU {index} is in ring {state.cpl}, where this host's KVM cannot step: the watchpoint sees nothing "
                "there; delete it to go on"
            )
        return (
            f"vCPU {index} is in ring {state.cpl}, where this host's KVM cannot step: it has not moved; continue works"
        )

    def _tell_stopped(self) -> None:
        """Guests with kvmclock, so that their watchdogs stay calm (KVM API, 4.70)."""
        for vcpu in self.vcpus:
            try:
                vcpu.kvmclock_ctrl()
            except KvmError:
                return  # EINVAL: it does not use kvmclock

    # --- What happens on a vCPU's thread -----------------------------------------------------------------------------

    def _hold(self) -> None:
        with self.control.condition:
            if not self.held:
                self._since = time.monotonic()
                self.held = True
                self.control.hold_soon()

    def on_stop(self, index: int, stop: Stop) -> None:
        """vCPU `index` has come to a stop, and goes no further."""
        with self.control.condition:
            self._stops.setdefault(index, stop)
            self._hold()
        self._wake()

    def on_exit(self, vcpu: Any, exit: Exit) -> bool:
        """Whether an exit is the debugger's: a debug exception, or what KVM makes of what was planted."""
        if exit.__class__ is Debug:
            self._on_debug(vcpu, exit)
            return True
        if exit.__class__ is InternalError and self.points.planted:
            state = capture(vcpu)
            if state.whole and self.points.at(state.linear_rip, state) is not None:
                take_back(vcpu)
                self._on_planted(vcpu, state)
                return True
        return False

    def _on_debug(self, vcpu: Any, exit: Any) -> None:
        if exit.exception == BP:
            state = capture(vcpu)
            if state.whole and self.points.at(exit.pc, state) is not None:
                self._on_planted(vcpu, state)
            else:
                pass_on(vcpu, BP, 0)  # one of the guest's own
            return
        hit = [point for at, point in enumerate(self.points.hardware) if exit.dr6 >> at & 1]
        if hit:
            kind, address, _ = hit[0]
            name = {EXECUTE: "hardware", WRITE: "write", ACCESS: "access"}[kind]
            self.on_stop(vcpu.index, Stop(name, address))
        elif exit.dr6 & DR6_BS and self.stepping(vcpu.index):
            self.on_step(vcpu, exit.pc)
        elif self.held:
            return  # the step that ended as the VM was being stopped
        else:
            pass_on(vcpu, DB, exit.dr6)

    def _on_planted(self, vcpu: Any, state: VcpuState) -> None:
        found = self.points.at(state.linear_rip, state)
        if found is not None and found.gva != state.linear_rip:
            text = f"the breakpoint at {found.gva:#x} stands in the way at {state.linear_rip:#x}, the same memory"
            self.on_stop(vcpu.index, Stop("step", text=text))
        else:
            self.on_stop(vcpu.index, Stop("break"))

    def stepping(self, index: int) -> bool:
        """Whether each instruction of that vCPU is looked at."""
        action = self._actions.get(index)
        return action is not None and (action.step or bool(self.points.watched))

    def on_step(self, vcpu: Any, pc: int | None = None) -> None:
        """vCPU has executed an instruction of those that are looked at, and is at linear address `pc`.

        Thousands of these may come for one that is searched for, so no more is read than what that takes.
        """
        action, index = self._actions[vcpu.index], vcpu.index
        sregs = vcpu.get_sregs()
        if self.points.watched:
            watched = self.points.changed(Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer))
            if watched is not None:
                self.on_stop(index, Stop("write", watched.gva))
                return
        action.left -= 1
        ring = int(sregs.ss.dpl) if sregs.cr0 & CR0_PE else 0
        if action.step and not self._within(action, vcpu, pc):
            self.on_stop(index, Stop("step"))
        elif ring not in self.can.step:
            text = f"vCPU {index} enters ring {ring}, where this host's KVM cannot step"
            self.on_stop(index, Stop("refused", text=text))
        elif action.left <= 0:
            self.on_stop(index, Stop("refused", text=f"{MOST_STEPS} steps, and nothing found: continue goes on"))

    def _within(self, action: Action, vcpu: Any, pc: int | None) -> bool:
        first, end = action.within
        if first >= end:
            return False
        if pc is None:
            state = capture(vcpu)
            pc = state.linear_rip if state.whole else end
        return first <= pc < end

    def on_crash(self, index: int, outcome: Outcome) -> bool:
        """vCPU `index` cannot go on. Whether the debugger takes it, to look around: going on ends the run then."""
        if not self.connected:
            return False
        self._fatal = self._fatal or outcome
        self.on_stop(index, Stop("crash", text=f"{outcome.detail}; going on ends the run with status {outcome.status}"))
        return True
