"""A UNIX stream socket that listens at a path, and takes its name away again. Imports errors. unix(7)."""

from __future__ import annotations

import os
import stat

from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

PATH_MAX = 107
"""Bytes of a socket's path: sun_path has 108, the last of them zero (unix(7))."""


class UnixListener:
    """A socket, non-blocking, that listens at `path` with a queue of `waiting` connections.

    A stale one, where nobody listens any more, is replaced. `what` is how messages call it; `mode` are the permissions,
    less the process's umask; `spare` are bytes that the path must leave for names that begin with it.

    Raises BackendError.
    """

    def __init__(
        self, path: str | os.PathLike[str], what: str, *, waiting: int, mode: int = 0o777, spare: int = 0
    ) -> None:
        self.path = os.fspath(path)
        self._what = what
        self._inode: tuple[int, int] | None = None
        length, limit = len(os.fsencode(self.path)), PATH_MAX - spare
        if length > limit:
            raise BackendError(f"{what}: the socket's path is too long: {length} bytes, expected {limit} at most")
        self._remove_stale()
        import socket

        self.socket: socket.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.setblocking(False)
            os.fchmod(self.socket.fileno(), mode)  # bind() makes the file with the mode of the socket (unix(7))
            self.socket.bind(self.path)
            made = os.stat(self.path)
            self._inode = made.st_dev, made.st_ino
            self.socket.listen(waiting)
        except (OSError, ValueError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else error
            raise BackendError(f"{what}: cannot listen at {self.path}: {reason}") from None

    def close(self) -> None:
        """Listen no more and remove the name. A second call does nothing."""
        self.socket.close()
        self.unlink()

    def unlink(self) -> None:
        """Remove the name if it is still ours, nothing else; any thread, any time."""
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
        except (OSError, ValueError):
            return  # nothing there, or what bind() will complain about
        if not stat.S_ISSOCK(kind):
            raise BackendError(f"{self._what}: {self.path} exists and is not a socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
            except OSError as error:
                raise BackendError(f"{self._what}: cannot use {self.path}: {error.strerror}") from None
        raise BackendError(f"{self._what}: another process listens at {self.path}")
