"""A raw disk image: the bytes of a file or of a block device, read and written where the guest's memory lies.

Imports errors and chain's `pieces`. Whoever opens it (`disk.open_disk`) has judged the file and holds the lock. Nothing
here looks at what the bytes mean.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from struct import Struct

from pyvmm.errors import BackendError, UsageError
from pyvmm.virtio.chain import pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SECTOR = 512
PAGE = 4096
IOV_MAX = 1024
"""Buffers of one preadv or pwritev (UIO_MAXIOV, linux/uio.h)."""
LARGEST = (1 << 63) - SECTOR
"""Bytes of a file at most (off_t), in whole sectors."""
PIECE = 1 << 20
"""Bytes of zeroes written at a time where the host cannot zero a range by itself."""

# linux/fs.h: _IO and _IOR of 0x12
BLKROGET = 0x125E
BLKSSZGET = 0x1268
BLKGETSIZE64 = 0x80081272
BLKDISCARD = 0x1277
BLKPBSZGET = 0x127B
BLKZEROOUT = 0x127F
# include/linux/falloc.h of the kernel: _IOW('X', nr, struct space_resv), served by the VFS for every regular file. They
# are fallocate(2) with PUNCH_HOLE and with ZERO_RANGE, both with KEEP_SIZE, which Python's os module does not offer.
FS_IOC_UNRESVSP64 = 0x4030582B
FS_IOC_ZERO_RANGE = 0x40305839
SPACE_RESV = Struct("@hhqqiI16x")
"""struct space_resv: l_type, l_whence, l_start, l_len, l_sysid, l_pid, l_pad."""
_RANGE = Struct("=QQ")
_UINT = Struct("=I")

_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL)
"""What a file system or a disk says that cannot do what was asked, or not with this range."""


class RawDisk:
    """The disk behind the descriptor `fd`, which it owns from now on.

    path        what messages call it
    size        bytes, always whole sectors: what a file's last sector lacks reads as zeroes, and a write there makes
                the file longer, to the whole sector
    readonly    whether writes are refused; the descriptor then is read-only as well
    block_size  bytes of a logical block: what the device says, 512 for a file
    physical_block_size   bytes that the host writes without reading first
    durable     whether `flush()` means anything
    may_unmap   whether `write_zeroes(unmap=True)` can give space back

    Reads and writes raise OSError, after which what the range holds is undefined. One thread at a time.
    """

    def __init__(self, fd: int, path: str, *, readonly: bool = False, durable: bool = True) -> None:
        """Raises OSError when the host does not tell how large the disk is."""
        self._fd = fd
        self.path = path
        self.readonly = readonly
        self.durable = durable
        status = os.fstat(fd)
        self._block_device = stat.S_ISBLK(status.st_mode)
        self.may_unmap = not self._block_device
        self._failure = 0  # the errno, and not the exception, which would keep the guest's memory from being unmapped
        self._end = self._length()
        if self._block_device:
            self.block_size = int(_UINT.unpack(fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])
            self.physical_block_size = int(_UINT.unpack(fcntl.ioctl(fd, BLKPBSZGET, bytes(4)))[0])
        else:
            self.block_size = SECTOR
            self.physical_block_size = PAGE
        self.size = -(-self._end // SECTOR) * SECTOR

    @property
    def straight(self) -> tuple[int, int, int] | None:
        """(descriptor, length, align): where C may read and write by itself. Not where the file's end is in a sector:
        what is read behind it, and that a write moves it, is for `readv` and `writev`.
        """
        return self._fd, self._end // SECTOR * SECTOR, 1

    def _length(self) -> int:
        """Bytes that the host says there are."""
        if self._block_device:
            return int.from_bytes(fcntl.ioctl(self._fd, BLKGETSIZE64, bytes(8)), "little")
        return os.fstat(self._fd).st_size

    def resize(self, size: int | None = None) -> None:
        """Make the file `size` bytes long, what is new reads as zeroes; None: see how long it has become.

        Raises UsageError where it cannot be made so long from here, BackendError where the host cannot do it.
        """
        if size is not None:
            check_size(self.path, size)
            if self._block_device:
                raise UsageError(f"disk {self.path}: a block device has the size that the host gives it")
            if self.readonly:
                raise UsageError(f"disk {self.path}: is read-only, so it keeps its size")
        try:
            if size is not None:
                os.ftruncate(self._fd, size)
            end = self._length()
        except OSError as error:
            raise BackendError(f"disk {self.path}: cannot be resized: {error.strerror or error}") from error
        if not end:
            raise BackendError(f"disk {self.path}: has become empty")
        self._end = end
        self.size = -(-end // SECTOR) * SECTOR

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views`, one after the other, with the bytes from `offset` on."""
        left = sum(map(len, views))
        while left:
            if offset >= self._end:  # in the sector that the file does not have whole
                _blank(views)
                return
            done = self._preadv(views[:IOV_MAX], offset)
            if not done and offset < self._end:
                raise OSError(errno.EIO, "the file has become shorter", self.path)
            left -= done
            offset += done
            if left:
                views = pieces(views, done, left)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        """Write `views`, one after the other, from `offset` on."""
        left = sum(map(len, views))
        while left:
            done = self._pwritev(views[:IOV_MAX], offset)
            if not done:
                raise OSError(errno.EIO, "nothing was written", self.path)
            left -= done
            offset += done
            if left:
                views = pieces(views, done, left)
        self._end = max(self._end, offset)

    def _preadv(self, views: Sequence[memoryview], offset: int) -> int:
        return os.preadv(self._fd, views, offset)

    def _pwritev(self, views: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(self._fd, views, offset)

    def flush(self) -> None:
        """Return when everything written is on stable storage (fdatasync(2)). Raises OSError, and then for ever.

        After a failed fdatasync Linux may have dropped what it could not write and marked it clean, so that the next
        one would succeed without it: once failed, no flush of this disk can be believed.
        """
        if not self.durable or self.readonly:
            return
        if not self._failure:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                self._failure = error.errno or errno.EIO
        if self._failure:
            raise OSError(self._failure, os.strerror(self._failure), self.path)

    def discard(self, offset: int, length: int) -> None:
        """The guest does not need `length` bytes from `offset` any more; what they read as then is undefined."""
        try:
            if self._block_device:
                block = self.block_size
                start, end = -(-offset // block) * block, (offset + length) // block * block
                if start < end:
                    fcntl.ioctl(self._fd, BLKDISCARD, _RANGE.pack(start, end - start))
            else:
                self._reserve(FS_IOC_UNRESVSP64, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        """Have `length` bytes from `offset` read as zeroes; with `unmap` their space may be given back."""
        try:
            if self._block_device:
                fcntl.ioctl(self._fd, BLKZEROOUT, _RANGE.pack(offset, length))
            else:
                self._reserve(FS_IOC_UNRESVSP64 if unmap else FS_IOC_ZERO_RANGE, offset, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            zeroes = memoryview(bytes(min(length, PIECE)))
            for at in range(offset, offset + length, PIECE):
                self.writev([zeroes[: min(PIECE, offset + length - at)]], at)

    def _reserve(self, request: int, offset: int, length: int) -> None:
        fcntl.ioctl(self._fd, request, SPACE_RESV.pack(0, os.SEEK_SET, offset, length, 0, 0))

    def close(self) -> None:
        """Close the file, and with it give up its lock. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def check_size(path: str, size: int) -> None:
    """Raises UsageError, which names `path`, unless a disk can be `size` bytes long."""
    if not 0 < size <= LARGEST or size % SECTOR:
        raise UsageError(f"disk {path}: a size of {size} bytes (expected a multiple of {SECTOR}, {LARGEST} at most)")


def _blank(views: Sequence[memoryview]) -> None:
    for view in views:
        view[:] = bytes(len(view))
