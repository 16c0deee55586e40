"""The virtio devices of a VM: opened, put into the machine, started and taken apart again.

May import virtio, the back-ends and slots; KVM only through the VM's descriptor that it is given.
"""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.events import EventFd
from pyvmm.slots import slots
from pyvmm.virtio.mmio import LENGTH, QUEUE_NOTIFY, VirtioMmio
from pyvmm.virtio.plane import DataPlane

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.backends.net import Frames
    from pyvmm.backends.ports import PortBackend, PortLink
    from pyvmm.bus import Bus
    from pyvmm.config import VmConfig
    from pyvmm.hardware import Disk, Net
    from pyvmm.memory import GuestMemory
    from pyvmm.slots import Slot
    from pyvmm.virtio.console import VirtioConsole
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.faults import FaultPlan

    class Wiring(Protocol):
        """What a VM's descriptor does for a device; `pyvmm.kvm.vm.VmFd` has it."""

        def irqfd(self, fd: int, gsi: int) -> None: ...

        def ioeventfd(self, fd: int, address: int, length: int, datamatch: int) -> None: ...


DRAIN_WAIT = 1.0
"""Seconds without progress after which output of a port that nobody reads is given up."""


class VirtioDevices:
    """All virtio devices of one VM.

    `say(text)` is told what a user should know; from any thread. `over()` tells whether the run has ended.

    devices   in the order of their slots
    console   the console device, or None
    ports     what its named ports are connected to, by name
    faults    the plan of faults on purpose, or None
    """

    def __init__(self, config: VmConfig, say: Callable[[str], None] | None, over: Callable[[], bool]) -> None:
        self.devices: list[VirtioDevice] = []
        self.faults: FaultPlan | None = None
        self.console: VirtioConsole | None = None
        self.ports: dict[str, PortBackend] = {}
        self._links: list[PortLink] = []
        self._config = config
        self._say = say
        self._over = over
        self._planes: list[DataPlane] = []
        self._lines: list[EventFd] = []

    def open(self) -> None:
        """Open what the devices are connected to. Raises BackendError, UsageError; `close()` gives back."""
        config = self._config
        found = slots(config)
        if config.faults:
            from pyvmm.virtio.faults import FaultPlan

            self.faults = FaultPlan(config.faults, config.fault_seed)
            self.faults.check([slot.name for slot in found])
        for slot in found:
            device = self._make(slot)
            device.faults = self.faults
            self.devices.append(device)

    def _make(self, slot: Slot) -> VirtioDevice:
        config, name = self._config, slot.name
        if slot.kind == "blk":
            return self._block(config.disks[slot.number], name)
        if slot.kind == "net":
            return self._net(config.nets[slot.number], name)
        if slot.kind == "console":
            return self._console(name)
        from pyvmm.virtio.rng import VirtioRng

        assert config.rng is not None
        return VirtioRng(name=name, rate=config.rng.rate)

    def _block(self, disk: Disk, name: str) -> VirtioDevice:
        from pyvmm.backends.disk import open_disk
        from pyvmm.virtio.block import VirtioBlock

        image = open_disk(disk.path, readonly=disk.readonly, overlay=disk.overlay, cache=disk.cache, format=disk.format)
        report = self._reporter(name)
        return VirtioBlock(image, name=name, serial=disk.serial or name, queues=disk.queues, report=report)

    def _net(self, net: Net, name: str) -> VirtioDevice:
        from pyvmm.backends.net import random_mac
        from pyvmm.virtio.net import VirtioNet

        report = self._reporter(name)
        backend = _frames(net)
        try:
            if net.pcap is not None:
                from pyvmm.backends.net.pcap import Capture

                backend = Capture(backend, net.pcap, report=report)
            return VirtioNet(
                backend, name=name, mac=net.mac or random_mac(), mtu=net.mtu, spoof=net.spoof, report=report
            )
        except BaseException:
            backend.close()
            raise

    def _console(self, name: str) -> VirtioDevice:
        from pyvmm.backends.ports import PortStream, connect, make_port_backend
        from pyvmm.virtio.console import VirtioConsole
        from pyvmm.virtio.port import Port

        ports = [Port()]  # the console
        for wanted in self._config.ports:
            port = Port(wanted.name)
            backend: PortBackend = PortStream()
            if wanted.where is not None:
                backend = make_port_backend(wanted.where, wanted.name, say=self._tell)
            self._links.append(connect(port, backend, over=self._over))
            self.ports[wanted.name] = backend
            ports.append(port)
        self.console = VirtioConsole(ports, name=name)
        return self.console

    def _tell(self, text: str) -> None:
        if self._say is not None:
            self._say(text)

    def _reporter(self, name: str) -> Callable[[str], None]:
        """What tells the user about device `name`."""
        return lambda text: self._tell(f"{name}: {text}")

    def attach(self, memory: GuestMemory, bus: Bus, wiring: Wiring) -> None:
        """Put the devices into the machine: registers on `bus`, doorbells and interrupts to KVM."""
        for slot, device in zip(slots(self._config), self.devices, strict=True):
            line = EventFd()
            self._lines.append(line)
            device.memory = memory
            transport = VirtioMmio(device, line.signal)
            plane = DataPlane(device, transport, self._say)
            self._planes.append(plane)
            bus.attach(slot.gpa, LENGTH, transport)
            wiring.irqfd(line.fd, slot.gsi)
            for index, doorbell in enumerate(plane.doorbells):
                wiring.ioeventfd(doorbell.fd, slot.gpa + QUEUE_NOTIFY, 4, index)

    def start(self) -> None:
        """Let the data planes serve and the ports' back-ends begin. Raises BackendError."""
        for backend, link in zip(self.ports.values(), self._links, strict=True):
            backend.start(link)
        for plane in self._planes:
            plane.start()

    def pause(self) -> None:
        """Return when no data plane has a request in hand; none takes another until `resume()`."""
        for plane in self._planes:
            plane.pause()

    def resume(self) -> None:
        """Serve again, every queue as if the driver had rung."""
        for plane in self._planes:
            plane.resume()

    def device(self, name: str) -> VirtioDevice:
        """The device called `name`, as "blk0". Raises UsageError, which says what there is."""
        for device in self.devices:
            if device.name == name:
                return device
        there = ", ".join(device.name for device in self.devices)
        raise UsageError(f"there is no device {name!r} (there {f'are {there}' if there else 'is none'})")

    def close(self) -> None:
        """End the data planes and close the back-ends, each whatever the others do; raises the first failure."""
        failure: Exception | None = None
        for backend in self.ports.values():
            backend.drain(DRAIN_WAIT)
        for close in [
            *(plane.close for plane in self._planes),
            *(device.close for device in self.devices),
            *(line.close for line in self._lines),
        ]:
            try:
                close()
            except Exception as error:
                failure = failure or error
        self._planes, self.devices, self._lines = [], [], []
        if failure is not None:
            raise failure


def _frames(net: Net) -> Frames:
    """What the interface is connected to. Raises BackendError, UsageError."""
    if net.kind == "tap":
        from pyvmm.backends.net.tap import open_tap

        return open_tap(net.target, mtu=net.mtu)
    if net.kind == "socket":
        from pyvmm.backends.net.switch import join_switch

        return join_switch(net.target)
    from pyvmm.backends.net.forward import parse_forward, parse_publish
    from pyvmm.backends.net.passt import Passt

    # Only QEMU's way of writing a forward has a dash.
    forwards = [parse_forward(text) if "-" in text else parse_publish(text) for text in net.forwards]
    return Passt(forwards, mtu=net.mtu)
