"""What the registers of every transport do: selectors, feature words, the set-up of queues, the status (virtio 1.3, 4).

Imports registers and state. A transport encodes registers: it says which access means which of these, and how the
driver is told of something.
"""

from __future__ import annotations

from pyvmm.registers import Field
from pyvmm.state import U32 as NUMBER
from pyvmm.state import Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Lock
    from typing import Any

    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Virtqueue

U32 = 0xFFFFFFFF
STATUS_FIELDS = (
    Field("ACKNOWLEDGE", 1, "a driver has found the device"),
    Field("DRIVER", 2, "it knows how to drive it"),
    Field("DRIVER_OK", 4, "it is set up"),
    Field("FEATURES_OK", 8, "features are negotiated"),
    Field("DEVICE_NEEDS_RESET", 64, "the device cannot go on"),
    Field("FAILED", 128, "the driver has given up"),
)
RING_PARTS = ("descriptors", "driver", "device")
"""The fields of Virtqueue that are addresses, in the order of every transport's registers."""


class Transport(Stateful):
    """How one device is seen. The bus holds `lock`, which is the device's, around every call here."""

    __slots__ = ("_driver_word", "_offered_word", "_selected", "device", "lock", "name")

    STATE = dict.fromkeys(("_selected", "_offered_word", "_driver_word"), NUMBER)

    def __init__(self, device: VirtioDevice) -> None:
        self.device = device
        self.name = device.name
        self.lock: Lock = device.lock
        self._selected = self._offered_word = self._driver_word = 0

    @property
    def windows(self) -> tuple[Any, ...]:
        """What of it is on the bus."""
        return (self,)

    def restarted(self) -> None:
        """The device has been reset: forget what is the transport's own."""

    # --- The device ---------------------------------------------------------------------------------------------------

    def read_offered_word(self) -> int:
        """Which 32 features `read_offered` shows: those from 32 times this number on."""
        return self._offered_word

    def write_offered_word(self, value: int) -> None:
        self._offered_word = value

    def read_offered(self) -> int:
        """32 of the features offered; 0 where there are none."""
        return self.device.offered >> 32 * self._offered_word & U32 if self._offered_word < 2 else 0

    def read_driver_word(self) -> int:
        """Which 32 features `write_accepted` accepts."""
        return self._driver_word

    def write_driver_word(self, value: int) -> None:
        self._driver_word = value

    def read_accepted(self) -> int:
        """32 of the features that the driver has written."""
        return self.device.driver_features >> 32 * self._driver_word & U32 if self._driver_word < 2 else 0

    def write_accepted(self, value: int) -> None:
        self.device.set_driver_features(self._driver_word, value)

    def read_status(self) -> int:
        return self.device.status

    def write_status(self, value: int) -> None:
        self.device.set_status(value & 0xFF)
        if value & 0xFF == 0:
            self._selected = self._offered_word = self._driver_word = 0
            self.restarted()

    # --- The selected queue -------------------------------------------------------------------------------------------

    @property
    def queue(self) -> Virtqueue | None:
        """The queue that the driver has selected, or None: it selects what it likes."""
        queues = self.device.queues
        return queues[self._selected] if self._selected < len(queues) else None

    def read_selected(self) -> int:
        return self._selected

    def write_selected(self, value: int) -> None:
        self._selected = value

    def write_size(self, value: int) -> None:
        queue = self.queue
        if queue is not None and self.device.may_set_up(queue):
            queue.size = value

    def read_ready(self) -> int:
        queue = self.queue
        return int(queue is not None and queue.ready)


def ring_half(part: str, shift: int) -> tuple[Callable[[Any], int], Callable[[Any, int], None]]:
    """Reader and writer of 32 bits, `shift` and on, of the gpa of a ring's `part`, a field of Virtqueue."""

    def read(self: Transport) -> int:
        queue = self.queue
        return getattr(queue, part) >> shift & U32 if queue is not None else 0

    def write(self: Transport, value: int) -> None:
        queue = self.queue
        if queue is not None and self.device.may_set_up(queue):
            setattr(queue, part, getattr(queue, part) & ~(U32 << shift) | value << shift)

    return read, write
