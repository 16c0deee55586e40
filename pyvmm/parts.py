"""The parts of a VM as its user meets them: what can be looked at, and what can be changed while it lives.

A base of `pyvmm.vm.VM`, which makes and ends all this. May import what is below vm, each where it is asked for.
"""

from __future__ import annotations

import time

from pyvmm import layout
from pyvmm.errors import BusConflictError, UsageError
from pyvmm.processors import Processors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.attach import VirtioDevices
    from pyvmm.backends.ports import PortBackend
    from pyvmm.config import VmConfig
    from pyvmm.consolelink import ConsoleLink
    from pyvmm.debug.consolewatch import Complaint
    from pyvmm.debug.diagnosis import Diagnosis
    from pyvmm.debug.evidence import Reason
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.memory import GuestMemory
    from pyvmm.owndevices import OwnDevice
    from pyvmm.runloop import Outcome
    from pyvmm.slots import Slot
    from pyvmm.trace.recorder import Tracer
    from pyvmm.virtio.balloon import VirtioBalloon
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.faults import FaultPlan
    from pyvmm.virtio.lint import Finding


class Parts(Processors):
    """What `VM` has beside its lifecycle: devices, memory, console, what became of it; its base has the vCPUs."""

    config: VmConfig
    _diagnosis: Diagnosis
    _ended_at: float
    _fd: VmFd | None
    _link: ConsoleLink | None
    _listeners: tuple[Callable[[bytes], None], ...]
    _machine: Machine | None
    _memory: GuestMemory | None
    _own_closers: list[Callable[[], None]]
    _own: list[tuple[OwnDevice, int | None, int | None, int, int | None]]
    _slots: list[Slot]
    _started_at: float
    _tracer: Tracer | None
    _virtio: VirtioDevices | None

    @property
    def exit(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._control.outcome

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
    def virtio_devices(self) -> tuple[VirtioDevice, ...]:
        """The virtio devices, in the order of `slots`; empty before the start."""
        return () if self._virtio is None else tuple(self._virtio.devices)

    @property
    def faults(self) -> FaultPlan | None:
        """The plan of faults on purpose, which counts them, or None."""
        return None if self._virtio is None else self._virtio.faults

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the guest's virtio drivers did against the specification so far, with `lint=True`; else nothing."""
        found = None if self._virtio is None else self._virtio.findings
        return () if found is None else found.all()

    @property
    def judged(self) -> tuple[int, int]:
        """How many accesses and chains of virtio devices `findings` come from."""
        found = None if self._virtio is None else self._virtio.findings
        return (0, 0) if found is None else (found.accesses, found.chains)

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

        return next((device for device in self.virtio_devices if isinstance(device, VirtioBalloon)), None)

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

    def attach(
        self,
        device: OwnDevice,
        *,
        port: int | None = None,
        gpa: int | None = None,
        length: int | None = None,
        irq: int | None = None,
    ) -> None:
        """Let `device` answer at I/O port `port` or guest-physical address `gpa`, for `length` ports or bytes.

        `length` is the device's own by default. With `irq`, a GSI below 24, the device gets an interrupt line, a
        level. Before the start or later, the vCPUs running or not. Raises UsageError, and BusConflictError where
        something else answers already (before the start: when that comes).
        """
        if (port is None) == (gpa is None):
            raise UsageError("a device is attached at a port or at a gpa: one of the two")
        if irq is not None and not 0 <= irq < layout.IOAPIC_PINS:
            raise UsageError(f"interrupt {irq} (expected 0 to {layout.IOAPIC_PINS - 1})")
        how = device, port, gpa, device.length if length is None else length, irq
        if self._machine is None:
            self._own.append(how)
        else:
            self._attach(*how)

    def _attach(self, device: OwnDevice, port: int | None, gpa: int | None, length: int, irq: int | None) -> None:
        fd, machine = self._fd, self.machine
        assert fd is not None
        if gpa is not None:
            taken = [
                *layout.ram_ranges(self.config.mem),
                *((page, layout.PAGE) for page in (layout.IOAPIC, layout.LAPIC)),
            ]
            for start, size in taken:
                if gpa < start + size and start < gpa + length:
                    what = "memory" if start in (0, layout.HOLE_END) else "KVM's interrupt controllers"
                    raise BusConflictError(f"{device.name} at {gpa:#x}+{length:#x} overlaps {what} at {start:#x}")
        device.memory = self.memory
        if irq is not None:
            from pyvmm.events import IrqLine

            deliver = fd.irq_line if self._tracer is None else self._tracer.lines(fd.irq_line, device.name)
            device.irq = IrqLine(lambda asserted: deliver(irq, asserted))
        if port is not None:
            machine.ports.attach(port, length, device)
        elif gpa is not None:
            machine.mmio.attach(gpa, length, device)
        self._own_closers.append(device.close)

    @property
    def console_log(self) -> bytes:
        """The last 64 KiB, or a bit more, of what the guest wrote to its console, whatever that is connected to."""
        return self._diagnosis.console.transcript()

    def listen(self, listener: Callable[[bytes], None]) -> Callable[[], None]:
        """Call `listener(data)` with all that the guest writes to its console from now on; returns what ends that.

        It is called on a vCPU's or a data plane's thread, under a device's lock, and must not block.
        """
        self._listeners = (*self._listeners, listener)

        def end() -> None:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

        return end

    def type(self, data: bytes) -> int:
        """Give the guest's console input, whatever it is connected to; returns how many bytes it took at once."""
        return 0 if self._link is None else self._link.receive(data)

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """Panics, oopses and warnings that the guest's kernel has written to its console, as far as looked at."""
        return tuple(self._diagnosis.console.complaints)

    @property
    def hints(self) -> tuple[Reason, ...]:
        """What the guest's last words make likely; for a run that ended badly."""
        return tuple(self._diagnosis.hints())

    def symbol(self, address: int) -> str:
        """The function at a linear address, as "panic+0x1a0/0x2f0"; "" where that is not known."""
        return self._diagnosis.name(address)

    def address_of(self, symbol: str) -> int | None:
        """The linear address of the function called `symbol`, or None."""
        return self._diagnosis.address(symbol)

    @property
    def stats(self) -> Stats:
        """Counters of the run so far."""
        return Stats(self)

    def _device(self, name: str) -> VirtioDevice:
        if self._virtio is None:
            raise UsageError(f"there is no device {name!r} (there is none)")
        return self._virtio.device(name)


class Stats:
    """Counters of a VM at one moment.

    exits      how many by name ("IO", "MMIO", ...), over all vCPUs, with those that the run loop in C dealt with
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
