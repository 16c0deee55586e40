"""A raw disk image without the host's page cache: `cache=none`.

Imports its neighbour raw and chain's `pieces`. With O_DIRECT (open(2)) the host wants offsets, lengths and memory
aligned, and says EINVAL where they are not, before anything is transferred. Nobody can make a guest align them.
"""

from __future__ import annotations

import errno
import mmap
import os

from pyvmm.backends.raw import SECTOR, RawDisk
from pyvmm.virtio.chain import pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ALIGNMENTS = (SECTOR, 4096)
"""Bytes that offsets and lengths may have to be a multiple of."""
BOUNCE = 1 << 20
"""Bytes of the buffer through which go requests whose memory is not aligned."""


class DirectDisk(RawDisk):
    """As RawDisk, past the page cache.

    A request whose memory is not aligned goes through a buffer. One whose place or length is not, which only a driver
    makes that does not heed the disk's block size, goes through the page cache, by the second descriptor `cached`: the
    kernel keeps the two in step.
    """

    def __init__(self, fd: int, cached: int, path: str, *, readonly: bool = False) -> None:
        """Owns `fd`, opened with O_DIRECT, and `cached`, the same file opened without it. Raises OSError."""
        super().__init__(fd, path, readonly=readonly)
        self._cached = cached
        self._bounce = memoryview(mmap.mmap(-1, BOUNCE))
        self._align = self._alignment()

    @property
    def straight(self) -> tuple[int, int, int] | None:
        """As RawDisk's; what is not aligned is for `readv` and `writev`."""
        return self._fd, self._end // SECTOR * SECTOR, self._align

    def _alignment(self) -> int:
        for align in ALIGNMENTS[:-1]:
            try:
                os.preadv(self._fd, [self._bounce[:align]], 0)
                return align
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
        return ALIGNMENTS[-1]

    def _preadv(self, views: Sequence[memoryview], offset: int) -> int:
        length = sum(map(len, views))
        if (offset | length) % self._align:
            return os.preadv(self._cached, views, offset)
        try:
            return os.preadv(self._fd, views, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        with self._bounce[: min(length, BOUNCE)] as bounce:
            count = os.preadv(self._fd, [bounce], offset)
            done = 0
            for view in pieces(views, 0, count):
                view[:] = bounce[done : done + len(view)]
                done += len(view)
        return count

    def _pwritev(self, views: Sequence[memoryview], offset: int) -> int:
        length = sum(map(len, views))
        if (offset | length) % self._align:
            return os.pwritev(self._cached, views, offset)
        try:
            return os.pwritev(self._fd, views, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        with self._bounce[: min(length, BOUNCE)] as bounce:
            done = 0
            for view in pieces(views, 0, len(bounce)):
                bounce[done : done + len(view)] = view
                done += len(view)
            return os.pwritev(self._fd, [bounce], offset)

    def close(self) -> None:
        """Close the file."""
        super().close()
        fd, self._cached = self._cached, -1
        if fd >= 0:
            os.close(fd)
