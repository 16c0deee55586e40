"""The folder of control sockets: one a user, one socket a running VM, called NAME.sock.

Imports errors. Whoever may connect to a socket may do with the VM what its owner may, so the folder is the owner's
alone, and is not entered by way of a symbolic link. Sockets are reached through the open folder's own entry in /proc:
a socket's path has room for 107 bytes only (unix(7)), and that one is short however long the folder's is.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from pyvmm.errors import BackendError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import Self

SUFFIX = ".sock"
LONGEST_NAME = 64
OTHERS = 0o077
"""The bits of a mode that are not the owner's."""


def folder_path() -> str:
    """$PYVMM_RUNTIME_DIR, or pyvmm in $XDG_RUNTIME_DIR, or a folder of this user's in /tmp."""
    own, session = os.environ.get("PYVMM_RUNTIME_DIR"), os.environ.get("XDG_RUNTIME_DIR")
    return own or (os.path.join(session, "pyvmm") if session else f"/tmp/pyvmm-{os.geteuid()}")


def check_name(name: str) -> str:
    """`name`, if a VM can be called so. Raises UsageError."""
    if not name[:1].isalnum() or set(name) - _NAME_CHARACTERS or len(name) > LONGEST_NAME:
        raise UsageError(
            f"a VM called {name!r} (expected a letter or digit, then letters, digits, '.', '_', '-'; "
            f"{LONGEST_NAME} at most)"
        )
    return name


_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class Folder:
    """The folder, open. A context manager."""

    def __init__(self, *, make: bool = False) -> None:
        """Open it, with `make` after making it if need be. Raises BackendError, which names it, and FileNotFoundError
        where it is not there and is not to be made.
        """
        self.path = path = folder_path()
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if make:
                try:
                    os.mkdir(path, 0o700)
                except FileExistsError:
                    pass
            self.fd = os.open(path, flags)
        except FileNotFoundError as error:
            if not make:
                raise
            raise BackendError(f"the folder of control sockets {path} cannot be made: {error.strerror}") from None
        except OSError as error:
            link = error.errno in (errno.ELOOP, errno.ENOTDIR)
            problem = "is a symbolic link or no folder" if link else f"cannot be used: {error.strerror}"
            raise BackendError(f"the folder of control sockets {path} {problem}") from None
        status = os.fstat(self.fd)
        problem = ""
        if status.st_uid != os.geteuid():
            problem = f"belongs to user {status.st_uid} (expected {os.geteuid()})"
        elif status.st_mode & OTHERS:
            problem = f"is open to others: mode {status.st_mode & 0o7777:o} (expected 700)"
        if problem:
            self.close()
            raise BackendError(f"the folder of control sockets {path} {problem}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, and with it give up the lock; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def address(self, name: str) -> str:
        """What to bind or connect to for the VM `name`."""
        return f"/proc/self/fd/{self.fd}/{name}{SUFFIX}"

    def lock(self) -> None:
        """Keep others from making and removing sockets; for a moment."""
        fcntl.flock(self.fd, fcntl.LOCK_EX)

    def unlock(self) -> None:
        """Let them."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def names(self) -> list[str]:
        """The VMs that run, sorted. Sockets that dead ones have left are removed."""
        found = self._sockets()
        alive = [name for name in found if self.answers(name)]
        if len(alive) < len(found):
            self.lock()
            try:
                self.remove_stale()
            finally:
                self.unlock()
        return alive

    def _sockets(self) -> list[str]:
        return sorted(entry[: -len(SUFFIX)] for entry in os.listdir(self.fd) if entry.endswith(SUFFIX))

    def answers(self, name: str) -> bool:
        """Whether the socket of `name` is somebody's. Who listens there notices nothing.

        connect(2) with a datagram socket: a stream socket at the other end is EPROTOTYPE, none is ECONNREFUSED (Linux's
        net/unix/af_unix.c, unix_find_bsd()).
        """
        from _socket import AF_UNIX, SOCK_DGRAM, socket

        probe = socket(AF_UNIX, SOCK_DGRAM)
        try:
            probe.connect(self.address(name))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            pass
        finally:
            probe.close()
        return True

    def connect(self, name: str, timeout: float) -> _socket.socket | None:
        """A connection to the VM `name`, or None if there is no such VM. `timeout` is for what is done with it.

        Raises OSError; a queue of clients that is full is a BlockingIOError, at once.
        """
        from _socket import AF_UNIX, SOCK_STREAM, socket

        connection = socket(AF_UNIX, SOCK_STREAM)
        connection.settimeout(timeout)
        try:
            connection.connect(self.address(name))
        except (ConnectionRefusedError, FileNotFoundError):
            connection.close()
            return None
        except BaseException:
            connection.close()
            raise
        return connection

    def remove_stale(self) -> None:
        """Remove the sockets that dead VMs have left; the lock is held."""
        for name in self._sockets():
            if self.inode(name) and not self.answers(name):
                try:
                    os.unlink(name + SUFFIX, dir_fd=self.fd)
                except OSError:
                    pass  # removed by hand

    def inode(self, name: str) -> int:
        """The number of the socket of `name`, or 0: there is none, or it is something else."""
        try:
            status = os.stat(name + SUFFIX, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return 0
        return status.st_ino if stat.S_ISSOCK(status.st_mode) else 0
