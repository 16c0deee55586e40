"""One vCPU's thread: KVM_RUN, dispatch of the exit to the bus, and again; and how such threads are stopped.

Imports errors and the typed exits of `kvm` (pure Python), nothing that needs /dev/kvm: a scripted vCPU runs here as
well as a real one.

Stopping. Whoever wants a VM's vCPUs to stand still sets a request in `Control` and kicks every vCPU. A thread that
comes out of KVM_RUN first calls it again with immediate_exit set, as often as it takes to get Interrupted: only
inside KVM_RUN does KVM finish the I/O instruction that it handed out last, and finishing a 16-byte or page-crossing
MMIO access may hand out another part (KVM API, 5, immediate_exit). Then the vCPU's state is whole, and the thread
parks.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque

from pyvmm.errors import STATUS_CRASH, STATUS_VMM_ERROR, UsageError, VcpuStuckError
from pyvmm.kvm.exits import Exit, FailEntry, InternalError, Interrupted, Mmio, Pio, Shutdown, SystemEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from pyvmm.bus import Bus
    from pyvmm.observe import Observer

    class Vcpu(Protocol):
        """What the run loop asks of a vCPU; `pyvmm.kvm.VcpuFd` and the scripted vCPU of `pyvmm.testing` have it."""

        @property
        def index(self) -> int: ...

        immediate_exit: bool

        def run(self) -> Exit: ...

        def answer(self, exit: Exit, data: bytes) -> None: ...

        def kick(self) -> None: ...

    Repair = Callable[[Any, InternalError], bool]
    """Makes a vCPU that came out with this exit able to run on, if it can; says whether it could."""


HISTORY = 16
"""Exits kept for the crash report."""
KICK_AGAIN = 0.1
"""Seconds after which a vCPU that has not come back is kicked once more. A kick takes 0.2 ms."""
STUCK_AFTER = 5.0
"""Seconds after which a vCPU that has not come back is given up."""


class Outcome:
    """How a run ended.

    reason   "debug-exit", "power-off", "reboot", "quit", "signal", "crash", "panic", "stuck", "time-limit", "stopped",
             "killed" or "error"
    status   the process's exit status by the rule of the command line (0 to 255)
    detail   one line in words
    report   the crash report, or None where none is due
    """

    __slots__ = ("detail", "reason", "report", "status")

    def __init__(self, reason: str, status: int, detail: str = "") -> None:
        self.reason = reason
        self.status = status
        self.detail = detail
        self.report: object | None = None

    def __repr__(self) -> str:
        return f"Outcome({self.reason!r}, status={self.status}, detail={self.detail!r})"


def debug_exit(value: int) -> Outcome:
    """The outcome of a guest that wrote `value` to the debug-exit port: status is (value << 1) | 1, modulo 256."""
    return Outcome("debug-exit", (value << 1 | 1) & 0xFF, f"the guest wrote {value:#x} to the debug-exit port")


class Control:
    """What a VM's vCPU threads share with whoever steers them. Every field is changed under `condition`.

    `attention` is the one thing that a vCPU thread looks at between exits; it is set while any request stands.
    """

    __slots__ = (
        "_errands",
        "_holds",
        "_leaving",
        "_vcpus",
        "attention",
        "condition",
        "live",
        "on_end",
        "outcome",
        "parked",
        "pausing",
    )

    def __init__(self) -> None:
        # Re-entrant: a signal handler may call end() on a thread that is inside one of these methods.
        self.condition = threading.Condition()
        self.attention = False
        self.pausing = False
        self.outcome: Outcome | None = None
        self.parked = 0
        self.live = 0
        self._errands: dict[int, Callable[[], None]] = {}
        self._holds = 0
        self._leaving = 0
        self._vcpus: Sequence[Vcpu] = ()
        self.on_end: Callable[[], None] | None = None
        """Called by the last vCPU thread of an ended run, with every vCPU standing still."""

    def steer(self, vcpus: Sequence[Vcpu]) -> None:
        """Take charge of `vcpus`, each about to get a thread."""
        with self.condition:
            self._vcpus = tuple(vcpus)
            self.live = len(self._vcpus)

    def end(self, outcome: Outcome) -> None:
        """End the run. The first outcome counts; later ones are dropped. Any thread, a device's handler too."""
        with self.condition:
            if self.outcome is None:
                self.outcome = outcome
            self._request()

    def hold(self) -> None:
        """A back-end cannot take more output: let the vCPUs wait outside KVM_RUN. Counted; `release` undoes one."""
        with self.condition:
            self._holds += 1
            # No kick: a vCPU that is inside the guest meets this when it next has something to say.
            self.attention = True

    def hold_still(self, timeout: float = STUCK_AFTER) -> None:
        """`hold`, for a look at a running guest: return when every vCPU stands still with its state whole.

        Or when the run has ended, which ends every hold. Independent of `pause` and `resume`; `release` undoes it.
        Raises VcpuStuckError, with nothing to undo, when a vCPU does not come back within `timeout` seconds.
        """
        with self.condition:
            self._holds += 1
            self._request()
            try:
                self._await(lambda: self.outcome is not None or self.parked >= self.live, timeout)
            except VcpuStuckError:
                self.release()
                raise

    def release(self) -> None:
        """The back-end can take output again, the look is over: one hold less."""
        with self.condition:
            self._holds -= 1
            self._settle()

    def pause(self, timeout: float = STUCK_AFTER) -> None:
        """Return when every vCPU stands still with its state whole.

        Raises VcpuStuckError when one does not come back within `timeout` seconds.
        """
        with self.condition:
            self.pausing = True
            self._request()
            self._await(lambda: self.parked >= self.live, timeout)

    def pause_soon(self) -> None:
        """`pause` without the wait: any thread may ask for it, a device's handler on a vCPU's own too."""
        with self.condition:
            self.pausing = True
            self._request()

    def resume(self) -> None:
        """Let paused vCPUs run."""
        with self.condition:
            self.pausing = False
            self._settle()

    def perform(self, vcpu: Vcpu, errand: Callable[[], None], cancel: Callable[[], None], timeout: float) -> bool:
        """Have the thread of `vcpu`, one of a paused VM, call `errand()`; return when it has, or the run has ended.

        False if it had not after `timeout` seconds and was stopped: `cancel()`, then a kick. A `resume()` meanwhile
        has its effect afterwards. Raises UsageError for a VM that is not paused, VcpuStuckError.
        """
        with self.condition:
            if self.outcome is not None or not self.pausing:
                raise UsageError("the VM does not stand still: pause() comes first")
            self._await(lambda: self.outcome is not None or self.parked >= self.live, STUCK_AFTER)
            self._holds += 1
            self._errands[vcpu.index] = errand
            self.condition.notify_all()
            try:
                if self.condition.wait_for(lambda: vcpu.index not in self._errands or self.over, timeout):
                    return True
                cancel()
                self._request()
                self._await(lambda: vcpu.index not in self._errands or self.over, STUCK_AFTER)
                return False
            finally:
                self.release()

    def errand(self, vcpu: Vcpu) -> Callable[[], None] | None:
        """What the thread of `vcpu` is to call now; `errand_done` follows."""
        return self._errands.get(vcpu.index)

    def errand_done(self, vcpu: Vcpu) -> None:
        """Called by that thread."""
        with self.condition:
            del self._errands[vcpu.index]
            self.condition.notify_all()

    @property
    def over(self) -> bool:
        """The run has ended and no vCPU thread is left."""
        return self.outcome is not None and self.live == 0

    def wait_ended(self, timeout: float) -> None:
        """After `end`: return when no vCPU thread is left. Raises VcpuStuckError after `timeout` seconds."""
        with self.condition:
            self._await(lambda: self.live == 0, timeout)

    def _request(self) -> None:
        self.attention = True
        for vcpu in self._vcpus:
            vcpu.kick()
        self.condition.notify_all()

    def _settle(self) -> None:
        self.attention = self.pausing or self._holds > 0 or self.outcome is not None
        self.condition.notify_all()

    def _await(self, done: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.condition.wait_for(done, KICK_AGAIN):
            if time.monotonic() > deadline:
                missing = self.live - (self.parked if self.outcome is None else 0)
                raise VcpuStuckError(f"{missing} vCPU(s) did not come back from KVM within {timeout:g} s of a kick")
            self._request()

    def park(self, vcpu: Vcpu) -> bool:
        """Called by a vCPU's own thread, its state whole: wait while asked to. False means the run has ended."""
        with self.condition:
            self.parked += 1
            self.condition.notify_all()
            while self.outcome is None and (self.pausing or self._holds > 0) and vcpu.index not in self._errands:
                self.condition.wait()
            self.parked -= 1
            # Under the lock, so that no kick falls between the last look at the requests and this.
            vcpu.immediate_exit = False
            return self.outcome is None

    def thread_ended(self) -> None:
        """Called by a vCPU's own thread as the last thing it does."""
        with self.condition:
            self._leaving += 1
            last = self._leaving == len(self._vcpus)
        try:
            if last and self.on_end is not None:
                self.on_end()
        finally:
            with self.condition:
                self.live -= 1
                self.condition.notify_all()


class VcpuLoop:
    """Runs one vCPU on the calling thread until the run ends.

    `history` holds the last exits, `counts` how many there were of each kind. `completed` counts, by name, the
    instructions that KVM refused and `repair` completed; without `repair` the first one ends the run. `thread` is the
    identifier of the thread that runs it, or 0.
    """

    __slots__ = (
        "_control",
        "_mmio",
        "_observers",
        "_ports",
        "_repair",
        "completed",
        "counts",
        "history",
        "thread",
        "vcpu",
    )

    def __init__(
        self,
        vcpu: Vcpu,
        ports: Bus,
        mmio: Bus,
        control: Control,
        observers: Sequence[Observer] = (),
        repair: Repair | None = None,
    ) -> None:
        self.vcpu = vcpu
        self.thread = 0
        self.completed: defaultdict[str, int] = defaultdict(int)
        self.history: deque[Exit] = deque(maxlen=HISTORY)
        self.counts: defaultdict[type[Exit], int] = defaultdict(int)
        self._ports = ports
        self._mmio = mmio
        self._control = control
        self._observers = tuple(observers)
        self._repair = repair

    def observe(self, observer: Observer) -> None:
        """Tell `observer` too, of every exit from now on. Any thread."""
        self._observers = (*self._observers, observer)

    def run(self) -> None:
        """The thread's body. Never raises: what goes wrong in the VMM ends the run with an "error" outcome."""
        self.thread = threading.get_ident()
        try:
            self._loop()
        except BaseException as error:
            import traceback

            detail = f"{type(error).__name__}: {error}"
            outcome = Outcome("error", getattr(error, "exit_status", STATUS_VMM_ERROR), detail)
            outcome.report = traceback.format_exc()
            self._control.end(outcome)
        finally:
            self._control.thread_ended()

    def _loop(self) -> None:
        control = self._control
        run = self.vcpu.run
        while True:
            if control.attention:
                self._finish_io()
                if not control.park(self.vcpu):
                    return
                errand = control.errand(self.vcpu)
                if errand is not None:
                    try:
                        errand()
                    finally:
                        control.errand_done(self.vcpu)
                    continue
            self.dispatch(run())

    def _finish_io(self) -> None:
        """Let KVM complete the instruction whose exit was answered last."""
        self.vcpu.immediate_exit = True
        while True:
            exit = self.vcpu.run()
            if exit.__class__ is Interrupted:
                return
            self.dispatch(exit)
            if exit.__class__ is not Pio and exit.__class__ is not Mmio:
                return

    def note(self, exit: Exit) -> None:
        """Count and show an exit that somebody else deals with."""
        self.counts[exit.__class__] += 1
        self.history.append(exit)
        for observer in self._observers:
            observer.on_exit(self.vcpu.index, exit)

    def dispatch(self, exit: Exit) -> None:
        """Deal with an exit: an access goes to its device, what repairs an instruction tries to, all else ends the run.

        On the vCPU's own thread.
        """
        kind = exit.__class__
        self.counts[kind] += 1
        if kind is Pio:
            self.history.append(exit)
            self._pio(exit)  # type: ignore[arg-type]  # kind is exact
        elif kind is Mmio:
            self.history.append(exit)
            self._mmio_access(exit)  # type: ignore[arg-type]
        elif kind is Interrupted:
            control = self._control
            with control.condition:
                if not control.attention:
                    self.vcpu.immediate_exit = False
        else:
            self.history.append(exit)
            if isinstance(exit, InternalError) and self._repair is not None and self._repair(self.vcpu, exit):
                self.completed[exit.completed] += 1
            else:
                self._control.end(judge(exit))
        for observer in self._observers:
            observer.on_exit(self.vcpu.index, exit)

    def _pio(self, exit: Pio) -> None:
        if exit.is_write:
            if exit.count == 1:
                self._ports.write(exit.port, exit.size, int.from_bytes(exit.data, "little"))
            else:
                self._ports.write_string(exit.port, exit.size, exit.data)
        elif exit.count == 1:
            value = self._ports.read(exit.port, exit.size)
            self.vcpu.answer(exit, value.to_bytes(exit.size, "little"))
        else:
            self.vcpu.answer(exit, self._ports.read_string(exit.port, exit.size, exit.count))

    def _mmio_access(self, exit: Mmio) -> None:
        if exit.is_write:
            self._mmio.write(exit.gpa, exit.size, int.from_bytes(exit.data, "little"))
        else:
            value = self._mmio.read(exit.gpa, exit.size)
            self.vcpu.answer(exit, value.to_bytes(exit.size, "little"))


def judge(exit: Exit) -> Outcome:
    """What an exit that is no device access means for the run."""
    if isinstance(exit, Shutdown):
        return Outcome("crash", STATUS_CRASH, "triple fault")
    if isinstance(exit, FailEntry | InternalError):
        return Outcome("crash", STATUS_CRASH, exit.describe())
    if isinstance(exit, SystemEvent):
        return Outcome("crash", STATUS_CRASH, exit.describe())
    return Outcome("crash", STATUS_CRASH, f"an exit that pyvmm does not handle: {exit.describe()}")
