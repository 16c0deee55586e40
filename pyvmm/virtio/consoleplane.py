"""The console device's output in C (console.h): many chains' with one call.

Imports native. What does not fit, and what is wrong with a ring, is left to the Python path.
"""

from __future__ import annotations

from pyvmm.virtio.native import ffi, lib, native_queue

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.virtio.queue import Virtqueue


class ConsolePlane:
    """One device's, which takes up to `size` bytes of output at once."""

    __slots__ = ("_buffer", "_c", "_count")

    def __init__(self, size: int) -> None:
        self._buffer = ffi.new("uint8_t[]", size)
        self._c = ffi.new("struct pyvmm_console *")
        self._c.buffer, self._c.size = self._buffer, size
        self._count = 0

    def gather(self, queue: Virtqueue) -> bytes | None:
        """Take chains of `queue`, which is ready: what was written to them. None if Python is to take the next one."""
        native = native_queue(queue)
        self._count = lib.pyvmm_console_gather(self._c, native.enter())
        native.leave()
        return ffi.buffer(self._buffer, self._c.filled)[:] if self._count else None

    def give_back(self, queue: Virtqueue) -> None:
        """The driver gets back the chains that `gather` has taken."""
        native = native_queue(queue)
        lib.pyvmm_console_give_back(self._c, native.enter(), self._count)
        native.leave()
