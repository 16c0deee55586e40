"""Guest RAM as a file: its pages that are not zero, the others left out, and checksums of it all.

Imports errors, memory and file. The regions follow each other in the file. What the host has never given the guest, and
what nobody has written to, is not looked at: reading a page makes the host provide it.
"""

from __future__ import annotations

import mmap
import os
from array import array
from itertools import pairwise

from pyvmm.errors import LoadError
from pyvmm.memory import GuestMemory, Region, data_ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from pyvmm.snapshot.file import Folder, Writer

PAGE = mmap.PAGESIZE
CHUNK = 4 << 20
"""Bytes that have a checksum each, in which holes count as zeroes. Chunks that are a hole have none."""
ENTRY = 8
PRESENT, SWAPPED, OF_FILE = 1 << 63, 1 << 62, 1 << 61
"""Bits of an entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst); all may read these."""
_ZERO = bytes(PAGE)


def save_memory(writer: Writer, memory: GuestMemory) -> dict[str, Any]:
    """Write all of `memory`, which nobody changes meanwhile. Raises OSError."""
    from hashlib import sha256

    name, fd = writer.create("memory")
    try:
        os.ftruncate(fd, memory.size)
        sums: dict[str, str] = {}
        base = 0
        for region in memory.regions:
            for start in range(0, region.length, CHUNK):
                end = min(start + CHUNK, region.length)
                runs = _runs(region, start, end)
                if runs:
                    _write(fd, base + start, region.view[start:end], runs, start)
                    digest = _checksum(sha256, region.view[start:end], [(a - start, b - start) for a, b in runs])
                    sums[str(base + start)] = digest
            base += region.length
        return {**writer.seal(name, fd), "regions": [[r.gpa, r.length] for r in memory.regions], "sums": sums}
    finally:
        os.close(fd)


def _write(fd: int, at: int, view: memoryview, runs: Sequence[tuple[int, int]], start: int) -> None:
    for first, last in runs:
        done, wanted = first - start, last - start
        while done < wanted:
            done += os.pwrite(fd, view[done:wanted], at + done)


def _checksum(new: Any, view: memoryview, runs: Sequence[tuple[int, int]]) -> str:
    """Of where the pages are and what is in them."""
    digest = new()
    for first, last in runs:
        digest.update(b"%d-%d:" % (first, last))
        digest.update(view[first:last])
    return str(digest.hexdigest())


def _runs(region: Region, start: int, end: int) -> list[tuple[int, int]]:
    """The stretches of pages from `start` to `end` that are not zero."""
    runs: list[tuple[int, int]] = []
    for first, last in _touched(region, start, end):
        data = bytes(region.view[first:last])
        for at in range(0, last - first, PAGE):
            if data[at : at + PAGE] != _ZERO:
                gone = first + at
                if runs and runs[-1][1] == gone:
                    runs[-1] = runs[-1][0], gone + PAGE
                else:
                    runs.append((gone, gone + PAGE))
    return runs


def _touched(region: Region, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The stretches that may be other than zero, ascending."""
    if region.backing == "memfd":
        for first, last in data_ranges(region.fd, 0, start, end):
            yield first // PAGE * PAGE, min(-(-last // PAGE) * PAGE, end)
        return
    marks = bytearray((end - start) // PAGE)
    if region.backing == "file":
        for first, last in data_ranges(*region.file, start, end):
            low, high = (first - start) // PAGE, -(-(last - start) // PAGE)
            marks[low:high] = b"\1" * (high - low)
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = array("Q")
        entries.frombytes(os.pread(pagemap.fileno(), len(marks) * ENTRY, (_address(region) + start) // PAGE * ENTRY))
    for number, entry in enumerate(entries):
        if entry & (PRESENT | SWAPPED):
            marks[number] = 1
    at = marks.find(1)
    while at >= 0:
        stop = marks.find(0, at)
        stop = len(marks) if stop < 0 else stop
        yield start + at * PAGE, start + stop * PAGE
        at = marks.find(1, stop)


def _address(region: Region) -> int:
    from pyvmm.kvm.native import ffi

    return int(ffi.cast("uintptr_t", ffi.from_buffer("uint8_t[]", region.view)))


# --- Restoring -----------------------------------------------------------------------------------------------------


def judge_memory(folder: Folder, known: Any, ranges: Sequence[tuple[int, int]]) -> int:
    """A descriptor of the memory file, which is what it should be. Raises LoadError."""
    fd, sealed = folder.open(known)
    try:
        if known.get("regions") != [list(one) for one in ranges] or known["size"] != sum(size for _, size in ranges):
            raise LoadError(folder.path, "its memory is not that of its configuration")
        if not sealed:
            verify_memory(fd, known, os.path.join(folder.path, known["name"]))
        return fd
    except BaseException:
        os.close(fd)
        raise


def map_memory(fd: int, ranges: Sequence[tuple[int, int]]) -> GuestMemory:
    """RAM that begins as the memory file has it and is then the VM's own. Raises OSError."""
    regions: list[Region] = []
    offset = 0
    try:
        for slot, (gpa, length) in enumerate(ranges):
            regions.append(Region(gpa, length, slot, "file", (fd, offset)))
            offset += length
    except BaseException:
        for region in regions:
            region.close()
        raise
    return GuestMemory(regions)


def verify_memory(fd: int, known: Any, path: str) -> None:
    """Read the whole memory file and compare its checksums. Raises LoadError."""
    from hashlib import sha256

    sums = known.get("sums")
    bounds = [0]
    for _, length in known["regions"]:
        bounds.append(bounds[-1] + length)
    if type(sums) is not dict:
        raise LoadError(path, "its state has no checksums of it")
    for base, end in pairwise(bounds):
        for start in range(base, end, CHUNK):
            length = min(CHUNK, end - start)
            data = os.pread(fd, length, start)
            runs: list[tuple[int, int]] = []
            for at in range(0, length, PAGE):
                if data[at : at + PAGE] != _ZERO:
                    if runs and runs[-1][1] == at:
                        runs[-1] = runs[-1][0], at + PAGE
                    else:
                        runs.append((at, at + PAGE))
            digest = _checksum(sha256, memoryview(data), runs) if runs else None
            if len(data) != length or digest != sums.get(str(start)):
                raise LoadError(path, "has a wrong checksum: it was changed", offset=start)
