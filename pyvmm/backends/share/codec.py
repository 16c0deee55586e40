"""Messages of 9P2000.L: their numbers, their layouts, and how one is taken apart.

Imports nothing. Every message is size[4] type[1] tag[2] and fields, little-endian; a string is length[2] and bytes. In
a layout `b`, `w`, `d` and `q` are numbers of 1, 2, 4 and 8 bytes and `s` is a string (include/net/9p/9p.h of Linux and
net/9p/protocol.c, whose letters these are; fields as in diod's protocol.md).
"""

from __future__ import annotations

import errno
import struct
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = b"9P2000.L"
UNKNOWN = b"unknown"
"""version(5): the answer to a version that the server does not speak."""

HEADER = Struct("<IBH")
U16 = Struct("<H")
U32 = Struct("<I")
U64 = Struct("<Q")
QID = Struct("<BIQ")
"""type, version, path."""

ERROR_SIZE = HEADER.size + U32.size
"""Bytes of Rlerror: without room for it, a message cannot be answered."""
DATA_OFFSET = HEADER.size + U32.size
"""Where the data of Rread and Rreaddir begin, behind their count."""
WRITE_OFFSET = HEADER.size + 16
"""Where the data of Twrite begin, behind fid, offset and count."""

MAX_WALK = 16
"""walk(5), MAXWELEM: names in one Twalk."""
NO_FID = 0xFFFFFFFF
NO_ID = 0xFFFFFFFF
"""attach(5), NOFID; and n_uname where the client has no number."""

RLERROR = 7
TSTATFS, TLOPEN, TLCREATE, TSYMLINK, TMKNOD, TRENAME, TREADLINK = 8, 12, 14, 16, 18, 20, 22
TGETATTR, TSETATTR, TXATTRWALK, TXATTRCREATE, TREADDIR, TFSYNC = 24, 26, 30, 32, 40, 50
TLOCK, TGETLOCK, TLINK, TMKDIR, TRENAMEAT, TUNLINKAT = 52, 54, 70, 72, 74, 76
TVERSION, TAUTH, TATTACH, TFLUSH, TWALK = 100, 102, 104, 108, 110
TREAD, TWRITE, TCLUNK, TREMOVE = 116, 118, 120, 122

# --- Open flags, P9_DOTL_*: Linux's own on x86 -----------------------------------------------------------------------
ACCESS = 3
RDONLY, WRONLY, RDWR = 0, 1, 2
EXCL, TRUNC, APPEND = 0o200, 0o1000, 0o2000
DSYNC, DIRECTORY, SYNC = 0o10000, 0o200000, 0o4000000
AT_REMOVEDIR = 0x200

# --- Attributes, P9_STATS_* and P9_ATTR_* ----------------------------------------------------------------------------
STATS_BASIC = 0x7FF
"""Everything that stat(2) tells."""
GETATTR = Struct("<Q13s3I15Q")
"""Rgetattr: valid, qid, mode, uid, gid, nlink, rdev, size, blksize, blocks, seconds and nanoseconds of atime, mtime,
ctime and btime, generation, data version."""
ATTR_MODE, ATTR_UID, ATTR_GID, ATTR_SIZE, ATTR_ATIME, ATTR_MTIME, ATTR_CTIME = 1, 2, 4, 8, 16, 32, 64
ATTR_ATIME_SET, ATTR_MTIME_SET = 128, 256
STATFS = Struct("<IIQQQQQQI")
"""type, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen."""
STATFS_TYPE = 0x01021997
"""V9FS_MAGIC (linux/magic.h)."""

# --- Qid types, P9_QT* -----------------------------------------------------------------------------------------------
QT_DIR, QT_SYMLINK, QT_FILE = 0x80, 0x02, 0x00

# --- Locks, P9_LOCK_* ------------------------------------------------------------------------------------------------
LOCK_RDLCK, LOCK_WRLCK, LOCK_UNLCK = 0, 1, 2
LOCK_SUCCESS, LOCK_BLOCKED = 0, 1
GETLOCK = Struct("<BQQI")
"""Rgetlock up to the client's name: type, start, length, process."""


class Refused(Exception):
    """A message that is answered with `errno`, a Linux error number: the client's fault, or none of the host's."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


class Layout:
    """The fields of a message, behind its header."""

    __slots__ = ("_runs", "name", "room")

    def __init__(self, name: str, fields: str, room: int = 0) -> None:
        """`room` is how many bytes the fields of the answer have, at least."""
        letters = str.maketrans("bwdq", "BHIQ")
        self.name = name
        self.room = HEADER.size + room
        self._runs = [Struct("<" + run.translate(letters)) for run in fields.split("s")]

    def decode(self, message: bytes) -> list[Any]:
        """The fields of `message`: ints and bytes. What comes behind the last one is ignored, as servers do.

        Raises Refused (EINVAL) if it ends too early.
        """
        return self.decode_from(message)[0]

    def decode_from(self, message: bytes) -> tuple[list[Any], int]:
        """The same, and where the last field ends."""
        found: list[Any] = []
        at = HEADER.size
        first = True
        try:
            for run in self._runs:
                if not first:
                    text, at = string(message, at)
                    found.append(text)
                found += run.unpack_from(message, at)
                at += run.size
                first = False
        except struct.error:
            raise Refused(errno.EINVAL) from None
        return found, at


def string(message: bytes, at: int) -> tuple[bytes, int]:
    """The string at `at`, and where it ends. Raises struct.error or Refused (EINVAL) if `message` ends before."""
    (length,) = U16.unpack_from(message, at)
    end = at + 2 + length
    if end > len(message):
        raise Refused(errno.EINVAL)
    return message[at + 2 : end], end


def strings(message: bytes, at: int, count: int) -> list[bytes]:
    """`count` strings from `at` on. Raises Refused (EINVAL)."""
    found = []
    try:
        for _ in range(count):
            text, at = string(message, at)
            found.append(text)
    except struct.error:
        raise Refused(errno.EINVAL) from None
    return found


def packed(text: bytes) -> bytes:
    """`text`, up to 65,535 bytes, as a string of a message."""
    return U16.pack(len(text)) + text


def name(text: bytes) -> bytes:
    """`text` as the name of an entry that is made, changed or removed. Raises Refused: EINVAL, ENAMETOOLONG."""
    if not text or text in (b".", b"..") or b"/" in text or b"\0" in text:
        raise Refused(errno.EINVAL)
    if len(text) > 255:  # NAME_MAX (linux/limits.h)
        raise Refused(errno.ENAMETOOLONG)
    return text


LAYOUTS = {
    TSTATFS: Layout("statfs", "d", STATFS.size),
    TLOPEN: Layout("lopen", "dd", 17),
    TLCREATE: Layout("lcreate", "dsddd", 17),
    TSYMLINK: Layout("symlink", "dssd", 13),
    TMKNOD: Layout("mknod", "dsdddd", 13),
    TRENAME: Layout("rename", "dds"),
    TREADLINK: Layout("readlink", "d", 2),
    TGETATTR: Layout("getattr", "dq", GETATTR.size),
    TSETATTR: Layout("setattr", "dddddqqqqq"),
    TXATTRWALK: Layout("xattrwalk", "dds", 8),
    TXATTRCREATE: Layout("xattrcreate", "dsqd"),
    TREADDIR: Layout("readdir", "dqd", 4),
    TFSYNC: Layout("fsync", "dd"),
    TLOCK: Layout("lock", "dbdqqds", 1),
    TGETLOCK: Layout("getlock", "dbqqds", 23),
    TLINK: Layout("link", "dds"),
    TMKDIR: Layout("mkdir", "dsdd", 13),
    TRENAMEAT: Layout("renameat", "dsds"),
    TUNLINKAT: Layout("unlinkat", "dsd"),
    TVERSION: Layout("version", "ds", 6 + len(VERSION)),
    TATTACH: Layout("attach", "ddssd", 13),
    TFLUSH: Layout("flush", "w"),
    TWALK: Layout("walk", "ddw", 2),
    TREAD: Layout("read", "dqd", 4),
    TWRITE: Layout("write", "dqd", 4),
    TCLUNK: Layout("clunk", "d"),
    TREMOVE: Layout("remove", "d"),
}
"""What is served. Tauth is not: there is nobody to prove anything to."""
