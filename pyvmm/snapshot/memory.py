"""Guest RAM as a file: its pages that are not zero, the others left out, and checksums of it all.

Imports errors, memory and file. The regions follow each other in the file. What the host has never given the guest, and
what nobody has written to, is not looked at: reading a page makes the host provide it.
"""

from __future__ import annotations

import mmap
import os
from array import array
from errno import EIO
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


def save_memory(writer: Writer, memory: GuestMemory, base: GuestMemory | None = None) -> dict[str, Any]:
    """Write all of `memory`, which nobody changes meanwhile, or just the pages that differ from those of `base`.

    Raises OSError.
    """
    from hashlib import sha256

    name, fd = writer.create("memory")
    try:
        os.ftruncate(fd, memory.size)
        sums: dict[str, str] = {}
        changed: list[list[int]] = []
        at = 0
        for number, region in enumerate(memory.regions):
            other = None if base is None else base.regions[number]
            for start in range(0, region.length, CHUNK):
                end = min(start + CHUNK, region.length)
                runs = _runs(region, start, end) if other is None else _changes(region, other, start, end)
                if runs:
                    _write(fd, at + start, region.view[start:end], runs, start)
                    digest = _checksum(sha256, region.view[start:end], [(a - start, b - start) for a, b in runs])
                    sums[str(at + start)] = digest
                    changed += [[at + first, at + last] for first, last in runs]
            at += region.length
        found = {"regions": [[r.gpa, r.length] for r in memory.regions], "sums": sums}
        return {**writer.seal(name, fd), **found, "runs": None if base is None else changed}
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
    for first, last in _stretches(_touched(region, start, end), start):
        data = bytes(region.view[first:last])
        for at in range(0, last - first, PAGE):
            if data[at : at + PAGE] != _ZERO:
                _extend(runs, first + at)
    return runs


def _changes(region: Region, base: Region, start: int, end: int) -> list[tuple[int, int]]:
    """The stretches of pages from `start` to `end` that are other than those of `base`."""
    same = region.backing == "file" and os.path.samestat(os.fstat(region.file[0]), os.fstat(base.file[0]))
    marks = _touched(region, start, end, own=same)
    theirs = _touched(base, start, end, own=same)
    marks = bytearray(one | other for one, other in zip(marks, theirs, strict=True)) if any(theirs) else marks
    runs: list[tuple[int, int]] = []
    for first, last in _stretches(marks, start):
        now, before = bytes(region.view[first:last]), bytes(base.view[first:last])
        if now != before:
            for at in range(0, last - first, PAGE):
                if now[at : at + PAGE] != before[at : at + PAGE]:
                    _extend(runs, first + at)
    return runs


def _extend(runs: list[tuple[int, int]], at: int) -> None:
    """The page `at` belongs to them too."""
    if runs and runs[-1][1] == at:
        runs[-1] = runs[-1][0], at + PAGE
    else:
        runs.append((at, at + PAGE))


def _touched(region: Region, start: int, end: int, own: bool = False) -> bytearray:
    """A byte for each page from `start` to `end`: 1 if it may be other than zero, or, with `own`, than its file's."""
    marks = bytearray((end - start) // PAGE)
    if region.backing not in ("anonymous", "hugetlb") and not own:
        file = (region.fd, 0) if region.backing == "memfd" else region.file
        for first, last in data_ranges(*file, start, end):
            low, high = (first - start) // PAGE, -(-(last - start) // PAGE)
            marks[low:high] = b"\1" * (high - low)
    if region.backing == "memfd":
        return marks
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        entries = array("Q")
        entries.frombytes(os.pread(pagemap.fileno(), len(marks) * ENTRY, (_address(region) + start) // PAGE * ENTRY))
    for number, entry in enumerate(entries):
        if entry & (PRESENT | SWAPPED) and not entry & OF_FILE:
            marks[number] = 1
    return marks


def _stretches(marks: bytearray, start: int) -> Iterator[tuple[int, int]]:
    """Where they are 1, ascending; the first is that of the page at `start`."""
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


def judge_memory(folder: Folder, known: Any, ranges: Sequence[tuple[int, int]], *, based: bool = False) -> int:
    """A descriptor of the memory file, which is what it should be: all memory, or, if `based`, changes.

    Raises LoadError.
    """
    fd, sealed = folder.open(known)
    try:
        if known.get("regions") != [list(one) for one in ranges] or known["size"] != sum(size for _, size in ranges):
            raise LoadError(folder.path, "its memory is not that of its configuration")
        if (known.get("runs") is not None) != based or not _are_runs(known.get("runs") or [], known["size"]):
            raise LoadError(folder.path, "its state does not say which pages of memory it has")
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


def _are_runs(runs: Any, size: int) -> bool:
    """Whether they are stretches of pages in a file of `size` bytes, ascending, within chunks."""
    at = 0
    for run in runs if type(runs) is list else [None]:
        if type(run) is not list or len(run) != 2 or not all(type(n) is int and n % PAGE == 0 for n in run):
            return False
        first, last = run
        if not at <= first < last <= size:
            return False
        at = last
    return True


def add_runs(memory: GuestMemory, fd: int, runs: Sequence[Sequence[int]]) -> None:
    """Read these stretches of a memory file into `memory`. Raises OSError."""
    base, left = 0, list(runs)
    for region in memory.regions:
        while left and left[0][0] < base + region.length:
            first, last = left.pop(0)
            while first < last:
                end = min(last, base + region.length)
                done = os.preadv(fd, [region.view[first - base : end - base]], first)
                if done <= 0:
                    raise OSError(EIO, "the file has become shorter")
                first += done
        base += region.length


def verify_memory(fd: int, known: Any, path: str) -> None:
    """Read the whole memory file and compare its checksums. Raises LoadError."""
    from hashlib import sha256

    sums, changes = known.get("sums"), known.get("runs")
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
            if changes is None:
                for at in range(0, length, PAGE):
                    if data[at : at + PAGE] != _ZERO:
                        _extend(runs, at)
            else:
                runs = [(a - start, b - start) for a, b in changes if start <= a < start + length]
            digest = _checksum(sha256, memoryview(data), runs) if runs else None
            if len(data) != length or digest != sums.get(str(start)):
                raise LoadError(path, "has a wrong checksum: it was changed", offset=start)
