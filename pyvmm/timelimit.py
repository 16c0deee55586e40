"""A time limit that is longer by what the VM stands still for somebody: at a prompt, in a debugger. Imports threads."""

from __future__ import annotations

import threading
import time

from pyvmm import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_AGAIN = 0.5
"""Seconds, at least, between two looks whether a VM that stands, or has stood, is still within its limit."""


class TimeLimit:
    """Calls `reached()`, on a thread of its own, `seconds` after `start()` and what `stood()` says by then, in seconds.

    Raises PyvmmError where the host has no room for a thread.
    """

    def __init__(self, seconds: float, stood: Callable[[], float], reached: Callable[[], None]) -> None:
        self._seconds = seconds
        self._stood = stood
        self._reached = reached
        self._end = 0.0
        self._over = False
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Count from now on."""
        self._end = time.monotonic() + self._seconds
        self._wait(self._seconds)

    def cancel(self) -> None:
        """It is never reached any more."""
        self._over = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._look)
        threads.start(self._timer)

    def _look(self) -> None:
        left = self._end + self._stood() - time.monotonic()
        if self._over:
            return
        if left <= 0:
            self._reached()
        else:
            self._wait(max(left, LOOK_AGAIN))
