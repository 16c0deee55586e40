"""One vCPU's thread: KVM_RUN, dispatch of the exit to the bus, and again.

Imports errors and the typed exits of `kvm` (pure Python), nothing that needs /dev/kvm: a scripted vCPU runs here as
well as a real one.

A thread that is asked to stand still (see `steering`) first calls KVM_RUN again with immediate_exit set, as often as it
takes to get Interrupted: only inside KVM_RUN does KVM finish the I/O instruction that it handed out last, and finishing
a 16-byte or page-crossing MMIO access may hand out another part (KVM API, 5, immediate_exit). Then the vCPU's state is
whole, and the thread parks.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque

from pyvmm.errors import STATUS_CRASH, STATUS_VMM_ERROR
from pyvmm.kvm.exits import Exit, InternalError, Interrupted, Mmio, Pio

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Protocol

    from pyvmm.bus import Bus
    from pyvmm.observe import Observer
    from pyvmm.steering import Control

    class Vcpu(Protocol):
        """What the run loop asks of a vCPU; `pyvmm.kvm.VcpuFd` and the scripted vCPU of `pyvmm.testing` have it."""

        @property
        def index(self) -> int: ...

        immediate_exit: bool

        def run(self) -> Exit: ...

        def answer(self, exit: Exit, data: bytes) -> None: ...

        def reply(self, exit: Any, value: int) -> None: ...

        def kick(self) -> None: ...

        def tell(self, tell: Callable[[Exit, int, int], None], at_once: bool) -> None: ...

        def served(self) -> Mapping[type[Exit], int]: ...

        def history(self, seen: Sequence[Exit], limit: int) -> Sequence[Exit]: ...

    Repair = Callable[[Any, InternalError], bool]
    """Makes a vCPU that came out with this exit able to run on, if it can; says whether it could."""


HISTORY = 16
"""Exits kept for the crash report."""


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


class VcpuLoop:
    """Runs one vCPU on the calling thread until the run ends.

    `completed` counts, by name, the instructions that KVM refused and `repair` completed; without `repair` the first
    one ends the run. `drain()` does what vCPUs have posted to devices (`pyvmm.hot`): called when the vCPU's state is
    whole, before it parks. `thread` is the identifier of the thread that runs it, or 0.
    """

    __slots__ = (
        "_control",
        "_counts",
        "_drain",
        "_history",
        "_mmio",
        "_observers",
        "_ports",
        "_repair",
        "completed",
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
        drain: Callable[[], None] = lambda: None,
    ) -> None:
        self.vcpu = vcpu
        self.thread = 0
        self.completed: defaultdict[str, int] = defaultdict(int)
        self._history: deque[Exit] = deque(maxlen=HISTORY)
        self._counts: defaultdict[type[Exit], int] = defaultdict(int)
        self._ports = ports
        self._mmio = mmio
        self._control = control
        self._observers: tuple[Observer, ...] = ()
        self._repair = repair
        self._drain = drain
        for observer in observers:
            self.observe(observer)

    def observe(self, observer: Observer) -> None:
        """Tell `observer` too, of every exit from now on. Any thread."""
        self._observers = (*self._observers, observer)
        self.vcpu.tell(self._tell, observer.at_once)

    @property
    def history(self) -> Sequence[Exit]:
        """The last exits, oldest first, with the accesses that the run loop in C has dealt with. Any thread."""
        return self.vcpu.history(list(self._history), HISTORY)

    @property
    def counts(self) -> Mapping[type[Exit], int]:
        """How many exits there were of each kind, with those accesses. Any thread."""
        counts = dict(self._counts)
        for kind, count in self.vcpu.served().items():
            if count:
                counts[kind] = counts.get(kind, 0) + count
        return counts

    def run(self) -> None:
        """The thread's body. Never raises: what goes wrong in the VMM ends the run with an "error" outcome."""
        self.thread = threading.get_ident()
        try:
            self._loop()
        except BaseException as error:
            self._control.end(failure(error))
        finally:
            self._control.thread_ended()

    def _loop(self) -> None:
        control = self._control
        run = self.vcpu.run
        while True:
            if control.attention:
                self._finish_io()
                self._drain()
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

    def _tell(self, exit: Exit, tsc: int, rip: int) -> None:
        for observer in self._observers:
            observer.on_served(self.vcpu.index, exit, tsc, rip)

    def note(self, exit: Exit) -> None:
        """Count and show an exit that somebody else deals with."""
        self._counts[exit.__class__] += 1
        self._history.append(exit)
        for observer in self._observers:
            observer.on_exit(self.vcpu.index, exit)

    def dispatch(self, exit: Any) -> None:
        """Deal with an exit: an access goes to its device, what repairs an instruction tries to, all else ends the run.

        On the vCPU's own thread.
        """
        kind = exit.__class__
        self._counts[kind] += 1
        if kind is Pio:
            self._history.append(exit)
            if exit.count != 1:
                self._string(exit)
            elif exit.is_write:
                self._ports.write(exit.port, exit.size, exit.value)
            else:
                self.vcpu.reply(exit, self._ports.read(exit.port, exit.size))
        elif kind is Mmio:
            self._history.append(exit)
            if exit.is_write:
                self._mmio.write(exit.gpa, exit.size, exit.value)
            else:
                self.vcpu.reply(exit, self._mmio.read(exit.gpa, exit.size))
        elif kind is Interrupted:
            control = self._control
            with control.condition:
                if not control.attention:
                    self.vcpu.immediate_exit = False
        else:
            self._history.append(exit)
            if isinstance(exit, InternalError) and self._repair is not None and self._repair(self.vcpu, exit):
                self.completed[exit.completed] += 1
            else:
                self._fail(judge(exit))
        for observer in self._observers:
            observer.on_exit(self.vcpu.index, exit)

    def _fail(self, outcome: Outcome) -> None:
        """The guest cannot go on."""
        self._control.end(outcome)

    def _string(self, exit: Pio) -> None:
        if exit.is_write:
            self._ports.write_string(exit.port, exit.size, exit.data)
        else:
            self.vcpu.answer(exit, self._ports.read_string(exit.port, exit.size, exit.count))


def failure(error: BaseException) -> Outcome:
    """The outcome of a run in which the VMM itself went wrong: `error` is being handled."""
    import traceback

    outcome = Outcome("error", getattr(error, "exit_status", STATUS_VMM_ERROR), f"{type(error).__name__}: {error}")
    outcome.report = traceback.format_exc()
    return outcome


def judge(exit: Exit) -> Outcome:
    """What an exit that is no device access means for the run."""
    from pyvmm.kvm.seldom import FailEntry, Shutdown, SystemEvent

    if isinstance(exit, Shutdown):
        return Outcome("crash", STATUS_CRASH, "triple fault")
    if isinstance(exit, FailEntry | InternalError):
        return Outcome("crash", STATUS_CRASH, exit.describe())
    if isinstance(exit, SystemEvent):
        return Outcome("crash", STATUS_CRASH, exit.describe())
    return Outcome("crash", STATUS_CRASH, f"an exit that pyvmm does not handle: {exit.describe()}")
