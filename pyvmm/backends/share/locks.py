"""Byte-range locks of a share's clients, as locks of the host's that every process there can see.

Imports its neighbours codec and tree. They are open-file-description locks (fcntl(2), F_OFD_SETLK), which meet the
POSIX locks of other processes. A lock belongs to a process of the guest, not to a fid: two processes that inherited an
open file have one fid, and a process that opens a file twice has two. So each (file, client, process) has a descriptor
of its own, made by its first lock, closed when it gives up all of the file or all fids that it locked it by are gone.

Linux's clients turn flock(2) into these too.
"""

from __future__ import annotations

import errno
import fcntl
import os
from struct import Struct

from pyvmm.backends.share.codec import (
    LOCK_BLOCKED,
    LOCK_RDLCK,
    LOCK_SUCCESS,
    LOCK_UNLCK,
    LOCK_WRLCK,
    Refused,
)
from pyvmm.backends.share.tree import BUDGET, link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.backends.share.files import Handle

FLOCK = Struct("@hh4xqqi4x")
"""struct flock (fcntl(2)): type, whence, start, length, pid."""
OFFSET_MAX = (1 << 63) - 1
_TYPES = {LOCK_RDLCK: fcntl.F_RDLCK, LOCK_WRLCK: fcntl.F_WRLCK, LOCK_UNLCK: fcntl.F_UNLCK}
_NAMES = {number: name for name, number in _TYPES.items()}


class Owner:
    """A process of a guest with locks in a file: its descriptor, and the open files that it has locked it by."""

    __slots__ = ("fd", "handles", "key")

    def __init__(self, key: tuple[int, int, bytes, int], fd: int) -> None:
        self.key = key
        self.fd = fd
        self.handles: set[Handle] = set()


class Locks:
    """All locks of one share. `may_write` is whether files may be opened for writing at all."""

    def __init__(self, may_write: bool) -> None:
        self._modes = (os.O_RDWR, os.O_RDONLY, os.O_WRONLY) if may_write else (os.O_RDONLY,)
        self._owners: dict[tuple[int, int, bytes, int], Owner] = {}

    def lock(self, handle: Handle, kind: int, start: int, length: int, process: int, client: bytes) -> int:
        """Lock or unlock `length` bytes from `start` on, 0: to the end; never waits. Returns a P9_LOCK_* status.

        Raises OSError (EBADF where a file that may only be read is to be locked for writing) or Refused.
        """
        request = self._request(kind, start, length)
        key = self._key(handle, client, process)
        owner = self._owners.get(key)
        if owner is None:
            if kind == LOCK_UNLCK:
                return LOCK_SUCCESS
            owner = self._owners[key] = Owner(key, self._open(handle))
        if owner not in handle.owners:
            owner.handles.add(handle)
            handle.owners.append(owner)
        try:
            fcntl.fcntl(owner.fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return LOCK_BLOCKED
            raise
        if kind == LOCK_UNLCK and start == 0 and length == 0:
            self._close(owner)
        return LOCK_SUCCESS

    def test(
        self, handle: Handle, kind: int, start: int, length: int, process: int, client: bytes
    ) -> tuple[int, int, int, int]:
        """The first lock that would be in the way of this one: type, start, length and process, 0 if it is unknown.

        Linux's clients ask for no lock at all whatever their programs ask for, so that is taken for a lock to write.
        Raises OSError or Refused.
        """
        request = self._request(LOCK_WRLCK if kind == LOCK_UNLCK else kind, start, length)
        owner = self._owners.get(self._key(handle, client, process))
        if owner is not None:
            answer = fcntl.fcntl(owner.fd, fcntl.F_OFD_GETLK, request)
        else:
            fd = self._open(handle)
            try:
                answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
            finally:
                os.close(fd)
                BUDGET.give()
        found, _, first, count, pid = FLOCK.unpack(answer)
        if found == fcntl.F_UNLCK:
            return LOCK_UNLCK, start, length, process
        return _NAMES[found], first, count, max(pid, 0)

    def closed(self, handle: Handle) -> None:
        """The open file `handle` goes, and with it the locks that were made by nothing else."""
        for owner in list(handle.owners):
            owner.handles.discard(handle)
            if not owner.handles:
                self._close(owner)
        handle.owners.clear()

    def _close(self, owner: Owner) -> None:
        del self._owners[owner.key]
        for handle in owner.handles:
            handle.owners.remove(owner)
        os.close(owner.fd)
        BUDGET.give()

    def _request(self, kind: int, start: int, length: int) -> bytes:
        if kind not in _TYPES or start > OFFSET_MAX or length > OFFSET_MAX or start + max(length, 1) - 1 > OFFSET_MAX:
            raise Refused(errno.EINVAL)
        return FLOCK.pack(_TYPES[kind], os.SEEK_SET, start, length, 0)

    def _key(self, handle: Handle, client: bytes, process: int) -> tuple[int, int, bytes, int]:
        status = os.fstat(handle.fd)
        return status.st_dev, status.st_ino, client, process

    def _open(self, handle: Handle) -> int:
        """A description of its own of the file, to write if that may be: a lock to write needs it."""
        BUDGET.take()
        failure: OSError | None = None
        for mode in self._modes:
            try:
                return os.open(link(handle.fd), mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError as error:
                failure = failure or error
        BUDGET.give()
        assert failure is not None
        raise failure
