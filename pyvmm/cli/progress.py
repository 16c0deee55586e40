"""What the user is told: lines on standard error that begin with `pyvmm:`, as many as the log level lets through.

Imports nothing of pyvmm. Standard error is the VMM's alone; a guest's output never comes here.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LEVELS = ("errors", "warn", "info", "debug")
STDERR = 2


def write_all(fd: int, data: bytes) -> None:
    """Write `data` to `fd`, waiting as long as it takes. Raises OSError."""
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            import select

            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


class Log:
    """The one voice. `level` is how many of LEVELS are heard beyond the first.

    While a terminal is in raw mode, lines need a carriage return, and the guest may have left the cursor inside a
    line: `raw()` and `leave_line()` say so.
    """

    def __init__(self) -> None:
        self.level = LEVELS.index("warn")
        self.raw: Callable[[], bool] = bool
        self.leave_line: Callable[[], bool] = bool

    def say(self, text: str) -> None:
        """Show `text`, each line prefixed, whatever the level."""
        end = "\r\n" if self.raw() else "\n"
        lines = "".join(f"pyvmm: {line}".rstrip() + end for line in text.splitlines() or [""])
        if os.isatty(STDERR) and self.leave_line():
            lines = "\r\n" + lines
        try:
            write_all(STDERR, lines.encode("utf-8", "backslashreplace"))
        except OSError:
            pass  # nobody is there to be told

    def error(self, text: str) -> None:
        """What ends the run."""
        self.say(text)

    def warn(self, text: str) -> None:
        """What the user should know."""
        self._at(1, text)

    def info(self, text: str) -> None:
        """What is being done."""
        self._at(2, text)

    def debug(self, text: str) -> None:
        """What helps to find a fault in pyvmm."""
        self._at(3, text)

    @property
    def debugging(self) -> bool:
        """Whether a fault of pyvmm is shown with its traceback."""
        return self.level >= 3 or os.environ.get("PYVMM_TRACEBACK") == "1"

    def _at(self, level: int, text: str) -> None:
        if self.level >= level:
            self.say(text)


log = Log()
