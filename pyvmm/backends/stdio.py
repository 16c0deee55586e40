"""The console on standard input and output: a terminal, pipes, files, or nothing at all.

May import its neighbours base and pump; sink for the first output, terminal where there is one. If standard input is a
terminal it is put into raw mode and the escape key works; otherwise bytes pass unchanged in both directions, and the
end of the input is no event at all.
"""

from __future__ import annotations

import os
import threading

from pyvmm.backends.base import CTRL_A, StreamConsole
from pyvmm.backends.pump import InputPump
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.backends import Link
    from pyvmm.backends.terminal import EscapeFilter, Terminal

LOOK_AGAIN = 300
"""Milliseconds between two looks whether a shell has brought us to the foreground."""
LEND_WAIT = 1.0
"""Seconds without progress after which output that nobody reads keeps nobody from the terminal."""
TYPE_AHEAD = 1 << 20
"""Bytes typed or pasted that wait for the guest at most. As long as there is room, the escape key is heard."""


class StdioConsole(StreamConsole):
    """Standard input and output as a console.

    `quit()` is called when the user leaves by the escape key, `look(command)` returns the text that the user asked for
    by one of the other keys (see `terminal.COMMANDS`), `say(text)` shows text of the VMM to the user. `failure` is the
    errno that ended output, or 0.
    """

    def __init__(
        self,
        *,
        escape: int | None = CTRL_A,
        quit: Callable[[], None],
        look: Callable[[str], str],
        say: Callable[[str], None],
        stdin: int = 0,
        stdout: int = 1,
    ) -> None:
        super().__init__()
        self.terminal: Terminal | None = None
        self._escape = escape
        self._filter: EscapeFilter | None = None
        self._quit = quit
        self._look = look
        self._say = say
        self._stdin = stdin
        self._stdout = stdout
        self._ended = self._lent = False
        self._last = b""
        self._link: Link | None = None
        self._first = threading.Lock()
        self._closed = False

    def start(self, link: Link) -> None:
        """Take the terminal and begin to read. Raises BackendError if the terminal cannot be set."""
        self._link = link
        limit = 4096
        if os.isatty(self._stdin):
            from pyvmm.backends.terminal import EscapeFilter, Terminal

            self._filter = EscapeFilter(self._escape)
            self.terminal = Terminal(self._stdin, raw_output=os.isatty(self._stdout))
            self.terminal.enter()
            limit = TYPE_AHEAD
        self._pump = InputPump("console-input", self._watch, self._ready, limit=limit)
        self._pump.start(link.receive)

    def write(self, data: bytes) -> None:
        """Output of the guest."""
        self._last = data
        if self._sink is None and self._link is not None:
            self._open_sink(self._link)
        super().write(data)

    def _open_sink(self, link: Link) -> None:
        from pyvmm.backends.sink import OutputSink

        with self._first:
            if self._sink is None and not self._closed:
                self._sink = OutputSink(self._stdout, hold=link.hold, release=link.release, broken=self._broken)

    def close(self) -> None:
        """Put the terminal back and stop reading and writing."""
        with self._first:
            self._closed = True
        super().close()
        self.restore()

    def restore(self) -> None:
        """Put the terminal back, nothing else; any thread, any time."""
        if self.terminal is not None:
            self.terminal.restore()

    def lend(self) -> None:
        """Leave terminal and standard input to somebody else, on a line of its own, until `take_back()`."""
        self.drain(LEND_WAIT)
        self._lent = True
        if self.terminal is not None:
            self.terminal.leave()
        if self._pump is not None:
            self._pump.wake()
        if self.leave_line():
            os.write(self._stdout, b"\n")

    def take_back(self) -> None:
        """Have them again. Raises BackendError if the terminal cannot be set."""
        self._lent = False
        if self._pump is not None and not self._closed:
            if self.terminal is not None:
                self.terminal.enter()
            self._pump.wake()

    def resumed(self) -> None:
        """The process goes on after a stop (SIGCONT), and a shell has had the terminal meanwhile: take it again."""
        if self.terminal is not None and self._pump is not None and not self._lent:
            self._take_terminal(self.terminal)
            self._pump.wake()

    def leave_line(self) -> bool:
        """Whether the guest has left a terminal's cursor inside a line; who asks is about to end that line."""
        inside = self._last[-1:] not in (b"", b"\n") and os.isatty(self._stdout)
        self._last = b""
        return inside

    @property
    def raw(self) -> bool:
        """Whether the terminal is in raw mode."""
        return self.terminal is not None and self.terminal.raw

    def _watch(self) -> tuple[int, int | None]:
        if self._lent:
            return -1, None
        if self.terminal is not None:
            # In the background a read would stop the whole process (SIGTTIN). No signal says when that is over.
            if not self.terminal.foreground():
                return -1, LOOK_AGAIN
            if not self.terminal.raw:
                self._take_terminal(self.terminal)
        return (-1 if self._ended else self._stdin), None

    def _take_terminal(self, terminal: Terminal) -> None:
        try:
            terminal.enter()
        except BackendError:
            self._ended = True  # the terminal has gone

    def _ready(self) -> None:
        if self._lent:
            return
        try:
            data = os.read(self._stdin, 4096)
        except BlockingIOError:
            return
        except OSError:  # closed, or the terminal hung up
            data = b""
        if not data:
            self._ended = True
            return
        commands = ""
        if self._filter is not None:
            data, commands = self._filter.feed(data)
        assert self._pump is not None
        self._pump.add(data)
        for command in commands:
            if command == "q":
                self._quit()
            elif command == "h" and self._filter is not None:
                self._say(self._filter.help())
            elif text := self._look(command):
                self._say(text)

    def _broken(self, errno: int) -> None:
        self.failure = errno
        assert self._link is not None
        self._link.broken(errno)
