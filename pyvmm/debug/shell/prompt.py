"""The prompt: lines of Python, from a terminal with history and completion, or from a pipe; results and errors shown.

Imports errors; readline only on a terminal. Where standard output is no terminal it is the guest's alone: what the
prompt shows goes to standard error then. An error shows itself and changes nothing else; one of pyvmm's own in a line.
"""

from __future__ import annotations

import code
import os
import sys
from contextlib import redirect_stdout

from pyvmm.errors import PyvmmError
from pyvmm.images.cache import cache_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TextIO

PROMPT, MORE = "vm> ", "... "
HISTORY = "shell-history"
HISTORY_LINES = 1000


class Leave(SystemExit):
    """Raised by what ends the prompt."""


class Prompt(code.InteractiveConsole):
    """Reads and does lines in `namespace` until their end; kept over several stops, so that names stay.

    `over()` is asked when a read is interrupted: true ends it.
    """

    def __init__(self, namespace: dict[str, Any], over: Callable[[], bool]) -> None:
        super().__init__(namespace, "<prompt>")
        self.ended = False
        """Whether standard input, no terminal, has ended: there will be no more lines."""
        self.reading = False
        """Whether it waits for a line."""
        self.terminal = _is_terminal(sys.stdin)
        self._over = over
        self._completes = False
        self.output: TextIO = sys.stdout if _is_terminal(sys.stdout) else sys.stderr

    def run(self, began: str) -> None:
        """Show `began`, then read and do lines until there is an end of input or Leave is raised."""
        if self.terminal and not self._completes:
            self._completes = True
            _complete(self.locals)
        with redirect_stdout(self.output):
            self.write(began)
            try:
                self._lines()
            finally:
                self.resetbuffer()
                if self._completes:
                    _keep_history()

    def _lines(self) -> None:
        more = False
        while not self._over():
            try:
                line = self._read(MORE if more else PROMPT)
                if line is None:
                    if more:
                        self.push("")
                    return
                more = self.push(line)
            except KeyboardInterrupt:
                self.write("\n")
                self.resetbuffer()
                more = False

    def _read(self, prompt: str) -> str | None:
        """A line, or None at the end."""
        self.reading = True
        try:
            if self.terminal:
                self.output.flush()
                return input(prompt)
            line = sys.stdin.readline() if sys.stdin is not None else ""
        except EOFError:
            self.write("\n")
            return None
        except (OSError, ValueError):  # the terminal has gone, or was closed
            line = ""
        finally:
            self.reading = False
        if not line:
            self.ended = True
            return None
        return line.rstrip("\n")

    def write(self, data: str) -> None:
        """What is shown, errors too."""
        try:
            self.output.write(data)
            self.output.flush()
        except (OSError, ValueError):
            pass  # nobody is there to be told

    def showtraceback(self) -> None:
        """An error of pyvmm's says in a line what it is; any other is a fault in what was typed."""
        error = sys.exc_info()[1]
        if isinstance(error, PyvmmError | KeyboardInterrupt):
            self.write(f"{error}\n" if str(error) else "interrupted\n")
        else:
            super().showtraceback()


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def _history() -> str:
    return os.path.join(cache_folder(), HISTORY)


def _complete(namespace: dict[str, Any]) -> None:
    """Completion and history; without readline, or a folder for it, there is none."""
    try:
        import readline
        import rlcompleter
    except ImportError:
        return
    readline.set_completer(rlcompleter.Completer(namespace).complete)
    readline.parse_and_bind("tab: complete")
    try:
        readline.read_history_file(_history())
    except (OSError, PyvmmError):
        pass


def _keep_history() -> None:
    try:
        import readline

        readline.set_history_length(HISTORY_LINES)
        os.makedirs(cache_folder(), exist_ok=True)
        readline.write_history_file(_history())
    except (ImportError, OSError, PyvmmError):
        pass
