"""The VM at the prompt: when it stands and when it goes on, where it stopped, and what can be called there.

Imports its neighbours, the views, runloop's Outcome, threads and errors. While the prompt is open the VM is paused, its
time limit does not count, and the terminal is the prompt's; in between all three are the guest's.
"""

from __future__ import annotations

import threading
import time

from pyvmm import threads
from pyvmm.debug.shell.commands import Commands
from pyvmm.debug.shell.prompt import Leave, Prompt
from pyvmm.debug.shell.stops import ENTRY, Stop
from pyvmm.debug.views.contents import code_at
from pyvmm.errors import PyvmmError, UsageError
from pyvmm.kvm.constants import KVM_MP_STATE_HALTED
from pyvmm.kvm.exits import Mmio, Pio
from pyvmm.runloop import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.kvm.exits import Exit
    from pyvmm.steering import Control

LOOK_AGAIN = 0.05
"""Seconds between two looks whether a vCPU has halted."""
INTERRUPT_AGAIN = 0.2
"""Seconds after which a read is interrupted once more, if the run has ended and the prompt is still open."""
BANNER = "help() says what there is; Ctrl-D lets the guest go on, quit() ends the run\n"


class Shell:
    """The prompt of one `vm`, which `control` steers. For one thread, on which all of it happens but `interrupt`.

    `stop` is where it opens (see `stops`). `standing(True)` is called when the terminal becomes the prompt's,
    `standing(False)` when it is the guest's again. Raises UsageError for what is no place to stop.
    """

    def __init__(
        self, vm: Any, control: Control, stop: str = ENTRY, standing: Callable[[bool], None] = lambda stands: None
    ) -> None:
        self.vm = vm
        self.vcpu = 0
        """The number of the vCPU whose exit it was."""
        self.exit: Exit | None = None
        self.stop = Stop(stop)
        self._control = control
        self._standing = standing
        self._stands = False
        self._takes = 0
        self._stood = self._since = 0.0
        vm.stands_for(lambda: self.stood)
        self._seen_end = False
        self._armed = False
        self._asked = False
        self._hit: tuple[int, Exit] | None = None
        self._halts: dict[int, dict[str, int] | None] = {}
        self._test: Callable[[Any, Any], object] | None = None
        self._failure: BaseException | None = None
        self._unhook: list[Callable[[], None]] = []
        self._banner = BANNER
        self.commands = Commands(self)
        self._prompt = Prompt(self.commands.namespace, self._over)

    @property
    def stood(self) -> float:
        """Seconds that the VM has stood still for the prompt."""
        return self._stood + (time.monotonic() - self._since if self._stands else 0.0)

    # --- For who opens it -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Open it at each stop of a VM that was started paused, until the run has ended or there is no more input.

        Raises UsageError for a place that the machine does not have, VcpuStuckError.
        """
        self.until(self.stop)
        try:
            at_entry = self.stop.entry
            if not at_entry:
                self._resume()
                self._await()
            while self.vm.exit is None:
                self._take()
                if not self._converse("entry" if at_entry else ""):
                    return
                at_entry = False
                if self._prompt.ended:
                    break
                self._give()
                self._await()
        finally:
            self._close()

    def visit(self) -> None:
        """Open it once, now; the VM is as before afterwards, running or paused. Raises UsageError, VcpuStuckError."""
        if self.vm.state not in ("running", "paused", "ended"):
            raise UsageError("this VM has not been started: there is nothing to see")
        if any(loop.thread == threading.get_ident() for loop in self.vm.loops):
            raise UsageError("the prompt is for a thread that waits for the VM, not for a vCPU's own")
        was_paused = self.vm.state == "paused"
        try:
            self._take()
            self._converse("")
        finally:
            self._close(resume=not was_paused)

    def interrupt(self) -> None:
        """Have the guest stop for the prompt. Any thread."""
        self._asked = True
        self._control.pause_soon()

    def _close(self, resume: bool = True) -> None:
        self._forget()
        if self._stands:
            self._give(resume)

    # --- Standing and going on ------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Have VM, clock and terminal in hand. Raises VcpuStuckError, with the terminal in hand at least."""
        self._since = time.monotonic()
        lend = getattr(self.vm.console, "lend", None)
        if lend is not None:
            lend()
        self._stands = True
        self._takes += 1
        self._standing(True)
        if threading.current_thread() is threading.main_thread():
            threads.start(threading.Thread(target=self._interrupt_reads, args=(self._takes,), name="shell"))
        if self.vm.exit is None:
            self.vm.pause()
        if self._hit is not None:
            self.vcpu, self.exit = self._hit
        else:
            self.exit = None
        self._hit = None
        self._asked = False

    def _give(self, resume: bool = True) -> None:
        """Let go of them."""
        with self._control.condition:
            self._stood, self._stands = self.stood, False
            self._control.condition.notify_all()
        self._standing(False)
        take_back = getattr(self.vm.console, "take_back", None)
        if take_back is not None:
            take_back()
        if resume:
            self._resume()

    def _resume(self) -> None:
        # Before anything can be hit.
        self._armed = True
        if self.vm.exit is None:
            self.vm.resume()

    def _await(self) -> None:
        """Return when the VM has stopped for the prompt, or the run has ended."""
        control = self._control
        timeout = LOOK_AGAIN if self.stop.halt else None
        try:
            while True:
                with control.condition:
                    if control.condition.wait_for(self._stopped, timeout):
                        break
                if self._halted():
                    control.pause_soon()
                    break
        except KeyboardInterrupt:  # in a program of its own; pyvmm's has other plans for it while the guest runs
            control.pause_soon()
        self._armed = False
        if self.vm.exit is not None:
            self.vm.wait()

    def _stopped(self) -> bool:
        return self._control.outcome is not None or self._hit is not None or self._asked

    def _halted(self) -> bool:
        """Whether a vCPU has halted, again if it had at the last look: its registers have changed since then."""
        with self.vm.still():
            for vcpu in self.vm.vcpus:
                seen = dict(vcpu.registers) if vcpu.get_mp_state() == KVM_MP_STATE_HALTED else None
                before, self._halts[vcpu.index] = self._halts.get(vcpu.index), seen
                if seen is not None and seen != before:
                    self.vcpu = vcpu.index
                    return True
        return False

    # --- Where it stops -------------------------------------------------------------------------------------------

    def until(self, stop: Stop | Callable[[Any, Any], object]) -> None:
        """Stop there from now on. Raises UsageError for a place that the machine does not have."""
        machine = self.vm.machine
        test = None if isinstance(stop, Stop) else stop
        if isinstance(stop, Stop):
            stop.check(machine.ports, machine.mmio)
        self._forget()
        self.stop, self._test = (Stop("any"), test) if not isinstance(stop, Stop) else (stop, None)
        self._unhook = [self.vm.on_exit(kind, self._exited) for kind in self.stop.kinds]

    def _forget(self) -> None:
        for unhook in self._unhook:
            unhook()
        self._unhook = []

    def _exited(self, vcpu: Any, exit: Any) -> None:
        """On a vCPU's thread, the exit handled."""
        if not self._armed or self._hit is not None:
            return
        machine = self.vm.machine
        try:
            meant = self._test(vcpu, exit) if self._test else self.stop.matches(exit, machine.ports, machine.mmio)
        except Exception as error:  # a fault in what was typed: it ends no VM
            self._failure, meant = error, True
        if meant:
            self._hit = vcpu.index, exit
            self._control.pause_soon()

    # --- What the commands do -------------------------------------------------------------------------------------

    def go(self) -> str:
        """Let the guest go on to the next stop; returns where that is."""
        if self.vm.exit is not None:
            self._seen_end = True
            raise PyvmmError(f"the run has ended: {self.vm.exit.detail or self.vm.exit.reason}")
        self._give()
        self._await()
        self._take()
        return self.where("")

    def quit(self) -> None:
        """End the run, and the prompt."""
        self._seen_end = True
        self.vm.stop(Outcome("quit", 0, "ended at the prompt"))
        raise Leave

    def where(self, what: str) -> str:
        """A line or two: why it stopped, and the next instruction."""
        outcome = self.vm.exit
        if outcome is not None:
            self._seen_end = True
            return (
                f"the run has ended: {outcome.detail or outcome.reason} ({outcome.reason}); its state is still here\n"
            )
        failure, self._failure = self._failure, None
        if failure is not None:
            what = f"{type(failure).__name__} in the condition: {failure}"
        elif self.exit is not None:
            what = f"{self.exit.describe()}{self._named(self.exit)}"
        elif not what:
            what = "stopped"
        try:
            at = code_at(self.vm, self.vcpu)
        except PyvmmError as error:
            at = str(error)
        return f"vCPU {self.vcpu}, {what}\n-> {at}\n"

    def _named(self, exit: Any) -> str:
        """Device and register of an access, with its bits, as the device now has it."""
        if not isinstance(exit, Pio | Mmio):
            return ""
        bus, address = (self.vm.machine.ports, exit.port) if isinstance(exit, Pio) else (self.vm.machine.mmio, exit.gpa)
        found = bus.find(address, exit.size)
        if found is None:
            return ", which nobody answers"
        at = getattr(found[2], "register_at", lambda offset, is_write: None)
        register = at(address - found[0], exit.is_write)
        if register is None or len(exit.data) != register.width:
            return f", {found[2].name}"
        return f", {found[2].name} {register.describe(int.from_bytes(exit.data, 'little'))}"

    # --- The conversation -----------------------------------------------------------------------------------------

    def _converse(self, what: str) -> bool:
        """One prompt. False: the run is over, by what was typed or otherwise."""
        self.commands.refresh()
        began, self._banner = self._banner + self.where(what), ""
        self._seen_end = self.vm.exit is not None
        try:
            self._prompt.run(began)
        except SystemExit as leaving:
            if not isinstance(leaving, Leave):  # sys.exit(), typed
                self.vm.stop(Outcome("quit", 0, "ended at the prompt"))
            return False
        return self.vm.exit is None

    def _over(self) -> bool:
        """Whether the run has been ended, while the prompt was open, by somebody else."""
        return self.vm.exit is not None and not self._seen_end

    def _interrupt_reads(self, take: int) -> None:
        """The main thread, while it waits for a line, would not see that the run has ended meanwhile."""
        control, reader = self._control, threading.main_thread()

        def stands() -> bool:
            return self._stands and self._takes == take

        with control.condition:
            control.condition.wait_for(lambda: control.outcome is not None or not stands())
        import signal

        while stands() and self._over():
            if self._prompt.reading and reader.ident is not None:
                signal.pthread_kill(reader.ident, signal.SIGINT)
            time.sleep(INTERRUPT_AGAIN)
