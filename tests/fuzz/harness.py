"""Runs cases against one kind of device: nothing may come out of it but answers, and it must work afterwards."""

from __future__ import annotations

import gc
import os
import resource
import signal
import traceback
from contextlib import ExitStack, nullcontext
from unittest.mock import patch

from pyvmm.memory import GuestMemory
from pyvmm.virtio import faults, queue
from tests.fuzz.cases import Case
from tests.fuzz.guard import RANGES, Fault
from tests.fuzz.kinds import TRANSPORT, Kinds
from tests.fuzz.pciplayer import PciPlayer
from tests.fuzz.player import Player
from tests.support.clock import Clock

LIMIT = 5.0
"""Seconds that a case may take: a thousand times what it does."""
ALARMS = 4
"""In how many parts: alarms that a process misses while it gets no CPU are one, and no proof of a hang."""
GROWTH = 256 << 20
"""Bytes of address space that this process may grow by while cases run."""


class Hang(BaseException):
    """The time of a case is over. No exception that anybody may catch."""


class Failure:
    """What went wrong in `case`: `text` for people; `key` is the same for the same fault."""

    def __init__(self, case, key, text):
        self.case = case
        self.key = key
        self.text = text


class Harness:
    """Runs cases of `subject`'s kind, within `limit` seconds each. A context manager, for the main thread.

    kinds    what was reached, counted
    lines    a `lines.Lines` that looks on, or None
    """

    def __init__(self, subject, lines=None, limit=LIMIT):
        self.subject = subject
        every, modules = (TRANSPORT, [queue, *subject.modules]) if subject.everything else ((), [])
        self.kinds = Kinds(modules, [*every, *subject.required])
        self._lines = nullcontext() if lines is None else lines
        self._limit = limit
        self._alarms = 0
        self._stack = ExitStack()

    def __enter__(self):
        stack, self.clock = self._stack, Clock()
        self._memory = GuestMemory.allocate(RANGES)
        stack.callback(self._memory.close)
        stack.callback(gc.collect)  # sessions go round in circles, with views of that memory
        stack.enter_context(patch.object(faults, "monotonic", self.clock.monotonic))
        for module in self.subject.modules:
            if hasattr(module, "time"):
                stack.enter_context(patch.object(module, "time", self.clock))
        stack.callback(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, self._alarm))
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        pages = int(open("/proc/self/statm").read().split()[0])
        room = pages * os.sysconf("SC_PAGE_SIZE") + GROWTH
        if hard == resource.RLIM_INFINITY or room < hard:
            stack.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
            resource.setrlimit(resource.RLIMIT_AS, (room, hard))
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _alarm(self, *_):
        self._alarms += 1
        if self._alarms >= ALARMS:
            raise Hang

    # --- One case -----------------------------------------------------------------------------------------------------

    def run(self, case):
        """Run `case`: a Failure, or None."""
        self._alarms = 0
        signal.setitimer(signal.ITIMER_REAL, self._limit / ALARMS, self._limit / ALARMS)
        try:
            self._run(case)
        except (Exception, Hang) as error:
            signal.setitimer(signal.ITIMER_REAL, 0)
            return self._failure(case, error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return None

    def _run(self, case):
        self.clock.now = 1000.0
        for base, size in RANGES:
            self._memory.fill(base, size)
        with self._lines:
            subject = self.subject({key: value for key, value in case.settings.items() if key != "faults"}, self.kinds)
        rules = case.settings.get("faults", ())
        player = PciPlayer if subject.transport == "pci" else Player
        session = player(subject, self._memory, self.clock, self.kinds, self._lines, rules)
        try:
            for operation in case.operations:
                session.do(operation)
            self._recover(session)
        finally:
            subject.device.close()

    def _recover(self, session):
        """After a reset the next driver is served as if nothing had been."""
        session.do_hold(-1)
        session.do(("reset",))
        session.subject.calm()
        session.device.faults = None
        session.clock.now += 100.0
        session.do(("bring up", 0, 16))
        if session.status != 15:
            raise Fault("recovery", f"the device cannot be brought up again: status {session.status}")
        session.probing = True
        try:
            session.subject.probe(session)
        except AssertionError as error:
            raise Fault("recovery", f"a good request is not served after a reset: {error}") from error
        session.do(("reset",))

    def _failure(self, case, error):
        frames = traceback.extract_tb(error.__traceback__)
        models = [frame for frame in frames if "/pyvmm/virtio/" in frame.filename] or frames
        if isinstance(error, Fault):
            key, text = (error.kind,), f"{error.kind}: {error}"
        elif isinstance(error, Hang):
            key, text = ("hang",), f"no end within {self._limit:g} s, in {models[-1].filename}:{models[-1].lineno}"
        else:
            key = (type(error).__name__, models[-1].filename, str(models[-1].lineno))
            text = f"{type(error).__name__}: {error}\n" + "".join(traceback.format_tb(error.__traceback__))
        return Failure(case, key, text)

    # --- Making it shorter --------------------------------------------------------------------------------------------

    def minimise(self, failure, tries=300):
        """The failure of the shortest case found that fails alike: operations are left out, by halves, then singly."""
        counted, self.kinds = self.kinds, Kinds()
        try:
            step = len(failure.case.operations) // 2
            while step:
                at = 0
                while at < len(failure.case.operations) and tries:
                    tries -= 1
                    operations = failure.case.operations
                    shorter = Case(
                        failure.case.device, failure.case.settings, operations[:at] + operations[at + step :]
                    )
                    found = self.run(shorter)
                    if found is not None and found.key == failure.key:
                        failure = found
                    else:
                        at += step
                step //= 2
        finally:
            self.kinds = counted
        return failure
