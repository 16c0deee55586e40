"""What lies where: RAM and what was put into it, device registers, the holes between, and ports.

Imports layout and config's sizes. The chips that are KVM's own are not on a bus: layout, the KVM API document and the
data sheets say where they answer.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.config import format_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from pyvmm.debug.views.subject import Subject

KVM_PAGES = (
    (layout.IOAPIC, layout.PAGE, "IOAPIC (KVM's)"),
    (layout.LAPIC, layout.PAGE, "local APIC (KVM's)"),
    (layout.KVM_IDENTITY_MAP, layout.PAGE, "identity map (KVM's)"),
    (layout.KVM_TSS, layout.KVM_RESERVED_END - layout.KVM_TSS, "TSS (KVM's)"),
)
KVM_PORTS = (
    (0x20, 2, "pic (KVM's)"),
    (0x40, 4, "pit (KVM's)"),
    (0x61, 1, "pit's gate and speaker (KVM's)"),
    (0xA0, 2, "second pic (KVM's)"),
    (0x4D0, 2, "edge or level of the pics' inputs (KVM's)"),
)
"""8259A, 8254 and the ELCR, as on a PC (KVM API, 4.24 and 4.71)."""


class Place:
    """`length` bytes (or ports) from `start`: `kind` is "RAM", "device", "hole" or, within RAM, "loaded"."""

    __slots__ = ("kind", "length", "start", "what")

    def __init__(self, start: int, length: int, kind: str, what: str) -> None:
        self.start = start
        self.length = length
        self.kind = kind
        self.what = what

    def line(self, digits: int, size: Callable[[int], str]) -> str:
        last = f"{self.start:#0{digits}x}-{self.start + self.length - 1:#0{digits}x}"
        inside = "  " if self.kind == "loaded" else ""
        return f"{inside}{last}{'' if inside else '  '} {size(self.length):>11}  {self.what}"

    def data(self) -> dict[str, Any]:
        return {"start": hex(self.start), "length": self.length, "kind": self.kind, "what": self.what}


def memory_map(vm: Subject) -> list[str]:
    """Guest-physical memory by address, then the ports that a device has."""
    lines = ["guest-physical memory:", *(f"  {found.line(14, format_size)}" for found in _memory(vm))]
    return [*lines, "ports:", *(f"  {found.line(6, str)}" for found in _ports(vm))]


def memory_map_data(vm: Subject) -> dict[str, Any]:
    """The same for programs."""
    return {"memory": [found.data() for found in _memory(vm)], "ports": [found.data() for found in _ports(vm)]}


def _memory(vm: Subject) -> Iterator[Place]:
    ram = [Place(it.gpa, it.length, "RAM", f"RAM, memory slot {it.slot}") for it in vm.memory.regions]
    devices = [Place(base, length, "device", it.name) for base, length, it in vm.machine.mmio.placed()]
    kvm = [Place(*place[:2], "device", place[2]) for place in KVM_PAGES]
    loaded = [] if vm.loaded is None else [Place(it.gpa, it.length, "loaded", it.what) for it in vm.loaded.pieces]
    end = max(layout.HOLE_END, *(it.start + it.length for it in ram))
    at = 0
    for found in sorted([*ram, *devices, *kvm], key=lambda it: it.start):
        if found.start > at:
            yield Place(at, found.start - at, "hole", "nothing: reads give all ones")
        yield found
        if found.kind == "RAM":
            yield from (it for it in loaded if found.start <= it.start < found.start + found.length)
        at = max(at, found.start + found.length)
    if at < end:
        yield Place(at, end - at, "hole", "nothing: reads give all ones")


def _ports(vm: Subject) -> Iterable[Place]:
    devices = [Place(base, length, "device", it.name) for base, length, it in vm.machine.ports.placed()]
    return sorted([*devices, *(Place(*place[:2], "device", place[2]) for place in KVM_PORTS)], key=lambda it: it.start)
