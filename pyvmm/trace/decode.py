"""Which register an access means, and what its value says: device, register, bits by name, section.

Imports naming, and the bus for who has one. The decoder is told where devices are and then of all accesses in their
order: so it knows which bank of registers is selected at each, before that access has its effect.
"""

from __future__ import annotations

from bisect import bisect_right

from pyvmm.bus import Later
from pyvmm.registers import Register
from pyvmm.trace.naming import MODELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pyvmm.machine import Machine
    from pyvmm.trace.naming import Names

    Record = dict[str, Any]

KVM_API = "KVM API, 5"
TEXT = frozenset(("THR", "RBR", "CHARACTER"))
"""Registers whose values are characters."""

_AT = "IBM PC/AT Technical Reference"
LEGACY = (
    (0x20, 2, "8259A master", "Intel 8259A"),
    (0x40, 4, "8254 timer", "Intel 8254"),
    (0x61, 1, "system control port B", f"{_AT}, port 0x61"),
    (0x80, 16, "POST code", f"{_AT}, port 0x80"),
    (0xA0, 2, "8259A slave", "Intel 8259A"),
    (0xF0, 2, "coprocessor", f"{_AT}, port 0xf0"),
    (0x170, 8, "second IDE channel", "ATA-2, 7.2"),
    (0x1F0, 8, "first IDE channel", "ATA-2, 7.2"),
    (0x278, 3, "LPT2", f"{_AT}, parallel port"),
    (0x2E8, 8, "COM4", "PC16550D table II"),
    (0x2F8, 8, "COM2", "PC16550D table II"),
    (0x378, 3, "LPT1", f"{_AT}, parallel port"),
    (0x3B0, 0x30, "VGA", "IBM VGA XGA Technical Reference"),
    (0x3E8, 8, "COM3", "PC16550D table II"),
    (0x3F0, 8, "diskette controller", f"{_AT}, diskette adapter"),
    (0x4D0, 2, "ELCR", "Intel ICH10 13.5.14"),
    (0xCF8, 8, "PCI configuration", "PCI 3.0, 3.2.2.3.2"),
)
"""What a PC has at ports where nothing answers here: (first, how many, what, where it is specified)."""


class Decoded:
    """An access in words.

    device     its name, or "" where none answers
    register   the declaration, or None
    words      "LSR 0x60: THRE TEMT"
    spec       document and section, or ""
    """

    __slots__ = ("device", "register", "spec", "words")

    def __init__(self, device: str, register: Register | None, words: str, spec: str) -> None:
        self.device = device
        self.register = register
        self.words = words
        self.spec = spec

    @property
    def name(self) -> str:
        """The register's name, or ""."""
        return self.register.name if self.register is not None else ""


class Decoder:
    """Knows the devices of `entries`, each as in the header of a trace. Not for several threads at once."""

    def __init__(self, entries: Iterable[Record] = ()) -> None:
        self._ranges: dict[str, list[tuple[int, int, str, Names | None]]] = {"pio": [], "mmio": []}
        self.place(entries)

    @classmethod
    def of(cls, machine: Machine) -> Decoder:
        """One for the devices of `machine` as they are attached now."""
        return cls(describe(machine))

    def place(self, entries: Iterable[Record]) -> None:
        """There are these devices too; one takes the place of another at the same base."""
        for entry in entries:
            ranges = self._ranges.get(entry["space"])
            if ranges is None:
                continue
            self.remove(entry["space"], entry["base"])
            make = MODELS.get(entry.get("model", ""))
            names = make(entry) if make is not None else None
            ranges.append((entry["base"], entry["base"] + entry["length"], entry["name"], names))
            ranges.sort(key=lambda one: one[0])

    def remove(self, space: str, base: int) -> None:
        """The device at `base` is there no more; nothing happens if there was none."""
        self._ranges[space][:] = [one for one in self._ranges[space] if one[0] != base]

    def move(self, record: Record) -> None:
        """What a record of the kind "device" says: one has come, or gone."""
        if record.get("attached", True):
            self.place((record,))
        else:
            self.remove(record["space"], record["base"])

    def decode(self, space: str, address: int, size: int, is_write: bool, value: int) -> Decoded:
        """The next access: of "pio" or "mmio", `size` bytes, with the `value` that was written or read."""
        ranges = self._ranges[space]
        at = bisect_right(ranges, address, key=lambda one: one[0]) - 1
        if at < 0 or address + size > ranges[at][1]:
            return _unclaimed(space, address, value, size)
        base, _, device, names = ranges[at]
        if names is None:
            return Decoded(device, None, f"+{address - base:#x} {value:#x}", "")
        offset = address - base
        first, _ = names.at(offset, is_write, size)
        if first is None:
            return Decoded(device, None, f"+{offset:#x} {value:#0{2 + 2 * size}x}", "")
        prefix = names.prefix()
        words = prefix + _words(names, offset, size, is_write, value)
        if is_write:
            names.written(offset, size, value)
        return Decoded(device, first, words, first.spec)

    def explain(self, record: Record) -> None:
        """Add to an exit's record what it means: "device", "register", "words" and "spec"."""
        if "at" not in record:
            record["words"] = record["reason"]
            record["spec"] = f"{KVM_API}, KVM_EXIT_{record['reason']}"
            return
        size, data = record["size"], bytes.fromhex(record["data"])
        value = int.from_bytes(data[:size], "little")
        found = self.decode(record["space"], record["at"], size, record["write"], value)
        for at in range(size, len(data), size):  # a string goes on at the same place
            more = int.from_bytes(data[at : at + size], "little")
            self.decode(record["space"], record["at"], size, record["write"], more)
        if found.device:
            record["device"] = found.device
        if found.register is not None:
            record["register"] = found.register.name
        record["words"] = found.words
        if record["count"] > 1:
            shown = repr(data.decode("latin-1")) if found.name in TEXT else f"{len(data)} bytes"
            record["words"] = f"{found.name or found.words} x{record['count']}: {shown}"
        if found.spec:
            record["spec"] = found.spec


def _words(names: Names, offset: int, size: int, is_write: bool, value: int) -> str:
    """The registers that an access covers, each with its bits."""
    parts = []
    at, end = offset, offset + size
    while at < end:
        one, within = names.at(at, is_write, end - at)
        step = 1 if one is None else max(min(one.width - within, end - at), 1)
        bits = value >> 8 * (at - offset) & (1 << 8 * step) - 1
        if one is not None:
            text = one.describe(bits << 8 * within)
            parts.append(f"{text} {chr(bits)!r}" if one.name in TEXT and 32 <= bits < 127 else text)
        at += step
    return "; ".join(parts)


def _unclaimed(space: str, address: int, value: int, size: int) -> Decoded:
    shown = f"{value:#0{2 + 2 * size}x}"
    if space == "pio":
        for first, count, what, spec in LEGACY:
            if first <= address < first + count:
                name = what if count == 1 else f"{what} {address:#x}"
                return Decoded("", Register(name, 0, spec, width=size), f"{name} {shown}: nobody answers", spec)
    where = "port" if space == "pio" else "address"
    return Decoded("", None, f"{where} {address:#x} {shown}: nobody answers", "")


# --- Which devices a machine has ------------------------------------------------------------------------------------

_BY_NAME = {"acpi-pm": "acpipm", "firmware-debugcon": "debugcon"}
"""The models of devices that are called otherwise; for those that have not been made yet."""
_BY_MODULE = {
    "pyvmm.pci.bridge": "pci",
    "pyvmm.pci.msix": "msix",
    "pyvmm.virtio.mmio": "virtio-mmio",
    "pyvmm.virtio.pci": "virtio-pci",
}


def describe(machine: Machine) -> list[Record]:
    """The devices of `machine` as entries of a trace's header. None of them is made that the guest has not used."""
    entries = []
    for space, bus in (("pio", machine.ports), ("mmio", machine.mmio)):
        entries += [entry(space, base, length, device) for base, length, device in bus.placed()]
    return entries


def entry(space: str, base: int, length: int, device: Any) -> Record:
    """One device that is attached to a bus."""
    found: Record = {"name": device.name, "space": space, "base": base, "length": length}
    found["model"] = _model(device)
    if found["model"] == "i8042":
        found["offset"] = getattr(device, "offset", 0 if base == 0x60 else 4)
    elif found["model"] in ("virtio-mmio", "virtio-pci"):
        found["id"] = device.device.device_id
    elif found["model"] == "own":
        registers = getattr(device, "registers", None) or ()
        found["registers"] = [[one.name, one.offset, one.width, one.access, one.spec] for one in registers]
    bank = _bank(found["model"], device)
    return found | ({"bank": bank} if bank else {})


def _model(device: Any) -> str:
    kind = type(device)
    module = kind.__module__
    if isinstance(device, Later):  # not made yet
        return _BY_NAME.get(device.name, device.name)
    if kind.__name__ == "PortWindow":
        return _model(device.device)
    if module.startswith("pyvmm.devices."):
        return "pci" if kind.__name__ == "AmongConfigPorts" else module.rpartition(".")[2]
    # A transport that is looked at (`pyvmm.virtio.lint`) is a class of its own above one of these.
    return next((_BY_MODULE[base.__module__] for base in kind.__mro__ if base.__module__ in _BY_MODULE), "own")


def _bank(model: str, device: Any) -> int:
    """What the device has selected now: a restored one may have selected something."""
    if model == "serial":
        return int(getattr(device, "bank", 0))
    if model == "rtc":
        return int(getattr(device, "_index", 0))
    bridge = getattr(device, "_bridge", device)
    return int(getattr(bridge, "_address", 0)) if model == "pci" else 0
