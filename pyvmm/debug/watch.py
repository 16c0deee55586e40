"""Whether a guest still makes progress: a thread that looks on, and what it makes of what it sees.

Imports nothing of pyvmm; runs over plain callables, so that a test needs neither KVM nor time. While a guest makes
exits, one look at the exit counters every PERIOD seconds is all that this costs. Only when no exit has come does it let
the vCPUs stand still for the moment that it takes to read their registers.

A guest that makes no exits may be computing, idle, or stuck. It is

    idle      if a processor has halted with interrupts on and something is armed that can wake it
    running   if a processor is seen in places that lie apart, or in ring 3 with interrupts on
    stuck     if no processor is either, or one is on a hypercall that this KVM does not end

A loop whose registers change each time may be computing: it is given LOOP_PATIENCE times as long.
"""

from __future__ import annotations

import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from pyvmm.debug.consolewatch import ConsoleWatch

HYPERCALLS = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")
"""vmcall and vmmcall."""
LOOP_SPAN = 256
"""Sampled RIPs within so many bytes are one loop."""
PERIOD = 2.0
"""Seconds between two looks."""
LEAST_PERIOD = 0.05
SPEAK_AFTER = 10.0
"""Seconds without progress after which the user is told."""
SAMPLES_LEAST, SAMPLES_MOST = 4, 16
"""Samples of a processor that a judgement takes, and that are kept."""
LOOP_PATIENCE = 4
REST = 30.0
"""Seconds between two looks into a guest that has been found idle, at most."""
PANIC_QUIET = 3.0
"""Seconds without output after a panic's text before the guest is looked at."""
PANIC_LOOKS = 3
PANIC_PERIOD = 0.5
SILENT_AFTER = 15.0
"""Seconds after which a Linux kernel that has not said anything is asked about its console."""

OFF, IDLE, RUNNING, HALTED, HYPERCALL, SPINNING, LOOPING = (
    "off", "idle", "running", "halted", "hypercall", "spinning", "looping",
)  # fmt: skip


class Sample:
    """One processor at one moment.

    rip         the linear address of the next instruction
    registers   the general registers' values, RIP and RFLAGS left out
    off         not started by the guest
    halted      in HLT
    interrupts  RFLAGS.IF
    ring        the privilege level
    code        the bytes at RIP
    armed       what could wake it, if it is halted with interrupts on
    """

    __slots__ = ("armed", "code", "halted", "interrupts", "off", "registers", "ring", "rip")

    def __init__(
        self,
        rip: int,
        registers: tuple[int, ...] = (),
        *,
        off: bool = False,
        halted: bool = False,
        interrupts: bool = False,
        ring: int = 0,
        code: bytes = b"",
        armed: tuple[str, ...] = (),
    ) -> None:
        self.rip = rip
        self.registers = registers
        self.off = off
        self.halted = halted
        self.interrupts = interrupts
        self.ring = ring
        self.code = code
        self.armed = armed


def verdict(samples: Sequence[Sample]) -> str:
    """What a processor does that was seen like this, oldest first, without an exit in between."""
    last = samples[-1]
    if last.off:
        return OFF
    if last.halted and last.interrupts and last.armed:
        return IDLE
    rips = [sample.rip for sample in samples]
    still = len(set(rips)) == 1 and len(samples) >= SAMPLES_LEAST
    if last.halted:
        return HALTED if still and all(sample.halted and not sample.armed for sample in samples) else RUNNING
    if still and last.code.startswith(HYPERCALLS):
        return HYPERCALL
    if len(samples) < SAMPLES_LEAST or any(sample.halted for sample in samples):
        return RUNNING
    low = loop_start(rips)
    loop = [sample for sample in samples if low <= sample.rip < low + LOOP_SPAN]
    # A loop with interrupts on is seen in their handlers too.
    if 4 * len(loop) < 3 * len(samples) or all(sample.ring == 3 and sample.interrupts for sample in loop):
        return RUNNING
    different = len({sample.registers for sample in loop})
    return SPINNING if 2 * different <= len(loop) else LOOPING


def loop_start(rips: Sequence[int]) -> int:
    """The lowest of those of `rips` that lie within LOOP_SPAN, chosen to be as many as possible."""
    return max(rips, key=lambda low: sum(low <= rip < low + LOOP_SPAN for rip in rips))


def is_stuck(verdicts: Sequence[str]) -> bool:
    """Whether the guest of processors that do this will never do anything again, as far as can be told."""
    if HYPERCALL in verdicts:
        return True
    return not {IDLE, RUNNING} & {*verdicts} and any(found != OFF for found in verdicts)


def panicked(samples: Sequence[Sample]) -> bool:
    """Whether processors seen like this may be those of a kernel that stopped after its panic."""
    return all(s.off or (s.ring == 0 and not (s.halted and s.interrupts)) for s in samples)


class Watch:
    """The watcher. `look()` gives a sample of each processor, or None where the guest cannot be looked at now.

    `progress()` is a number that grows with every exit, `standing()` whether somebody holds the guest.
    `limit()` is after how many seconds a stuck guest is ended, or None. What it finds it says by

    on_stuck(seconds, samples, final)   no progress for so long; `samples` are a list for each processor
    on_moving()                         it goes on, after all
    on_panic()                          the kernel has said that it panicked, and stopped
    on_waiting(seconds, final)          the kernel waits for what its last line says
    on_silent()                         nothing has been written at all
    """

    def __init__(
        self,
        console: ConsoleWatch,
        *,
        look: Callable[[], list[Sample] | None],
        progress: Callable[[], int],
        standing: Callable[[], bool],
        limit: Callable[[], float | None],
        on_stuck: Callable[[float, list[list[Sample]], bool], None],
        on_moving: Callable[[], None],
        on_panic: Callable[[], None],
        on_waiting: Callable[[float, bool], None],
        on_silent: Callable[[], None],
    ) -> None:
        self.period = PERIOD
        self._console = console
        self._look = look
        self._progress = progress
        self._standing = standing
        self._limit = limit
        self._on_stuck = on_stuck
        self._on_moving = on_moving
        self._on_panic = on_panic
        self._on_waiting = on_waiting
        self._on_silent = on_silent
        self._seen = -1
        self._size = 0
        self._still = 0.0
        self._quiet = 0.0
        self._silent = 0.0
        self._rest = 0.0
        self._pause = 0.0
        self._spoken = False
        self._speak_after = SPEAK_AFTER
        self._waiting_told = False
        self._panic_looks = 0
        self._samples: list[deque[Sample]] = []

    @property
    def samples(self) -> list[list[int]]:
        """The values of RIP of each processor since the last exit; for whoever knows that the guest stands still."""
        return [[sample.rip for sample in kept] for kept in self._samples]

    def run(self, over: threading.Event) -> None:
        """Watch until `over` is set. The body of a thread."""
        limit = self._limit()
        if limit is not None:
            self.period = max(LEAST_PERIOD, min(self.period, limit / SAMPLES_LEAST))
        last = time.monotonic()
        while not over.wait(self.period if self._console.panic is None else min(self.period, PANIC_PERIOD)):
            now = time.monotonic()
            # A host that was suspended, or too busy to run this thread, has not run the guest either.
            elapsed, last = min(now - last, 2 * self.period), now
            self.tick(elapsed)

    def tick(self, elapsed: float) -> None:
        """One look, `elapsed` seconds after the last one."""
        self._console.scan()
        if self._standing():
            self._moved()
            return
        size = self._console.size
        self._quiet = self._quiet + elapsed if size == self._size else 0.0
        self._size = size
        if self._heard(elapsed):
            return
        progress = self._progress()
        if progress != self._seen:
            self._seen = progress
            self._moved()
            return
        self._still += elapsed
        self._rest -= elapsed
        if self._rest <= 0:
            self._judge()

    def _moved(self) -> None:
        self._still = self._rest = self._pause = 0.0
        for kept in self._samples:
            kept.clear()
        if self._spoken:
            self._spoken = False
            self._speak_after *= 2  # it was wrong to say so, or not worth saying twice
            self._on_moving()

    def _heard(self, elapsed: float) -> bool:
        """What the console alone tells; whether that is all for now."""
        console = self._console
        if console.panic is not None and self._quiet >= PANIC_QUIET:
            samples = self._look()
            if samples is None:
                return True
            self._panic_looks = self._panic_looks + 1 if panicked(samples) else 0
            if self._panic_looks >= PANIC_LOOKS:
                console.panic = None
                self._panic_looks = 0
                self._on_panic()
            return True
        self._panic_looks = 0
        if console.waiting is None:
            self._waiting_told = False
        elif self._quiet >= SPEAK_AFTER or self._past_limit(self._quiet):
            final = self._past_limit(self._quiet)
            if final or not self._waiting_told:
                self._waiting_told = True
                self._on_waiting(self._quiet, final)
        if not self._size and self._silent < SILENT_AFTER:
            self._silent += elapsed
            if self._silent >= SILENT_AFTER:
                self._on_silent()
        return False

    def _past_limit(self, seconds: float) -> bool:
        limit = self._limit()
        return limit is not None and seconds >= limit

    def _judge(self) -> None:
        samples = self._look()
        if samples is None:
            return
        if len(self._samples) != len(samples):
            self._samples = [deque(maxlen=SAMPLES_MOST) for _ in samples]
        if not self._samples[0]:
            self._still = 0.0  # what came before the first sample was perhaps a computation
        for kept, sample in zip(self._samples, samples, strict=True):
            kept.append(sample)
        verdicts = [verdict(kept) for kept in self._samples]
        if not is_stuck(verdicts):
            if IDLE in verdicts or len(self._samples[0]) >= SAMPLES_LEAST:
                pause = self._pause
                self._moved()
                self._look_seldomer(pause)
            return
        patience = LOOP_PATIENCE if LOOPING in verdicts and HYPERCALL not in verdicts else 1
        final = self._past_limit(self._still / patience)
        if final or (not self._spoken and self._still >= self._speak_after * patience):
            self._spoken = True
            self._on_stuck(self._still, [list(kept) for kept in self._samples], final)
        if self._spoken and self._limit() is None:
            self._look_seldomer(self._pause)

    def _look_seldomer(self, pause: float) -> None:
        self._rest = self._pause = min(self._limit() or REST, REST, max(2 * pause, self.period))
