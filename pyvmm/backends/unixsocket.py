"""The console on a UNIX stream socket that others connect to, one at a time, as often as they like.

May import its neighbours base, listener, sink and pump. unix(7). While nobody is connected, output is kept up to the
sink's bound, and the next client sees that first; further clients wait in the socket's queue until the one before them
has gone.
"""

from __future__ import annotations

import os
import time

from pyvmm.backends.base import StreamConsole
from pyvmm.backends.listener import UnixListener
from pyvmm.backends.pump import InputPump
from pyvmm.backends.sink import OutputSink

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from pyvmm.backends import Link

WAITING_CLIENTS = 8
FULL = 0.1
"""Seconds until a client that the process has no descriptor for is looked at again."""


class UnixConsole(StreamConsole):
    """A listening socket at `path` as a console."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self._listener: UnixListener | None = None
        self._client: socket.socket | None = None

    def start(self, link: Link) -> None:
        """Make the socket. A stale one, where nobody listens any more, is replaced. Raises BackendError."""
        self._listener = UnixListener(self.path, self.what, waiting=WAITING_CLIENTS)
        self._sink = OutputSink(None, hold=link.hold, release=link.release, broken=self._broken)
        self._pump = InputPump("console-input", self._watch, self._ready)
        self._pump.start(link.receive)

    def close(self) -> None:
        """Hang up and remove the socket."""
        super().close()
        self._hang_up()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def restore(self) -> None:
        """Remove the socket's name, nothing else; any thread, any time."""
        listener = self._listener
        if listener is not None:
            listener.unlink()

    def _watch(self) -> tuple[int, int | None]:
        assert self._listener is not None
        return (self._client or self._listener.socket).fileno(), None

    def _ready(self) -> None:
        assert self._listener is not None and self._sink is not None and self._pump is not None
        try:
            if self._client is None:
                self._client, _ = self._listener.socket.accept()
                self._client.setblocking(False)
                self._sink.attach(self._client.fileno())
                return
            data = self._client.recv(4096)
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:
            data = b""
            if self._client is None:  # no room for a client, and the queue stays readable
                time.sleep(FULL)
        if data:
            self._pump.add(data)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            assert self._sink is not None
            self._sink.detach()
            client.close()

    def _broken(self, errno: int) -> None:
        """The client has gone; its end of file follows, and the sink keeps what comes for the next one."""
