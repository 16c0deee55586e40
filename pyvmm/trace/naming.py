"""What the registers of each kind of device are called, for whoever has the accesses but not the device.

Imports the declarations of devices, virtio and PCI. A `Names` follows what is written, since some registers choose what
others mean: it knows the bank, index or address that is selected at an access, and no more of the device.
"""

from __future__ import annotations

from pyvmm.registers import Register, RegisterMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Entry = dict[str, Any]
    Found = tuple[Register | None, int]
    """A register, or None, and which of its bytes."""

NOTHING: Found = (None, 0)


class Names:
    """The registers in `registers`, where the device's range begins `offset` bytes into it."""

    def __init__(self, registers: RegisterMap, offset: int = 0) -> None:
        self._map = registers
        self._offset = offset
        self._known: dict[tuple[int, bool, int], Found] = {}

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        """The register that an access of `size` bytes at `offset` begins in, and at which of its bytes."""
        return self._covering(offset + self._offset, is_write)

    def _covering(self, offset: int, is_write: bool, bank: int = 0) -> Found:
        """The one at `offset`, or the wider one around it."""
        key = offset, is_write, bank
        found = self._known.get(key)
        if found is None:
            found = NOTHING
            for start in range(offset, max(offset - 8, -1), -1):
                one = self._map.at(start, is_write, bank) or self._map.at(start, not is_write, bank)
                if one is not None and offset < one.offset + one.width:
                    found = one, offset - start
                    break
            if len(self._known) < 4096:  # a guest chooses the offsets
                self._known[key] = found
        return found

    def named(self, name: str) -> Register | None:
        """The register that is called so, or None."""
        return next((register for register in self._map if register.name == name), None)

    def written(self, offset: int, size: int, value: int) -> None:
        """A write has happened."""

    def prefix(self) -> str:
        """What goes before a register in words: which of several things it is a register of."""
        return ""


class SerialNames(Names):
    """The divisor latch is in the place of other registers while DLAB is set (PC16550D 8.3)."""

    def __init__(self, bank: int = 0) -> None:
        from pyvmm.devices.serial_registers import LCR_DLAB, REGISTERS

        super().__init__(REGISTERS)
        self._bank = bank
        self._select, self._bit = REGISTERS["LCR"].offset, LCR_DLAB

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        return self._covering(offset, is_write, self._bank)

    def written(self, offset: int, size: int, value: int) -> None:
        if offset <= self._select < offset + size:
            self._bank = int(value >> 8 * (self._select - offset) & self._bit != 0)


class CmosNames(Names):
    """Port 0x71 is the byte that port 0x70 has selected."""

    def __init__(self, index: int = 0) -> None:
        from pyvmm.devices.rtc_registers import CMOS, CMOS_BYTES, PORTS

        super().__init__(PORTS)
        self._index = index
        self._bytes, self._mask = CMOS, CMOS_BYTES - 1

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        if offset != 1:
            return super().at(offset, is_write, size)
        found = self._bytes.at(self._index, is_write) or self._bytes.at(self._index, not is_write)
        found = found or Register(f"RAM[{self._index:#04x}]", 1, "IBM PC/AT Technical Reference, CMOS RAM")
        return found, 0

    def written(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self._index = value & self._mask


class DebugExitNames(Names):
    """The port that ends the run."""

    def __init__(self) -> None:
        super().__init__(RegisterMap(4, Register("EXIT", 0, "QEMU isa-debug-exit", width=4)))


def _pci(name: str, offset: int, width: int, section: str = "6.1") -> Register:
    return Register(name, offset, f"PCI 3.0, {section}", width=width)


_HEADER = RegisterMap(
    256,
    *(_pci("VENDOR_ID", 0x00, 2, "6.2.1"), _pci("DEVICE_ID", 0x02, 2, "6.2.1"), _pci("COMMAND", 0x04, 2, "6.2.2")),
    *(_pci("STATUS", 0x06, 2, "6.2.3"), _pci("REVISION_ID", 0x08, 1, "6.2.1"), _pci("CLASS_CODE", 0x09, 3, "6.2.1")),
    *(_pci("CACHE_LINE_SIZE", 0x0C, 1, "6.2.4"), _pci("LATENCY_TIMER", 0x0D, 1, "6.2.4")),
    *(_pci("HEADER_TYPE", 0x0E, 1, "6.2.1"), _pci("BIST", 0x0F, 1, "6.2.4")),
    *(_pci(f"BAR{bar}", 0x10 + 4 * bar, 4, "6.2.5.1") for bar in range(6)),
    *(_pci("CARDBUS_CIS", 0x28, 4, "6.2.4"), _pci("SUBSYSTEM_VENDOR_ID", 0x2C, 2, "6.2.4")),
    *(_pci("SUBSYSTEM_ID", 0x2E, 2, "6.2.4"), _pci("EXPANSION_ROM", 0x30, 4, "6.2.5.2")),
    *(_pci("CAPABILITIES", 0x34, 1, "6.7"), _pci("INTERRUPT_LINE", 0x3C, 1, "6.2.4")),
    *(_pci("INTERRUPT_PIN", 0x3D, 1, "6.2.4"), _pci("MIN_GNT", 0x3E, 1, "6.2.4"), _pci("MAX_LAT", 0x3F, 1, "6.2.4")),
    *(_pci(f"CAPABILITY+{at:#04x}", at, 4, "6.7") for at in range(0x40, 0x100, 4)),
)
_ADDRESS = Register("CONFIG_ADDRESS", 0, "PCI 3.0, 3.2.2.3.2", width=4)


class PciNames(Names):
    """Configuration mechanism 1: behind the data ports is the register that the address port has selected."""

    def __init__(self, address: int = 0) -> None:
        from pyvmm.devices.resetcontrol import REGISTERS

        super().__init__(_HEADER)
        self._address = address
        self._reset = REGISTERS["RST_CNT"]
        self._behind = False

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        self._behind = offset >= 4
        if offset == 1 and size == 1:
            return self._reset, 0
        if offset < 4:
            return _ADDRESS, offset
        return self._covering(self._address & 0xFC | offset & 3, is_write)

    def written(self, offset: int, size: int, value: int) -> None:
        if offset == 0 and size == 4:
            self._address = value

    def prefix(self) -> str:
        address = self._address
        if not self._behind:
            return ""
        return f"{address >> 16 & 0xFF:02x}:{address >> 11 & 0x1F:02x}.{address >> 8 & 7} "


def _configuration(kind: int) -> Names | None:
    """The fields of the configuration space of virtio devices of that type; None for an unknown one."""
    from pyvmm.virtio.configspace import FIELDS, LENGTH, SECTIONS

    if kind not in FIELDS:
        return None
    spec = f"virtio 1.3, {SECTIONS[kind]}"
    elements = ((field.width, *element) for field in FIELDS[kind] for element in field.elements())
    return Names(RegisterMap(LENGTH, *(Register(name, at, spec, width=width) for width, name, at in elements)))


class _WithConfig(Names):
    """A transport: its registers, and the device's configuration space from `begin` up to `end`."""

    def __init__(self, registers: RegisterMap, kind: int, begin: int, end: int) -> None:
        super().__init__(registers)
        self._begin, self._end = begin, end
        self._config = _configuration(kind)

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        if not self._begin <= offset < self._end:
            return self._covering(offset, is_write)
        at = offset - self._begin
        found = NOTHING if self._config is None else self._config.at(at, is_write, size)
        if found[0] is None:
            return Register(f"Config+{at:#x}", at, "virtio 1.3, 2.5", width=min(size, 8)), 0
        return found


class VirtioMmioNames(_WithConfig):
    """virtio over MMIO, of a device of type `kind`."""

    def __init__(self, kind: int) -> None:
        from pyvmm.virtio.mmio import LENGTH, REGISTERS
        from pyvmm.virtio.spec import MMIO_CONFIG

        super().__init__(REGISTERS, kind, MMIO_CONFIG, LENGTH)


class VirtioPciNames(_WithConfig):
    """BAR 0 of virtio over PCI."""

    def __init__(self, kind: int) -> None:
        from pyvmm.virtio.pci import COMMON_LENGTH, CONFIG, ISR, NOTIFY, NOTIFY_STRIDE, REGISTERS

        super().__init__(REGISTERS, kind, CONFIG, NOTIFY)
        self._common, self._isr, self._notify, self._stride = COMMON_LENGTH, ISR, NOTIFY, NOTIFY_STRIDE

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        if offset < self._common or self._begin <= offset < self._end:
            return super().at(offset, is_write, size)
        if offset == self._isr:
            return Register("ISR", offset, "virtio 1.3, 4.1.4.5"), 0
        if offset >= self._notify:
            queue = (offset - self._notify) // self._stride
            return Register(f"notify[{queue}]", offset, "virtio 1.3, 4.1.4.4", width=2), 0
        return NOTHING


class MsixNames(Names):
    """The table and the pending bits of MSI-X (PCI 3.0, 6.8.2)."""

    def __init__(self) -> None:
        super().__init__(RegisterMap(1))

    def at(self, offset: int, is_write: bool, size: int) -> Found:
        if offset >= 0x1000:
            return Register("PENDING", offset, "PCI 3.0, 6.8.2.10", width=8), 0
        word = ("MSG_ADDR", "MSG_UPPER_ADDR", "MSG_DATA", "VECTOR_CTRL")[offset >> 2 & 3]
        register = Register(f"{word}[{offset >> 4}]", offset & ~3, f"PCI 3.0, 6.8.2.{6 + (offset >> 2 & 3)}", width=4)
        return register, offset & 3


def _registers_of(module: str) -> Callable[[Entry], Names]:
    def make(entry: Entry) -> Names:
        from importlib import import_module

        return Names(import_module(f"pyvmm.devices.{module}").REGISTERS, entry.get("offset", 0))

    return make


def _own(entry: Entry) -> Names:
    """A device of a program's own, with the registers that it declares: name, offset, width, access, bank, section."""
    rows = entry.get("registers", ())
    registers = [Register(name, at, spec, width=width, access=access) for name, at, width, access, spec in rows]
    return Names(RegisterMap(entry["length"], *registers))


MODELS: dict[str, Callable[[Entry], Names]] = {
    "serial": lambda entry: SerialNames(entry.get("bank", 0)),
    "rtc": lambda entry: CmosNames(entry.get("bank", 0)),
    "debugexit": lambda entry: DebugExitNames(),
    "pci": lambda entry: PciNames(entry.get("bank", 0)),
    "virtio-mmio": lambda entry: VirtioMmioNames(entry.get("id", 0)),
    "virtio-pci": lambda entry: VirtioPciNames(entry.get("id", 0)),
    "msix": lambda entry: MsixNames(),
    "own": _own,
    **{name: _registers_of(name) for name in ("i8042", "acpipm", "debugcon", "pvpanic", "port92", "resetcontrol")},
}
"""How the registers of each model are named, from a device's entry in the header."""
