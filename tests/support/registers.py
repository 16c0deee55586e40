"""The driver's side of the transports: how registers are reached, over MMIO and over PCI, by the names MMIO has."""

from struct import unpack_from

from pyvmm.bus import Bus
from pyvmm.events import IrqLine
from pyvmm.pci import spec as pci
from pyvmm.pci.bridge import HostBridge
from pyvmm.pci.decoder import Decoder
from pyvmm.virtio import spec
from pyvmm.virtio.mmio import REGISTERS, VirtioMmio
from pyvmm.virtio.pci import REGISTERS as COMMON
from pyvmm.virtio.pci import VirtioPci

BASE = 0xD0000000
"""Where the transport over MMIO is."""
WINDOW, WINDOW_END = 0xE0000000, 0xFEC00000
"""Where BARs may be."""
SLOT = 1
"""The function's device number."""
MESSAGE = 0xFEE00000
USED, CHANGED = spec.INTERRUPT_USED_BUFFER, spec.INTERRUPT_CONFIG_CHANGE


class MmioRegisters:
    """Over MMIO. `interrupt()` is called at each interrupt."""

    can_disable = True
    """Whether a queue can be taken out of use by itself."""
    make = VirtioMmio

    def __init__(self, device, interrupt):
        self.transport = self.make(device, interrupt)
        self.bus = Bus("MMIO", 1 << 52)
        self.bus.attach(BASE, 0x1000, self.transport)

    def get(self, register, size=4):
        return self.bus.read(BASE + REGISTERS[register].offset, size)

    def put(self, register, value, size=4):
        self.bus.write(BASE + REGISTERS[register].offset, size, value)

    def config(self, offset, size):
        return self.bus.read(BASE + spec.MMIO_CONFIG + offset, size)

    def put_config(self, offset, size, value):
        self.bus.write(BASE + spec.MMIO_CONFIG + offset, size, value)


NAMES = {
    "DeviceFeaturesSel": "device_feature_select",
    "DeviceFeatures": "device_feature",
    "DriverFeaturesSel": "driver_feature_select",
    "DriverFeatures": "driver_feature",
    "QueueSel": "queue_select",
    "QueueSizeMax": "queue_size",
    "QueueSize": "queue_size",
    "QueueReady": "queue_enable",
    "Status": "device_status",
    "ConfigGeneration": "config_generation",
} | {
    f"Queue{part}{half}": f"queue_{part.lower()}_{short}"
    for part in ("Desc", "Driver", "Device")
    for half, short in (("Low", "lo"), ("High", "hi"))
}


class Wires:
    """Carries messages: `log` has the calls, `signals` the vectors; `told(vector)` is called at each."""

    def __init__(self, told=lambda vector: None):
        self.routes = {}
        self.log = []
        self.signals = []
        self.told = told

    def route(self, vector, address, data):
        self.routes[vector] = address, data
        self.log.append(("route", vector, address, data))

    def unroute(self, vector):
        del self.routes[vector]
        self.log.append(("unroute", vector))

    def signal(self, vector):
        assert vector in self.routes, f"vector {vector} has no route"
        self.signals.append(vector)
        self.told(vector)


class PciRegisters:
    """Over PCI: a function on a bus of its own, found and set up as a driver does it; with messages or with the pin.

    Its interrupt handler keeps what it is told of in `events`, which stand for InterruptStatus.
    """

    can_disable = False
    messages = True
    make = VirtioPci

    def __init__(self, device, interrupt):
        self.interrupt = interrupt
        self.wires = Wires(self._message)
        self.line = IrqLine(self._pin)
        self.transport = self.make(device, self.wires, self.line)
        self.bridge = HostBridge()
        self.bridge.plug(SLOT, self.transport.function)
        self.ports, self.bus = Bus("port", 1 << 16), Bus("MMIO", 1 << 52)
        self.ports.attach(0xCF8, pci.CONFIG_PORTS, self.bridge)
        self.moves = []
        self.decoder = Decoder(self.bus, WINDOW, WINDOW_END, lambda function, *where: self.moves.append(where))
        self.decoder.add(self.transport.function)
        self.events = 0
        self.place(WINDOW)
        self.find()
        if self.messages:
            self.use_messages()

    def _message(self, vector):
        self.events |= USED if vector else CHANGED
        self.interrupt()

    def _pin(self, asserted):
        if asserted:
            self.interrupt()

    # --- Configuration space ------------------------------------------------------------------------------------------

    def read(self, offset, size=4, slot=SLOT):
        self.ports.write(0xCF8, 4, pci.CONFIG_ENABLE | slot << 11 | offset & 0xFC)
        return self.ports.read(0xCFC + (offset & 3), size)

    def write(self, offset, size, value, slot=SLOT):
        self.ports.write(0xCF8, 4, pci.CONFIG_ENABLE | slot << 11 | offset & 0xFC)
        self.ports.write(0xCFC + (offset & 3), size, value)

    def place(self, gpa):
        """Size the BARs, put them at `gpa` and on, and have them decoded."""
        self.write(pci.COMMAND, 2, 0)
        self.bases = {}
        for bar in range(pci.STD_NUM_BARS):
            at = pci.BASE_ADDRESS_0 + 4 * bar
            self.write(at, 4, 0xFFFFFFFF)
            length = -(self.read(at) & ~0xF) & 0xFFFFFFFF
            if length:
                gpa = (gpa + length - 1) & -length
                self.write(at, 4, gpa)
                self.bases[bar] = gpa
                gpa += length
        self.write(pci.COMMAND, 2, pci.COMMAND_MEMORY | pci.COMMAND_MASTER)

    def capabilities(self):
        """All of them, as (where, bytes)."""
        found = []
        at = self.read(pci.CAPABILITY_LIST, 1) if self.read(pci.STATUS, 2) & pci.STATUS_CAP_LIST else 0
        while at:
            length = {pci.CAP_ID_MSIX: pci.CAP_MSIX_SIZEOF}.get(self.read(at, 1)) or self.read(at + 2, 1)
            found.append((at, bytes(self.space(at + byte) for byte in range(length))))
            at = self.read(at + 1, 1)
        return found

    def space(self, offset):
        return self.read(offset, 1)

    def find(self):
        """Where each structure is: (bar, offset, length) by its type; and MSI-X."""
        self.structures, self.caps = {}, {}
        for at, data in self.capabilities():
            if data[0] == pci.CAP_ID_MSIX:
                self.msix = at
                self.vectors = (int.from_bytes(data[2:4], "little") & 0x7FF) + 1
                where = int.from_bytes(data[4:8], "little")
                self.table = where & 7, where & ~7
            elif data[0] == pci.CAP_ID_VNDR:
                self.caps[data[3]] = at
                self.structures[data[3]] = (data[4], *unpack_from("<II", data, 8))
                if data[3] == spec.PCI_CAP_NOTIFY_CFG:
                    self.stride = int.from_bytes(data[16:20], "little")

    # --- MSI-X --------------------------------------------------------------------------------------------------------

    def use_messages(self):
        self.write(self.msix + pci.MSIX_FLAGS, 2, pci.MSIX_FLAGS_ENABLE | pci.MSIX_FLAGS_MASKALL)
        for vector in range(self.vectors):
            for offset, value in ((0, MESSAGE), (4, 0), (8, 0x40 + vector), (12, 0)):
                self.put_entry(vector, offset, value)
        self.write(self.msix + pci.MSIX_FLAGS, 2, pci.MSIX_FLAGS_ENABLE)

    def put_entry(self, vector, offset, value, size=4):
        bar, table = self.table
        self.bus.write(self.bases[bar] + table + 16 * vector + offset, size, value)

    def entry(self, vector, offset, size=4):
        bar, table = self.table
        return self.bus.read(self.bases[bar] + table + 16 * vector + offset, size)

    # --- Registers ----------------------------------------------------------------------------------------------------

    def at(self, structure, offset=0):
        bar, start, _ = self.structures[structure]
        return self.bases[bar] + start + offset

    def common(self, field):
        return self.bus.read(self.at(spec.PCI_CAP_COMMON_CFG, COMMON[field].offset), COMMON[field].width)

    def put_common(self, field, value):
        size = COMMON[field].width
        value &= (1 << 8 * size) - 1
        self.bus.write(self.at(spec.PCI_CAP_COMMON_CFG, COMMON[field].offset), size, value)

    def put_vector(self, field, vector):
        """Choose a message, and see whether it was taken (4.1.5.1.2.2)."""
        self.put_common(field, vector)
        return self.common(field) == vector

    def isr(self):
        return self.bus.read(self.at(spec.PCI_CAP_ISR_CFG), 1)

    def get(self, register):
        if register == "DeviceID":
            return self.read(pci.DEVICE_ID, 2) - spec.PCI_DEVICES
        if register == "InterruptStatus":
            if not self.messages:
                self.events |= self.isr()
            return self.events
        return self.common(NAMES[register])

    def put(self, register, value):
        if register == "QueueNotify":
            self.bus.write(self.at(spec.PCI_CAP_NOTIFY_CFG, self.stride * value), 2, value & 0xFFFF)
        elif register == "InterruptACK":
            self.events &= ~value
        else:
            if register == "QueueReady" and value and self.messages:
                self.put_vector("queue_msix_vector", self.common("queue_select") + 1)
            self.put_common(NAMES[register], value)
            if register == "Status" and self.messages:
                self.put_vector("config_msix_vector", 0 if value else spec.MSI_NO_VECTOR)
            if register == "Status" and not value:
                self.events = 0

    def config(self, offset, size):
        if spec.PCI_CAP_DEVICE_CFG not in self.structures:
            return 0
        return self.bus.read(self.at(spec.PCI_CAP_DEVICE_CFG, offset), size)

    def put_config(self, offset, size, value):
        if spec.PCI_CAP_DEVICE_CFG in self.structures:
            self.bus.write(self.at(spec.PCI_CAP_DEVICE_CFG, offset), size, value)


class PinRegisters(PciRegisters):
    """Over PCI, without messages."""

    messages = False


TRANSPORTS: dict[str, type[MmioRegisters] | type[PciRegisters]] = {
    "mmio": MmioRegisters,
    "pci": PciRegisters,
    "pci-pin": PinRegisters,
}
