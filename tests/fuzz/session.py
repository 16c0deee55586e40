"""One device with a driver, and everything that the device does watched."""

from __future__ import annotations

from pyvmm.virtio import spec
from pyvmm.virtio.faults import FaultPlan
from pyvmm.virtio.mmio import REGISTERS
from tests.fuzz.cases import HEAP, LOW_END, TABLES
from tests.fuzz.guard import Fault, Guard, Ledger
from tests.support.registers import BASE, MmioRegisters
from tests.support.virtiodriver import Driver, Heap, Ring

TURNS = 500
"""Turns of the data plane without an end after which it is taken to spin. A turn serves everything that is due."""
U16 = 0xFFFF


_NUMBERS = {
    BASE + register.offset
    for register in REGISTERS
    if register.name.endswith(("Sel", "Low", "High", "QueueSize", "DriverFeatures"))
}
"""Registers that only keep a number: writing them is not watched, for speed, as is reading any register."""


class Buffers(Heap):
    """The driver's heap, in the small RAM that there is here."""

    def table(self, entries):
        if self.tables + 16 * entries > HEAP:
            self.tables = TABLES
        at = self.tables
        self.tables += 16 * entries
        return at


class Watched:
    """A bus on which the ledger watches each access."""

    def __init__(self, bus, session):
        self._bus = bus
        self._session = session

    def read(self, address, size):
        if BASE <= address < BASE + spec.MMIO_CONFIG - 8:
            with self._session.lines:
                return self._bus.read(address, size)
        return self._session.watch(lambda: self._bus.read(address, size), serving=False)

    def write(self, address, size, value):
        if address in _NUMBERS:
            with self._session.lines:
                self._bus.write(address, size, value)
            return
        self._session.watch(lambda: self._bus.write(address, size, value), serving=False)


class Session(Driver):
    """A driver of `subject.device` in `memory`, which is given empty. `kinds` counts; `lines` looks on."""

    def __init__(self, subject, memory, clock, kinds, lines, rules=()):
        self.subject, self.device, self.memory = subject, subject.device, memory
        self.clock, self.kinds, self.lines = clock, kinds, lines
        self.interrupts = 0
        self.on_interrupt = lambda: None
        self._sound = True  # what the device has is as the driver made it, so that answers can be judged
        self._correct = True  # the driver has kept to the rules of the ring since the last reset
        self.probing = False  # a good driver is at work: it looks for what came back itself
        self.rings: list[Ring] = []
        self._rung: list[int] = []
        self._asked: dict[tuple[int, int], tuple[bytes, list[tuple[int, int]]]] = {}
        self._error = ""
        device = self.device
        if rules:
            device.faults = FaultPlan(rules, seed=1)
            subject.ordered = False
        self._guard = device.memory = Guard(memory)
        device.ring = self._rung.append
        self.registers = self.connect()
        self.transport = self.registers.transport
        self.heap = Buffers(memory, HEAP, LOW_END)
        self.heap.tables = TABLES
        self.ledger = Ledger(device, memory, self._interrupt_is_due)
        self.bus = self.watched()

    def connect(self):
        """The device's transport, and its driver."""
        return MmioRegisters(self.device, self._interrupt)

    def watched(self):
        """The bus that the transport is on, watched."""
        self.registers.bus = Watched(self.registers.bus, self)
        return self.registers.bus

    def told(self, queue):
        """Whether the driver has been told of used buffers in `queue`, and has not acknowledged that."""
        return bool(self.transport.pending & spec.INTERRUPT_USED_BUFFER)

    def forget(self):
        """The device has been reset: what was asked of it is not to be answered."""
        self.ledger.forget()
        self._asked.clear()
        self._error = ""
        self._correct = True
        if not self._sound:
            self._trust()

    # --- Watching the device ------------------------------------------------------------------------------------------

    def watch(self, work, serving):
        """Have the device do `work`; raises Fault for what it must not do."""
        device, ledger = self.device, self.ledger
        ledger.before(serving)
        with self.lines:
            result = work()
        if self._guard.fault is not None:
            raise self._guard.fault
        for queue, head, written in ledger.after(serving):
            self._came_back(queue, head, written)
        if device.error != self._error:
            self._error = device.error
            if self._error:
                self.kinds.broken(self._error)
                if self._correct and self._error.startswith("queue "):
                    raise Fault("refused", f"a driver that keeps to the rules is told of a broken ring: {self._error}")
        return result

    def _came_back(self, queue, head, written):
        asked = self._asked.pop((queue, head), None)
        ring = self.rings[queue] if queue < len(self.rings) else None
        if ring is not None and head in ring.chains and not self.probing:
            taken = ring.chains.pop(head)[0]
            ring.free += [index for index in taken if index not in ring.free]
        if asked is not None and self._sound:
            request, buffers = asked
            answer = b"".join(self.memory.read(gpa, length) for gpa, length in buffers)
            try:
                outcome = self.subject.outcome(queue, request, written, answer)
            except AssertionError as error:
                raise Fault("answer", f"queue {queue}: {error or answer[:64]}, {written} bytes written") from error
            if outcome:
                self.kinds.add(outcome)

    def _trust(self):
        self._sound = True
        self.subject.resync()

    def _interrupt_is_due(self, queue, index, new):
        """The device has used `new` buffers, up to `index`: if the driver wanted to know, it has been told (2.7.7)."""
        if self.device.faults is not None:
            return
        if self.device.features >> spec.F_RING_EVENT_IDX & 1:
            event = self.memory.read_u16(queue.driver + 4 + 2 * queue.size)
            wanted = (index - event - 1) & U16 < new
        else:
            wanted = not self.memory.read_u16(queue.driver) & spec.AVAIL_F_NO_INTERRUPT
        if wanted and not self.told(queue.index):
            raise Fault("interrupt", f"queue {queue.index}: {new} buffers were used, and no interrupt came")

    def run(self):
        """Be the data plane until nothing is left to do (see `pyvmm.virtio.plane`)."""
        self.watch(self._turns, serving=self.device.live)

    def _turns(self):
        for _ in range(TURNS):
            if not self._turn():
                return
        raise Fault("spins", f"the data plane still has something to do after {TURNS} turns")

    def _turn(self):
        device, busy = self.device, bool(self._rung)
        rung, self._rung[:] = self._rung[:], []
        for index in dict.fromkeys(rung):
            device.serve_unless_broken(index)
        for fd, events in self.subject.happened(device.sources()) if device.live else ():
            busy = True
            with device.plane:
                if device.live:
                    device.guarded(lambda fd=fd, events=events: device.ready(fd, events))
        due = device.next_deadline() if device.live else None
        if due is not None and due <= self.clock.now:
            busy = True
            with device.plane:
                device.guarded(lambda: device.run_due(self.clock.now))
        return busy
