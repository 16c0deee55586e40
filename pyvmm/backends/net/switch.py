"""A switch that joins the VMs of one host without privilege: a socket's path is all that they have in common.

Imports switchserver, stream and errors. Whoever comes first to the path serves the switch; when its VM goes, one of the
others takes over. Who is first is settled under a lock (flock(2)) of the folder, which leaves nothing behind.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time

from pyvmm.backends.net.stream import FrameStream
from pyvmm.backends.net.switchserver import SwitchServer, listen
from pyvmm.errors import BackendError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

PATH_MAX = 107
"""Bytes of a socket's path: sun_path has 108, the last of them zero (unix(7))."""
ANSWER = 2.0
"""Seconds that the switch is given to answer a call, and others to let go of the lock."""
REJOINS = 8
"""Times in a second that the switch may hang up before the network counts as gone."""


class SwitchPort:
    """The guest's side of the switch at `path`, which is served here if nobody does.

    server   the switch, if it is this process that serves it

    Raises BackendError, and UsageError for a path that cannot be.
    """

    vnet_header = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.server: SwitchServer | None = None
        self._inode: tuple[int, int] | None = None
        self._rejoined: list[float] = []
        self._stream: FrameStream | None = None
        length = len(os.fsencode(self.path))
        if length > PATH_MAX:
            raise UsageError(f"switch {self.path}: the path has {length} bytes (expected {PATH_MAX} at most)")
        self._join()

    def fileno(self) -> int:
        """Our end of the connection, or -1. Another one once the switch has moved."""
        return self._stream.socket.fileno() if self._stream is not None else -1

    @property
    def direct(self) -> FrameStream | None:
        """C may read and write frames here. Another one once the switch has moved."""
        return self._stream

    def offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """The switch carries whole frames."""

    def receive(self) -> memoryview | None:
        """The next frame, or None. Raises BackendError if there is no switch any more, and none can be made."""
        try:
            return self._here().receive()
        except BackendError as error:
            self._rejoin(error)
            return None

    def send(self, frame: memoryview) -> bool:
        """Send a frame, or False for it to be offered again. Raises BackendError as `receive()` does."""
        try:
            return self._here().send(frame)
        except BackendError as error:
            self._rejoin(error)
            return False  # all of it must go to the new switch

    def close(self) -> None:
        """Leave, and if the switch is served here, let another one take over. A second call does nothing."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.socket.close()
        server, self.server = self.server, None
        if server is not None:
            try:
                self._locked(self._remove)
            except BackendError:
                pass  # the folder has gone, or is kept locked: a stale socket is replaced anyway
            server.close()

    def _here(self) -> FrameStream:
        if self._stream is None:
            raise BackendError(f"switch {self.path}: left")
        return self._stream

    # --- Joining ------------------------------------------------------------------------------------------------------

    def _rejoin(self, why: BackendError) -> None:
        """The switch has hung up: it is elsewhere now, or here. Raises BackendError."""
        if self._stream is None:
            raise why
        now = time.monotonic()
        self._rejoined = [at for at in self._rejoined if at > now - 1] + [now]
        self._stream.socket.close()
        self._stream = None
        if len(self._rejoined) > REJOINS:
            raise BackendError(f"switch {self.path} keeps hanging up: {why}")
        self._join()

    def _join(self) -> None:
        self._stream = FrameStream(self._locked(self._call_or_serve))

    def _locked(self, work: Callable[[], T]) -> T:
        """Do `work` while nobody else joins or leaves a switch in this folder. Raises BackendError for any OSError."""
        try:
            folder = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if not _patiently(lambda: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)):
                    raise BackendError(f"switch {self.path}: somebody keeps the folder locked")
                return work()
            finally:
                os.close(folder)
        except BackendError:
            raise
        except OSError as error:
            raise BackendError(f"switch {self.path}: {error.strerror}") from None

    def _call_or_serve(self) -> socket.socket:
        try:
            return self._call()
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:  # nobody listens: left behind by a VM that was killed
            if not stat.S_ISSOCK(os.stat(self.path, follow_symlinks=False).st_mode):
                raise BackendError(f"switch {self.path}: exists and is not a socket") from None
            os.unlink(self.path)
        if self.server is not None:
            self.server.close()
        listener = listen(self.path)
        made = os.stat(self.path)
        self._inode = made.st_dev, made.st_ino
        try:
            self.server = SwitchServer(listener)
        except BaseException:
            listener.close()
            self._remove()
            raise
        return self._call()

    def _call(self) -> socket.socket:
        caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        caller.setblocking(False)
        try:
            if _patiently(lambda: caller.connect(self.path)):
                return caller
            raise BackendError(f"switch {self.path}: who serves it does not answer")
        except BaseException:
            caller.close()
            raise

    def _remove(self) -> None:
        """Remove the socket's name if it is still ours."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return
        if (found.st_dev, found.st_ino) == self._inode:
            os.unlink(self.path)


def _patiently(work: Callable[[], object]) -> bool:
    """Do `work` as soon as it does not block; False if it still does after ANSWER seconds."""
    deadline = time.monotonic() + ANSWER
    while True:
        try:
            work()
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)


def join_switch(path: str | os.PathLike[str]) -> SwitchPort:
    """The guest's side of the switch at `path`. Raises BackendError and UsageError."""
    return SwitchPort(path)
