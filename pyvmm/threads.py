"""Starting threads, and how often the interpreter switches between them. Imports errors alone."""

from __future__ import annotations

import sys
import threading

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Thread


def start(thread: Thread) -> Thread:
    """Start `thread` as a daemon, since none of ours may keep the process from ending, and return it.

    Raises PyvmmError where the host has no room for it.
    """
    thread.daemon = True
    try:
        thread.start()
    except RuntimeError as error:
        raise PyvmmError(f"{error} ({thread.name}): the host has no room (a pids cgroup, ulimit -u)") from None
    return thread


class Aside:
    """`work()`, which mostly waits, on a thread of its own. Raises PyvmmError where the host has no room for that."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._failure: BaseException | None = None
        self._thread = start(threading.Thread(target=self._run, name="aside"))

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failure = error

    def wait(self) -> None:
        """Return when it is over, however."""
        self._thread.join()

    def finish(self) -> None:
        """Return when it is done. Raises what it has raised."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure


class SwitchInterval:
    """The interpreter's thread switch interval, lowered while any VM runs in this process.

    At the default of 5 ms a vCPU thread waits milliseconds for the GIL whenever another Python thread is busy.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = 0.0

    def lower(self, seconds: float) -> None:
        """Count one user in; the first one lowers the interval, unless it is lower already."""
        with self._lock:
            if self._users == 0:
                self._before = sys.getswitchinterval()
                sys.setswitchinterval(min(seconds, self._before))
            self._users += 1

    def restore(self) -> None:
        """Count one user out; the last one puts the interval back."""
        with self._lock:
            self._users -= 1
            if self._users == 0:
                sys.setswitchinterval(self._before)


switch_interval = SwitchInterval()
