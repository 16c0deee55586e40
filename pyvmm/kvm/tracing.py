"""Where the run loop in C records a vCPU's exits: pieces of a file in mapped memory, one after the other.

Imports the compiled module (through native.py); vcpu.py alone imports this. Neither an exit nor an access that C deals
with costs a call into Python, but for one in thousands: when a piece is full.
"""

from __future__ import annotations

from pyvmm.kvm.native import ffi, lib, sizeof

TYPE_CHECKING = False
if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable
    from typing import Any

    from pyvmm._native import _kvm

    Chunks = Callable[[], mmap.mmap | None]
    """Gives the next piece to write to, zero behind its head; None: there are no more."""


class Tracing:
    """Of the vCPU with `context`. On its own thread, or before that."""

    __slots__ = ("_chunk", "_chunks", "_context")

    def __init__(self, context: _kvm.pyvmm_vcpu, chunks: Chunks) -> None:
        self._context = context
        self._chunks = chunks
        self._chunk: Any = None
        self._begin()

    def go_on(self) -> None:
        """C has come back, perhaps because its piece is full."""
        context = self._context
        if context.trace_room and context.traced + lib.PYVMM_TRACE_ROOM > context.trace_room:
            self._begin()

    def _begin(self) -> None:
        context, chunk = self._context, self._chunks()
        if chunk is None:
            context.trace_room = 0  # from now on C counts what is lost, in the last piece
            return
        pinned = ffi.from_buffer("uint8_t[]", chunk, True)
        context.trace = ffi.cast("struct pyvmm_chunk *", pinned)
        context.traced = 0
        context.trace_room = (len(chunk) - sizeof("struct pyvmm_chunk")) // sizeof("struct pyvmm_record")
        self._chunk = pinned  # nothing else has the one before, which is unmapped

    def close(self) -> None:
        """The vCPU runs no more."""
        self._context.trace = self._context.open = ffi.NULL
        self._chunk = None
