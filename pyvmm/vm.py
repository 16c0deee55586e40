"""A virtual machine: where everything below is put together, started, stopped and taken apart again.

The composition root and the lifecycle, nothing else: what a machine consists of is `machine`, what a vCPU's thread
does `runloop`, with what memory and processors a VM begins `booting` or `snapshot`, who looks on `onlookers`, how it is
ended `endings`.

    made -> running <-> paused -> ended -> closed

Making a VM checks its configuration and touches nothing. What starting it opens is closed in reverse order by
`close()`, on every path.
"""

from __future__ import annotations

import os
import threading
import time

from pyvmm import layout, threads
from pyvmm.booting import Booting
from pyvmm.closing import close_all
from pyvmm.config import VmConfig
from pyvmm.consolelink import ConsoleLink
from pyvmm.errors import STATUS_TIME_LIMIT, STATUS_VMM_ERROR, UsageError, VcpuStuckError
from pyvmm.guest.parts import GuestParts
from pyvmm.machine import Machine
from pyvmm.onlookers import Onlookers
from pyvmm.runloop import Outcome, VcpuLoop, failure
from pyvmm.slots import on_hvc, slots
from pyvmm.steering import STUCK_AFTER, Control

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any, Self

    from pyvmm.attach import VirtioDevices
    from pyvmm.boot import LoadedKernel
    from pyvmm.consolelink import Console
    from pyvmm.kvm.host import Host
    from pyvmm.kvm.hot import NativeHot
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.memory import GuestMemory
    from pyvmm.observe import Observer
    from pyvmm.slots import Slot
    from pyvmm.snapshot.restore import Restoring

LATER = (
    *(f"pyvmm.backends.{name}" for name in ("capture", "sink", "terminal")),
    *(f"pyvmm.debug.{name}" for name in ("consolewatch", "watch")),
    *(f"pyvmm.devices.{name}" for name in ("acpipm", "debugcon", "i8042", "port92", "pvpanic", "rtc", "serial")),
    *(f"pyvmm.kvm.{name}" for name in ("caps", "decode", "device", "seldom", "served", "stats")),
    *("pyvmm.registers", "pyvmm.state"),
)
"""Modules that a guest which is soon over has no use for."""


class VM(Onlookers, GuestParts):
    """One virtual machine. Use it as a context manager, or call `start()` and `close()`.

    `kernel` and the keyword settings are those of `VmConfig` (or give `config`, ready made). `console` is a back-end
    of `pyvmm.backends`; by default output is kept in memory: `vm.console.output`. With `paused=True` the VM starts
    with its vCPUs standing still, so that own devices can be attached to `vm.machine` before `resume()`. `say(text)`
    is told what a user should know while the VM runs, as that the guest seems stuck; from any thread. `trace` names a
    file in which the run is recorded (docs/trace.md); it is whole when the VM has been closed. With `gdb`, a port (0 is
    any that is free, True 1234) or "unix:PATH", the vCPUs stand until a debugger that connects there lets them go:
    `vm.gdb.address` (docs/debugging.md).

    `with VM(...)` raises what `start()` raises: KvmUnavailableError, LoadError, UsageError, KvmError, PyvmmError.
    """

    def __init__(
        self,
        kernel: str | os.PathLike[str] | None = None,
        *,
        config: VmConfig | None = None,
        console: Console | None = None,
        observers: Sequence[Observer] = (),
        paused: bool = False,
        say: Callable[[str], None] | None = None,
        trace: str | os.PathLike[str] | None = None,
        gdb: str | int | bool | None = None,
        **settings: Any,
    ) -> None:
        if config is None:
            if kernel is None:
                raise UsageError("no kernel given")
            config = VmConfig(kernel, **settings)
        elif kernel is not None or settings:
            raise UsageError("give either a config or its parts, not both")
        self.config = config
        self.console: Console = console or _kept()
        self.loops: tuple[VcpuLoop, ...] = ()
        self.loaded: LoadedKernel | None = None
        self._paused = paused
        self._control = Control()
        self._say = say
        self._invite(observers, trace, gdb)
        self._transport = ""
        self._slots: list[Slot] = []
        self._virtio: VirtioDevices | None = None
        # What to undo at close, last first: the host's side, own devices, then the VM's descriptors and memory.
        self._host_closers: list[Callable[[], None]] = []
        self._own_closers: list[Callable[[], None]] = []
        self._guest_closers: list[Callable[[], None]] = []
        self._hooks = None
        self._own = []
        self._link: ConsoleLink | None = None
        self._listeners = ()
        self._memory: GuestMemory | None = None
        self._machine: Machine | None = None
        self._fd: VmFd | None = None
        self._host: Host | None = None
        self._vcpus: tuple[VcpuFd, ...] = ()
        self._origin: Booting | Restoring = Booting(config)
        self._late = False
        self._standing = []
        self._process = 0
        self._started_at = 0.0
        self._ended_at = 0.0

    @property
    def sources(self) -> tuple[str, ...]:
        """The folders of the snapshots that it comes from: what must not change while it runs."""
        return tuple(self._origin.sources)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        *,
        console: Console | None = None,
        observers: Sequence[Observer] = (),
        paused: bool = False,
        say: Callable[[str], None] | None = None,
        trace: str | os.PathLike[str] | None = None,
        gdb: str | int | bool | None = None,
        **others: Any,
    ) -> Self:
        """A VM that goes on where the snapshot in the folder `path` was made; start it as any other.

        `others` are settings that shall be other than those of the VM that was saved, as `name`, `timeout` or `disks`.
        It is all judged here: raises LoadError, UsageError. Starting it raises LoadError too, for another host's CPU.
        """
        from pyvmm.snapshot.restore import Restoring

        restoring = Restoring(path, **others)
        vm = cls(
            config=restoring.config, console=console, observers=observers, paused=paused, say=say, trace=trace, gdb=gdb
        )
        vm._origin = restoring
        vm._late = vm.config.agent
        vm._guest_closers.append(restoring.close)
        return vm

    def snapshot(self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> None:
        """Save the VM to the folder `path`, in the place of a snapshot that may be there; then it goes on as it was.

        With `base`, another snapshot of this VM or of one that it comes from, only what has changed of its memory; it
        is of no use without `base` then. Raises UsageError for a VM that does not run or cannot be saved, LoadError for
        a base that is none, PyvmmError where the host cannot write it.
        """
        from pyvmm.kvm import Kvm
        from pyvmm.snapshot.save import Subject, save

        running = self.state == "running"
        if running:
            self.pause()
        try:
            if self.state != "paused" or self._fd is None or self.loaded is None:
                raise UsageError(f"only a VM that runs can be saved: this one is {self.state}")
            with Kvm() as kvm:
                cpuid = self._origin.cpuid(kvm, self._fd, self.host)
                parts = (kvm, self._fd, self._vcpus, cpuid, self.machine, self.memory, self._virtio)
                subject = Subject(self.config, self.loaded, self._transport, *parts, self._origin.sources)
                save(os.fspath(path), subject, None if base is None else os.fspath(base))
        finally:
            if running:
                self.resume()

    @classmethod
    def from_toml(
        cls,
        path: str | os.PathLike[str],
        *,
        console: Console | None = None,
        observers: Sequence[Observer] = (),
        paused: bool = False,
        say: Callable[[str], None] | None = None,
        trace: str | os.PathLike[str] | None = None,
        gdb: str | int | bool | None = None,
        **others: Any,
    ) -> Self:
        """The VM that the file `path` describes; `others` are settings in place of what it says.

        Raises UsageError, which names file and line; see `VmConfig.from_toml`.
        """
        config = VmConfig.from_toml(path, **others)
        return cls(config=config, console=console, observers=observers, paused=paused, say=say, trace=trace, gdb=gdb)

    # --- Lifecycle ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self) -> LoadedKernel:
        """Allocate RAM and load the kernel into it; needs no KVM. Raises LoadError, UsageError, PyvmmError."""
        if self.loaded is None:
            self._diagnosis.open()
            self._find_slots()
            self.loaded = self._origin.load(self._allocate(), self._slots, self._transport, self.host)
        return self.loaded

    def _allocate(self) -> GuestMemory:
        if self._memory is None:
            self._memory = self._origin.memory()
            self._guest_closers.append(self._memory.close)
        return self._memory

    def _find_slots(self) -> None:
        if not self._transport:
            self._transport = self._origin.transport()
            self._slots = slots(self.config, self._transport)

    def start(self, *, lean: bool = False) -> None:
        """Create the VM, load the kernel and let the vCPUs run (or stand, if made with `paused=True`).

        `lean` is for a process that is there for this VM alone: its threads import what they need when they need it.
        In somebody else's nothing is imported behind their back, while they import something themselves: it has all
        happened on return.
        """
        if self.loops:
            raise UsageError("this VM has been started already")
        if not lean:
            for name in LATER:
                __import__(name)
        self._process = os.getpid()
        try:
            self._create()
            self._spawn()
        except BaseException:
            self.close()
            raise

    def _create(self) -> None:
        from pyvmm.kvm import Kvm
        from pyvmm.kvm.assembly import add_memory, create_vm

        self._open_gdb()
        kvm = Kvm()
        self._guest_closers.append(kvm.close)
        tracer = self._make_tracer()
        memory = self._allocate()
        self._fd = fd = create_vm(kvm)
        self._guest_closers.append(fd.close)
        adding = threads.Aside(lambda: add_memory(fd, memory.regions))
        self._guest_closers.append(adding.wait)
        self._find_slots()
        if self._slots:
            from pyvmm.attach import VirtioDevices

            self._virtio = VirtioDevices(self.config, self._slots, self._say, lambda: self._control.over, self._here)
            self._host_closers.append(self._virtio.close)
            self._virtio.open()
        self.load()
        if tracer is not None:
            tracer.phase("loaded")
        interrupt = fd.irq_line if tracer is None else tracer.lines(fd.irq_line)
        taps = {} if tracer is None else {"tap": tracer.tap}
        ram = layout.ram_ranges(self.config.mem)
        hot = self._hot()
        ends, room = self._diagnosis.guest_ends, self.console.input_ready
        self._machine = Machine(ram, interrupt, self._output, ends, hot, room, **taps)
        for own in self._own:
            self._attach(*own)
        if self._virtio is not None:
            from pyvmm.wiring import wiring

            self._virtio.attach(self.memory, wiring(self._transport, self.machine, fd, tracer))
        self._vcpus = self._origin.create_vcpus(kvm, fd, self.host)
        self._guest_closers.extend(vcpu.close for vcpu in self._vcpus)
        adding.finish()
        self._origin.fill(fd, self._vcpus, self.machine, self._virtio)
        if hot is not None:
            for vcpu in self._vcpus:
                vcpu.serve(hot)
        if tracer is not None:
            restored = bool(self._origin.sources)
            tracer.begin(self.config, self.host.module, self.machine, fd, self._vcpus, restored=restored)
            for device in self.virtio_devices:
                device.trace = tracer.queues(device)

    def _hot(self) -> NativeHot | None:
        """What lets the run loop in C deal with accesses by itself; None where Python is to see them all."""
        if self.config.exits == "plain" or self.config.lint:
            return None
        from pyvmm.kvm.hot import NativeHot

        hot = NativeHot(lambda error: self._control.end(failure(error)))
        self._guest_closers.append(hot.close)
        return hot

    def _spawn(self) -> None:
        ports, mmio = self.machine.ports, self.machine.mmio
        make = self._maker_of_loops()
        self.loops = tuple(
            make(vcpu, ports, mmio, self._control, self._observers, self._repair(), self.machine.hot.drain)
            for vcpu in self._vcpus
        )
        if self._hooks is not None:
            for loop in self.loops:
                loop.observe(self._hooks)
        self._control.on_end = self._ended
        if self._paused:
            self._control.pausing = self._control.attention = True
        self._host_closers.append(self.console.close)
        self.console.start(self._console_link())
        self._started_at = time.monotonic()
        if self.config.switch_interval is not None:
            threads.switch_interval.lower(self.config.switch_interval)
            self._host_closers.append(threads.switch_interval.restore)
        self._control.steer(self._vcpus)
        self._announce("paused" if self._paused else "running")
        if self._virtio is not None:
            if self._paused:
                self._virtio.pause()
            self._virtio.start()
            if not self._paused:
                self._virtio.resume()  # a guest that was saved may wait for what it has asked for
        waiting = list(self.loops)
        try:
            self._diagnose()
            while waiting:
                loop = waiting[0]
                threads.start(threading.Thread(target=loop.run, name=f"vcpu{loop.vcpu.index}"))
                del waiting[0]
        except BaseException as error:
            self.stop(Outcome("error", getattr(error, "exit_status", STATUS_VMM_ERROR), str(error)))
            for _ in waiting:  # nobody else will say that these are gone
                self._control.thread_ended()
            raise
        if self.config.timeout is not None:
            from pyvmm.timelimit import TimeLimit

            limit = TimeLimit(self.config.timeout, lambda: sum(stood() for stood in self._standing), self._time_limit)
            self._host_closers.append(limit.cancel)
            limit.start()
        self._start_gdb()
        if not self._paused:
            self._catch_up()

    def _console_link(self) -> ConsoleLink:
        """The console's two ends in the machine: the serial port and, if there is one, the virtio console's."""
        self._link = link = ConsoleLink(self.machine.receive, self._control)
        if self._virtio is not None and self._virtio.console is not None:
            port = self._virtio.console.ports[0]
            port.output = self._virtio_output
            port.on_input_drained = self.console.input_ready
            link.also_holds(port)
            if on_hvc(self.config):
                link.receive = port.receive
        return link

    def pause(self) -> None:
        """Return with every vCPU standing still and its state whole. Raises VcpuStuckError if one does not."""
        if self._virtio is not None:
            self._virtio.pause()
        self._control.pause()
        self._announce("paused")

    def resume(self) -> None:
        """Let the vCPUs run (on)."""
        self._control.resume()
        if self._virtio is not None:
            self._virtio.resume()
        self._announce("running")
        self._catch_up()

    def _catch_up(self) -> None:
        """A guest that was saved a while ago, and runs on now, is told the time: once, if it has an agent."""
        if self._late:
            self._late = False
            self._set_clock()

    def close(self, *, leaving: bool = False) -> None:
        """Stop the VM if it runs and give everything back, in reverse order. A second call does nothing.

        With `leaving` the process ends right afterwards, and the VM's descriptors and memory are left for the kernel to
        take back: in a process that lives on it waits 16 ms for that. Raises VcpuStuckError, and leaves these alone
        too, if a vCPU does not come back.
        """
        stuck: VcpuStuckError | None = None
        if self.loops and os.getpid() != self._process:
            # A child forked while the VM ran: the vCPUs' threads, the terminal and the sockets are its parent's.
            self._host_closers.clear()
        elif self.loops:
            self.stop()
            try:
                self._control.wait_ended(STUCK_AFTER)
            except VcpuStuckError as error:
                stuck = error
        failure = close_all(self._host_closers)
        if stuck is not None:
            raise stuck
        failure = close_all(self._own_closers) or failure
        if not leaving:
            failure = close_all(self._guest_closers) or failure
        if failure is not None:
            raise failure

    # --- Inside ------------------------------------------------------------------------------------------------

    def _virtio_output(self, data: bytes) -> None:
        """What the guest wrote to its other consoles before it comes first, though the loop in C may still have it."""
        self.machine.hot.drain()
        self._output(data)

    def _time_limit(self) -> None:
        detail = f"the time limit of {self.config.timeout:g} s was reached"
        self._control.end(Outcome("time-limit", STATUS_TIME_LIMIT, detail))


def _kept() -> Console:
    """A console whose output is kept in memory."""
    from pyvmm.backends.capture import CaptureConsole

    return CaptureConsole()
