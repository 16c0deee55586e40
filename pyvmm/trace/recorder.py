"""What a VM calls to have its run recorded: one Tracer a VM, made before anything else of it.

Imports recording, convert, decode, layout and errors. Exits are recorded by the run loop itself (`VcpuFd.trace`), the
rest comes through here: interrupts by way of the callables that deliver them, what queues do from their devices, and
devices that come and go from the buses.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime

from pyvmm import __version__, layout
from pyvmm.errors import PyvmmError
from pyvmm.trace import spool
from pyvmm.trace.convert import form_of, write
from pyvmm.trace.decode import describe, entry
from pyvmm.trace.reader import FORMAT, SPOOL, read
from pyvmm.trace.recording import LIMIT, Recording

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from pyvmm.bus import Bus, BusDevice
    from pyvmm.config import VmConfig
    from pyvmm.kvm.stats import StatsFd
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.pci.msix import MsixWires
    from pyvmm.runloop import Outcome
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Virtqueue

    Record = dict[str, Any]
    Deliver = Callable[[int, bool], None]

LINES = {layout.SERIAL_IRQ: "serial", layout.RTC_IRQ: "rtc", layout.SCI_IRQ: "acpi-pm"}
"""Whose the platform's interrupt lines are."""
INIT = b" as init process"
"""Linux, init/main.c, run_init_process(): "Run /init as init process"."""
NOTIFY, TAKE, COMPLETE, INTERRUPT = range(len(spool.QUEUE_EVENTS))
PULSE = spool.LEVELS.index("pulse")


class Tracer:
    """Records one run of a VM to the file `path`; its suffix names the form, as docs/trace.md has them.

    `say(text)` is told when there is no room for more, and at the end what became of the file if that is not what it
    should be. Raises UsageError, BackendError.
    """

    def __init__(self, path: str, say: Callable[[str], None] | None = None, limit: int = LIMIT) -> None:
        self.path = path
        self._say = say or (lambda text: None)
        self._began = time.monotonic_ns()
        self._date = datetime.now(UTC)
        self._recording = Recording(path, self._full, limit)
        self._header = False
        self._tail = b""
        self._phases: list[tuple[str, int]] = []
        self._statistics: list[tuple[int | None, StatsFd]] = []

    def _full(self, why: str) -> None:
        self._say(f"--trace {self.path}: {why}; the run goes on, and what is no longer recorded is counted")

    # --- The beginning --------------------------------------------------------------------------------------------

    def begin(
        self, config: VmConfig, module: str, machine: Machine, fd: VmFd, vcpus: Sequence[VcpuFd], *, restored: bool
    ) -> None:
        """The machine is there, nothing runs: the header, KVM's counters as they are, then all that happens."""
        header = {
            "kind": "trace",
            "format": FORMAT,
            "pyvmm": __version__,
            "began": self._date.isoformat(),
            "cpus": config.cpus,
            "mem": config.mem,
            "kernel": os.fspath(config.kernel),
            "append": config.append,
            "kvm": f"kvm_{module}" if module else "",
            "restored": restored,
            "devices": describe(machine),
        }
        self._recording.text(header, self._began)
        self._header = True
        for name, at in self._phases:
            self._recording.text({"kind": "phase", "name": name}, at)
        for vcpu in vcpus:
            vcpu.trace(self._recording.chunks(vcpu.index))
        try:
            self._statistics = [(None, fd.stats_fd()), *((vcpu.index, vcpu.stats_fd()) for vcpu in vcpus)]
        except PyvmmError:
            pass  # KVM has them since Linux 5.14
        self._count()
        for space, bus in (("pio", machine.ports), ("mmio", machine.mmio)):
            bus.changed = self._placed(space, bus)

    def _placed(self, space: str, bus: Bus) -> Callable[[int, int, BusDevice | None], None]:
        def changed(base: int, length: int, device: BusDevice | None) -> None:
            if device is not None:
                self.record("device", **entry(space, base, length, device), attached=True)
            else:
                self.record("device", space=space, base=base, attached=False)

        return changed

    # --- What happens ---------------------------------------------------------------------------------------------

    def record(self, kind: str, **fields: Any) -> None:
        """A record that comes seldom. Any thread."""
        if self._header:
            self._recording.text({"kind": kind, **fields})

    def phase(self, name: str) -> None:
        """The run has come so far."""
        if self._header:
            self.record("phase", name=name)
        else:
            self._phases.append((name, time.monotonic_ns()))

    def output(self, data: bytes) -> None:
        """The guest has written to its console: the first word, and what Linux says when it starts init."""
        if not self._tail:
            self.phase("first output")
        elif self._tail == b"done":
            return
        self._tail = (self._tail + data)[-len(INIT) - len(data) :]
        if INIT in self._tail:
            self.phase("init")
            self._tail = b"done"

    def _interrupt(self, device: str, gsi: int, level: int) -> None:
        if self._header:
            self._recording.add(spool.INTERRUPT, level, device, gsi, 1)

    def lines(self, deliver: Deliver, device: str = "") -> Deliver:
        """`deliver(gsi, asserted)`, recorded, of the platform or of `device`."""

        def traced(gsi: int, asserted: bool) -> None:
            self._interrupt(device or LINES.get(gsi, "pci"), gsi, int(asserted))
            deliver(gsi, asserted)

        return traced

    def edge(self, deliver: Callable[[], None], device: str, gsi: int) -> Callable[[], None]:
        """`deliver()`, recorded."""

        def traced() -> None:
            self._interrupt(device, gsi, PULSE)
            deliver()

        return traced

    def messages(self, wires: MsixWires, device: str) -> MsixWires:
        """`wires`, whose messages are recorded by the number of their vectors."""
        return _TracedWires(wires, lambda vector: self._interrupt(device, vector, PULSE))

    def tap(self, device: str, name: str, function: Any) -> Any:
        """`function`, recorded when it is over, with the bytes that it is given, and its result or a number given."""

        def tapped(*given: Any) -> Any:
            began = time.monotonic_ns()
            result = function(*given)
            if self._header:
                data = next((bytes(one) for one in given if isinstance(one, bytes | bytearray)), None)
                numbers = (one for one in (result, *given) if isinstance(one, int | float))
                self._recording.outside(device, name, data, next(numbers, None), began)
            return result

        return tapped

    def queues(self, device: VirtioDevice) -> QueueTrace:
        """What records the use of the device's queues."""
        return QueueTrace(self, self._recording, device)

    @property
    def begun(self) -> bool:
        """Whether anything is recorded yet."""
        return self._header

    # --- The end --------------------------------------------------------------------------------------------------

    def end(self, outcome: Outcome) -> None:
        """The run is over, every vCPU stands still."""
        self._count()
        self.record("end", reason=outcome.reason, status=outcome.status)

    def _count(self) -> None:
        try:
            for vcpu, counters in self._statistics:
                self.record("statistics", vcpu=vcpu, counters=counters.read())
        except (PyvmmError, OSError):
            self._statistics = []

    def close(self) -> None:
        """Make of what was recorded the form that was asked for. Nothing is running; a second call does nothing."""
        if self._recording.closed:
            return
        self._recording.stop()
        for _, counters in self._statistics:
            counters.close()
        try:
            if not self._header or self._recording.empty:
                self._recording.remove()  # it came to nothing
            elif form_of(self.path) != SPOOL:
                self._convert()
        except (PyvmmError, OSError) as error:
            why = str(error) if isinstance(error, PyvmmError) else f"{self.path}: {error.strerror}"
            self._say(f"--trace {why}; it is left in the form in which it was recorded (pyvmm trace convert)")
        finally:
            self._recording.close()

    def _convert(self) -> None:
        trace = read(self._recording.own_path)

        def records() -> Iterator[Record]:
            yield trace.header
            yield from trace.records()

        write(self.path, form_of(self.path), records())


class QueueTrace:
    """Records what one device does with its queues. Between `begin` and `end` the device's `plane` is held."""

    __slots__ = ("_before", "_began", "_name", "_recording", "_tracer")

    def __init__(self, tracer: Tracer, recording: Recording, device: VirtioDevice) -> None:
        self._tracer = tracer
        self._recording = recording
        self._name = device.name
        self._before: dict[Virtqueue, tuple[int, int]] = {}
        self._began = 0

    def notify(self, queue: int) -> None:
        """Queue number `queue` is about to be served: mostly the driver has asked for it."""
        self._add(NOTIFY, queue, 1, 0)

    def begin(self, device: VirtioDevice) -> None:
        """Queues are about to be used."""
        self._before = {queue: queue.positions for queue in device.queues}
        self._began = time.monotonic_ns()

    def end(self, device: VirtioDevice) -> None:
        """They have been."""
        for queue in device.queues:
            self._tell(queue)
        self._before = {}

    def interrupt(self, queue: Virtqueue) -> None:
        """The driver is told of `queue`."""
        self._tell(queue)
        self._add(INTERRUPT, queue.index, 1, 0)

    def _tell(self, queue: Virtqueue) -> None:
        """A record for the chains of `queue` that were taken since the last one, and one for those given back."""
        before, now = self._before.get(queue), queue.positions
        if before is None or before == now:
            return
        self._before[queue] = now
        taken, given = ((new - old) & 0xFFFF for new, old in zip(now, before, strict=True))
        depth = queue.in_flight
        if 0 < taken < 0x8000:  # else some were made available again
            self._add(TAKE, queue.index, taken, depth + given)
        if given:
            self._add(COMPLETE, queue.index, given, depth, time.monotonic_ns() - self._began)

    def _add(self, event: int, queue: int, count: int, depth: int, handle: int = 0) -> None:
        if self._tracer.begun:
            self._recording.add(spool.QUEUE, event, self._name, queue, count, depth, handle)


class _TracedWires:
    """MsixWires that tell of each message."""

    def __init__(self, wires: Any, told: Callable[[int], None]) -> None:
        self._wires = wires
        self._told = told
        self.route, self.unroute = wires.route, wires.unroute

    def signal(self, vector: int) -> None:
        """Send the message of `vector`."""
        self._told(vector)
        self._wires.signal(vector)
