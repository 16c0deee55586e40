"""The entries of an open directory, at offsets that stay what they are while entries come and go.

Imports its neighbours codec and tree. What has been read of a directory is kept as it is sent, until it is read from
the beginning again: an offset is a place in that, so what a client has seen it does not see again, and what it has not
seen it does not miss.
"""

from __future__ import annotations

import errno
import os
import stat
from array import array
from bisect import bisect_right

from pyvmm.backends.share.codec import QID, QT_DIR, QT_FILE, QT_SYMLINK, U64, Refused, packed
from pyvmm.backends.share.tree import BUDGET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOST = 256 << 20
"""Bytes of entries that all open directories of one share may have together: some millions."""
DT_UNKNOWN, DT_DIR, DT_REG, DT_LNK = 0, stat.S_IFDIR >> 12, stat.S_IFREG >> 12, stat.S_IFLNK >> 12
"""readdir(3)"""


class Room:
    """How many bytes of entries are kept, in all."""

    __slots__ = ("used",)

    def __init__(self) -> None:
        self.used = 0


class Listing:
    """What has been read of the directory `fd`, if that is not -1: an empty one. One at a time for each descriptor.

    `first` are "." and "..", by their qids; `path_of(inode)` gives the number in the qid of an entry.
    """

    def __init__(self, fd: int, first: tuple[bytes, bytes], path_of: Callable[[int], int], room: Room) -> None:
        """Raises OSError or Refused."""
        self._path_of = path_of
        self._room = room
        self._data = bytearray()
        self._ends = array("Q")
        self._source: Any = None  # what os.scandir() gives
        try:
            for name, qid in zip((b".", b".."), first, strict=True):
                self._add(name, qid, DT_DIR)
            if fd >= 0:
                BUDGET.take()  # it makes a descriptor of its own
                try:
                    self._source = os.scandir(fd)
                except BaseException:
                    BUDGET.give()
                    raise
        except BaseException:
            self.close()
            raise

    def read(self, offset: int, count: int) -> bytes:
        """Whole entries from `offset` on, as Rreaddir has them, in `count` bytes at most; none at the end.

        Raises OSError, or Refused: EINVAL for an offset that was never given, or if not even one entry fits.
        """
        while self._source is not None and len(self._data) < offset + count:
            self._read_on()
        if offset and self._ends[bisect_right(self._ends, offset) - 1] != offset:
            raise Refused(errno.EINVAL)
        if offset == len(self._data):
            return b""
        last = bisect_right(self._ends, offset + count) - 1
        if last < 0 or self._ends[last] <= offset:
            raise Refused(errno.EINVAL)
        return bytes(self._data[offset : self._ends[last]])

    def close(self) -> None:
        """Give everything back; a second call does nothing."""
        self._end()
        self._room.used -= len(self._data)
        self._data.clear()

    def _read_on(self) -> None:
        entry = next(self._source, None)
        if entry is None:
            self._end()
            return
        if entry.is_dir(follow_symlinks=False):
            kind, qt = DT_DIR, QT_DIR
        elif entry.is_symlink():
            kind, qt = DT_LNK, QT_SYMLINK
        elif entry.is_file(follow_symlinks=False):
            kind, qt = DT_REG, QT_FILE
        else:
            kind, qt = DT_UNKNOWN, QT_FILE
        self._add(os.fsencode(entry.name), QID.pack(qt, 1, self._path_of(entry.inode())), kind)

    def _add(self, name: bytes, qid: bytes, kind: int) -> None:
        size = len(qid) + 9 + 2 + len(name)
        if self._room.used + size > MOST:
            raise Refused(errno.ENOMEM)
        self._room.used += size
        end = len(self._data) + size
        self._data += qid + U64.pack(end) + bytes((kind,)) + packed(name)
        self._ends.append(end)

    def _end(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()
            BUDGET.give()
