"""The vCPUs of a VM as its user meets them: registers, single steps, exits; and a moment in which all stand still.

A base of `pyvmm.vm.VM`. May import runloop and what is below it, each where it is asked for.
"""

from __future__ import annotations

import threading

from pyvmm.errors import TimeLimitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.config import VmConfig
    from pyvmm.debug.shell.session import Shell
    from pyvmm.kvm.exits import Exit, InternalError
    from pyvmm.kvm.host import Host
    from pyvmm.kvm.registerview import Registers
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.memory import GuestMemory
    from pyvmm.observe import ExitHooks, Hook
    from pyvmm.runloop import Repair, VcpuLoop
    from pyvmm.steering import Control


class Processors:
    """What `VM` has of its vCPUs."""

    config: VmConfig
    loops: tuple[VcpuLoop, ...]
    _control: Control
    _hooks: ExitHooks | None
    _host: Host | None
    _vcpus: tuple[VcpuFd, ...]

    @property
    def memory(self) -> GuestMemory:
        """The guest's RAM."""
        raise NotImplementedError

    @property
    def host(self) -> Host:
        """Which KVM this is, and its quirks."""
        if self._host is None:
            from pyvmm.kvm.host import Host

            self._host = Host()
        return self._host

    def still(self) -> Still:
        """For a `with`: every vCPU stands still inside, whether the VM is paused or not, and is as it was behind it."""
        return Still(self._control)

    @property
    def vcpus(self) -> tuple[VcpuFd, ...]:
        """The vCPUs. `vm.vcpus[1].registers` means something only while the VM is paused or has ended."""
        return self._vcpus

    @property
    def registers(self) -> Registers:
        """A copy of vCPU 0's registers by name: `vm.registers.rip`. A VM that runs stands still for the moment.

        Raises UsageError before the start and after the close, VcpuStuckError, KvmError.
        """
        if not self._vcpus or self._vcpus[0].fileno() < 0:
            raise UsageError("this VM has no vCPU: it has not been started, or is closed")
        if any(loop.thread == threading.get_ident() for loop in self.loops):  # a hook or a device's handler
            return self._vcpus[0].registers
        with self.still():
            return self._vcpus[0].registers

    def _here(self) -> tuple[int, int] | None:
        """Which vCPU runs on this thread, a device's handler for example, and its RIP; None on any other thread."""
        for number, loop in enumerate(self.loops):
            if loop.thread == threading.get_ident():
                return number, self._vcpus[number].registers.rip
        return None

    def step(self, count: int = 1, *, vcpu: int = 0, timeout: float = 30.0) -> Registers:
        """Let one vCPU of a paused VM execute `count` instructions; returns its registers then.

        Fewer where the run ends meanwhile. A round of a repeated string instruction is an instruction here. Data
        planes and the other vCPUs stand still all the while. Raises UsageError for a VM that is not paused or no count,
        TimeLimitError if the vCPU does not get there in `timeout` seconds, as one that halts and that no interrupt
        wakes, and PyvmmError where this host's KVM has no single steps (see `pyvmm doctor`).
        """
        if not isinstance(count, int) or count < 0:
            raise UsageError(f"{str(count)[:40]!r} instructions to step (expected a number from 0 on)")
        if not 0 <= vcpu < len(self.loops):
            raise UsageError(f"there is no vCPU {vcpu} to step (there are {len(self.loops)})")
        from pyvmm.kvm.registerview import Registers
        from pyvmm.stepping import Steps

        loop, which = self.loops[vcpu], self._vcpus[vcpu]
        steps = Steps(loop, self._control, count, lambda: self._no_step(which))
        found: list[Registers] = []

        def errand() -> None:
            steps()
            found.append(Registers(which))  # now: the VM may be resumed before the caller's thread comes to it

        def cancel() -> None:
            steps.cancelled = True

        finished = self._control.perform(loop.vcpu, errand, cancel, timeout)
        if steps.error is not None:
            raise steps.error
        if not finished:
            raise TimeLimitError(f"vCPU {vcpu} did not execute {count} instructions within {timeout:g} s")
        return found[0] if found else which.registers

    def shell(self) -> None:
        """Open a Python prompt on the calling thread, the VM standing still; return when its user has left it.

        The VM then goes on as it was, running or paused, or was ended by quit(). Its time limit does not count
        meanwhile. With the console on the same terminal, that is the prompt's for so long. See docs/inspect.md. Raises
        UsageError for a VM that has not been started and on a vCPU's own thread, VcpuStuckError.
        """
        self.prompt().visit()

    def prompt(self, stop: str = "entry", standing: Callable[[bool], None] = lambda stands: None) -> Shell:
        """What `shell()` and `pyvmm run --shell` open; see there for `stop` and `standing`."""
        from pyvmm.debug.shell.session import Shell

        return Shell(self, self._control, stop, standing)

    def _repair(self) -> Repair | None:
        """What completes the instructions that this host's KVM refuses; None where it refuses none, or on request."""
        quirks = self.host.quirks
        if not (self.config.host_quirks and quirks.ring0_emulated and quirks.instructions_refused):
            return None

        features: dict[str, bool] = {}

        def repair(vcpu: VcpuFd, exit: InternalError) -> bool:
            # Imported here because most runs meet no such instruction.
            from pyvmm.kvm.completion import complete

            return complete(vcpu, exit, self.memory, features)

        return repair

    def _no_step(self, vcpu: VcpuFd) -> str:
        """Why this host's KVM cannot step the vCPU's next instruction, or ""."""
        if not self.host.quirks.debug_limited:
            return ""
        from pyvmm.debug.state import capture

        state = capture(vcpu)
        if not state.whole or state.cpl != 3:
            return ""
        return "this host's KVM cannot single-step programs, just kernels: the step would end in the guest"

    def on_exit(self, kind: str | type[Exit], function: Hook) -> Callable[[], None]:
        """Call `function(vcpu, exit)` at every exit of one kind, a class of `pyvmm.kvm.exits` or its name ("IO").

        On the vCPU's thread, when the exit has been handled: a read has its answer, an instruction's registers are
        not changed yet. `vcpu.registers` and `vm.memory` may be read there; the VM may be stopped, but neither paused
        nor waited for. What the function raises ends the run with reason "error". Returns what takes the function
        back. Before the start or while the VM runs; costs nothing where it is not used. Raises UsageError.
        """
        from pyvmm.kvm import exits
        from pyvmm.observe import ExitHooks

        kinds = {
            found.name: found for found in vars(exits).values() if isinstance(found, type) and hasattr(found, "name")
        }
        found = kinds.get(kind) if isinstance(kind, str) else kind
        if found is None:
            raise UsageError(f"there is no exit called {kind!r} (there are {', '.join(sorted(filter(None, kinds)))})")
        if self._hooks is None:
            self._hooks = hooks = ExitHooks(lambda number: self._vcpus[number])
            for loop in self.loops:
                loop.observe(hooks)
        hooks = self._hooks
        hooks.add(found, function)
        return lambda: hooks.remove(found, function)


class Still:
    """A moment in which a running VM stands still. Entering raises VcpuStuckError when a vCPU does not come back."""

    __slots__ = ("_control",)

    def __init__(self, control: Control) -> None:
        self._control = control

    def __enter__(self) -> None:
        self._control.hold_still()

    def __exit__(self, *_: object) -> None:
        self._control.release()
