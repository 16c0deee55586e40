"""Steering a VM's vCPU threads: pause, hold, errands, the end.

Imports errors. Whoever wants a VM's vCPUs to stand still sets a request in `Control` and kicks every vCPU; what a
thread does then, until its vCPU's state is whole and it parks, is in `runloop`.
"""

from __future__ import annotations

import threading
import time

from pyvmm.errors import UsageError, VcpuStuckError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pyvmm.runloop import Outcome, Vcpu

KICK_AGAIN = 0.1
"""Seconds after which a vCPU that has not come back is kicked once more. A kick takes 0.2 ms."""
STUCK_AFTER = 5.0
"""Seconds after which a vCPU that has not come back is given up."""


class Control:
    """What a VM's vCPU threads share with whoever steers them. Every field is changed under `condition`.

    `attention` is the one thing that a vCPU thread looks at between exits; it is set while any request stands.
    """

    __slots__ = (
        "_errands",
        "_holds",
        "_kept",
        "_leaving",
        "_vcpus",
        "attention",
        "condition",
        "live",
        "on_end",
        "on_moving",
        "on_still",
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
        self._kept: frozenset[int] = frozenset()
        self._leaving = 0
        self._vcpus: Sequence[Vcpu] = ()
        self.on_end: Callable[[], None] | None = None
        """Called by the last vCPU thread of an ended run, with every vCPU standing still."""
        self.on_still: Callable[[], None] | None = None
        self.on_moving: Callable[[], None] | None = None
        """Called under the lock when every vCPU has come to stand still, and before the first one sets off again."""

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
            for vcpu in self._vcpus:
                vcpu.immediate_exit = True

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

    def hold_soon(self) -> None:
        """`hold_still` without the wait: a vCPU's own thread may ask for it. `await_still` waits, `release` undoes."""
        with self.condition:
            self._holds += 1
            self._request()

    def await_still(self, timeout: float = STUCK_AFTER) -> None:
        """After `hold_soon`: return when every vCPU stands still, or the run has ended. Raises VcpuStuckError."""
        with self.condition:
            self._await(lambda: self.outcome is not None or self.parked >= self.live, timeout)

    def keep(self, indices: Iterable[int]) -> None:
        """While every vCPU stands still: these, and no others, go on standing when the last hold is released."""
        with self.condition:
            self._kept = frozenset(indices)
            self.condition.notify_all()

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
                self._call_off(vcpu, cancel)
                return False
            except KeyboardInterrupt:  # at a prompt
                self._call_off(vcpu, cancel)
                raise
            finally:
                self.release()

    def _call_off(self, vcpu: Vcpu, cancel: Callable[[], None]) -> None:
        cancel()
        self._request()
        self._await(lambda: vcpu.index not in self._errands or self.over, STUCK_AFTER)

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
            if self.parked == self.live and self.on_still is not None:
                self.on_still()
            self.condition.notify_all()
            while self._stands(vcpu.index):
                self.condition.wait()
            if self.parked == self.live and self.on_moving is not None and self.outcome is None:
                self.on_moving()
            self.parked -= 1
            # Under the lock, so that no kick falls between the last look at the requests and this.
            vcpu.immediate_exit = False
            return self.outcome is None

    def _stands(self, index: int) -> bool:
        asked = self.pausing or self._holds > 0 or index in self._kept
        return asked and self.outcome is None and index not in self._errands

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
