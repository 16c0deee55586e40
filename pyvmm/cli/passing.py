"""Passes this process's standard streams, terminal and signals to a command in a guest, for `run -- CMD` and `exec`.

May import the terminal, progress and signals. On a terminal the command has one too, and every key is its own but for
the escape key.
"""

from __future__ import annotations

import os
import threading
import time

from pyvmm.cli.progress import STDERR, log, write_all
from pyvmm.cli.signals import SAME
from pyvmm.errors import PyvmmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Callable

    from pyvmm.backends.terminal import Terminal
    from pyvmm.cli.signals import Signals
    from pyvmm.guest.process import GuestProcess

STDIN, STDOUT = 0, 1
PIECE = 16 << 10
QUIET_TAIL = 2.0
"""Seconds after the command's end in which some other program that has its output may stay silent."""
PATIENCE = 3
"""Signals that ask to end, to a command that does not: the next one ends the run."""
SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM = 1, 2, 3, 13, 15
NOT_FOUND, NOT_RUN = 127, 126
"""What a shell's status is for a command that is not there, and for one that cannot be run."""


def variables(given: list[str]) -> dict[str, str]:
    """What --env says: NAME=VALUE, or NAME for the value that it has here. Raises UsageError."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--env: {text!r} has no name (expected NAME=VALUE)")
        if not equals and name not in os.environ:
            raise UsageError(f"--env: {name} has no value here (expected NAME=VALUE)")
        found[name] = value if equals else os.environ[name]
    return found


def status(returncode: int) -> int:
    """The exit status that stands for a command's `returncode`."""
    return 128 - returncode if returncode < 0 else returncode


class Passing:
    """The streams of one command.

    escape  the escape key's name, or None for the usual one
    quit    called, on any thread, where the user leaves by it
    look    what it shows, by the command (see `terminal.COMMANDS`)
    """

    def __init__(
        self,
        signals: Signals,
        *,
        escape: str | None = None,
        quit: Callable[[], None],
        look: Callable[[str], str],
    ) -> None:
        self._signals = signals
        self._escape = escape
        self._quit = quit
        self._look = look
        self._terminal: Terminal | None = None
        self._process: GuestProcess | None = None
        self._moved = 0.0
        self._asked = 0
        self._asked_at = 0.0

    def terminal(self, env: dict[str, str]) -> tuple[int, int] | None:
        """Rows and columns of the terminal that the command shall have, or None; `env` is told of its kind."""
        if not (os.isatty(STDIN) and os.isatty(STDOUT)):
            return None
        from pyvmm.backends.terminal import Terminal

        if "TERM" in os.environ:
            env.setdefault("TERM", os.environ["TERM"])
        self._terminal = Terminal(STDIN, raw_output=True)
        size = os.get_terminal_size(STDIN)
        return size.lines, size.columns

    def run(self, process: GuestProcess) -> int:
        """Pass all through until the command has ended and its output is written; returns its `returncode`.

        Raises PyvmmError where the VM ends before.
        """
        self._process = process
        if self._terminal is not None:
            self._terminal.enter()
            log.raw = lambda: self._terminal is not None and self._terminal.raw
            self._signals.on_resume = self._terminal.enter
            self._signals.watch_size(self._resize)
        self._signals.forward = self._forward
        try:
            return self._through(process)
        finally:
            self._signals.forward = None
            self.restore()

    def restore(self) -> None:
        """Put the terminal back; any thread, any number of times."""
        if self._terminal is not None:
            self._terminal.restore()

    def _through(self, process: GuestProcess) -> int:
        self._moved = time.monotonic()
        outputs = [
            threading.Thread(target=self._pump, args=(process, process.stdout, STDOUT), daemon=True),
            threading.Thread(target=self._pump, args=(process, process.stderr, STDERR), daemon=True),
        ]
        threading.Thread(target=self._feed, args=(process,), name="command-input", daemon=True).start()
        for thread in outputs:
            thread.start()
        code = process.wait()
        self._moved = time.monotonic()
        while any(thread.is_alive() for thread in outputs) and time.monotonic() - self._moved < QUIET_TAIL:
            for thread in outputs:
                thread.join(0.05)
        process.close()
        return code

    def _pump(self, process: GuestProcess, source: io.BufferedReader, fd: int) -> None:
        try:
            while data := source.read1(PIECE):
                write_all(fd, data)
                self._moved = time.monotonic()
        except PyvmmError:
            pass  # the VM has ended
        except OSError:  # nobody reads it: the command learns of that as it would have without us
            self._aside(lambda: process.send_signal(SIGPIPE))

    def _feed(self, process: GuestProcess) -> None:
        from pyvmm.backends.terminal import CTRL_A, EscapeFilter, parse_escape

        keys = EscapeFilter(CTRL_A if self._escape is None else parse_escape(self._escape))
        try:
            while data := self._read():
                commands = ""
                if self._terminal is not None:
                    data, commands = keys.feed(data)
                process.stdin.write(data)
                for command in commands:
                    if command == "q":
                        self._quit()
                    else:
                        log.say(keys.help() if command == "h" else self._look(command))
            process.stdin.close()
        except (PyvmmError, BrokenPipeError):
            pass  # it does not want it all, or has ended

    def _read(self) -> bytes:
        try:
            return os.read(STDIN, PIECE)
        except OSError:
            return b""  # closed, or the terminal has gone

    def _forward(self, number: int) -> bool:
        """A signal is the command's, unless it does not end by those that ask it to."""
        process, now = self._process, time.monotonic()
        if number in (SIGHUP, SIGINT, SIGQUIT, SIGTERM) and now - self._asked_at >= SAME:
            self._asked_at = now
            self._asked += 1
        if process is None or process.returncode is not None or self._asked > PATIENCE:
            return False
        self._aside(lambda: process.send_signal(number))
        return True

    def _resize(self) -> None:
        process, size = self._process, os.get_terminal_size(STDIN)
        if process is not None:
            self._aside(lambda: process.resize(size.lines, size.columns))

    def _aside(self, send: Callable[[], None]) -> None:
        """Send on a thread of its own: who watches for signals goes on watching."""

        def run() -> None:
            try:
                send()
            except PyvmmError:
                pass  # the VM has ended

        threading.Thread(target=run, daemon=True).start()
