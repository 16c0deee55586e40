"""virtio over MMIO, version 2: the registers by which a driver sees a device (virtio 1.3, 4.2).

Imports device, registers and spec. Everything that is not a register's encoding is `VirtioDevice`'s, so that another
transport can share it.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.registers import Field, Register, RegisterMap
from pyvmm.virtio.spec import (
    INTERRUPT_CONFIG_CHANGE,
    INTERRUPT_USED_BUFFER,
    MMIO_CONFIG,
    MMIO_MAGIC,
    MMIO_VERSION,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Virtqueue

LENGTH = 0x1000
"""Bytes that a transport answers for: registers, then up to 3,840 bytes of configuration space."""
VENDOR_ID = int.from_bytes(b"PYVM", "little")
"""VendorID is for whoever wants to know who made the device; nothing depends on it."""
NO_REGION = 0xFFFFFFFF
"""Both halves of the length, and of the base, of a shared memory region that is not there."""


def _register(name: str, offset: int, access: str, *fields: Field) -> Register:
    return Register(name, offset, "virtio 1.3, 4.2.2", *fields, width=4, access=access)


STATUS_FIELDS = (
    Field("ACKNOWLEDGE", 1, "a driver has found the device"),
    Field("DRIVER", 2, "it knows how to drive it"),
    Field("DRIVER_OK", 4, "it is set up"),
    Field("FEATURES_OK", 8, "features are negotiated"),
    Field("DEVICE_NEEDS_RESET", 64, "the device cannot go on"),
    Field("FAILED", 128, "the driver has given up"),
)
INTERRUPT_FIELDS = (
    Field("USED_BUFFER", INTERRUPT_USED_BUFFER, "buffers were used"),
    Field("CONFIG_CHANGE", INTERRUPT_CONFIG_CHANGE, "the configuration has changed"),
)

REGISTERS = RegisterMap(
    MMIO_CONFIG,
    _register("MagicValue", 0x000, "r"),
    _register("Version", 0x004, "r"),
    _register("DeviceID", 0x008, "r"),
    _register("VendorID", 0x00C, "r"),
    _register("DeviceFeatures", 0x010, "r"),
    _register("DeviceFeaturesSel", 0x014, "w"),
    _register("DriverFeatures", 0x020, "w"),
    _register("DriverFeaturesSel", 0x024, "w"),
    _register("QueueSel", 0x030, "w"),
    _register("QueueSizeMax", 0x034, "r"),
    _register("QueueSize", 0x038, "w"),
    _register("QueueReady", 0x044, "rw"),
    _register("QueueNotify", 0x050, "w"),
    _register("InterruptStatus", 0x060, "r", *INTERRUPT_FIELDS),
    _register("InterruptACK", 0x064, "w", *INTERRUPT_FIELDS),
    _register("Status", 0x070, "rw", *STATUS_FIELDS),
    _register("QueueDescLow", 0x080, "w"),
    _register("QueueDescHigh", 0x084, "w"),
    _register("QueueDriverLow", 0x090, "w"),
    _register("QueueDriverHigh", 0x094, "w"),
    _register("QueueDeviceLow", 0x0A0, "w"),
    _register("QueueDeviceHigh", 0x0A4, "w"),
    _register("SHMSel", 0x0AC, "w"),
    _register("SHMLenLow", 0x0B0, "r"),
    _register("SHMLenHigh", 0x0B4, "r"),
    _register("SHMBaseLow", 0x0B8, "r"),
    _register("SHMBaseHigh", 0x0BC, "r"),
    _register("ConfigGeneration", 0x0FC, "r"),
)
QUEUE_NOTIFY = REGISTERS["QueueNotify"].offset
"""What an ioeventfd listens to: a write of 4 bytes with the queue's index."""
_RING_PARTS = {"Desc": "descriptors", "Driver": "driver", "Device": "device"}


class VirtioMmio:
    """The transport of one device: a bus device of LENGTH bytes.

    Control registers take aligned accesses of 4 bytes only (4.2.2.2); other reads give 0 and other writes vanish, as
    those of registers that are not there do. `interrupt()` signals an edge.
    """

    __slots__ = (
        "_device_word",
        "_driver_word",
        "_interrupt",
        "_pending",
        "_pending_lock",
        "_selected",
        "device",
        "lock",
        "name",
    )

    def __init__(self, device: VirtioDevice, interrupt: Callable[[], None]) -> None:
        self.device = device
        self.name = device.name
        self.lock = device.lock
        self._interrupt = interrupt
        self._pending = 0
        self._pending_lock = Lock()  # a leaf: the data plane sets bits while a vCPU clears others
        self._selected = self._device_word = self._driver_word = 0
        device.notifications = self

    # --- Telling the driver -------------------------------------------------------------------------------------------

    def used_buffer(self, queue: int) -> None:
        """Queue number `queue` has used buffers. Any thread."""
        self._signal(INTERRUPT_USED_BUFFER)

    def config_change(self) -> None:
        """The configuration, or the device's status, has changed. Any thread."""
        self._signal(INTERRUPT_CONFIG_CHANGE)

    def _signal(self, event: int) -> None:
        with self._pending_lock:
            self._pending |= event
        self._interrupt()

    @property
    def pending(self) -> int:
        """The events that the driver has not acknowledged: InterruptStatus."""
        return self._pending

    def remind(self) -> None:
        """Signal once more if there is something that the driver has not acknowledged.

        The interrupt controller forgets an edge that comes while its input is masked (82093AA data sheet, 3.2.4,
        interrupt mask), the event stays; a driver that has seen it already finds nothing to do.
        """
        if self._pending:
            self._interrupt()

    # --- The bus ------------------------------------------------------------------------------------------------------

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """The register that such an access means, or None."""
        return REGISTERS.at(offset, is_write)

    def read(self, offset: int, size: int) -> int:
        """The bus's read. The bus holds `lock`."""
        if offset >= MMIO_CONFIG:
            return self.device.read_config(offset - MMIO_CONFIG, size)
        reader = _READERS.get(offset)
        return reader(self) if reader is not None and size == 4 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write. The bus holds `lock`."""
        if offset >= MMIO_CONFIG:
            self.device.write_config(offset - MMIO_CONFIG, value.to_bytes(size, "little"))
            return
        writer = _WRITERS.get(offset)
        if writer is not None and size == 4:
            writer(self, value)

    @property
    def _queue(self) -> Virtqueue | None:
        """The queue that QueueSel selects, or None."""
        queues = self.device.queues
        return queues[self._selected] if self._selected < len(queues) else None

    def read_magicvalue(self) -> int:
        return MMIO_MAGIC

    def read_version(self) -> int:
        return MMIO_VERSION

    def read_deviceid(self) -> int:
        return self.device.device_id

    def read_vendorid(self) -> int:
        return VENDOR_ID

    def read_devicefeatures(self) -> int:
        return self.device.offered >> 32 * self._device_word & 0xFFFFFFFF if self._device_word < 2 else 0

    def write_devicefeaturessel(self, value: int) -> None:
        self._device_word = value

    def write_driverfeatures(self, value: int) -> None:
        self.device.set_driver_features(self._driver_word, value)

    def write_driverfeaturessel(self, value: int) -> None:
        self._driver_word = value

    def write_queuesel(self, value: int) -> None:
        self._selected = value

    def read_queuesizemax(self) -> int:
        queue = self._queue
        return queue.max_size if queue is not None else 0

    def write_queuesize(self, value: int) -> None:
        queue = self._queue
        if queue is not None and self.device.may_set_up(queue):
            queue.size = value

    def read_queueready(self) -> int:
        queue = self._queue
        return int(queue is not None and queue.ready)

    def write_queueready(self, value: int) -> None:
        queue = self._queue
        if queue is not None and value & 1:
            self.device.enable_queue(queue)
        elif queue is not None:
            self.device.disable_queue(queue)

    def write_queuenotify(self, value: int) -> None:
        self.device.notify(value)

    def read_interruptstatus(self) -> int:
        return self._pending

    def write_interruptack(self, value: int) -> None:
        with self._pending_lock:
            self._pending &= ~value

    def read_status(self) -> int:
        return self.device.status

    def write_status(self, value: int) -> None:
        self.device.set_status(value & 0xFF)
        if value & 0xFF == 0:
            self._selected = self._device_word = self._driver_word = 0
            with self._pending_lock:
                self._pending = 0

    def read_shmlenlow(self) -> int:
        return NO_REGION

    def write_shmsel(self, value: int) -> None:
        pass  # no device has shared memory regions

    read_shmlenhigh = read_shmbaselow = read_shmbasehigh = read_shmlenlow

    def read_configgeneration(self) -> int:
        return self.device.config_generation


def _ring_address(part: str, shift: int) -> Callable[[VirtioMmio, int], None]:
    """The writer of one half of the address of a ring's part."""

    def write(self: VirtioMmio, value: int) -> None:
        queue = self._queue
        if queue is not None and self.device.may_set_up(queue):
            other = getattr(queue, part) & ~(0xFFFFFFFF << shift)
            setattr(queue, part, other | value << shift)

    return write


def _bind() -> tuple[dict[int, Callable[[VirtioMmio], int]], dict[int, Callable[[VirtioMmio, int], None]]]:
    """The functions that serve each register, by offset."""
    readers: dict[int, Callable[[VirtioMmio], int]] = {}
    writers: dict[int, Callable[[VirtioMmio, int], None]] = {}
    halves = {
        f"Queue{name}{half}": _ring_address(part, shift)
        for name, part in _RING_PARTS.items()
        for half, shift in (("Low", 0), ("High", 32))
    }
    for register in REGISTERS:
        if "r" in register.access:
            readers[register.offset] = getattr(VirtioMmio, f"read_{register.name.lower()}")
        if "w" in register.access:
            half = halves.get(register.name)
            writers[register.offset] = half or getattr(VirtioMmio, f"write_{register.name.lower()}")
    return readers, writers


_READERS, _WRITERS = _bind()
