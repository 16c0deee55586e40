"""The block device's data plane in C (block.h): what Python lends it, and what it comes back with.

Imports native. It does the reads and writes that go straight to the disk's descriptor; whatever else the driver asks
for it leaves in the queue.
"""

from __future__ import annotations

from pyvmm.virtio.native import constant, ffi, lib, native_queue
from pyvmm.virtio.spec import SECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.virtio.native import NativeQueue
    from pyvmm.virtio.queue import Virtqueue

EMPTY, FOR_PYTHON = constant("PYVMM_BLOCK_EMPTY"), constant("PYVMM_BLOCK_PYTHON")
TELL, AGAIN = constant("PYVMM_BLOCK_TELL"), constant("PYVMM_BLOCK_AGAIN")
"""Why `serve` has ended: all done, a chain that is for Python, the driver is to be told, enough for one call."""

PATIENCE = 50_000
"""Nanoseconds, at most, to wait for more requests before the driver is asked to notify of them. A notification costs
the guest an exit and the data plane a wake-up, which are some tens of microseconds together."""


class BlockPlane:
    """One device's. All is done with the device's `plane` held, but for `set_writable`."""

    __slots__ = ("_all", "_c", "_disk", "_others")

    def __init__(self) -> None:
        self._c = ffi.new("struct pyvmm_block *")
        self._disk = -1, 0, 0
        self._c.patience = PATIENCE
        self._all: list[NativeQueue] = []
        self._others = ffi.NULL

    def set_writable(self, writable: bool) -> None:
        """Whether writes may be done here, without a flush behind each. From the very next request on."""
        self._c.writable = writable

    def set_disk(self, fd: int, length: int, align: int) -> None:
        """Requests within the first `length` bytes go to `fd`, if they are multiples of `align` in all they are."""
        disk = fd, length, align
        if disk != self._disk:
            self._disk = disk
            self._c.fd, self._c.sectors, self._c.align = fd, length // SECTOR, align

    def set_queues(self, queues: Sequence[Virtqueue], serving: Virtqueue) -> None:
        """All queues, and the one to be served next: it waits for nothing while another has something."""
        c = self._c
        others = [queue.native for queue in queues if queue is not serving and queue.native is not None]
        if others != self._all:
            self._all = others
            self._others = ffi.new("struct pyvmm_queue *[]", [other.c for other in others])
            c.others, c.other_count = self._others, len(others)

    def forget_queues(self) -> None:
        """Let go of all queues."""
        self._all, self._others = [], ffi.NULL
        self._c.others, self._c.other_count = ffi.NULL, 0

    def serve(self, queue: Virtqueue, limit: int) -> tuple[int, int]:
        """Serve up to `limit` requests of `queue`, which is ready; why it has ended, and how many it were."""
        native = native_queue(queue)
        reason = lib.pyvmm_block_serve(self._c, native.enter(), limit)
        native.leave()
        return reason, self._c.served
