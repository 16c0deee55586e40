"""Starting threads. Imports errors alone."""

from __future__ import annotations

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
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
