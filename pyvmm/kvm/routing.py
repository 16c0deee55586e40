"""Where a VM's GSIs lead, and message signalled interrupts on GSIs of their own.

Imports its neighbours in kvm/, layout, events and errors. KVM has one table, which is always set whole (KVM API, 4.52):
`Routing` keeps it. `MsiWires` carries the messages of one device: an eventfd for each, which KVM turns into an
interrupt without anybody's help (an irqfd, 4.75).
"""

from __future__ import annotations

from threading import Lock

from pyvmm import layout
from pyvmm.errors import UsageError
from pyvmm.events import EventFd
from pyvmm.kvm.constants import (
    KVM_CAP_IRQ_ROUTING,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
)
from pyvmm.kvm.entries import IrqchipRoute, MsiRoute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Wiring(Protocol):
        """What both ask of a VM; `pyvmm.kvm.vm.VmFd` has it."""

        def check_extension(self, capability: int) -> int: ...

        def set_gsi_routing(self, routes: Sequence[IrqchipRoute | MsiRoute]) -> None: ...

        def irqfd(self, fd: int, gsi: int) -> None: ...


PIC_PINS = 8
"""Of each of the two."""


def pins() -> list[IrqchipRoute]:
    """The routes that a VM begins with: each GSI to the I/O APIC's pin, those of ISA to one of the PICs' as well.

    As KVM's own default has it (Linux, arch/x86/kvm/irq_comm.c).
    """
    routes = [IrqchipRoute(gsi, KVM_IRQCHIP_IOAPIC, gsi) for gsi in range(layout.IOAPIC_PINS)]
    for first, chip in ((0, KVM_IRQCHIP_PIC_MASTER), (PIC_PINS, KVM_IRQCHIP_PIC_SLAVE)):
        routes += [IrqchipRoute(first + pin, chip, pin) for pin in range(PIC_PINS)]
    return routes


class Routing:
    """The GSI routing table of `vm`, which has KVM's interrupt controllers. Any thread.

    KVM waits for all who use the old table whenever it gets a new one, so it is told of real changes only.
    """

    __slots__ = ("_free", "_lock", "_messages", "_next", "_pins", "_vm", "limit")

    def __init__(self, vm: Wiring) -> None:
        """Asks KVM for the number of routes there may be; the table stays as it is. Raises KvmError."""
        self._vm = vm
        self._lock = Lock()
        self._pins = pins()
        self._messages: dict[int, MsiRoute] = {}
        self._next = layout.IOAPIC_PINS  # from here on they are free for messages
        self._free: list[int] = []
        self.limit = vm.check_extension(KVM_CAP_IRQ_ROUTING) - len(self._pins)
        """How many messages there may be: KVM counts routes, and a GSI is below as many."""

    def allocate(self) -> int:
        """A GSI that nobody else has; it leads nowhere. Raises UsageError when there are no more."""
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._next - layout.IOAPIC_PINS >= self.limit:
                raise UsageError(f"this host's KVM routes {self.limit} message signalled interrupts, not one more")
            self._next += 1
            return self._next - 1

    def release(self, gsi: int) -> None:
        """Give back a GSI that `allocate` gave."""
        with self._lock:
            self._messages.pop(gsi, None)  # KVM may keep the route until the next change: nobody signals it
            self._free.append(gsi)

    def set(self, gsi: int, address: int, data: int) -> None:
        """Let `gsi`, which `allocate` gave, be the message `data` to `address`. Raises KvmError."""
        with self._lock:
            before = self._messages.get(gsi)
            if before is not None and (before.address, before.data) == (address, data):
                return
            messages = {**self._messages, gsi: MsiRoute(gsi, address, data)}
            self._vm.set_gsi_routing([*self._pins, *messages.values()])
            self._messages = messages


class MsiWires:
    """The messages of one device, `vectors` of them: what carries them into the VM.

    A masked one keeps its wire, and nobody signals it: masking is the device's own affair, and costs KVM nothing.
    """

    __slots__ = ("_events", "_gsis", "_routing", "_vm")

    def __init__(self, vm: Wiring, routing: Routing, vectors: int) -> None:
        """Opens an eventfd for each vector. Raises OSError when out of descriptors, UsageError, KvmError."""
        self._vm = vm
        self._routing = routing
        self._events: list[EventFd] = []
        self._gsis: list[int] = []
        try:
            for _ in range(vectors):
                self._events.append(EventFd())
                self._gsis.append(routing.allocate())
                vm.irqfd(self._events[-1].fd, self._gsis[-1])
        except BaseException:
            self.close()
            raise

    def route(self, vector: int, address: int, data: int) -> None:
        """From now on `vector` is the message `data` to `address`. Raises KvmError."""
        self._routing.set(self._gsis[vector], address, data)

    def unroute(self, vector: int) -> None:
        """Nobody signals `vector` until it is routed again. KVM need not know: the route may be the same then."""

    def signal(self, vector: int) -> None:
        """Send the message of `vector`. Any thread; does not block."""
        self._events[vector].signal()

    def fd(self, vector: int) -> int:
        """The eventfd that sends the message of `vector`, for who signals it without Python."""
        return self._events[vector].fd

    def close(self) -> None:
        """Close the eventfds, which takes them from KVM, and give back the GSIs. A second call does nothing."""
        events, self._events = self._events, []
        gsis, self._gsis = self._gsis, []
        for event in events:
            event.close()
        for gsi in gsis:
            self._routing.release(gsi)
