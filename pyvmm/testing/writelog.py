"""What a power cut would leave: a disk that logs what is written and flushed, and the images that follow from the log.

What was written before a flush that was answered is there. Of what was written since, a disk with a volatile cache may
have stored anything: all of it, nothing, or some sectors and not others, whatever the order.

Imports errors; virtio and backends where one is asked for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple, Self

from pyvmm.errors import UsageError

if TYPE_CHECKING:
    from pyvmm.virtio.block import Disk, VirtioBlock

SECTOR = 512


class Write(NamedTuple):
    offset: int
    data: bytes


class CrashImage(NamedTuple):
    """`data` is the disk after a power cut behind entry number `after`; `name` says which and what is missing."""

    name: str
    after: int
    data: bytes


class WriteLog:
    """`disk`, with everything that changes it logged in `log`: a Write, or None for a flush that has succeeded.

    It is a Disk itself: give it to VirtioBlock in the place of `disk`, whose whole content is read at once.

        log = WriteLog.open("disk.img")
        with VM(..., virtio=[log.device()]) as vm:  # the guest's /dev/vda
            ...
        for state in log.images():
            ...
    """

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.log: list[Write | None] = []
        before = memoryview(bytearray(disk.size))
        disk.readv([before], 0)
        self.before = bytes(before)
        self.straight = None  # what goes past `writev` is not in the log
        self.path, self.size, self.readonly = disk.path, disk.size, disk.readonly
        self.block_size, self.physical_block_size = disk.block_size, disk.physical_block_size
        self.durable, self.may_unmap = disk.durable, disk.may_unmap
        self.readv, self.close = disk.readv, disk.close

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """A log of the disk image `path`. Raises BackendError."""
        from pyvmm.backends.disk import open_disk

        return cls(open_disk(os.fspath(path)))

    def device(self) -> VirtioBlock:
        """A virtio disk for `VM(..., virtio=[...])`, which closes the image with itself."""
        from pyvmm.virtio.block import VirtioBlock

        return VirtioBlock(self)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        data = b"".join(views)
        self.disk.writev([memoryview(data)], offset)
        self.log.append(Write(offset, data))

    def flush(self) -> None:
        self.disk.flush()
        self.log.append(None)

    def discard(self, offset: int, length: int) -> None:
        self.write_zeroes(offset, length, True)

    def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
        self.disk.write_zeroes(offset, length, unmap)
        self.log.append(Write(offset, bytes(length)))

    def resize(self, size: int | None) -> None:
        """Never: the images that follow from the log are as long as the disk was. Raises UsageError."""
        raise UsageError(f"{self.path}: a disk whose writes are logged keeps its size")

    def images(self, samples: int = 100, seed: int = 0, prefixes: int = 1000) -> Iterator[CrashImage]:
        """Disks after a power cut, none twice: every prefix of the log (at most `prefixes` or so, evenly spread), then
        `samples` random points with a random subset of the sectors not flushed by then.

        The same bytes come again where more was flushed by then: more may be asked of them.
        """
        chance = random.Random(seed)
        seen: set[tuple[int, bytes]] = set()
        every = max(1, len(self.log) // prefixes)
        for after in range(0, len(self.log) + 1, every):
            yield from self._once(seen, f"the first {after} of {len(self.log)} entries", after, self.at(after))
        for _ in range(samples):
            after = chance.randrange(len(self.log) + 1)
            stable = self.stable(after)
            share = chance.random()
            image = bytearray(self.at(stable))
            lost = 0
            for write in self.log[stable:after]:
                assert write is not None
                for start in range(0, len(write.data), SECTOR):
                    if chance.random() < share:
                        piece = write.data[start : start + SECTOR]
                        image[write.offset + start : write.offset + start + len(piece)] = piece
                    else:
                        lost += 1
            name = f"the first {after} of {len(self.log)} entries, without {lost} of the sectors not flushed"
            yield from self._once(seen, name, after, bytes(image))

    def stable(self, after: int) -> int:
        """How many of the first `after` entries a power cut cannot undo: those up to the last flush."""
        return max((index + 1 for index in range(after) if self.log[index] is None), default=0)

    def at(self, after: int) -> bytes:
        """The disk with the first `after` entries applied, as if each were stored at once."""
        image = bytearray(self.before)
        for write in self.log[:after]:
            if write is not None:
                image[write.offset : write.offset + len(write.data)] = write.data
        return bytes(image)

    def _once(self, seen: set[tuple[int, bytes]], name: str, after: int, data: bytes) -> Iterator[CrashImage]:
        key = self.stable(after), sha256(data).digest()
        if key not in seen:
            seen.add(key)
            yield CrashImage(name, after, data)
