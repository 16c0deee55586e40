"""How the virtio devices of a VM reach their driver: the transport, its place in the machine, doorbells and interrupts.

May import the transports, PCI, the machine's layout, slots and, for PCI, what keeps KVM's interrupt routes and
doorbells. There is one class for each transport, and one object of it a VM.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.events import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from pyvmm.kvm.doorbells import MovingDoorbells
    from pyvmm.kvm.routing import MsiWires
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.pci.config import Function
    from pyvmm.slots import Slot
    from pyvmm.trace.recorder import Tracer
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.lint import Findings
    from pyvmm.virtio.mmio import VirtioMmio
    from pyvmm.virtio.pci import VirtioPci

    class Wiring(Protocol):
        """What both classes do."""

        def plug(self, slot: Slot, device: VirtioDevice, findings: Findings | None) -> VirtioMmio | VirtioPci:
            """Give `device` its transport at `slot`. With `findings` its driver is judged."""

        def connect(self, slot: Slot, transport: Any, doorbells: Sequence[EventFd]) -> None:
            """Let the driver's notifications ring `doorbells`, a queue's each.

            Not those of a driver that is judged: every access then comes to `transport`, which `plug` has given.
            """

        def close(self) -> None:
            """Close what was opened. The data planes have ended."""


def wiring(transport: str, machine: Machine, vm: VmFd, tracer: Tracer | None) -> Wiring:
    """For "mmio" or "pci", in `machine`, whose interrupts and doorbells are `vm`'s. `tracer` records interrupts."""
    return (PciWiring if transport == "pci" else MmioWiring)(machine, vm, tracer)


class MmioWiring:
    """Each device a page of registers, whose interrupt is an edge (`irqfd`)."""

    __slots__ = ("_lines", "_machine", "_tracer", "_vm")

    def __init__(self, machine: Machine, vm: VmFd, tracer: Tracer | None) -> None:
        self._machine = machine
        self._vm = vm
        self._tracer = tracer
        self._lines: list[EventFd] = []

    def plug(self, slot: Slot, device: VirtioDevice, findings: Findings | None) -> VirtioMmio:
        from pyvmm.virtio.mmio import INTERRUPT_WINDOW, LENGTH, VirtioMmio

        line = EventFd()
        self._lines.append(line)
        signal = line.signal if self._tracer is None else self._tracer.edge(line.signal, slot.name, slot.gsi)
        wires = signal, self._machine.hot.window(*INTERRUPT_WINDOW)
        transport: VirtioMmio
        if findings is None:
            transport = VirtioMmio(device, *wires)
        else:
            from pyvmm.virtio.lint import LintedMmio

            transport = LintedMmio(device, *wires, findings=findings)
        self._machine.mmio.attach(slot.gpa, LENGTH, transport)
        self._vm.irqfd(line.fd, slot.gsi)
        return transport

    def connect(self, slot: Slot, transport: VirtioMmio, doorbells: Sequence[EventFd]) -> None:
        from pyvmm.virtio.mmio import QUEUE_NOTIFY

        if transport.device.lint is not None:
            return
        for index, doorbell in enumerate(doorbells):
            self._vm.ioeventfd(doorbell.fd, slot.gpa + QUEUE_NOTIFY, 4, index)

    def close(self) -> None:
        for line in self._lines:
            line.close()
        self._lines.clear()


class PciWiring:
    """Each device a function on bus 0, whose interrupts are messages or, for drivers that want none, a shared level.

    The functions start as firmware leaves them: BARs point into the window, and nothing is decoded yet.
    """

    __slots__ = (
        "_bridge",
        "_decoder",
        "_doorbells",
        "_lines",
        "_machine",
        "_routing",
        "_tracer",
        "_vm",
        "_wires",
    )

    def __init__(self, machine: Machine, vm: VmFd, tracer: Tracer | None) -> None:
        from pyvmm.events import SharedLine
        from pyvmm.kvm.routing import Routing
        from pyvmm.pci.bridge import HostBridge
        from pyvmm.pci.decoder import Decoder

        def level(gsi: int) -> Callable[[bool], None]:
            return lambda asserted: machine.interrupt(gsi, asserted)

        self._tracer = tracer
        self._machine = machine
        self._vm = vm
        self._routing = Routing(vm)
        self._lines = {gsi: SharedLine(level(gsi)) for gsi in layout.PCI_GSIS}
        self._wires: list[MsiWires] = []
        self._doorbells: dict[Function, MovingDoorbells] = {}
        self._decoder = Decoder(machine.mmio, layout.PCI_WINDOW, layout.PCI_WINDOW_END, self._moved)
        self._bridge = HostBridge()
        machine.add_pci(self._bridge)

    def plug(self, slot: Slot, device: VirtioDevice, findings: Findings | None) -> VirtioPci:
        from pyvmm.kvm.routing import MsiWires
        from pyvmm.virtio.pci import VirtioPci

        assert slot.device is not None
        wires = MsiWires(self._vm, self._routing, len(device.queues) + 1)
        self._wires.append(wires)
        carried = wires if self._tracer is None else self._tracer.messages(wires, slot.name)
        transport: VirtioPci
        if findings is None:
            transport = VirtioPci(device, carried, self._lines[slot.gsi].source())
        else:
            from pyvmm.virtio.lint import LintedPci

            transport = LintedPci(device, carried, self._lines[slot.gsi].source(), findings=findings)
        function = transport.function
        gpa = slot.gpa
        # The largest first: then each is a multiple of its own length.
        for number, window in sorted(function.bars.items(), key=lambda bar: -bar[1].length):
            function.place(number, gpa)
            gpa += window.length
        function.set_interrupt_line(slot.gsi)
        self._bridge.plug(slot.device, function)
        return transport

    def connect(self, slot: Slot, transport: VirtioPci, doorbells: Sequence[EventFd]) -> None:
        from pyvmm.kvm.doorbells import MovingDoorbells

        bells = zip((bell.fd for bell in doorbells), transport.notify_ranges(), strict=True)
        moving = self._doorbells[transport.function] = MovingDoorbells(self._vm, bells)
        if transport.device.lint is None:
            transport.rung = moving.rung
        self._decoder.add(transport.function)

    def _moved(self, function: Function, bar: int, gpa: int | None) -> None:
        if bar == 0:
            self._doorbells[function].move(gpa)

    def close(self) -> None:
        for wires in self._wires:
            wires.close()
        self._wires.clear()
