"""Windows that the run loop in C serves: rings of posted writes, slots, the table of places, the thread that flushes.

Imports the compiled module (through native.py), pyvmm.hot and threads. All memory of run_abi.h is allocated here; what
the helper may be looking at stays allocated until the VM is closed.
"""

from __future__ import annotations

import os
import threading

from pyvmm import threads
from pyvmm.errors import PyvmmError
from pyvmm.hot import POST, Group, Hot, Places, Window
from pyvmm.kvm.descriptor import check
from pyvmm.kvm.native import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.hot import Posting


class HotWindow(Window):
    """A window in memory that C sees."""

    __slots__ = ("_lock", "memory")

    def __init__(self, offset: int, length: int, width: int, lock: PostingLock | None = None, device: int = 0) -> None:
        self.offset = offset
        self.length = length
        self.width = width
        self.memory = ffi.new("struct pyvmm_window *", {"offset": offset, "width": width, "device": device})
        self._lock = lock
        if lock is not None:
            self.memory.ring = lock.ring

    @property
    def slot(self) -> int:
        value: int = self.memory.slot
        return value

    def change(self, clear: int = 0, set: int = 0) -> None:
        lib.pyvmm_slot(self.memory, clear, set)

    def on_read(self, offset: int, action: int) -> None:
        offset -= self.offset
        if self.memory.reads[offset] != action:
            lib.pyvmm_act(self.memory, 0, offset, action)

    def on_write(self, offset: int, action: int) -> None:
        offset -= self.offset
        if self.memory.writes[offset] == action:
            return
        lib.pyvmm_act(self.memory, 1, offset, action)
        if action != POST and self._lock is not None:
            self._lock.do_posted()


class PostingLock:
    """The lock of devices whose writes may be posted: whoever takes it first does what was posted."""

    __slots__ = ("_lock", "_taken", "devices", "ring")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = ffi.new("struct pyvmm_writes *")
        self.ring = ffi.new("struct pyvmm_ring *")
        self.devices: list[Posting] = []

    def acquire(self) -> bool:
        self._lock.acquire()
        ring = self.ring
        if ring.posted != ring.taken:  # looked at here, because every call into C gives up the interpreter's lock
            try:
                self.do_posted()
            except BaseException:
                self._lock.release()
                raise
        return True

    def release(self) -> None:
        self._lock.release()

    __enter__ = acquire

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def do_posted(self) -> None:
        """Do what was posted. The calling thread holds the lock."""
        ring, taken = self.ring, self._taken
        while ring.posted != ring.taken:
            count = lib.pyvmm_take(ring, taken)
            size = taken.size
            self.devices[taken.device].posted(taken.offset, size, bytes(ffi.buffer(taken.data, count * size)))


class HotGroup(Group):
    """A group with a ring."""

    __slots__ = ()
    lock: PostingLock  # type: ignore[assignment]

    def __init__(self) -> None:
        self.lock = PostingLock()

    def window(self, device: Posting, offset: int, length: int, width: int) -> HotWindow:
        self.lock.devices.append(device)
        return HotWindow(offset, length, width, self.lock, len(self.lock.devices) - 1)


class HotPlaces(Places):
    """The places of one bus: an ordered table that is replaced as a whole."""

    def __init__(self, publish: Callable[[Any], None]) -> None:
        self._publish = publish
        self._windows: dict[int, HotWindow] = {}
        self._known: set[HotWindow] = set()
        self._tables: list[object] = []  # which the helper may be looking at

    def add(self, base: int, window: Window) -> None:
        if isinstance(window, HotWindow) and self._windows.get(base) is not window:
            self._windows[base] = window
            self._known.add(window)
            self._replace()

    def remove(self, base: int) -> None:
        if self._windows.pop(base, None) is not None:
            self._replace()

    def _replace(self) -> None:
        windows = sorted(self._windows.items(), key=lambda place: place[0])
        table = ffi.new("struct pyvmm_places *", {"place": len(windows)})
        table.count = len(windows)
        for number, (base, window) in enumerate(windows):
            table.place[number] = (base, window.length, window.memory)
        self._tables.append(table)
        self._publish(table)

    def ignored(self) -> int:
        return sum(window.memory.ignored for window in self._known)


class NativeHot(Hot):
    """What the vCPUs of one VM share. `failed(error)` is told when what was posted could not be done."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self.memory = ffi.new("struct pyvmm_hot *", {"timer": -1})
        self.ports = HotPlaces(lambda table: setattr(self.memory, "ports", table))
        self.mmio = HotPlaces(lambda table: setattr(self.memory, "mmio", table))
        self._groups: list[HotGroup] = []
        self._failed = failed
        self._closing = False
        self._flusher: threading.Thread | None = None
        self._starting = threading.Lock()

    def group(self) -> HotGroup:
        group = HotGroup()
        self.memory.rings[len(self._groups)] = group.lock.ring
        self._groups.append(group)
        return group

    def window(self, offset: int, length: int, width: int) -> HotWindow:
        return HotWindow(offset, length, width)

    def drain(self) -> None:
        for group in self._groups:
            ring = group.lock.ring
            if ring.posted != ring.taken:
                with group.lock:
                    pass

    # --- The bound in time -------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """A vCPU would have posted a write, had there been somebody to flush it: from now on there is."""
        with self._starting:
            if self._flusher is None and not self._closing:
                try:
                    self.memory.timer = check(lib.pyvmm_timer(), "timerfd_create")
                    self._flusher = threads.start(threading.Thread(target=self._flush, name="flusher"))
                except PyvmmError:
                    self._closing = True  # no room for a descriptor or a thread: the guest is served as before
                    return
                self.memory.flushed = 1

    def _flush(self) -> None:
        try:
            while True:
                os.read(self.memory.timer, 8)
                if self._closing:
                    return
                lib.pyvmm_disarm(self.memory)
                self.drain()
        except BaseException as error:
            self._failed(error)

    def close(self) -> None:
        with self._starting:
            self._closing = True
        timer = self.memory.timer
        if timer < 0:
            return
        if self._flusher is not None and self._flusher.is_alive():  # not so in a child that was forked meanwhile
            lib.pyvmm_timer_expire(timer)
            self._flusher.join()
        self.memory.timer = -1
        os.close(timer)
