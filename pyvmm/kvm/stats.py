"""`StatsFd`: KVM's own counters of a VM or a vCPU.

Imports descriptor.py. Follows the KVM API document (Documentation/virt/kvm/api.rst), 4.133.
"""

from __future__ import annotations

import os
from struct import unpack

from pyvmm.errors import PyvmmError
from pyvmm.kvm.descriptor import Descriptor
from pyvmm.kvm.native import ffi, sizeof


class StatsFd(Descriptor):
    """Counters, in a file that the kernel describes itself. `id` names whose they are: "kvm-<pid>/vcpu-0"."""

    __slots__ = ("_data_offset", "_descriptors", "id")

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        try:
            header = ffi.new("struct kvm_stats_header *")
            self._fill(ffi.buffer(header), 0)
            self._data_offset = header.data_offset
            self.id = _text(os.pread(fd, header.name_size, header.id_offset))
            self._descriptors = self._describe(header.num_desc, header.name_size, header.desc_offset)
        except BaseException:
            self.close()
            raise

    def _fill(self, buffer: object, offset: int) -> None:
        view = memoryview(buffer)  # type: ignore[arg-type]  # cffi's buffers are buffers
        if os.preadv(self._fd, [view], offset) != len(view):
            raise PyvmmError("KVM's statistics file is shorter than it says")

    def _describe(self, count: int, name_size: int, offset: int) -> list[tuple[str, int, int]]:
        """(name, number of 64-bit values, where they begin in the data) for each counter."""
        size = sizeof("struct kvm_stats_desc") + name_size
        raw = os.pread(self._fd, size * count, offset)
        found = []
        for start in range(0, len(raw) - size + 1, size):
            row = ffi.new("struct kvm_stats_desc *", {"name": name_size})
            ffi.memmove(row, raw[start : start + size], size)
            found.append((_text(bytes(ffi.buffer(row.name, name_size))), int(row.size), int(row.offset)))
        return found

    def read(self) -> dict[str, int | tuple[int, ...]]:
        """Every counter by name: a number, or for a histogram its buckets. Times are in nanoseconds."""
        values: dict[str, int | tuple[int, ...]] = {}
        end = max((offset + 8 * size for _name, size, offset in self._descriptors), default=0)
        data = os.pread(self._fd, end, self._data_offset)
        for name, size, offset in self._descriptors:
            numbers = unpack(f"<{size}Q", data[offset : offset + 8 * size])
            values[name] = numbers[0] if size == 1 else numbers
        return values


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("ascii", "replace")
