"""virtio over PCI: the function, its capabilities and the registers by which a driver sees a device (virtio 1.3, 4.1).

Imports transport, pcicap, registers, state, spec and PCI. BAR 0 has the registers, each structure in a page of its own:
common configuration, ISR status, the device's configuration, notifications; BAR 1 has MSI-X. Everything that is not a
register's encoding is `Transport`'s or `VirtioDevice`'s. There is no legacy interface.
"""

from __future__ import annotations

from struct import pack
from threading import Lock

from pyvmm.pci.config import Function
from pyvmm.pci.msix import LARGEST, Msix
from pyvmm.pci.spec import (
    CAP_ID_VNDR,
    CLASS_COMMUNICATION,
    CLASS_NETWORK_ETHERNET,
    CLASS_OTHER,
    CLASS_STORAGE,
    COMMAND_INTX_DISABLE,
)
from pyvmm.registers import Register, RegisterMap
from pyvmm.state import U8, U16, Number, Several, StateError
from pyvmm.state import U32 as NUMBER
from pyvmm.virtio.pcicap import ConfigAccess, structure
from pyvmm.virtio.spec import (
    ID_BLOCK,
    ID_CONSOLE,
    ID_NET,
    INTERRUPT_CONFIG_CHANGE,
    INTERRUPT_USED_BUFFER,
    MSI_NO_VECTOR,
    PCI_CAP_COMMON_CFG,
    PCI_CAP_DEVICE_CFG,
    PCI_CAP_ISR_CFG,
    PCI_CAP_NOTIFY_CFG,
    PCI_DEVICES,
    PCI_VENDOR,
)
from pyvmm.virtio.transport import RING_PARTS, STATUS_FIELDS, Transport, ring_half

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from pyvmm.events import IrqLine
    from pyvmm.pci.msix import MsixWires
    from pyvmm.virtio.device import VirtioDevice

PAGE = 0x1000
COMMON, ISR, CONFIG, NOTIFY = (page * PAGE for page in range(4))
"""Where each structure is in BAR 0."""
LENGTH = 4 * PAGE
"""Bytes of BAR 0."""
COMMON_LENGTH = 64
NOTIFY_STRIDE = 4
"""Each queue is notified at an address of its own, so that what is written there says nothing new."""
REVISION = 1
"""4.1.2.1: 1 or higher, so that drivers of the legacy interface do not try."""
SUBSYSTEMS = 0x40
"""4.1.2.1: 0x40 or higher, for the same."""
CLASSES = {ID_NET: CLASS_NETWORK_ETHERNET, ID_BLOCK: CLASS_STORAGE, ID_CONSOLE: CLASS_COMMUNICATION}


class VirtioPci(Transport):
    """The transport of one device: a PCI function, and the bus device behind its BAR 0.

    Registers of the common configuration take accesses of their own width only (4.1.3.1), a 64-bit field two of 32;
    other reads give 0 and other writes vanish, as where there is nothing.

    function   for the bridge
    rung       is told of each notification that came as an access, by the queue's number
    """

    STATE = {
        **Transport.STATE,
        "_config_vector": U16,
        "_queue_vectors": Several(U16, 1 << 16),
        "_generation": NUMBER,
        "_shown_generation": U8,
        "_isr": Number(INTERRUPT_USED_BUFFER | INTERRUPT_CONFIG_CHANGE),
    }

    HOLDS = {
        "device_feature_select": "_offered_word",
        "driver_feature_select": "_driver_word",
        "config_msix_vector": "_config_vector",
        "num_queues": "_count",
        "device_status": "device.status",
        "config_generation": "_shown_generation",
        "queue_select": "_selected",
    }

    __slots__ = (
        "_config_vector",
        "_generation",
        "_intx",
        "_isr",
        "_leaf",
        "_msix",
        "_queue_vectors",
        "_shown_generation",
        "function",
        "length",
        "rung",
    )

    def __init__(self, device: VirtioDevice, wires: MsixWires, intx: IrqLine) -> None:
        """`wires` carry messages; `intx` is set from any thread, one at a time, under a leaf lock."""
        super().__init__(device)
        self.length = LENGTH
        self.rung: Callable[[int], None] | None = None
        self._leaf = Lock()  # the data plane tells of events while a vCPU masks, acknowledges, chooses vectors
        self._intx = intx
        self._isr = 0
        self._config_vector = MSI_NO_VECTOR
        self._queue_vectors = [MSI_NO_VECTOR] * len(device.queues)
        self._generation = self._shown_generation = 0
        self.function = function = Function(
            self.name,
            PCI_VENDOR,
            PCI_DEVICES + device.device_id,
            CLASSES.get(device.device_id, CLASS_OTHER),
            REVISION,
            (PCI_VENDOR, SUBSYSTEMS + device.device_id),
            pin=1,
            lock=device.lock,
        )
        function.add_bar(0, self)
        self._msix = Msix(function, 1, min(len(device.queues) + 1, LARGEST), wires, self._leaf)
        self._capability(PCI_CAP_COMMON_CFG, COMMON, COMMON_LENGTH)
        self._capability(PCI_CAP_ISR_CFG, ISR, 1)
        if device.config():
            self._capability(PCI_CAP_DEVICE_CFG, CONFIG, PAGE)
        self._capability(PCI_CAP_NOTIFY_CFG, NOTIFY, NOTIFY_STRIDE * len(device.queues), pack("<I", NOTIFY_STRIDE))
        ConfigAccess(function)
        function.commanded = self._msix.switched = self._levelled
        device.notifications = self

    def _capability(self, kind: int, offset: int, length: int, more: bytes = b"") -> None:
        self.function.add_capability(CAP_ID_VNDR, structure(kind, 0, offset, length, more))

    @property
    def windows(self) -> tuple[Any, ...]:
        return tuple(self.function.bars.values())

    def notify_ranges(self) -> list[int]:
        """The offset in BAR 0 at which each queue is notified, by a write of any width and value."""
        return [NOTIFY + NOTIFY_STRIDE * index for index in range(len(self.device.queues))]

    def save(self) -> dict[str, Any]:
        return {**super().save(), "function": self.function.save(), "msix": self._msix.save()}

    def restore(self, state: Any) -> None:
        """The device has been restored before. What may have been on its way to the driver it is told again."""
        if type(state) is not dict:
            raise StateError(f"{self.name}: is no object")
        function, msix = state.pop("function", None), state.pop("msix", None)
        super().restore(state)
        vectors = [self._config_vector, *self._queue_vectors]
        if len(self._queue_vectors) != len(self.device.queues) or any(self._vector(v) != v for v in vectors):
            raise StateError(f"{self.name}: queue_vectors are another device's")
        self.function.restore(function)
        self._msix.restore(msix)
        self.function.decode()
        with self._leaf:
            self._level()
            if self._msix.enabled:
                for vector in sorted(set(vectors)):
                    self._fire(vector)

    # --- Telling the driver -------------------------------------------------------------------------------------------

    def used_buffer(self, queue: int) -> None:
        """Queue number `queue` has used buffers (4.1.5.3). Any thread."""
        with self._leaf:
            if self._msix.enabled:
                self._fire(self._queue_vectors[queue])
            else:
                self._isr |= INTERRUPT_USED_BUFFER
                self._level()

    def config_change(self) -> None:
        """The configuration, or the device's status, has changed (4.1.5.4). Any thread."""
        with self._leaf:
            self._isr |= INTERRUPT_CONFIG_CHANGE
            if self._msix.enabled:
                self._fire(self._config_vector)
            else:
                self._level()

    def _fire(self, vector: int) -> None:
        if vector != MSI_NO_VECTOR:
            self._msix.fire(vector)

    def _level(self) -> None:
        """Have the pin, a level, and the status bit say whether there is something to read. `_leaf` is held."""
        asserted = bool(self._isr) and not self._msix.enabled
        self.function.show_interrupt(asserted)
        self._intx.set(asserted and not self.function.command & COMMAND_INTX_DISABLE)

    def _levelled(self) -> None:
        with self._leaf:
            self._level()

    @property
    def pending(self) -> int:
        """Events of which the driver must be reminded: none. A level stays, and a message arrives."""
        return 0

    def remind(self) -> None:
        """Nothing to do (see `pending`)."""

    # --- The bus ------------------------------------------------------------------------------------------------------

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """The register that such an access means, or None."""
        return REGISTERS.at(offset, is_write)

    def peek(self) -> Iterable[tuple[Register, int]]:
        """Registers of the common configuration with their values as they stand. `lock` is held."""
        return REGISTERS.peek(self, self.HOLDS)

    @property
    def _count(self) -> int:
        return len(self.device.queues)

    def read(self, offset: int, size: int) -> int:
        """The bus's read of BAR 0. The bus holds `lock`."""
        if offset < ISR:
            reader = _READERS.get((offset, size))
            return reader(self) if reader is not None else 0
        if offset == ISR:
            return self._read_isr()
        if CONFIG <= offset < NOTIFY:
            return self.device.read_config(offset - CONFIG, size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write to BAR 0. The bus holds `lock`."""
        if offset < ISR:
            writer = _WRITERS.get((offset, size))
            if writer is not None:
                writer(self, value)
        elif offset >= NOTIFY:
            queue, rest = divmod(offset - NOTIFY, NOTIFY_STRIDE)
            if not rest and queue < len(self.device.queues):
                self.device.notify(queue)
                if self.rung is not None:
                    self.rung(queue)
        elif offset >= CONFIG:
            self.device.write_config(offset - CONFIG, value.to_bytes(size, "little"))

    def _read_isr(self) -> int:
        """4.1.4.5: reading it acknowledges, and lowers the pin."""
        with self._leaf:
            isr, self._isr = self._isr, 0
            self._level()
        return isr

    def restarted(self) -> None:
        """The device has been reset: no event has a message, and none is left (4.1.5.1.2.1)."""
        with self._leaf:
            self._config_vector = MSI_NO_VECTOR
            self._queue_vectors = [MSI_NO_VECTOR] * len(self._queue_vectors)
            self._msix.forget()
            self._isr = 0
            self._level()

    # --- Registers of the common configuration (4.1.4.3) --------------------------------------------------------------

    def read_config_vector(self) -> int:
        return self._config_vector

    def write_config_vector(self, value: int) -> None:
        with self._leaf:
            self._config_vector = self._vector(value)

    def _vector(self, value: int) -> int:
        """4.1.5.1.2.1: a mapping that fails reads back as no vector."""
        return value if value < self._msix.count else MSI_NO_VECTOR

    def read_num_queues(self) -> int:
        return self._count

    def read_config_generation(self) -> int:
        """8 bits, one more whenever the configuration has changed since the last look: so they do not come round."""
        if self._generation != self.device.config_generation:
            self._generation = self.device.config_generation
            self._shown_generation = (self._shown_generation + 1) & 0xFF
        return self._shown_generation

    def read_queue_size(self) -> int:
        """0 for what is no size, as for what is no queue: enabling it will say so (4.1.4.3.1)."""
        queue = self.queue
        if queue is None or queue.size & (queue.size - 1) or queue.size > queue.max_size:
            return 0
        return queue.size

    def read_queue_vector(self) -> int:
        return self._queue_vectors[self._selected] if self.queue is not None else MSI_NO_VECTOR

    def write_queue_vector(self, value: int) -> None:
        if self.queue is not None:
            with self._leaf:
                self._queue_vectors[self._selected] = self._vector(value)

    def write_queue_enable(self, value: int) -> None:
        """1 enables. Nothing disables but a reset (4.1.4.3.2)."""
        queue = self.queue
        if queue is not None and value == 1:
            self.device.enable_queue(queue)

    def read_notify_off(self) -> int:
        return self._selected if self.queue is not None else 0


_T, _P = Transport, VirtioPci
_FIELDS: tuple[tuple[str, int, int, Callable[[VirtioPci], int], Callable[[VirtioPci, int], None] | None], ...] = (
    ("device_feature_select", 0, 4, _T.read_offered_word, _T.write_offered_word),
    ("device_feature", 4, 4, _T.read_offered, None),
    ("driver_feature_select", 8, 4, _T.read_driver_word, _T.write_driver_word),
    ("driver_feature", 12, 4, _T.read_accepted, _T.write_accepted),
    ("config_msix_vector", 16, 2, _P.read_config_vector, _P.write_config_vector),
    ("num_queues", 18, 2, _P.read_num_queues, None),
    ("device_status", 20, 1, _T.read_status, _T.write_status),
    ("config_generation", 21, 1, _P.read_config_generation, None),
    ("queue_select", 22, 2, _T.read_selected, _T.write_selected),
    ("queue_size", 24, 2, _P.read_queue_size, _T.write_size),
    ("queue_msix_vector", 26, 2, _P.read_queue_vector, _P.write_queue_vector),
    ("queue_enable", 28, 2, _T.read_ready, _P.write_queue_enable),
    ("queue_notify_off", 30, 2, _P.read_notify_off, None),
    *(
        (f"queue_{name}_{half}", 32 + 8 * number + shift // 8, 4, *ring_half(part, shift))
        for number, (name, part) in enumerate(zip(("desc", "driver", "device"), RING_PARTS, strict=True))
        for half, shift in (("lo", 0), ("hi", 32))
    ),
)
REGISTERS = RegisterMap(
    COMMON_LENGTH,
    *(
        Register(name, offset, "virtio 1.3, 4.1.4.3", *fields, width=width, access="rw" if writer else "r")
        for name, offset, width, _, writer in _FIELDS
        for fields in [STATUS_FIELDS if name == "device_status" else ()]
    ),
)
_READERS = {(offset, width): reader for _, offset, width, reader, _ in _FIELDS}
_WRITERS = {(offset, width): writer for _, offset, width, _, writer in _FIELDS if writer is not None}
