"""A driver over PCI that does what a case's operations say, with accesses to all of the function and its bridge."""

from __future__ import annotations

from pyvmm.pci import spec as pci
from pyvmm.virtio import spec
from pyvmm.virtio.pci import COMMON, CONFIG, ISR, LENGTH, NOTIFY, REGISTERS
from tests.fuzz.guard import Fault
from tests.fuzz.player import Player
from tests.support.registers import WINDOW, WINDOW_END, PciRegisters, PinRegisters

NONE = spec.MSI_NO_VECTOR
TABLE, PENDING = 0, 0x1000
_ACTING = {REGISTERS[name].offset for name in ("device_status", "queue_enable")}
_WIDTHS = {(register.offset, register.width) for register in REGISTERS}


class Watched:
    """A bus on which the ledger watches each access that can make the device do something."""

    def __init__(self, bus, session, acts):
        self._bus = bus
        self._session = session
        self._acts = acts
        self.ranges = bus.ranges

    def read(self, address, size):
        with self._session.lines:
            value = self._bus.read(address, size)
        if not 0 <= value < 1 << 8 * size:
            raise Fault("value", f"{value:#x} is read in {size} bytes at {address:#x}")
        return value

    def write(self, address, size, value):
        if self._acts(address):
            self._session.watch(lambda: self._bus.write(address, size, value), serving=False)
        else:
            with self._session.lines:
                self._bus.write(address, size, value)
        self._session.look()


class PciPlayer(Player):
    """As Player, over PCI: with messages, or the pin if the subject says so."""

    def connect(self):
        device, reset = self.device, self.device.reset
        self._reset = self._astray = False

        def notice():
            reset()
            self._reset = True

        device.reset = notice
        with self.lines:
            registers = (PinRegisters if self.subject.pin else PciRegisters)(device, self._interrupt)
        registers.moves.clear()
        return registers

    def watched(self):
        registers = self.registers
        registers.ports = Watched(registers.ports, self, lambda port: port >= 0xCFC)
        registers.bus = Watched(registers.bus, self, self._acts)
        return registers.bus

    def _acts(self, gpa):
        """Whether a write to `gpa` is more than a number that is kept."""
        offset = gpa - self.transport.function.ranges().get(0, gpa)
        return offset >= ISR or offset in _ACTING

    def look(self):
        """After each write: whether the device has been reset by it, by whatever way, and where its windows are."""
        for bar, gpa in self.registers.moves:
            self.kinds.add(f"BAR {bar}: {'gone' if gpa is None else 'moved'}")
        self.registers.moves.clear()
        for base, length, _ in self.registers.bus.ranges():
            if not WINDOW <= base < base + length <= WINDOW_END:
                raise Fault("decoding", f"a window is at {base:#x}")
        if self._reset:
            self._reset = False
            self.forget()

    # --- What a driver does -------------------------------------------------------------------------------------------

    def _find_again(self):
        """Set the function up as at first, if it may have been changed."""
        if self._astray:
            self._astray = False
            self.registers.place(WINDOW)
            if self.registers.messages:
                self.registers.use_messages()
            else:
                self.registers.write(self.registers.msix + pci.MSIX_FLAGS, 2, 0)

    def put(self, register, value):
        before = self.device.status
        if register == "QueueReady" and not value:
            return  # there is no way to do that
        if register == "QueueNotify" and value >= 0x400:
            value = 0x3FF  # the last one there is an address for
        self.registers.put(register, value)
        if register == "Status":
            self.kinds.status(before, value, self.device.status)
            self._features_agreed()

    def negotiate(self, features=None, without=()):
        self._find_again()
        return super().negotiate(features, without)

    def do_reset(self):
        self._find_again()
        super().do_reset()

    def do_set_up(self, index, size, part, value):
        self._sound = False  # the old ring may be in use, and still be when there is another in its place
        super().do_set_up(index, size, part, value)

    def do_read(self, offset, size):
        pass  # of registers that are MMIO's

    def do_write(self, offset, size, value):
        pass

    # --- What it should not -------------------------------------------------------------------------------------------

    def do_pci_read(self, place, offset, size):
        self._counted(place, offset, size, "read")
        bus, at = self._at(place, offset)
        bus.read(at, size)

    def do_pci_write(self, place, offset, size, value):
        self._astray = True
        self._sound = False
        self._counted(place, offset, size, "written")
        if place == "BAR 0" and offset == REGISTERS["config_msix_vector"].offset and size == 2:
            self.kinds.add("vector: mapped" if value < self.registers.vectors else "vector: there is none")
        bus, at = self._at(place, offset)
        bus.write(at, size, value)

    def _at(self, place, offset):
        if place == "space":
            self.registers.ports.write(0xCF8, 4, pci.CONFIG_ENABLE | 1 << 11 | offset & 0xFC)
            return self.registers.ports, 0xCFC | offset & 3
        if place == "port":
            return self.registers.ports, 0xCF8 + offset
        bar = int(place[-1])
        return self.registers.bus, self.transport.function.ranges().get(bar, WINDOW + 0x10000 * bar) + offset

    def _counted(self, place, offset, size, what):
        self.kinds.add(f"{place}: {what}")
        if place == "port":
            self.kinds.add("port: the address" if (offset, size) == (0, 4) else "port: not the address")
        elif place == "space":
            cap = self.registers.caps[spec.PCI_CAP_PCI_CFG]
            if cap + spec.PCI_CAP_DATA <= offset < cap + spec.PCI_CAP_DATA + 4:
                self.kinds.add(f"BAR by configuration space: {what}")
        elif place == "BAR 0":
            if offset + size > LENGTH:
                self.kinds.add("BAR 0: access across its end")
            elif offset < ISR:
                self.kinds.add(f"common: {'a register' if (offset - COMMON, size) in _WIDTHS else 'no register'}")
            elif offset >= NOTIFY:
                queue, rest = divmod(offset - NOTIFY, self.registers.stride)
                there = not rest and queue < len(self.device.queues)
                self.kinds.add(f"notification: {'of a queue' if there else 'of none'}")
            elif offset >= CONFIG and offset - CONFIG + size > len(self.device.config()):
                self.kinds.add("configuration: beyond its end")
        elif offset >= PENDING:
            self.kinds.add(f"pending bits: {what}")
        else:
            fits = size in (4, 8) and offset % size == 0 and offset < 16 * self.registers.vectors
            self.kinds.add(f"table: {'an entry' if fits else 'no entry'}")

    # --- Interrupts ---------------------------------------------------------------------------------------------------

    def told(self, queue):
        """Whether the driver has been told of used buffers, or has asked not to be, or has not looked yet."""
        transport, bits = self.transport, self.registers.events | self.transport._isr
        if not transport._msix.enabled:
            return bool(bits & spec.INTERRUPT_USED_BUFFER)
        vector = transport._queue_vectors[queue]
        if vector == NONE:
            self.kinds.add("message: none wanted")
            return True
        if transport._msix._pending >> vector & 1:
            self.kinds.add("message: kept")
            return True
        return bool(self.registers.events)
