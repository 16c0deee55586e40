"""Talks to a running VM by its control socket. Imports folder, lines and errors."""

from __future__ import annotations

import json
import time

from pyvmm.control.folder import Folder, check_name
from pyvmm.control.lines import LINE_LIMIT, Lines, LineTooLongError, hang_up
from pyvmm.errors import STATUS_USAGE, BackendError, GuestAgentError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping, Sequence
    from typing import Any, Self

    from pyvmm.guest.process import GuestProcess

TIMEOUT = 10.0
"""Seconds for one answer."""
EXEC_TIMEOUT = 90.0
"""Seconds until a command has started, in a guest that may have to boot first."""
FULL = 0.01
"""Seconds until a VM is tried again whose queue of clients is full."""


def running() -> list[str]:
    """The names of this user's running VMs, sorted. Raises BackendError."""
    try:
        with Folder() as folder:
            return folder.names()
    except FileNotFoundError:
        return []


class Client:
    """A connection to the VM `name`. A context manager."""

    def __init__(self, name: str, timeout: float = TIMEOUT) -> None:
        """Connect. Raises UsageError for what cannot be a name, BackendError if no such VM runs."""
        self.name = check_name(name)
        connection = None
        try:
            with Folder() as folder:
                connection = _connect(folder, name, timeout)
        except FileNotFoundError:
            pass
        except OSError as error:
            if isinstance(error, BackendError):
                raise
            raise BackendError(f"{name}: cannot be reached: {error.strerror or error}") from error
        if connection is None:
            others = ", ".join(running())
            raise BackendError(
                f"no running VM is called {name} ({f'running: {others}' if others else 'none is running'})"
            )
        self._connection = connection
        self._lines = Lines(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to `command`.

        Raises UsageError for what the VM says cannot be meant, GuestAgentError for what its agent refuses, BackendError
        for all else that comes between.
        """
        request = json.dumps({"command": command, **arguments}).encode() + b"\n"
        if len(request) > LINE_LIMIT:
            raise UsageError(f"{command}: a request of {len(request)} bytes ({LINE_LIMIT} at most)")
        try:
            try:
                self._connection.sendall(request)
            except ConnectionError:
                pass  # it has hung up, and may have said why
            line = self._lines.next()
            answer: Any = json.loads(line) if line is not None else None
        except TimeoutError:
            raise BackendError(f"{self.name}: no answer for {self._connection.gettimeout():g} s") from None
        except (ConnectionError, LineTooLongError, ValueError) as error:
            raise BackendError(f"{self.name}: {error or 'its answer has no end'}") from error
        if isinstance(answer, dict) and isinstance(answer.get("ok"), dict):
            return dict(answer["ok"])
        if not isinstance(answer, dict) or "error" not in answer:
            raise BackendError(
                f"{self.name}: it has hung up" if line is None else f"{self.name}: no answer, but {line!r}"
            )
        if type(answer.get("errno")) is int:
            raise GuestAgentError(str(answer["error"]), errno=answer["errno"])
        if answer.get("status") == STATUS_USAGE:
            raise UsageError(str(answer["error"]))
        raise BackendError(str(answer["error"]))

    def await_end(self, timeout: float) -> bool:
        """Wait until the VM hangs up, which it does when it has ended; False after `timeout` seconds."""
        patience = self._connection.gettimeout()
        self._connection.settimeout(max(timeout, 0.001))
        try:
            while self._connection.recv(4096):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        finally:
            self._connection.settimeout(patience)
        return True

    def attach(self) -> tuple[_socket.socket, bytes]:
        """Have this connection be the console's from now on; returns its socket, and output that has come already."""
        self.ask("attach")
        return self._connection, self._lines.rest()

    def look(self, words: Sequence[str], *, vcpu: int = 0, physical: bool = False, data: bool = False) -> bytes:
        """What a view of the VM shows (`pyvmm.debug.views`): lines of text, or with `data` JSON.

        It is the connection's last answer. Raises what `ask` does.
        """
        self.ask("look", words=list(words), vcpu=vcpu, physical=physical, data=data)
        found = bytearray(self._lines.rest())
        try:
            while piece := self._connection.recv(1 << 16):
                found += piece
        except OSError as error:
            raise BackendError(f"{self.name}: {error or 'its answer has no end'}") from error
        return bytes(found)

    def popen(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        terminal: tuple[int, int] | None = None,
    ) -> GuestProcess:
        """Start a command in the VM's guest; this connection is the command's from now on. See `Guest.popen`."""
        from pyvmm.control.remote import RemoteChannel

        rows, columns = terminal or (0, 0)
        request = {"args": list(args), "env": dict(env or {}), "cwd": cwd, "user": user}
        self._connection.settimeout(EXEC_TIMEOUT)
        found = self.ask("exec", **request, terminal=terminal is not None, rows=rows, columns=columns)
        self._connection.settimeout(None)
        channel = RemoteChannel(self._connection, self.name)
        return channel.begin(args, int(found["pid"]), terminal is not None, self._lines.rest())

    def hang_up(self) -> None:
        """End what goes on over this connection, from any thread."""
        hang_up(self._connection)

    def close(self) -> None:
        """Hang up; a second call does nothing."""
        self.hang_up()  # what another thread reads stays open after close(2) until something comes
        self._connection.close()


def _connect(folder: Folder, name: str, timeout: float) -> _socket.socket | None:
    end = time.monotonic() + timeout
    while True:
        try:
            return folder.connect(name, timeout)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(FULL)
