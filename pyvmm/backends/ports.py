"""What a port of the virtio console is connected to: any console's back-end, or a stream in this process.

May import its neighbours and errors. `connect` puts a port and a back-end together.
"""

from __future__ import annotations

import threading
import time

from pyvmm.backends.pty import PtyConsole
from pyvmm.backends.unixsocket import UnixConsole
from pyvmm.errors import PyvmmError, TimeLimitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.backends import Link
    from pyvmm.backends.file import FileConsole
    from pyvmm.virtio.port import Port

    class PortBackend(Protocol):
        """A console's back-end (see `pyvmm.backends`)."""

        def start(self, link: Link) -> None: ...

        def write(self, data: bytes) -> None: ...

        def input_ready(self) -> None: ...

        def drain(self, timeout: float | None) -> bool: ...

        def close(self) -> None: ...


UNREAD_LIMIT = 64 << 10
"""Bytes of output that a PortStream holds before the guest has to wait."""
LOOK_AGAIN = 0.1
"""Seconds between two looks whether the run has ended."""


class PortLink:
    """A port as its back-end sees it; the interface is that of `pyvmm.backends.Link`.

    over    tells whether the run has ended
    broken  is told the errno when nothing can be written any more; the guest sees the port closed
    """

    __slots__ = ("_broken", "_over", "_port", "hold", "receive", "release")

    def __init__(self, port: Port, over: Callable[[], bool], broken: Callable[[int], None] | None = None) -> None:
        self._port = port
        self._over = over
        self._broken = broken
        self.receive = port.receive
        self.hold = port.hold
        self.release = port.release

    @property
    def over(self) -> bool:
        """The run has ended: no more output will come."""
        return self._over()

    def broken(self, errno: int) -> None:
        """Nothing can be written any more."""
        self._port.connect(False)
        if self._broken is not None:
            self._broken(errno)


def connect(
    port: Port, backend: PortBackend, *, over: Callable[[], bool], broken: Callable[[int], None] | None = None
) -> PortLink:
    """Join `port` and `backend`; returns the link to start the back-end with. `over` and `broken` are the link's."""
    port.output = backend.write
    port.on_input_drained = backend.input_ready
    port.on_close = backend.close
    if isinstance(backend, PortStream):
        port.on_open = backend.guest_open
    elif isinstance(backend, UnixPort | PtyPort):
        port.connect(False)  # so far
        backend.on_peer = port.connect
    return PortLink(port, over, broken)


def make_port_backend(text: str, name: str, *, say: Callable[[str], None]) -> FileConsole | UnixPort | PtyPort:
    """The back-end that `text` means for the port called `name`: `file:PATH`, `unix:PATH` or `pty`; nothing opened yet.

    `say(text)` announces a pseudo-terminal. Raises UsageError.
    """
    kind, colon, path = text.partition(":")
    backend: FileConsole | UnixPort | PtyPort
    if kind == "unix" and path:
        backend = UnixPort(path)
    elif kind == "pty" and not colon:
        backend = PtyPort(say=lambda text: say(text.replace("console", f"port {name}", 1)))
    elif kind == "file" and path:
        from pyvmm.backends.file import FileConsole

        backend = FileConsole(path)
    else:
        raise UsageError(f"port {name}: {text!r} (expected file:PATH, unix:PATH or pty)")
    backend.what = f"port {name}"
    return backend


class UnixPort(UnixConsole):
    """A UNIX socket that calls on_peer(flag) when a client has come or gone."""

    on_peer: Callable[[bool], None] | None = None

    def _ready(self) -> None:
        before = self._client
        super()._ready()
        if self._client is not before and self.on_peer is not None:
            self.on_peer(self._client is not None)


class PtyPort(PtyConsole):
    """A pseudo-terminal that calls on_peer(flag) when somebody has opened its other end, or all have closed it."""

    on_peer: Callable[[bool], None] | None = None

    def _watch(self) -> tuple[int, int | None]:
        before = self._connected
        watched = super()._watch()
        if self._connected != before and self.on_peer is not None:
            self.on_peer(self._connected)
        return watched


class PortStream:
    """A port in this process: a stream of bytes in each direction, bounded, for any thread.

    The guest has to wait once `limit` bytes of its output are unread; input that the guest does not read fills the
    port's own buffer, and then `send` waits.
    """

    def __init__(self, limit: int = UNREAD_LIMIT) -> None:
        self._limit = limit
        self._unread = bytearray()
        self._link: Link | None = None
        self._held = False
        self._room = False
        self._opened = False
        self._closed = False
        self._changed = threading.Condition()

    # --- For the program ----------------------------------------------------------------------------------------------

    def recv(self, size: int = UNREAD_LIMIT, timeout: float | None = 30.0) -> bytes:
        """What the guest has written, 1 to `size` bytes, waited for; b"" once the run has ended and all is read.

        Raises TimeLimitError after `timeout` seconds (None: never).
        """
        with self._changed:
            if not self._wait(lambda: bool(self._unread), timeout) and not self._over():
                raise TimeLimitError(f"the guest wrote nothing to its port within {timeout} s")
            data = bytes(self._unread[:size])
            del self._unread[:size]
            if self._held and len(self._unread) <= self._limit // 4 and self._link is not None:
                self._held = False
                self._link.release()
            return data

    def send(self, data: bytes, timeout: float | None = 30.0) -> None:
        """Write `data` to the guest; returns when the port has taken all of it.

        Raises TimeLimitError after `timeout` seconds (None: never), PyvmmError if the VM does not run.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        rest = bytes(data)
        while rest:
            with self._changed:
                self._room = False
                link = None if self._over() else self._link
            if link is None:
                raise PyvmmError(f"the VM does not run: {len(rest)} bytes could not be sent to its port")
            rest = rest[link.receive(rest) :]  # without our lock: the device may call back
            left = None if deadline is None else deadline - time.monotonic()
            with self._changed:
                if rest and not self._wait(lambda: self._room, left) and not self._over():
                    raise TimeLimitError(f"the guest did not read its port: {len(rest)} bytes left after {timeout} s")

    def wait_open(self, timeout: float | None = 30.0) -> None:
        """Wait until the guest has opened the port.

        Raises TimeLimitError after `timeout` seconds (None: never), PyvmmError if the run ends before.
        """
        with self._changed:
            if not self._wait(lambda: self._opened, timeout):
                if self._over():
                    raise PyvmmError("the VM ended before the guest opened its port")
                raise TimeLimitError(f"the guest did not open its port within {timeout} s")

    def _wait(self, happened: Callable[[], bool], timeout: float | None) -> bool:
        """Whether it `happened` before `timeout` seconds were over or the run was. The lock is held."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not happened():
            left = LOOK_AGAIN if deadline is None else min(LOOK_AGAIN, deadline - time.monotonic())
            if left <= 0 or self._over():
                return happened()
            self._changed.wait(left)
        return True

    def _over(self) -> bool:
        return self._closed or (self._link is not None and self._link.over)

    # --- For the VM ---------------------------------------------------------------------------------------------------

    def start(self, link: Link) -> None:
        """Begin."""
        with self._changed:
            self._link = link
            self._closed = False

    def write(self, data: bytes) -> None:
        """Output of the guest."""
        with self._changed:
            if self._closed:
                return
            self._unread += data
            if len(self._unread) >= self._limit and not self._held and self._link is not None:
                self._held = True
                self._link.hold()
            self._changed.notify_all()

    def input_ready(self) -> None:
        """The port has room again."""
        with self._changed:
            self._room = True
            self._changed.notify_all()

    def guest_open(self, opened: bool) -> None:
        """The guest has opened the port, or closed it."""
        with self._changed:
            self._opened = opened
            self._changed.notify_all()

    def drain(self, timeout: float | None) -> bool:
        """Nothing to wait for."""
        return True

    def close(self) -> None:
        """The VM is gone, or the program is done with the port; what is unread can still be read."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            if self._held and self._link is not None:
                self._held = False
                self._link.release()

    def restore(self) -> None:
        """There is nothing to put back."""
