"""The console on a UNIX stream socket that others connect to, one at a time, as often as they like.

May import its neighbours base, sink and pump. unix(7). While nobody is connected, output is kept up to the sink's
bound, and the next client sees that first; further clients wait in the socket's queue until the one before them has
gone.
"""

from __future__ import annotations

import os
import stat
import time

from pyvmm.backends.base import StreamConsole
from pyvmm.backends.pump import InputPump
from pyvmm.backends.sink import OutputSink
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from pyvmm.backends import Link

PATH_MAX = 107
"""Bytes of a socket's path: sun_path has 108, the last of them zero (unix(7))."""
WAITING_CLIENTS = 8
FULL = 0.1
"""Seconds until a client that the process has no descriptor for is looked at again."""


class UnixConsole(StreamConsole):
    """A listening socket at `path` as a console."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self._inode: tuple[int, int] | None = None
        self._listener: socket.socket | None = None
        self._client: socket.socket | None = None

    def start(self, link: Link) -> None:
        """Make the socket. A stale one, where nobody listens any more, is replaced. Raises BackendError."""
        length = len(os.fsencode(self.path))
        if length > PATH_MAX:
            raise BackendError(
                f"{self.what}: the socket's path is too long: {length} bytes, expected {PATH_MAX} at most"
            )
        self._remove_stale()
        import socket

        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        try:
            self._listener.bind(self.path)
            self._listener.listen(WAITING_CLIENTS)
        except OSError as error:
            raise BackendError(f"{self.what}: cannot listen at {self.path}: {error.strerror}") from None
        made = os.stat(self.path)
        self._inode = made.st_dev, made.st_ino
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
        self.restore()

    def restore(self) -> None:
        """Remove the socket's name, nothing else; any thread, any time."""
        ours, self._inode = self._inode, None
        if ours is None:
            return
        try:
            found = os.stat(self.path, follow_symlinks=False)
            if (found.st_dev, found.st_ino) == ours:
                os.unlink(self.path)
        except OSError:
            pass  # removed by somebody else

    def _remove_stale(self) -> None:
        import socket

        try:
            kind = os.stat(self.path, follow_symlinks=False).st_mode
        except OSError:
            return  # nothing there, or what bind() will complain about
        if not stat.S_ISSOCK(kind):
            raise BackendError(f"{self.what}: {self.path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
            except OSError as error:
                raise BackendError(f"{self.what}: cannot use {self.path}: {error.strerror}") from None
        raise BackendError(f"{self.what}: another process listens at {self.path}")

    def _watch(self) -> tuple[int, int | None]:
        assert self._listener is not None
        return (self._client or self._listener).fileno(), None

    def _ready(self) -> None:
        assert self._listener is not None and self._sink is not None and self._pump is not None
        try:
            if self._client is None:
                self._client, _ = self._listener.accept()
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
