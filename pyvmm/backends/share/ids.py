"""Owners and modes of a share's files: what the guest sees, and what becomes of them on the host.

Imports its neighbours codec and tree.

`Passthrough`, when the VM is run by root: they are the host's own.

`Mapped`, when it is run by another user, who can give files away to nobody. To the guest that user's files, and those
of the user's group, are root's; all others are whose they are. What the guest's root does to files of that user's
(chown, modes that lock their owner out, set-user-ID) is kept in an extended attribute, which the guest does not see;
on the host a file's owner and the owner's right to read and write it stay. So the guest's root may do what a root may,
and on the host no set-user-ID program ever appears. Without extended attributes (a file system that has none)
ownership cannot be changed (EPERM), and modes are the host's. Symbolic links can carry none: their owner stays.
"""

from __future__ import annotations

import errno
import os
import stat

from pyvmm.backends.share.codec import NO_ID, Refused
from pyvmm.backends.share.tree import link

RECORD = b"user.pyvmm.owner"
"""The attribute: uid, gid and permission bits, as decimal, decimal and octal text."""
PERMISSIONS = 0o7777
SET_IDS = stat.S_ISUID | stat.S_ISGID


class Passthrough:
    """As on the host. `fd`s are O_PATH or open; what raises, raises OSError."""

    hidden: frozenset[bytes] = frozenset()
    """Extended attributes that are none of the guest's business."""

    def seen(self, fd: int, status: os.stat_result) -> tuple[int, int, int]:
        """What the guest sees of a file: uid, gid and mode."""
        return status.st_uid, status.st_gid, status.st_mode

    def made(self, fd: int, uid: int, gid: int, mode: int) -> None:
        """The guest's user `uid` (NO_ID: whoever) has made a file: it belongs to that user, with exactly this mode."""
        status = os.fstat(fd)
        if (uid not in (NO_ID, status.st_uid)) or (gid not in (NO_ID, status.st_gid)):
            os.chown(link(fd), -1 if uid == NO_ID else uid, -1 if gid == NO_ID else gid)
            status = os.fstat(fd)
        if not stat.S_ISLNK(status.st_mode) and stat.S_IMODE(status.st_mode) != mode & PERMISSIONS:
            os.chmod(link(fd), mode & PERMISSIONS)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        """NO_ID leaves one as it is."""
        os.chown(link(fd), -1 if uid == NO_ID else uid, -1 if gid == NO_ID else gid)

    def chmod(self, fd: int, mode: int) -> None:
        os.chmod(link(fd), mode & PERMISSIONS)


class Mapped(Passthrough):
    """As an unprivileged user can have it: see above."""

    hidden = frozenset((RECORD,))

    def __init__(self) -> None:
        self._uid = os.geteuid()
        self._gid = os.getegid()

    def seen(self, fd: int, status: os.stat_result) -> tuple[int, int, int]:
        uid = 0 if status.st_uid == self._uid else status.st_uid
        gid = 0 if status.st_gid == self._gid else status.st_gid
        mode = status.st_mode
        if status.st_uid == self._uid and (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            uid, gid, bits = self._record(fd) or (uid, gid, None)
            # Somebody may have changed the mode on the host since.
            if bits is not None and _hosted(bits, mode) == stat.S_IMODE(mode):
                mode = stat.S_IFMT(mode) | bits
        return uid, gid, mode

    def made(self, fd: int, uid: int, gid: int, mode: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            self._set(fd, status, 0 if uid == NO_ID else uid, 0 if gid == NO_ID else gid, mode & PERMISSIONS)
        elif not stat.S_ISLNK(status.st_mode):
            os.chmod(link(fd), mode & 0o777)

    def chown(self, fd: int, uid: int, gid: int) -> None:
        status = os.fstat(fd)
        old_uid, old_gid, mode = self.seen(fd, status)
        uid = old_uid if uid == NO_ID else uid
        gid = old_gid if gid == NO_ID else gid
        if stat.S_ISLNK(mode) or (uid, gid) == (old_uid, old_gid):
            return
        if status.st_uid != self._uid or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise Refused(errno.EPERM)
        bits = stat.S_IMODE(mode)
        if stat.S_ISREG(mode):  # chown(2)
            bits &= ~(SET_IDS if bits & stat.S_IXGRP else stat.S_ISUID)
        if not self._set(fd, status, uid, gid, bits):
            raise Refused(errno.EPERM)

    def chmod(self, fd: int, mode: int) -> None:
        status = os.fstat(fd)
        if status.st_uid == self._uid and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            uid, gid, _ = self.seen(fd, status)
            self._set(fd, status, uid, gid, mode & PERMISSIONS)
        else:
            os.chmod(link(fd), mode & 0o1777)

    def _record(self, fd: int) -> tuple[int, int, int] | None:
        try:
            uid, gid, bits = os.getxattr(link(fd), RECORD).split()
            found = int(uid), int(gid), int(bits, 8)
        except (OSError, ValueError):  # none, or none of ours
            return None
        return found if all(0 <= value < NO_ID for value in found) and found[2] <= PERMISSIONS else None

    def _set(self, fd: int, status: os.stat_result, uid: int, gid: int, bits: int) -> bool:
        """Give the file a mode and owners; False if the file system cannot keep the owners."""
        path, mode = link(fd), _hosted(bits, status.st_mode)
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(path, mode)  # first: attributes are for those who may write
        if (uid, gid, bits) != (0, 0 if status.st_gid == self._gid else status.st_gid, mode):
            try:
                os.setxattr(path, RECORD, b"%d %d %o" % (uid, gid, bits))
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                    raise
                os.chmod(path, bits & ~SET_IDS)
                return False
        else:
            try:
                os.removexattr(path, RECORD)
            except OSError:  # there was none
                pass
        return True


def _hosted(bits: int, mode: int) -> int:
    """The permission bits on the host of a file of type `mode` that has `bits` in the guest."""
    return bits & 0o1777 | 0o700 if stat.S_ISDIR(mode) else bits & 0o777 | 0o600
