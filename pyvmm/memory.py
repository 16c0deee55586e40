"""Guest RAM: every access the VMM makes to it, bounds-checked.

Imports errors and forks. RAM is one or more regions of guest-physical address space; an access lies wholly inside one
region or raises GuestMemoryError. Slices of a memoryview clamp and wrap silently, so bounds are always judged here,
in numbers, before one is taken.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect_right
from errno import ENXIO
from struct import Struct

from pyvmm.errors import GuestMemoryError, PyvmmError, UsageError
from pyvmm.forks import MAP_NORESERVE, keep_from_children

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

_U16, _U32, _U64 = Struct("<H"), Struct("<I"), Struct("<Q")

HUGE_PAGE = 2 << 20
MAP_HUGETLB = 0x40000
"""asm-generic/mman-common.h; Python's mmap module does not have it. Pages are of the host's default size."""

PORTION = 4 << 20
"""Bytes that are given back in one system call, during which no other Python thread runs."""

BACKINGS = ("anonymous", "memfd", "hugetlb")
_DISCARD = {**dict.fromkeys(("anonymous", "hugetlb", "file"), mmap.MADV_DONTNEED), "memfd": mmap.MADV_REMOVE}
"""What frees pages so that they read as zeroes (madvise(2)): the process's own, or those of the file for whoever maps
it. A private map of a file shows the file's pages again, which `Region` then has to overwrite."""


class Region:
    """One stretch of guest RAM: `length` bytes from guest-physical `gpa`, in KVM memory slot `slot`.

    `view` is the host's writable memory behind it. `fd` is the memfd that other processes map, or -1. With the backing
    "file" it begins as what `file`, a descriptor and an offset, has, of which it keeps a private copy, page by page as
    they are written to; that file may not change.
    """

    __slots__ = ("_discard", "_map", "backing", "fd", "file", "gpa", "length", "slot", "view")

    def __init__(self, gpa: int, length: int, slot: int, backing: str, file: tuple[int, int] = (-1, 0)) -> None:
        self._discard = _DISCARD[backing]
        self.backing = backing
        self.file = (-1, 0)
        self.gpa = gpa
        self.length = length
        self.slot = slot
        self.fd = -1
        try:
            if backing == "file":
                self._map = self._private(*file)
            else:
                self._map = {"memfd": self._memfd, "hugetlb": self._huge}.get(backing, self._anonymous)()
            keep_from_children(self._map)
        except BaseException:
            self._close_fd()
            raise
        self.view = memoryview(self._map)

    def _anonymous(self) -> mmap.mmap:
        pages = mmap.mmap(-1, self.length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
        # Not for the first 2 MiB: all that a small guest touches, and a huge page is filled with zeroes in one go.
        start = 0 if self.gpa else HUGE_PAGE
        if self.length > start:
            try:
                pages.madvise(mmap.MADV_HUGEPAGE, start)
            except OSError:
                pass  # advice: a kernel without transparent huge pages refuses it
        return pages

    def _huge(self) -> mmap.mmap:
        """Reserved pages: the host says at once if it has too few, and not when the guest touches the last."""
        if self.length % HUGE_PAGE:
            raise UsageError(f"RAM in huge pages: {self.length} bytes at {self.gpa:#x} (expected a multiple of 2 MiB)")
        return mmap.mmap(-1, self.length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB)

    def _memfd(self) -> mmap.mmap:
        self.fd = os.memfd_create(f"pyvmm-ram{self.slot}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.length)
        return mmap.mmap(self.fd, self.length, mmap.MAP_SHARED | MAP_NORESERVE)

    def _private(self, fd: int, offset: int) -> mmap.mmap:
        self.file = os.dup(fd), offset
        return mmap.mmap(self.file[0], self.length, mmap.MAP_PRIVATE | MAP_NORESERVE, offset=offset)

    def discard(self, start: int, end: int) -> None:
        """Give the bytes from `start` to `end` back to the host, both multiples of `page`. Raises OSError."""
        for at in range(start, end, PORTION):
            self._map.madvise(self._discard, at, min(PORTION, end - at))
        if self.backing == "file":
            for at, stop in data_ranges(*self.file, start, end):
                for portion in range(at, stop, PORTION):
                    length = min(PORTION, stop - portion)
                    self.view[portion : portion + length] = bytes(length)

    @property
    def page(self) -> int:
        """Bytes of the host's pages behind it: what can be given back."""
        return HUGE_PAGE if self.backing == "hugetlb" else mmap.PAGESIZE

    def close(self) -> None:
        """Unmap. A second call does nothing; BufferError while somebody still borrows the memory."""
        self.view.release()
        self._map.close()
        self._close_fd()

    def _close_fd(self) -> None:
        fds = self.fd, self.file[0]
        self.fd, self.file = -1, (-1, 0)
        for fd in fds:
            if fd >= 0:
                os.close(fd)


def data_ranges(fd: int, offset: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where, from `start` to `end` behind `offset`, the file is no hole: (start, end), behind `offset` (lseek(2))."""
    at = start
    while at < end:
        try:
            at = os.lseek(fd, offset + at, os.SEEK_DATA) - offset
        except OSError as error:
            if error.errno != ENXIO:
                raise
            return  # a hole up to the file's end
        if at >= end:
            return
        stop = min(os.lseek(fd, offset + at, os.SEEK_HOLE) - offset, end)
        yield at, stop
        at = stop


class GuestMemory:
    """The RAM of one VM. All addresses are guest-physical, all lengths in bytes, all integers little-endian."""

    __slots__ = ("_bases", "regions", "size")

    def __init__(self, regions: Iterable[Region]) -> None:
        self.regions = tuple(sorted(regions, key=lambda region: region.gpa))
        self.size = sum(region.length for region in self.regions)
        self._bases = [region.gpa for region in self.regions]

    @classmethod
    def allocate(cls, ranges: Iterable[tuple[int, int]], backing: str = "anonymous") -> GuestMemory:
        """Map RAM for `ranges` of (gpa, length), untouched and unreserved: pages cost when the guest uses them.

        `backing` is "anonymous" (with huge-page advice), "memfd" (shared, for back-ends in other processes) or
        "hugetlb" (pages of 2 MiB that the host keeps for whoever asks: /proc/sys/vm/nr_hugepages).
        Raises UsageError on another one, PyvmmError when the host will not map so much.
        """
        if backing not in BACKINGS:
            raise UsageError(f"unknown RAM backing {backing!r} (expected {' or '.join(BACKINGS)})")
        regions: list[Region] = []
        try:
            for slot, (gpa, length) in enumerate(ranges):
                regions.append(Region(gpa, length, slot, backing))
        except (OSError, ValueError, OverflowError) as error:
            for region in regions:
                region.close()
            if isinstance(error, UsageError):
                raise
            problem = getattr(error, "strerror", None) or error
            if backing == "hugetlb":
                problem = f"{problem} (the host keeps huge pages in /proc/sys/vm/nr_hugepages)"
            raise PyvmmError(f"cannot map {length >> 20} MiB of guest RAM ({backing}): {problem}") from error
        return cls(regions)

    def contains(self, gpa: int, length: int) -> bool:
        """Whether `length` bytes at `gpa` lie wholly in one region."""
        at = bisect_right(self._bases, gpa) - 1
        if at < 0 or length < 0:
            return False
        region = self.regions[at]
        return gpa + length <= region.gpa + region.length

    def view(self, gpa: int, length: int) -> memoryview:
        """The memory itself, writable, `length` bytes from `gpa`. Release it before the VM is closed."""
        at = bisect_right(self._bases, gpa) - 1
        if at >= 0 and length >= 0:
            region = self.regions[at]
            start = gpa - region.gpa
            if start + length <= region.length:
                return region.view[start : start + length]
        raise GuestMemoryError(gpa, length)

    def read(self, gpa: int, length: int) -> bytes:
        """A copy of `length` bytes from `gpa`."""
        return bytes(self.view(gpa, length))

    def write(self, gpa: int, data: Buffer) -> None:
        """Copy `data` to `gpa`."""
        with memoryview(data) as source:
            length = source.nbytes
            with source.cast("B") as flat, self.view(gpa, length) as target:
                target[:] = flat

    def fill(self, gpa: int, length: int, byte: int = 0) -> None:
        """Set `length` bytes from `gpa` to `byte` (0 to 255)."""
        with self.view(gpa, length) as target:
            step = min(length, 1 << 20)
            block = bytes([byte]) * step
            for start in range(0, length, step or 1):
                end = min(start + step, length)
                target[start:end] = block[: end - start]

    def read_u8(self, gpa: int) -> int:
        """One byte at `gpa`."""
        return self.view(gpa, 1)[0]

    def read_u16(self, gpa: int) -> int:
        """Two bytes at `gpa`."""
        return int(_U16.unpack(self.view(gpa, 2))[0])

    def read_u32(self, gpa: int) -> int:
        """Four bytes at `gpa`."""
        return int(_U32.unpack(self.view(gpa, 4))[0])

    def read_u64(self, gpa: int) -> int:
        """Eight bytes at `gpa`."""
        return int(_U64.unpack(self.view(gpa, 8))[0])

    # pack_into() writes zeroes before the value, which a running vCPU can see; assigning packed bytes does not.

    def write_u8(self, gpa: int, value: int) -> None:
        """Store one byte (0 to 255) at `gpa`."""
        self.view(gpa, 1)[0] = value

    def write_u16(self, gpa: int, value: int) -> None:
        """Store two bytes at `gpa`."""
        self.view(gpa, 2)[:] = _U16.pack(value)

    def write_u32(self, gpa: int, value: int) -> None:
        """Store four bytes at `gpa`."""
        self.view(gpa, 4)[:] = _U32.pack(value)

    def write_u64(self, gpa: int, value: int) -> None:
        """Store eight bytes at `gpa`."""
        self.view(gpa, 8)[:] = _U64.pack(value)

    def discard(self, gpa: int, length: int) -> int:
        """Give the whole pages among `length` bytes at `gpa` back to the host; returns how many bytes these were.

        They read as zeroes from now on, and cost nothing before somebody touches them. What is not RAM is left out.
        The host gets a huge page back when all of it has been given. Raises OSError where the host refuses.
        """
        done = 0
        for region in self.regions:
            page = region.page
            start = -(-max(gpa - region.gpa, 0) // page) * page
            end = min(gpa + length - region.gpa, region.length) // page * page
            if start < end:
                region.discard(start, end)
                done += end - start
        return done

    def close(self) -> None:
        """Give the memory back to the host. Raises BufferError while a view of it is still held."""
        for region in self.regions:
            region.close()
