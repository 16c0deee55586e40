"""The file that a run records its trace in: pieces of it for the vCPUs, and the records of everything else.

Imports spool, errors and where files go. Disk space is allocated before it is mapped, since the kernel kills a process
that writes to mapped memory for which the disk has no room. What there is no room for is counted. Any thread.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import time
from functools import partial
from threading import Lock

from pyvmm.errors import BackendError, UsageError
from pyvmm.trace import spool
from pyvmm.writing import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Record = dict[str, Any]

VCPU_CHUNK = 1 << 18
"""Bytes of a vCPU's piece: 4,095 exits."""
EVENTS_CHUNK = 1 << 16
LIMIT = 1 << 30
"""Bytes of the file at most, unless the user says otherwise: 16 million records."""


class Recording:
    """The file `path`, made anew, of `limit` bytes at most. `full(why)` is called once, when there is no room for more.

    Another process that writes its trace to this name goes on in a file without a name.
    Raises UsageError for what is no ordinary file, BackendError where the host cannot make it.
    """

    def __init__(self, path: str, full: Callable[[str], None], limit: int = LIMIT) -> None:
        self.path = path
        self.closed = False
        self._full = full
        self._limit = limit
        self._told = False
        self._length = 0
        self._lock = Lock()  # a leaf
        self._names: dict[str, int] = {}
        self._events: mmap.mmap | None = None
        self._at = 0
        self._lost = 0
        self._fd, self._place = _create(path)

    # --- Room -----------------------------------------------------------------------------------------------------

    def chunks(self, vcpu: int) -> Callable[[], mmap.mmap | None]:
        """What gives the pieces of vCPU number `vcpu`."""
        return partial(self._chunk, vcpu, VCPU_CHUNK)

    def _chunk(self, stream: int, length: int) -> mmap.mmap | None:
        with self._lock:
            return self._allocate(stream, length)

    def _allocate(self, stream: int, length: int) -> mmap.mmap | None:
        if self._told or self.closed:
            return None
        at = self._length
        try:
            if at + length > self._limit:
                raise OSError(errno.EFBIG, f"the trace has the {self._limit >> 20} MiB that it may have")
            _reserve(self._fd, at, length)
            chunk = mmap.mmap(self._fd, length, offset=at)
        except OSError as error:
            self._told = True
            self._full(error.strerror or str(error))
            return None
        self._length += length
        chunk[: spool.CHUNK.size] = spool.CHUNK.pack(spool.MAGIC, length, stream, 0)
        return chunk

    # --- Events ---------------------------------------------------------------------------------------------------

    def add(self, kind: int, flags: int, name: str, number: int, count: int, value: int = 0, handle: int = 0) -> None:
        """A QUEUE or INTERRUPT record, now."""
        with self._lock:
            known = self._names.get(name) or self._name(name)
            self._append(kind, flags, 0, 0, count, time.monotonic_ns(), known, handle, 0, number, value, 0)

    def outside(self, device: str, name: str, data: bytes | None, value: float | None, began: int) -> None:
        """An OUTSIDE record, now: what passed between a device and who it is connected to.

        `began` is when it did, as time.monotonic_ns() has it.
        """
        flags, number = 0, 0
        if data is not None:
            flags |= spool.DATA
        if value is not None:
            flags |= spool.NUMBER
            number = int(value)
        if isinstance(value, float):
            flags |= spool.FLOAT
            number = int.from_bytes(spool.DOUBLE.pack(value), "little")
        behind = data or b""
        with self._lock:
            of, what = (self._names.get(one) or self._name(one) for one in (device, name))
            now = time.monotonic_ns()
            took = now - began
            self._append(spool.OUTSIDE, flags, 0, 0, len(behind), now, of, took, 0, what, number, 0, behind=behind)

    def text(self, record: Record, t: int = 0) -> None:
        """A record that comes seldom, with its "kind"; `t` is its time.monotonic_ns(), by default now."""
        data = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
        with self._lock:
            t = t or time.monotonic_ns()
            self._append(spool.TEXT, 0, 0, 0, len(data), t, 0, 0, 0, 0, 0, 0, behind=data)

    def _name(self, name: str) -> int:
        self._names[name] = number = len(self._names) + 1
        data = name.encode()
        self._append(spool.NAME, 0, 0, 0, len(data), 0, 0, 0, 0, number, 0, 0, behind=data)
        return number

    def _append(self, kind: int, *fields: int, behind: bytes = b"") -> None:
        if self.closed:
            return
        length = spool.SIZE + spool.trailing(len(behind))
        events = self._events
        if events is None or self._at + length > len(events):
            more = max(EVENTS_CHUNK, -(-(spool.CHUNK.size + length) // mmap.PAGESIZE) * mmap.PAGESIZE)
            found = self._allocate(spool.EVENTS, more)
            if found is None:
                self._lost += 1
                if events is not None:
                    spool.LOST.pack_into(events, spool.LOST_AT, self._lost)
                return
            self._events, self._at, self._lost, events = found, spool.CHUNK.size, 0, found
        at = self._at
        if behind:
            events[at + spool.SIZE : at + spool.SIZE + len(behind)] = behind
        spool.RECORD.pack_into(events, at, spool.END, *fields)
        events[at] = kind  # last: see spool.py
        self._at = at + length

    def stop(self) -> None:
        """Nothing is recorded any more."""
        with self._lock:
            self.closed = True
            self._events = None

    @property
    def empty(self) -> bool:
        """Whether there was no room for anything at all."""
        return not self._length

    @property
    def own_path(self) -> str:
        """Where the file can be read, whatever has taken its name meanwhile; until `close()`."""
        return f"/proc/self/fd/{self._fd}"

    def remove(self) -> None:
        """Have the file gone, where its name still leads to it. Raises OSError."""
        if os.path.samestat(os.stat(self._place), os.fstat(self._fd)):
            os.unlink(self._place)

    def close(self) -> None:
        """After `stop()`."""
        os.close(self._fd)


def _create(path: str) -> tuple[int, str]:
    """A new file in the place of what may be there, which another process may still write to; and that place."""
    part = ""
    try:
        target, new = place(path)
        if not new:
            raise UsageError(f"{path}: a trace cannot be written there (expected the name of an ordinary file)")
        part = f"{target}.{os.getpid()}.part"
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        os.rename(part, target)
    except OSError as error:
        if part and os.path.exists(part):
            os.unlink(part)
        raise BackendError(f"{path} cannot be written: {error.strerror}") from None
    return fd, target


def _reserve(fd: int, at: int, length: int) -> None:
    """Have the disk keep `length` zero bytes for the file from `at` on. Raises OSError."""
    try:
        os.posix_fallocate(fd, at, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        if os.pwrite(fd, bytes(length), at) != length:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
