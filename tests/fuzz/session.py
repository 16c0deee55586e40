"""One device with a driver that does what a case's operations say, and everything it does watched."""

from __future__ import annotations

from struct import pack
from types import SimpleNamespace

from pyvmm.bus import Bus
from pyvmm.virtio import spec
from pyvmm.virtio.faults import FaultPlan
from pyvmm.virtio.mmio import LENGTH, REGISTERS, VirtioMmio
from tests.fuzz.cases import HEAP, LOW_END, RINGS, TABLES
from tests.fuzz.guard import Fault, Guard, Ledger
from tests.support.virtiodriver import BASE, INDIRECT, NEXT, WRITE, Driver, Heap, Ring

TURNS = 500
"""Turns of the data plane without an end after which it is taken to spin. A turn serves everything that is due."""
U16 = 0xFFFF


_NUMBERS = {
    BASE + register.offset
    for register in REGISTERS
    if register.name.endswith(("Sel", "Low", "High", "QueueSize", "DriverFeatures"))
}
"""Registers that only keep a number: writing them is not watched, for speed, as is reading any register."""
_READY, _STATUS = REGISTERS["QueueReady"].offset, REGISTERS["Status"].offset


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
        self.interrupts = self._hold = 0
        self._sound = True  # what the device has is as the driver made it, so that answers can be judged
        self.probing = False  # a good driver is at work: it looks for what came back itself
        self.rings: list[Ring] = []
        self._rung: list[int] = []
        self._asked: dict[tuple[int, int], tuple[bytes, list[tuple[int, int]]]] = {}
        self._error = ""
        self._last = 0, 16
        device = self.device
        if rules:
            device.faults = FaultPlan(rules, seed=1)
            subject.ordered = False
        self._guard = device.memory = Guard(memory)
        device.ring = self._rung.append
        self.transport = VirtioMmio(device, self._interrupt)
        self.heap = Buffers(memory, HEAP, LOW_END)
        self.heap.tables = TABLES
        self.ledger = Ledger(device, memory, self._interrupt_is_due)
        bus = Bus("MMIO", 1 << 52)
        bus.attach(BASE, LENGTH, self.transport)
        self.bus = Watched(bus, self)  # type: ignore[assignment]

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
        if wanted and not self.transport.pending & spec.INTERRUPT_USED_BUFFER:
            raise Fault("interrupt", f"queue {queue.index}: {new} buffers were used, and no interrupt came")

    def run(self):
        """Be the data plane until nothing is left to do (see `pyvmm.virtio.plane`)."""
        self.watch(self._turns, serving=True)

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

    # --- Operations ---------------------------------------------------------------------------------------------------

    def do(self, operation):
        """One operation of a case, and then the data plane, unless it is held."""
        name, *arguments = operation
        getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
        if self._hold > 0:
            self._hold -= 1
        else:
            self.run()
            if not self._sound and self.ledger.idle:
                self._trust()

    def put(self, register, value, size=4):
        self.do_write(REGISTERS[register].offset, size, value)

    def kick(self, queue=0):
        super().kick(queue)
        self.run()

    def request(self, queue=0, readable=(), writable=(), indirect=False):
        """A good driver's (see `Driver.request`); raises Fault when it is not answered."""
        head = self.send(queue, readable, writable, indirect)
        ring = self.rings[queue]
        used = dict(ring.used())
        if list(used) != [head]:
            raise Fault("recovery", f"queue {queue}: after a reset, {list(used)} came back for {head}")
        return used[head], ring.written(head)

    def do_bring_up(self, dropped, size, queue=0, part="", value=0):
        if self.do_negotiate(dropped):
            self.set_up_queues(size, queue, part, value)
            self.put("Status", 15)
            self._last = dropped, size

    def do_greet(self):
        """What a driver of this kind of device does first."""
        for queue, readable, writable in self.subject.greeting:
            self.do_chain(queue, readable, writable, "direct", (), True)
            self.run()

    def do_negotiate(self, dropped):
        return self.negotiate(self.offered & ~dropped)

    def set_up_queues(self, size=None, spoilt=0, part="", value=0):
        at = RINGS
        self.rings = []
        for index, queue in enumerate(self.device.queues):
            ring = Ring(self.memory, index, min(size or 16, queue.max_size), at)
            at = ring.end
            self.rings.append(ring)
            self._set_up(index, ring, part if index == spoilt else "", value)

    def _set_up(self, index, ring, part, value):
        """The driver itself goes on with its good ring, whatever it tells the device of it."""
        told = SimpleNamespace(size=ring.size, descriptors=ring.descriptors, driver=ring.driver, device=ring.device)
        if part == "overlap":
            told.device = told.descriptors
        elif part == "misaligned":
            told.driver += 1
        elif part:
            setattr(told, part, value)
        self.set_up_queue(index, told)  # type: ignore[arg-type]

    def do_set_up(self, index, size, part, value):
        if index >= len(self.rings):
            self.put("QueueSel", index)
            return
        self.put("QueueSel", index)
        self.put("QueueReady", 0)
        old = self.rings[index]
        ring = self.rings[index] = Ring(self.memory, index, min(size, old.size), old.descriptors)
        self._set_up(index, ring, part, value)

    def do_status(self, value):
        self.put("Status", value)

    def do_reset(self):
        self.put("Status", 0)

    def do_acknowledge(self):
        self.acknowledge()

    def do_read(self, offset, size):
        self.kinds.transport(self.device, offset, size)
        self.bus.read(BASE + offset, size)

    def do_write(self, offset, size, value):
        before = self.device.status
        self.kinds.transport(self.device, offset, size, value)
        if offset == _READY and not value & 1:
            busy = [queue for queue in self.device.queues if queue.in_flight]
            self.bus.write(BASE + offset, size, value)
            if not all(queue.ready for queue in busy):
                self.kinds.add("queue: taken away with requests in flight")
            return
        self.bus.write(BASE + offset, size, value)
        if offset == _STATUS and size == 4:
            self.kinds.status(before, value & 0xFF, self.device.status)
            if value & 0xFF == 0:
                self.ledger.forget()
                self._asked.clear()
                self._error = ""
                if not self._sound:
                    self._trust()

    def do_kick(self, queue):
        self.put("QueueNotify", queue)

    def do_host(self, what, *arguments):
        self.watch(lambda: self.subject.happen(what, *arguments), serving=False)

    def do_wait(self, seconds):
        self.clock.now += seconds

    def do_hold(self, operations):
        self._hold = operations + 1

    # --- Operations on the rings --------------------------------------------------------------------------------------

    def do_chain(self, queue, readable, writable, layout, spoilt, kicked):
        if kicked and not self.device.live:
            self.do_bring_up(*self._last)  # what else could a driver do?
        if not self.rings:
            return
        queue %= len(self.rings)
        ring, buffers, before = self.rings[queue], [], self.heap.at
        for data in readable:
            gpa = self.heap.take(len(data))
            self.memory.write(gpa, data)
            buffers.append((gpa, len(data), 0))
        buffers += [(self.heap.take(length, b"\xa5"), length, WRITE) for length in writable]
        if not buffers:
            return
        if spoilt and spoilt[0] in ("swap", "huge") and len(buffers) == 1:
            buffers *= 2
        if spoilt and spoilt[0] == "swap":
            buffers = [(gpa, length, WRITE) for gpa, length, _ in buffers]
            buffers[-1] = (*buffers[-1][:2], 0)
        if spoilt or self.heap.at < before:  # round again, maybe over what the device has
            self._sound = self._sound and not spoilt and not self._asked
        split = {"direct": len(buffers), "indirect": 0, "mixed": len(buffers) // 2}[layout]
        direct, inner = buffers[:split], buffers[split:]
        if len(ring.free) < len(direct) + bool(inner) or ring.end > TABLES:
            return
        entries = self._entries(ring, direct, inner)
        head = entries[0][0] - ring.descriptors >> 4
        if spoilt:
            head = self._spoil(entries, head, *spoilt)
        for at, gpa, length, flags, following in entries:
            self.memory.write(at, pack("<QIHH", gpa, length, flags, following))
        if not spoilt and self.device.queues[queue].descriptors == ring.descriptors:
            self._asked[queue, head] = b"".join(readable), [(gpa, length) for gpa, length, flags in buffers if flags]
        ring.make_available(head & U16)
        if spoilt and spoilt[0] == "twice":
            ring.make_available(head & U16)
        if kicked:
            self.do_kick(queue)

    def _entries(self, ring, direct, inner):
        """Descriptors as [where, gpa, length, flags, next], those of an indirect table last."""
        taken = [ring.free.pop(0) for _ in range(len(direct) + bool(inner))]
        ring.chains[taken[0]] = taken, []
        entries = [
            [ring.descriptors + 16 * index, *buffer, following]
            for index, buffer, following in zip(taken, direct, [*taken[1:], 0], strict=False)
        ]
        if inner:
            table = self.heap.table(len(inner))
            entries.append([ring.descriptors + 16 * taken[-1], table, 16 * len(inner), INDIRECT, 0])
            entries += [[table + 16 * number, *buffer, number + 1] for number, buffer in enumerate(inner)]
        for number, entry in enumerate(entries[:-1]):
            if not entry[3] & INDIRECT and (number != len(direct) - 1 or inner):
                entry[3] |= NEXT
        return entries

    def _spoil(self, entries, head, what, at, value):
        table = next((entry for entry in entries if entry[3] & INDIRECT), None)
        entry = entries[at % len(entries)]
        if what == "next":
            entry[3] |= NEXT
        field = {"gpa": 1, "length": 2, "flags": 3, "next": 4}.get(what.removeprefix("table "))
        if what.startswith("table "):
            entry = table if table is not None else entry
            entry[3] |= NEXT if what == "table next" else 0
        if field is not None:
            entry[field] = value
        elif what == "nested":
            entries[-1][3] |= INDIRECT
        elif what == "huge":
            entries[-1][2] = 0xFFFFFFFF
        elif what == "loop":
            inside = table is not None and entries[-1] is not table
            entries[-1][3] |= NEXT
            entries[-1][4] = 0 if inside else head
        elif what == "head":
            return value
        return head

    def do_descriptor(self, queue, index, gpa, length, flags, following):
        if queue < len(self.rings):
            self._sound = False
            self.rings[queue].descriptor(index % self.rings[queue].size, gpa, length, flags, following)

    def do_available(self, queue, head):
        if queue < len(self.rings):
            self._sound = False
            self.rings[queue].make_available(head)
            self.do_kick(queue)

    def do_index(self, queue, ahead):
        """The available index jumps; the driver goes on from there."""
        if queue < len(self.rings):
            ring, self._sound = self.rings[queue], False
            ring.avail = (ring.avail + ahead) & U16
            ring.publish()
            self.do_kick(queue)

    def do_flags(self, queue, value):
        if queue < len(self.rings):
            self.rings[queue].set_flags(value)

    def do_used_event(self, queue, ahead):
        if queue < len(self.rings):
            self.rings[queue].set_used_event((self.rings[queue].avail + ahead) & U16)

    def do_poke(self, gpa, data):
        self._sound = False
        self.memory.write(gpa, data)
