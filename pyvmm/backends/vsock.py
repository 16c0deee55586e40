"""The host's side of the socket device: UNIX sockets, in the convention that Firecracker and Cloud Hypervisor share.

Imports listener and errors. unix(7), epoll(7). A program of the host's connects to PATH, sends "CONNECT 52\\n", and
once a program of the guest's has accepted it on port 52, is told "OK 1073741824\\n", with a port of its own; then both
speak to each other. If nobody accepts, it is hung up on. What the guest connects to, port N of the host, is PATH_N.
"""

from __future__ import annotations

import os
import select
import socket
import time

from pyvmm.backends.listener import UnixListener
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from pyvmm.virtio.vsockhost import HostStream

SUFFIX = len("_4294967295")
"""Bytes that the longest port adds to PATH."""
WAITING = 128
"""Connections that wait to be accepted at most."""
CALLERS = 64
"""Those that are accepted and have not sent their line yet; others go on waiting."""
LINE = 32
"""Bytes of the line at most, with the line feed; it needs 19."""
PATIENCE = 30.0
"""Seconds for it: it may be typed by hand."""
FULL = 0.1
"""Seconds until a connection that the process has no descriptor for is looked at again."""
EVENTS = 64
"""Events that are handled before others have their turn."""
LAST_PORT = 0xFFFFFFFE
"""The one above means any port (vsock(7))."""

_INPUT = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_SHOWN = select.EPOLLIN | select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP


class UnixStream:
    """A connected socket; the interface is `pyvmm.virtio.vsockstream.HostStream`."""

    __slots__ = ("_fd", "_forget", "_poll", "_socket", "owner")

    def __init__(self, connected: socket.socket, poll: select.epoll, forget: Callable[[int], object]) -> None:
        self.owner: Any = None
        self._socket = connected
        self._fd = connected.fileno()
        self._poll = poll
        self._forget = forget

    def read(self, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers`; returns how many bytes, 0 at the end. Raises OSError."""
        return os.readv(self._fd, buffers)

    def write(self, buffers: Sequence[memoryview | bytearray]) -> int:
        """Take bytes of `buffers`; returns how many. Raises OSError."""
        return self._socket.sendmsg(buffers, (), socket.MSG_NOSIGNAL)

    def notice_room(self, wanted: bool) -> None:
        """Have POLLOUT told, or no longer. Raises OSError."""
        self._poll.modify(self._fd, _INPUT | select.EPOLLOUT if wanted else _INPUT)

    def end_input(self) -> None:
        """Read no more: the other end can write no more. Raises OSError."""
        self._socket.shutdown(socket.SHUT_RD)

    def end_output(self) -> None:
        """Write no more: the other end comes to the end. Raises OSError."""
        self._socket.shutdown(socket.SHUT_WR)

    def accept(self, port: int) -> None:
        """Answer the line. Raises OSError."""
        self._socket.send(b"OK %d\n" % port, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Hang up."""
        self._forget(self._fd)
        self._socket.close()


class UnixSockets:
    """The sockets at `path` and its neighbours; the interface is `pyvmm.virtio.vsock.Sockets`.

    Only the owner may connect (mode 0600). Raises BackendError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.on_call: Callable[[int, HostStream], None] = lambda port, stream: stream.close()
        self._streams: dict[int, UnixStream] = {}
        self._callers: dict[int, tuple[socket.socket, float]] = {}  # in the order in which their time is over
        self._listening = False
        self._listen_again: float | None = None
        self._listener = UnixListener(self.path, "--vsock", waiting=WAITING, mode=0o600, spare=SUFFIX)
        try:
            self._poll = select.epoll()
        except OSError as error:
            self._listener.close()
            raise BackendError(f"--vsock: {error.strerror}") from None
        self._listen(True)

    def fileno(self) -> int:
        """A descriptor that is readable when `poll` has something; -1 once closed."""
        return -1 if self._poll.closed else self._poll.fileno()

    def connect(self, port: int) -> UnixStream:
        """A stream to whoever listens at PATH_`port`.

        Raises BlockingIOError when many want that and one has to wait, any other OSError when it cannot be.
        """
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            connected.connect(f"{self.path}_{port}")
            self._poll.register(connected.fileno(), _INPUT)
        except BaseException:
            connected.close()
            raise
        return self._stream(connected)

    def poll(self) -> Iterator[tuple[UnixStream, int]]:
        """What has happened to streams, each event once; meanwhile, calls are taken. Raises nothing."""
        called = False
        for fd, events in self._poll.poll(0, EVENTS):
            stream = self._streams.get(fd)
            if stream is not None:
                yield stream, events & _SHOWN | (select.EPOLLIN if events & select.EPOLLRDHUP else 0)
            elif fd in self._callers:
                self._listen_to(fd, bool(events & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR)))
            else:
                called = True
        if called:
            self._accept()  # at the end: descriptors that were closed above may come back with another meaning

    def deadline(self) -> float | None:
        """When `tick` is to be called (time.monotonic()), or None."""
        first = next(iter(self._callers.values()), None)
        dues = [due for due in (self._listen_again, first[1] if first is not None else None) if due is not None]
        return min(dues, default=None)

    def tick(self, now: float) -> None:
        """Hang up on those whose time is over, and accept again if it is time to."""
        while (first := next(iter(self._callers.items()), None)) is not None and first[1][1] <= now:
            self._hang_up(first[0])
        if self._listen_again is not None and self._listen_again <= now:
            self._listen_again = None
            self._listen(True)

    def close(self) -> None:
        """Listen no more, hang up everywhere, and remove the socket. A second call does nothing."""
        if not self._poll.closed:
            for stream in list(self._streams.values()):
                stream.close()
            for fd in list(self._callers):
                self._hang_up(fd)
            self._listener.close()
            self._poll.close()

    def restore(self) -> None:
        """Remove the socket's name, nothing else; any thread, any time."""
        self._listener.unlink()

    # --- Calls --------------------------------------------------------------------------------------------------------

    def _listen(self, wanted: bool) -> None:
        if wanted != self._listening:
            self._listening = wanted
            if wanted:
                self._poll.register(self._listener.socket.fileno(), select.EPOLLIN)
            else:
                self._poll.unregister(self._listener.socket.fileno())

    def _accept(self) -> None:
        due = time.monotonic() + PATIENCE
        try:
            while len(self._callers) < CALLERS:
                caller, _ = self._listener.socket.accept()
                caller.setblocking(False)
                self._callers[caller.fileno()] = caller, due
                self._poll.register(caller.fileno(), _INPUT)
            self._listen(False)  # until one of them has sent its line
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError:  # no descriptor for it, and the socket stays readable
            self._listen(False)
            self._listen_again = time.monotonic() + FULL

    def _listen_to(self, fd: int, ended: bool) -> None:
        """A caller says something. What comes behind its line is for the guest and stays where it is."""
        caller = self._callers[fd][0]
        try:
            line, feed, _ = caller.recv(LINE, socket.MSG_PEEK).partition(b"\n")
            if not feed:
                if ended or len(line) == LINE:
                    self._hang_up(fd)
                return
            caller.recv(len(line) + 1)
        except BlockingIOError:
            return
        except OSError:
            self._hang_up(fd)
            return
        port = _port(line)
        if port is None:
            self._hang_up(fd)
        else:
            self._remove(fd)
            self.on_call(port, self._stream(caller))

    def _hang_up(self, fd: int) -> None:
        self._remove(fd).close()

    def _remove(self, fd: int) -> socket.socket:
        """It is no caller any more; there is room for another one."""
        caller, _ = self._callers.pop(fd)
        if self._listen_again is None:
            self._listen(True)
        return caller

    def _stream(self, connected: socket.socket) -> UnixStream:
        stream = UnixStream(connected, self._poll, self._streams.pop)
        self._streams[connected.fileno()] = stream
        return stream


def _port(line: bytes) -> int | None:
    """The port that `CONNECT PORT` asks for, or None."""
    words = line.split()
    if len(words) != 2 or words[0].upper() != b"CONNECT" or not words[1].isdigit():
        return None
    port = int(words[1])
    return port if port <= LAST_PORT else None


def open_vsock(path: str | os.PathLike[str]) -> UnixSockets:
    """The sockets of a VM at `path`. Raises BackendError."""
    return UnixSockets(path)
