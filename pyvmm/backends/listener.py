"""Stream sockets that listen: at a path, which is removed again, or at a port. Imports errors. unix(7), tcp(7)."""

from __future__ import annotations

import os
import stat

from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

PATH_MAX = 107
"""Bytes of a socket's path: sun_path has 108, the last of them zero (unix(7))."""
LOCALHOST = "127.0.0.1"


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
        self.socket = self._open()
        try:
            os.fchmod(self.socket.fileno(), mode)  # bind() makes the file with the mode of the socket (unix(7))
            self.socket.bind(self.path)
            made = os.stat(self.path)
            self._inode = made.st_dev, made.st_ino
            self.socket.listen(waiting)
        except (OSError, ValueError) as error:
            self.close()
            raise _refused(what, self.path, error) from None

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

    def _open(self) -> socket.socket:
        import socket

        return _open(socket.AF_UNIX, self._what, self.path)

    def _remove_stale(self) -> None:
        try:
            kind = os.stat(self.path, follow_symlinks=False).st_mode
        except (OSError, ValueError):
            return  # nothing there, or what bind() will complain about
        if not stat.S_ISSOCK(kind):
            raise BackendError(f"{self._what}: {self.path} exists and is not a socket")
        with self._open() as probe:
            try:
                probe.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
                return
            except OSError as error:
                raise BackendError(f"{self._what}: cannot use {self.path}: {error.strerror}") from None
        raise BackendError(f"{self._what}: another process listens at {self.path}")


class PortListener:
    """A socket, non-blocking, that listens at `port` of LOCALHOST with a queue of `waiting` connections; 0 is any port.

    `what` is how messages call it. `port` is then the one that it is. Raises BackendError.
    """

    def __init__(self, port: int, what: str, *, waiting: int) -> None:
        import socket

        where = f"{LOCALHOST}:{port}"
        self.socket = _open(socket.AF_INET, what, where)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind((LOCALHOST, port))
            self.socket.listen(waiting)
        except OSError as error:
            self.close()
            raise _refused(what, where, error) from None
        self.port: int = self.socket.getsockname()[1]

    def close(self) -> None:
        """Listen no more. A second call does nothing."""
        self.socket.close()


def _open(family: int, what: str, where: str) -> socket.socket:
    import socket

    try:
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _refused(what, where, error) from None
    opened.setblocking(False)
    return opened


def _refused(what: str, where: str, error: OSError | ValueError) -> BackendError:
    reason = error.strerror if isinstance(error, OSError) else error
    return BackendError(f"{what}: cannot listen at {where}: {reason}")
