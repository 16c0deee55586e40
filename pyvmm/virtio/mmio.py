"""virtio over MMIO, version 2: the registers by which a driver sees a device (virtio 1.3, 4.2).

Imports transport, registers, hot, state and spec. What is not a register's encoding is `Transport`'s, which other
transports share, or `VirtioDevice`'s.
"""

from __future__ import annotations

from pyvmm.hot import CLEAR, SHADOW, Window
from pyvmm.registers import Field, Register, RegisterMap
from pyvmm.state import Number
from pyvmm.virtio.spec import (
    INTERRUPT_CONFIG_CHANGE,
    INTERRUPT_USED_BUFFER,
    MMIO_CONFIG,
    MMIO_MAGIC,
    MMIO_VERSION,
)
from pyvmm.virtio.transport import RING_PARTS, STATUS_FIELDS, U32, Transport, ring_half

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pyvmm.virtio.device import VirtioDevice

LENGTH = 0x1000
"""Bytes that a transport answers for: registers, then up to 3,840 bytes of configuration space."""
VENDOR_ID = int.from_bytes(b"PYVM", "little")
"""VendorID is for whoever wants to know who made the device; nothing depends on it."""
NO_REGION = 0xFFFFFFFF
"""Both halves of the length, and of the base, of a shared memory region that is not there."""


def _register(name: str, offset: int, access: str, *fields: Field, action: int = 0) -> Register:
    return Register(name, offset, "virtio 1.3, 4.2.2", *fields, width=4, access=access, action=action)


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
    _register("InterruptStatus", 0x060, "r", *INTERRUPT_FIELDS, action=SHADOW),
    _register("InterruptACK", 0x064, "w", *INTERRUPT_FIELDS, action=CLEAR),
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
STATUS, ACK = REGISTERS["InterruptStatus"], REGISTERS["InterruptACK"]
INTERRUPT_WINDOW = (STATUS.offset, STATUS.width + ACK.width, STATUS.width)
"""What of a transport the run loop in C may see: offset, length and width of the registers."""


class VirtioMmio(Transport):
    """The transport of one device: a bus device of LENGTH bytes.

    Control registers take aligned accesses of 4 bytes only (4.2.2.2); other reads give 0 and other writes vanish, as
    those of registers that are not there do. `interrupt()` signals an edge.
    """

    __slots__ = ("_interrupt", "window")

    HOLDS = {
        "DeviceID": "device.device_id",
        "Status": "device.status",
        "InterruptStatus": "pending",
        "DeviceFeaturesSel": "_offered_word",
        "DriverFeaturesSel": "_driver_word",
        "QueueSel": "_selected",
        "ConfigGeneration": "device.config_generation",
    }
    STATE = {**Transport.STATE, "pending": Number(INTERRUPT_USED_BUFFER | INTERRUPT_CONFIG_CHANGE)}

    def __init__(self, device: VirtioDevice, interrupt: Callable[[], None], window: Window | None = None) -> None:
        """`window` is INTERRUPT_WINDOW; its slot is InterruptStatus, whose bits the data plane sets and vCPUs clear."""
        super().__init__(device)
        self._interrupt = interrupt
        self.window = window = window or Window(*INTERRUPT_WINDOW)
        window.on_read(STATUS.offset, STATUS.action)
        window.on_write(ACK.offset, ACK.action)
        device.notifications = self

    # --- Telling the driver -------------------------------------------------------------------------------------------

    def used_buffer(self, queue: int) -> None:
        """Queue number `queue` has used buffers. Any thread."""
        self._signal(INTERRUPT_USED_BUFFER)

    def config_change(self) -> None:
        """The configuration, or the device's status, has changed. Any thread."""
        self._signal(INTERRUPT_CONFIG_CHANGE)

    def _signal(self, event: int) -> None:
        self.window.change(set=event)
        self._interrupt()

    @property
    def pending(self) -> int:
        """The events that the driver has not acknowledged: InterruptStatus."""
        return self.window.slot

    @pending.setter
    def pending(self, pending: int) -> None:
        self.window.change(U32, pending)

    def remind(self) -> None:
        """Signal once more if there is something that the driver has not acknowledged.

        The interrupt controller forgets an edge that comes while its input is masked (82093AA data sheet, 3.2.4,
        interrupt mask), the event stays; a driver that has seen it already finds nothing to do.
        """
        if self.pending:
            self._interrupt()

    # --- The bus ------------------------------------------------------------------------------------------------------

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """The register that such an access means, or None."""
        return REGISTERS.at(offset, is_write)

    def peek(self) -> Iterable[tuple[Register, int]]:
        """Registers with their values as they stand. `lock` is held."""
        return REGISTERS.peek(self, self.HOLDS)

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

    def read_magicvalue(self) -> int:
        return MMIO_MAGIC

    def read_version(self) -> int:
        return MMIO_VERSION

    def read_deviceid(self) -> int:
        return self.device.device_id

    def read_vendorid(self) -> int:
        return VENDOR_ID

    read_devicefeatures = Transport.read_offered
    write_devicefeaturessel = Transport.write_offered_word
    write_driverfeatures = Transport.write_accepted
    write_driverfeaturessel = Transport.write_driver_word
    write_queuesel = Transport.write_selected
    write_queuesize = Transport.write_size
    read_queueready = Transport.read_ready

    def read_queuesizemax(self) -> int:
        queue = self.queue
        return queue.max_size if queue is not None else 0

    def write_queueready(self, value: int) -> None:
        queue = self.queue
        if queue is not None and value & 1:
            self.device.enable_queue(queue)
        elif queue is not None:
            self.device.disable_queue(queue)

    def write_queuenotify(self, value: int) -> None:
        self.device.notify(value)

    def read_interruptstatus(self) -> int:
        return self.pending

    def write_interruptack(self, value: int) -> None:
        self.window.change(clear=value)

    def restarted(self) -> None:
        """The device has been reset, and nothing is left to be acknowledged."""
        self.window.change(clear=U32)

    def read_shmlenlow(self) -> int:
        return NO_REGION

    def write_shmsel(self, value: int) -> None:
        pass  # no device has shared memory regions

    read_shmlenhigh = read_shmbaselow = read_shmbasehigh = read_shmlenlow

    def read_configgeneration(self) -> int:
        return self.device.config_generation


def _bind() -> tuple[dict[int, Callable[[VirtioMmio], int]], dict[int, Callable[[VirtioMmio, int], None]]]:
    """The functions that serve each register, by offset."""
    readers: dict[int, Callable[[VirtioMmio], int]] = {}
    writers: dict[int, Callable[[VirtioMmio, int], None]] = {}
    halves = {
        f"Queue{name}{half}": ring_half(part, shift)[1]
        for name, part in zip(("Desc", "Driver", "Device"), RING_PARTS, strict=True)
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
