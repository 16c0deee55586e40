"""Extended attributes as clients use them: a fid that stands for a value, which is read or written piece by piece.

Imports its neighbours codec and tree. A value that is read is taken when the fid is made; one that is written is set
when the fid is clunked. Linux bounds both (xattr(7)): 64 KiB.
"""

from __future__ import annotations

import errno
import os

from pyvmm.backends.share.codec import Refused
from pyvmm.backends.share.tree import link

LARGEST = 64 << 10
"""Bytes of a value, and of a list of names (linux/limits.h, XATTR_SIZE_MAX, XATTR_LIST_MAX)."""
LONGEST = 255
"""Bytes of a name (XATTR_NAME_MAX)."""
AT_ONCE = 256
"""Fids of one share that may stand for values at the same time: each may hold 64 KiB. Linux has one a call."""


class Xattr:
    """A value in the making, or one to be read.

    value    its bytes so far
    name     of the attribute that is to be set, or b"" if this is only read
    size     bytes that it is to have
    flags    XATTR_CREATE and XATTR_REPLACE (setxattr(2))
    """

    __slots__ = ("flags", "name", "size", "value")

    def __init__(self, value: bytes = b"", name: bytes = b"", size: int = 0, flags: int = 0) -> None:
        self.value = bytearray(value)
        self.name = name
        self.size = size
        self.flags = flags

    def write(self, offset: int, data: bytes) -> int:
        """The next piece. Raises Refused: EBADF for a value that is read, EINVAL if it leaves a hole, ENOSPC behind."""
        if not self.name:
            raise Refused(errno.EBADF)
        if offset > len(self.value):
            raise Refused(errno.EINVAL)
        if offset + len(data) > self.size:
            raise Refused(errno.ENOSPC)
        self.value[offset : offset + len(data)] = data
        return len(data)

    def set(self, fd: int) -> None:
        """Give it to the file behind `fd`. Raises OSError, or Refused (EINVAL) if some of it was not written.

        Linux's clients remove an attribute by replacing it by nothing.
        """
        if len(self.value) != self.size:
            raise Refused(errno.EINVAL)
        if self.size == 0 and self.flags == os.XATTR_REPLACE:
            os.removexattr(link(fd), self.name)
        else:
            os.setxattr(link(fd), self.name, bytes(self.value), self.flags)


def read(fd: int, name: bytes, hidden: frozenset[bytes]) -> Xattr:
    """The value of `name`, or the list of all names if that is empty, but for the `hidden` ones. Raises OSError."""
    if name:
        return Xattr(os.getxattr(link(fd), _checked(name, hidden, errno.ENODATA)))
    names = [os.fsencode(name) for name in os.listxattr(link(fd))]
    return Xattr(b"".join(name + b"\0" for name in names if name not in hidden))


def create(name: bytes, size: int, flags: int, hidden: frozenset[bytes]) -> Xattr:
    """A value of `size` bytes for `name` is going to be written. Raises Refused."""
    if size > LARGEST:
        raise Refused(errno.E2BIG)
    if flags & ~(os.XATTR_CREATE | os.XATTR_REPLACE):
        raise Refused(errno.EINVAL)
    return Xattr(b"", _checked(name, hidden, errno.EPERM), size, flags)


def _checked(name: bytes, hidden: frozenset[bytes], error: int) -> bytes:
    if not 0 < len(name) <= LONGEST or b"\0" in name:
        raise Refused(errno.ERANGE)  # setxattr(2)
    if name in hidden:
        raise Refused(error)
    return name
