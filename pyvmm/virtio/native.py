"""The compiled module `_rings`, or the reason why there is none; and a virtqueue as C sees it.

Imports pyvmm._native and queue. Virtio and the back-ends take the compiled module from here, so that they import
without one too (another platform, a checkout that was never built); everything then goes the Python path.
"""

from __future__ import annotations

import sys

from pyvmm.virtio.queue import Virtqueue

TYPE_CHECKING = False
PROBLEM = ""
"""Why the compiled module is missing: one line, or "" where it is there."""

if TYPE_CHECKING:
    from typing import Any

    from pyvmm._native._rings import ffi as ffi
    from pyvmm._native._rings import lib as lib
    from pyvmm._native._rings import pyvmm_queue
else:
    try:
        from pyvmm._native._rings import ffi, lib
    except ImportError as error:
        ffi = lib = None
        if sys.platform != "linux":
            PROBLEM = f"the extension module pyvmm._native._rings is for Linux, and this is {sys.platform}"
        else:
            PROBLEM = f"the extension module pyvmm._native._rings is not built here (pip install . builds it): {error}"


def constant(name: str) -> int:
    """A number that one of its headers defines; 0 without the compiled module."""
    number: int = 0 if PROBLEM else getattr(lib, name)
    return number


class NativeQueue:
    """What C needs of the enabled Virtqueue `queue`, until that is disabled; guest memory is borrowed so long.

    Python and C take turns, with the device's `plane` held: between `enter()` and `leave()` the queue's positions are
    those of `c`, a `struct pyvmm_queue`, otherwise those of `queue`. Which heads are in flight both see in one place.
    """

    __slots__ = ("_borrowed", "_queue", "c")

    def __init__(self, queue: Virtqueue) -> None:
        memory = queue._memory
        assert memory is not None  # it may be about to be disabled, by whoever waits for `plane`
        self._queue = queue
        c: pyvmm_queue = ffi.new("struct pyvmm_queue *")
        regions = ffi.new("struct pyvmm_region[]", len(memory.regions))
        borrowed: list[Any] = [regions]

        for entry, region in zip(regions, memory.regions, strict=True):
            # The mapping itself, not the memoryview of it: a collector of garbage may take that one apart too early.
            borrowed.append(ffi.from_buffer("uint8_t[]", region.view.obj, True))
            entry.gpa, entry.length, entry.host = region.gpa, region.length, borrowed[-1]

        def at(gpa: int) -> Any:
            [entry] = [entry for entry in regions if entry.gpa <= gpa < entry.gpa + entry.length]
            return entry.host + (gpa - entry.gpa)

        c.regions, c.region_count, c.size = regions, len(memory.regions), queue.size
        c.table = at(queue.descriptors)
        c.avail, c.used = (ffi.cast("uint16_t *", at(gpa)) for gpa in (queue.driver, queue.device))
        borrowed.append(ffi.from_buffer("uint8_t[]", queue._in_flight, True))
        c.in_flight = borrowed[-1]
        c.event_idx, c.indirect = queue._event_idx, queue._indirect
        self.c = c
        self._borrowed = borrowed

    def enter(self) -> pyvmm_queue:
        """C's turn: it goes on where Python is."""
        c, queue = self.c, self._queue
        c.next_avail, c.next_used, c.notified = queue._next_avail, queue._next_used, queue._notified
        return c

    def leave(self) -> None:
        """Python's turn: it goes on where C is."""
        c, queue = self.c, self._queue
        queue._next_avail, queue._next_used, queue._notified = c.next_avail, c.next_used, c.notified


def native_queue(queue: Virtqueue) -> NativeQueue:
    """The one of `queue`, which is enabled; the same until it is disabled."""
    if queue.native is None:
        queue.native = NativeQueue(queue)
    return queue.native
