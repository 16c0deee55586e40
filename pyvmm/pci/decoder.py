"""Keeps the windows of PCI functions on the bus where the guest has put them.

Imports config and errors; the bus is injected. Guests choose freely, also badly: a window that would lie over something
else, or outside of where there may be any, answers nowhere until it fits.
"""

from __future__ import annotations

from functools import partial

from pyvmm.errors import BusConflictError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.pci.config import Function, Window

    class WindowBus(Protocol):
        """What a decoder asks of the bus; both may happen while processors run."""

        def attach(self, base: int, length: int, device: Window) -> None:
            """Raises BusConflictError when another range is there."""

        def detach(self, base: int) -> None: ...


class Decoder:
    """Moves windows on `bus`, within [start, end).

    `moved(function, bar, gpa or None)` is told where a window answers from now on. Functions are told of changes one
    at a time: under the lock of the bridge that they are behind.
    """

    __slots__ = ("_bus", "_end", "_moved", "_placed", "_start", "_wanted")

    def __init__(
        self, bus: WindowBus, start: int, end: int, moved: Callable[[Function, int, int | None], None] | None = None
    ) -> None:
        self._bus = bus
        self._start = start
        self._end = end
        self._moved = moved
        self._wanted: dict[tuple[Function, int], int] = {}
        self._placed: dict[tuple[Function, int], int] = {}

    def add(self, function: Function) -> None:
        """Follow the windows of `function` from now on."""
        function.on_decode(partial(self._changed, function))

    def _changed(self, function: Function, bar: int, old: int | None, new: int | None) -> None:
        key = function, bar
        if new is None:
            del self._wanted[key]
        else:
            self._wanted[key] = new
        if key in self._placed:
            self._bus.detach(self._placed.pop(key))
            self._tell(key, None)
        for other, gpa in self._wanted.items():  # what has gone may have been in the way of several
            if other not in self._placed and self._attached(other, gpa):
                self._placed[other] = gpa
                self._tell(other, gpa)

    def _attached(self, key: tuple[Function, int], gpa: int) -> bool:
        function, bar = key
        window = function.bars[bar]
        if gpa < self._start or gpa + window.length > self._end:
            return False
        try:
            self._bus.attach(gpa, window.length, window)
        except BusConflictError:
            return False
        return True

    def _tell(self, key: tuple[Function, int], gpa: int | None) -> None:
        if self._moved is not None:
            self._moved(*key, gpa)
