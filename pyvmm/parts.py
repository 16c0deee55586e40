"""The parts of a VM as its user meets them: what can be looked at, and what can be changed while it lives.

A base of `pyvmm.vm.VM`, which makes and ends all this. May import what is below vm, each where it is asked for.
"""

from __future__ import annotations

import time

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.attach import VirtioDevices
    from pyvmm.backends.ports import PortBackend
    from pyvmm.config import VmConfig
    from pyvmm.debug.consolewatch import Complaint
    from pyvmm.debug.diagnosis import Diagnosis
    from pyvmm.debug.evidence import Reason
    from pyvmm.kvm.host import Host
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.machine import Machine
    from pyvmm.memory import GuestMemory
    from pyvmm.runloop import Control, Outcome, VcpuLoop
    from pyvmm.slots import Slot
    from pyvmm.virtio.balloon import VirtioBalloon
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.faults import FaultPlan


class Parts:
    """What `VM` has beside its lifecycle."""

    config: VmConfig
    loops: tuple[VcpuLoop, ...]
    _control: Control
    _diagnosis: Diagnosis
    _ended_at: float
    _host: Host | None
    _machine: Machine | None
    _memory: GuestMemory | None
    _slots: list[Slot]
    _started_at: float
    _vcpus: tuple[VcpuFd, ...]
    _virtio: VirtioDevices | None

    def still(self) -> Still:
        """For a `with`: every vCPU stands still inside, whether the VM is paused or not, and is as it was behind it."""
        return Still(self._control)

    @property
    def exit(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._control.outcome

    @property
    def host(self) -> Host:
        """Which KVM this is, and its quirks."""
        if self._host is None:
            from pyvmm.kvm.host import Host

            self._host = Host()
        return self._host

    @property
    def memory(self) -> GuestMemory:
        """The guest's RAM."""
        if self._memory is None:
            raise UsageError("this VM has no memory yet: start() or load() comes first")
        return self._memory

    @property
    def machine(self) -> Machine:
        """Buses and platform devices; attach own devices while the VM is paused."""
        if self._machine is None:
            raise UsageError("this VM has no devices yet: start() comes first")
        return self._machine

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Where the guest finds its virtio devices; empty before the kernel is loaded."""
        return tuple(self._slots)

    @property
    def ports(self) -> dict[str, PortBackend]:
        """What the named ports of the virtio console are connected to, by name."""
        return {} if self._virtio is None else self._virtio.ports

    @property
    def faults(self) -> FaultPlan | None:
        """The plan of faults on purpose, which counts them, or None."""
        return None if self._virtio is None else self._virtio.faults

    @property
    def state(self) -> str:
        """How far it is: "made", "running", "paused" or "ended"."""
        if self.exit is not None:
            return "ended"
        return "made" if not self.loops else "paused" if self._control.pausing else "running"

    @property
    def balloon(self) -> VirtioBalloon | None:
        """The balloon in the guest's memory, or None."""
        from pyvmm.virtio.balloon import VirtioBalloon

        devices = () if self._virtio is None else self._virtio.devices
        return next((device for device in devices if isinstance(device, VirtioBalloon)), None)

    def net_link(self, up: bool, device: str = "net0") -> None:
        """Plug the cable of the network interface `device` in, or pull it. Raises UsageError if there is no such."""
        from pyvmm.virtio.net import VirtioNet

        found = self._device(device)
        if not isinstance(found, VirtioNet):
            raise UsageError(f"{device} is no network interface")
        found.set_link(up)

    def resize_disk(self, size: int | None = None, device: str = "blk0", *, shrink: bool = False) -> int:
        """Make the disk `device` `size` bytes long, or, with None, as long as its image has become; returns its size.

        Only with `shrink` does it become shorter. Raises UsageError, BackendError.
        """
        from pyvmm.virtio.block import VirtioBlock

        found = self._device(device)
        if not isinstance(found, VirtioBlock):
            raise UsageError(f"{device} is no disk")
        return found.resize(size, shrink=shrink)

    @property
    def vcpus(self) -> tuple[VcpuFd, ...]:
        """The vCPUs; their registers mean something only while the VM is paused or has ended."""
        return self._vcpus

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """Panics, oopses and warnings that the guest's kernel has written to its console, as far as looked at."""
        return tuple(self._diagnosis.console.complaints)

    @property
    def hints(self) -> tuple[Reason, ...]:
        """What the guest's last words make likely; for a run that ended badly."""
        return tuple(self._diagnosis.hints())

    @property
    def stats(self) -> Stats:
        """Counters of the run so far."""
        return Stats(self)

    def _device(self, name: str) -> VirtioDevice:
        if self._virtio is None:
            raise UsageError(f"there is no device {name!r} (there is none)")
        return self._virtio.device(name)


class Still:
    """A moment in which a running VM stands still. Entering raises VcpuStuckError when a vCPU does not come back."""

    __slots__ = ("_control",)

    def __init__(self, control: Control) -> None:
        self._control = control

    def __enter__(self) -> None:
        self._control.hold_still()

    def __exit__(self, *_: object) -> None:
        self._control.release()


class Stats:
    """Counters of a VM at one moment.

    exits      how many by name ("IO", "MMIO", ...), over all vCPUs
    completed  how many instructions that KVM refused were completed, by name ("popcnt", "popcnt (#PF)", ...)
    unclaimed  reads and writes that no device answered, ports and MMIO together
    seconds    wall time since the vCPUs were started, up to the end of the run
    """

    __slots__ = ("completed", "exits", "seconds", "unclaimed")

    def __init__(self, vm: Parts) -> None:
        self.exits: dict[str, int] = {}
        self.completed: dict[str, int] = {}
        for loop in vm.loops:
            for name, count in list(loop.completed.items()):
                self.completed[name] = self.completed.get(name, 0) + count
            for kind, count in list(loop.counts.items()):
                self.exits[kind.name] = self.exits.get(kind.name, 0) + count
        buses = () if vm._machine is None else (vm._machine.ports, vm._machine.mmio)
        self.unclaimed = sum(bus.unclaimed_reads + bus.unclaimed_writes for bus in buses)
        end = vm._ended_at or time.monotonic()
        self.seconds = end - vm._started_at if vm._started_at else 0.0

    def __repr__(self) -> str:
        return f"Stats(exits={self.exits}, unclaimed={self.unclaimed}, seconds={self.seconds:.3f})"
