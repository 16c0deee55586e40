"""A disk in memory for tests of the block device: it remembers what it was told to do, and fails when told to."""

from __future__ import annotations

import mmap
import os

CAPACITY = 256
"""Sectors."""


class MemoryDisk:
    """A Disk of `sectors`. `calls` has the name of every method called with its numbers; `fails` an errno by name.

    `straighten()` lets C read and write by itself, as far as nothing is to fail; of that `calls` has nothing.
    """

    path = "memory"
    _fd = -1

    def __init__(self, sectors=CAPACITY, readonly=False, durable=True, block_size=512, may_unmap=True):
        self.data = bytearray(b"".join((b"%-15d\n" % number) * 32 for number in range(sectors)))
        self.size = 512 * sectors
        self.readonly, self.durable, self.may_unmap = readonly, durable, may_unmap
        self.block_size, self.physical_block_size = block_size, 4096
        self.calls = []
        self.fails = {}
        self.closed = False

    def straighten(self):
        self._fd = os.memfd_create("disk")
        os.pwrite(self._fd, self.data, 0)
        self.data = mmap.mmap(self._fd, self.size)

    @property
    def straight(self):
        return None if self._fd < 0 or self.fails else (self._fd, self.size, 1)

    def _did(self, name, *numbers):
        self.calls.append((name, *numbers))
        if name in self.fails:
            raise OSError(self.fails[name], os.strerror(self.fails[name]))

    def readv(self, views, offset):
        length = sum(map(len, views))
        assert length % 512 == offset % 512 == 0 and offset + length <= self.size
        self._did("read", offset, length)
        for view in views:
            view[:] = self.data[offset : offset + len(view)]
            offset += len(view)

    def writev(self, views, offset):
        length = sum(map(len, views))
        assert not self.readonly and length % 512 == offset % 512 == 0 and offset + length <= self.size
        self._did("write", offset, length)
        for view in views:
            self.data[offset : offset + len(view)] = view
            offset += len(view)

    def flush(self):
        self._did("flush")

    def discard(self, offset, length):
        assert not self.readonly and length > 0 and offset + length <= self.size
        self._did("discard", offset, length)

    def write_zeroes(self, offset, length, unmap):
        assert not self.readonly and length > 0 and offset + length <= self.size
        self._did("zero", offset, length, unmap)
        self.data[offset : offset + length] = bytes(length)

    def resize(self, size):
        self._did("resize", size)
        if self._fd < 0:
            self.data = self.data[:size].ljust(size, b"\0")
        else:
            os.ftruncate(self._fd, size)
            self.data = mmap.mmap(self._fd, size)
        self.size = size

    def close(self):
        self.closed = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def sector(self, number, count=1):
        return bytes(self.data[512 * number : 512 * (number + count)])
