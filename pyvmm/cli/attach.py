"""What `pyvmm attach` does with a terminal and a running VM's console.

May import the terminal and progress. On a terminal every key goes to the guest, the escape key aside; without one, what
is read is passed on unchanged, and its end is no event. It ends with the VM, or by the escape key; the VM runs on then.
"""

from __future__ import annotations

import os
import select
import signal

from pyvmm.backends.terminal import HELP, QUIT, EscapeFilter, Terminal, key_name, parse_escape
from pyvmm.cli.progress import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

PIECE = 4096
LOOK_AGAIN = 300
"""Milliseconds between two looks whether a shell has brought us to the foreground."""


class Session:
    """`connection` is the console's; `early` has come from it already. Raises UsageError for what is no escape key."""

    def __init__(self, connection: _socket.socket, early: bytes, *, escape: str, name: str) -> None:
        self._connection = connection
        self._early = early
        self._name = name
        self._key = parse_escape(escape)
        self._filter = EscapeFilter(self._key, QUIT + HELP)
        self._terminal: Terminal | None = None
        self._left = False

    def run(self) -> None:
        """Return when it is over. Raises BackendError if the terminal cannot be set, BrokenPipeError, OSError."""
        self._connection.settimeout(None)
        if os.isatty(0):
            self._terminal = Terminal(0, raw_output=os.isatty(1))
            for number in (signal.SIGHUP, signal.SIGTERM):
                signal.signal(number, _end)
            self._terminal.enter()
            if self._key is not None:
                key = key_name(self._key)
                log.say(f"attached to {self._name}; {key} X leaves it running, {key} H shows the keys")
        try:
            self._carry()
        finally:
            if self._terminal is not None:
                self._terminal.restore()

    def _carry(self) -> None:
        _write(self._early)
        reading = True
        while not self._left:
            poll = select.poll()
            poll.register(self._connection.fileno(), select.POLLIN)
            ours = self._terminal is None or self._terminal.foreground()
            if ours and self._terminal is not None and not self._terminal.raw:
                self._terminal.enter()
            if reading and ours:
                poll.register(0, select.POLLIN)
            for fd, _ in poll.poll(None if ours else LOOK_AGAIN):
                if fd == 0:
                    reading = self._typed()
                    continue
                try:
                    data = self._connection.recv(PIECE)
                except ConnectionError:
                    data = b""
                if not data:
                    return
                _write(data)

    def _typed(self) -> bool:
        """False at the end of input."""
        try:
            data = os.read(0, PIECE)
        except OSError:
            return False
        if not data:
            return False
        commands = ""
        if self._terminal is not None:
            data, commands = self._filter.feed(data)
        try:
            self._connection.sendall(data)
        except ConnectionError:
            return False  # the end follows
        for command in commands:
            if command == QUIT:
                self._left = True
            elif command == HELP and self._key is not None:
                key = key_name(self._key)
                log.say(f"{key} X     leave; the VM runs on\n{key} {key}  send {key} to the guest")
        return True


def _end(number: int, _: object) -> None:
    """Leave by way of what puts the terminal back."""
    raise SystemExit(128 + number)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
