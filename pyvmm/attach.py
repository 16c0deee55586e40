"""The virtio devices of a VM: opened, put into the machine, started and taken apart again.

May import closing, kinds, virtio, the ports' back-ends; the rest of the machine only through the wiring that it is
given.
"""

from __future__ import annotations

from pyvmm import kinds
from pyvmm.closing import close_all
from pyvmm.errors import PyvmmError, UsageError
from pyvmm.virtio.plane import DataPlane

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.backends.ports import PortBackend, PortLink
    from pyvmm.config import VmConfig
    from pyvmm.hardware import Disk, Net
    from pyvmm.memory import GuestMemory
    from pyvmm.slots import Slot
    from pyvmm.virtio.console import VirtioConsole
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.faults import FaultPlan
    from pyvmm.virtio.lint import Findings
    from pyvmm.virtio.port import Port
    from pyvmm.virtio.transport import Transport
    from pyvmm.wiring import Wiring

STREAM_INPUT = 64 << 10
"""Bytes that wait for the guest at a port whose other end is this process: there may be much, and at once."""
DRAIN_WAIT = 1.0
"""Seconds without progress after which output of a port that nobody reads is given up."""


class VirtioDevices:
    """All virtio devices of one VM.

    `slots` says which there are and where. `say(text)` is told what a user should know, from any thread; `over()` tells
    whether the run has ended, `locate()` which vCPU runs on the calling thread, and at which RIP.

    devices   in the order of their slots
    console   the console device, or None
    ports     what its named ports are connected to, by name
    faults    the plan of faults on purpose, or None
    findings  what the guest's drivers did wrong, or None where nobody looks
    """

    def __init__(
        self,
        config: VmConfig,
        slots: Sequence[Slot],
        say: Callable[[str], None] | None,
        over: Callable[[], bool],
        locate: Callable[[], tuple[int, int] | None] = lambda: None,
    ) -> None:
        self.devices: list[VirtioDevice] = []
        self.faults: FaultPlan | None = None
        self.findings: Findings | None = None
        self.console: VirtioConsole | None = None
        self.ports: dict[str, PortBackend] = {}
        self._links: list[PortLink] = []
        self._config = config
        self._slots = slots
        self._say = say
        self._over = over
        self._locate = locate
        self._planes: list[DataPlane] = []
        self._transports: list[Transport] = []
        self._wiring: Wiring | None = None

    def open(self) -> None:
        """Open what the devices are connected to. Raises BackendError, UsageError; `close()` gives back."""
        config = self._config
        if config.faults:
            from pyvmm.virtio.faults import FaultPlan

            self.faults = FaultPlan(config.faults, config.fault_seed)
            self.faults.check([slot.name for slot in self._slots])
        if config.lint:
            from pyvmm.virtio.lint import Findings

            self.findings = Findings(self._say, self._locate)
        for slot in self._slots:
            device = self._make(slot)
            device.faults = self.faults
            device.native = device.native and self._datapath(slot) == "native"
            self.devices.append(device)

    def _datapath(self, slot: Slot) -> str:
        config = self._config
        own: dict[str, Sequence[Disk | Net]] = {"blk": config.disks, "net": config.nets}
        return (own[slot.kind][slot.number].datapath if slot.kind in own else None) or config.datapath

    def _make(self, slot: Slot) -> VirtioDevice:
        config, name, number = self._config, slot.name, slot.number
        if slot.kind == "own":
            device = config.virtio[number]
            device.name = name
            return device
        if slot.kind == "blk":
            return kinds.block(config.disks[number], name, self._reporter(name))
        if slot.kind == "net":
            return kinds.net(config.nets[number], name, self._reporter(name))
        if slot.kind == "console":
            self.console = kinds.console(self._make_ports(), name)
            return self.console
        if slot.kind == "rng":
            assert config.rng is not None
            return kinds.rng(config.rng, name)
        if slot.kind == "9p":
            return kinds.share(config.shares[number], name, self._reporter(name))
        if slot.kind == "vsock":
            assert config.vsock is not None
            return kinds.vsock(config.vsock, name, self._reporter(name))
        assert config.balloon is not None
        return kinds.balloon(config.balloon, name)

    def _make_ports(self) -> list[Port]:
        from pyvmm.backends.ports import PortStream, connect, make_port_backend
        from pyvmm.virtio.port import INPUT_LIMIT, Port

        ports = [Port()]  # the console
        for wanted in self._config.ports:
            port = Port(wanted.name, limit=INPUT_LIMIT if wanted.where is not None else STREAM_INPUT)
            backend: PortBackend = PortStream()
            if wanted.where is not None:
                backend = make_port_backend(wanted.where, wanted.name, say=self._tell)
            self._links.append(connect(port, backend, over=self._over))
            self.ports[wanted.name] = backend
            ports.append(port)
        return ports

    def _tell(self, text: str) -> None:
        if self._say is not None:
            self._say(text)

    def _reporter(self, name: str) -> Callable[[str], None]:
        """What tells the user about device `name`."""
        return lambda text: self._tell(f"{name}: {text}")

    def attach(self, memory: GuestMemory, wiring: Wiring) -> None:
        """Put the devices into the machine by way of `wiring`. Raises PyvmmError when out of descriptors."""
        self._wiring = wiring
        for slot, device in zip(self._slots, self.devices, strict=True):
            device.memory = memory
            try:
                transport = wiring.plug(slot, device, self.findings)
                self._transports.append(transport)
                plane = DataPlane(device, transport, self._say)
            except OSError as error:
                raise PyvmmError(f"{slot.name}: no event descriptor: {error.strerror} (ulimit -n)") from error
            self._planes.append(plane)
            wiring.connect(slot, transport, plane.doorbells)

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

    def settle(self) -> None:
        """The guest does not run any more: let a lint of its drivers come to its end. A second call finds nothing."""
        if self.findings is not None:
            for device in self.devices:
                if device.lint is not None:
                    device.lint.settle()

    def saved_with(self) -> list[tuple[VirtioDevice, Transport]]:
        """The devices, each with the transport that is saved with it."""
        return list(zip(self.devices, self._transports, strict=True))

    def device(self, name: str) -> VirtioDevice:
        """The device called `name`, as "blk0". Raises UsageError, which says what there is."""
        for device in self.devices:
            if device.name == name:
                return device
        there = ", ".join(device.name for device in self.devices)
        raise UsageError(f"there is no device {name!r} (there {f'are {there}' if there else 'is none'})")

    def close(self) -> None:
        """End the data planes and close the back-ends, each whatever the others do; raises the first failure."""
        for backend in self.ports.values():
            backend.drain(DRAIN_WAIT)
        closers = [
            *(() if self._wiring is None else (self._wiring.close,)),
            *(device.close for device in reversed(self.devices)),
            *(plane.close for plane in reversed(self._planes)),
        ]
        failure = close_all(closers)
        self._planes, self._transports, self.devices, self._wiring = [], [], [], None
        if failure is not None:
            raise failure
