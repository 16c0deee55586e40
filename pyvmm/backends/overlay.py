"""A disk that forgets: what the guest writes goes to a temporary file, and the base image is only read.

Imports its neighbour raw, chain's `pieces` and errors. The temporary file has no name, so it is gone with the process
however that ends; it grows by what the guest writes, in clusters.
"""

from __future__ import annotations

import errno
import mmap
import os

from pyvmm.backends.raw import RawDisk, check_size
from pyvmm.errors import BackendError, UsageError
from pyvmm.virtio.chain import pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PIECE = 1 << 20
"""Bytes that are copied at a time."""
CLUSTER = 4096
"""Bytes that come from one of the two files, all or none: what file systems mostly write, so little is copied."""
TEMPORARY = "/var/tmp"
"""Where the file is made unless TMPDIR says otherwise: for large files, while /tmp is often a piece of RAM."""


class OverlayDisk:
    """Copy-on-write over `base`, which it owns and never writes. The attributes are as RawDisk has them.

    A cluster is read from the temporary file once anything in it was written, and from `base` until then. Nothing here
    outlives the process, so there is nothing for `flush()` to make durable.
    """

    readonly = False
    durable = True
    """A flush has nothing to do, but the guest may send one: it then behaves as it would on a disk that stays."""
    may_unmap = True
    straight = None
    """Which of the two files has a sector is known here alone."""

    _base: RawDisk | OverlayDisk

    def __init__(self, base: RawDisk) -> None:
        """Make the temporary file, in TMPDIR or TEMPORARY. Raises BackendError, which names the folder."""
        self.path = base.path
        self.size = base.size
        self.block_size = base.block_size
        self.physical_block_size = max(CLUSTER, base.physical_block_size)
        self._base = base
        fd, self._written = _temporary(self.size)
        self._top = RawDisk(fd, f"the overlay of {base.path}")

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views`, one after the other, with the bytes from `offset` on. Raises OSError."""
        end = offset + sum(map(len, views))
        for start, stop, written in self._runs(offset, end):
            disk = self._top if written else self._base
            whole = (start, stop) == (offset, end)
            disk.readv(views if whole else pieces(views, start - offset, stop - start), start)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views`, one after the other, from `offset` on. Raises OSError, where the host's disk is full too."""
        end = offset + sum(map(len, views))
        self._copy_up(offset, end)
        self._top.writev(views, offset)
        self._mark(offset, end)

    def flush(self) -> None:
        """Nothing: there is nothing here that could be kept."""

    def discard(self, offset: int, length: int) -> None:
        """The guest does not need these bytes any more: give back the whole clusters among them."""
        start, end = -(-offset // CLUSTER) * CLUSTER, (offset + length) // CLUSTER * CLUSTER
        if start < end:
            self.write_zeroes(start, end - start, True)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Have `length` bytes from `offset` read as zeroes. A hole does, whether or not the guest asked for one."""
        end = offset + length
        self._copy_up(offset, end)
        self._top.write_zeroes(offset, length, True)
        self._mark(offset, end)

    def resize(self, size: int | None = None) -> None:
        """Make the disk `size` bytes long; the base stays as it is, and what is new reads as zeroes.

        Raises UsageError, also without a `size` (a base may not change), and BackendError where the host cannot do it.
        """
        if size is None:
            raise UsageError(f"disk {self.path}: with an overlay its size does not follow the image (expected a size)")
        check_size(self.path, size)
        before, clusters = self.size, -(-size // CLUSTER)
        try:
            if size < before:
                self._copy_up(size, size)  # so that what is cut off does not come back from the base
            self._top.resize(size)
            self._written.resize(clusters)
        except OSError as error:
            if isinstance(error, BackendError):
                raise
            raise BackendError(f"disk {self.path}: cannot be resized: {error.strerror or error}") from error
        # Behind its end the base reads as zeroes by itself. What it has before that was cut off from this disk.
        self._mark(-(-before // CLUSTER) * CLUSTER, min(size, self._base.size))
        self.size = size

    # --- For a snapshot -------------------------------------------------------------------------------------------

    def copy_to(self, fd: int) -> list[list[int]]:
        """Copy what was written to the file behind `fd`, at its place; returns where: [start, end] of each stretch.

        `WrittenBefore` makes it readable again. Raises OSError.
        """
        os.ftruncate(fd, self.size)
        runs: list[list[int]] = []
        with memoryview(bytearray(PIECE)) as piece:
            for start, end in self._stretches(0, self.size):
                for at in range(start, end, PIECE):
                    part = piece[: min(PIECE, end - at)]
                    self.readv([part], at)
                    done = 0
                    while done < len(part):
                        done += os.pwrite(fd, part[done:], at + done)
                if runs and runs[-1][1] == start:
                    runs[-1][1] = end
                else:
                    runs.append([start, end])
        return runs

    def _stretches(self, offset: int, end: int) -> Iterator[tuple[int, int]]:
        """What is not the base image's, here or in what the disk began with."""
        for start, stop, written in self._runs(offset, end):
            if written:
                yield start, stop
            elif isinstance(self._base, WrittenBefore):
                yield from self._base._stretches(start, min(stop, self._base.size))

    def begin_with(self, before: WrittenBefore) -> None:
        """Nothing has been written yet: go on from what was written `before`. Raises OSError."""
        self._top.resize(before.size)
        self._written.resize(-(-before.size // CLUSTER))
        before._base, self._base = self._base, before
        self.size = before.size

    def close(self) -> None:
        """Drop what was written and close the base."""
        self._top.close()
        self._base.close()

    def _runs(self, offset: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """The stretches of `offset` to `end` that come from one file: (start, stop, whether it was written)."""
        written = self._written
        last = -(-end // CLUSTER)
        while offset < end:
            cluster = offset // CLUSTER
            state = written[cluster]
            other = written.find(b"\0" if state else b"\1", cluster, last)
            stop = end if other < 0 else other * CLUSTER
            yield offset, stop, bool(state)
            offset = stop

    def _copy_up(self, offset: int, end: int) -> None:
        """Copy the clusters that a write from `offset` to `end` covers in part, the first and the last at most."""
        partial = set()
        if offset % CLUSTER:
            partial.add(offset // CLUSTER)
        if end % CLUSTER:
            partial.add(end // CLUSTER)
        for cluster in partial:
            if not self._written[cluster]:
                start = cluster * CLUSTER
                with memoryview(bytearray(min(CLUSTER, self.size - start))) as copy:
                    self._base.readv([copy], start)
                    self._top.writev([copy], start)
                self._written[cluster] = 1

    def _mark(self, offset: int, end: int) -> None:
        first, last = offset // CLUSTER, -(-end // CLUSTER)
        if first < last:
            self._written[first:last] = b"\1" * (last - first)


class WrittenBefore(OverlayDisk):
    """What was written to an overlay of `size` bytes at another time: the bytes `runs` of the file behind `fd`.

    It owns `fd`, and is only read. Raises ValueError for runs that cannot be.
    """

    def __init__(self, fd: int, size: int, runs: Sequence[Sequence[int]], path: str) -> None:
        self.path = path
        self.size = size
        self._written = mmap.mmap(-1, max(1, -(-size // CLUSTER)), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        last = 0
        for start, end in runs:
            if type(start) is not int or type(end) is not int or start % CLUSTER or not last <= start < end <= size:
                raise ValueError(f"{start} to {end} of {size} bytes cannot have been written")
            self._mark(start, end)
            last = end
        self._top = RawDisk(fd, f"the overlay of {path}", readonly=True)


def _temporary(size: int) -> tuple[int, mmap.mmap]:
    """A file without a name, of `size` bytes and no blocks, and a byte for each cluster, all zero.

    The bytes are mapped: they cost nothing before they are written.
    """
    folder = os.environ.get("TMPDIR") or TEMPORARY
    fd = -1
    try:
        fd = _unnamed(folder)
        os.ftruncate(fd, size)
        return fd, mmap.mmap(-1, -(-size // CLUSTER), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise BackendError(f"cannot make a disk overlay of {size} bytes in {folder}: {error.strerror}") from error


def _unnamed(folder: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(folder, flags | os.O_TMPFILE, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # open(2): a file system that does not have it
            raise
    name = os.path.join(folder, f"pyvmm-overlay-{os.urandom(8).hex()}")
    fd = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600)
    os.unlink(name)
    return fd
