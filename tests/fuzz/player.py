"""A driver that does what a case's operations say (`cases` lists them)."""

from __future__ import annotations

from struct import pack
from types import SimpleNamespace

from pyvmm.virtio import spec
from pyvmm.virtio.mmio import REGISTERS
from tests.fuzz.cases import POLITE, RINGS, TABLES
from tests.fuzz.guard import Fault
from tests.fuzz.session import Session
from tests.support.registers import BASE
from tests.support.virtiodriver import INDIRECT, NEXT, WRITE, Ring

U16 = 0xFFFF
_READY, _STATUS = REGISTERS["QueueReady"].offset, REGISTERS["Status"].offset


class Player(Session):
    """Plays a case. Like any driver it notifies when the device wants to be told, unless it breaks the rules."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._hold = 0
        self._last = 0, 16
        self._notified: dict[int, int] = {}  # the available index at the last look whether to notify

    # --- Operations ---------------------------------------------------------------------------------------------------

    def do(self, operation):
        """One operation of a case, and then the data plane, unless it is held."""
        name, *arguments = operation
        self._correct = self._correct and name in POLITE
        getattr(self, "do_" + name.replace(" ", "_"))(*arguments)
        if self._hold > 0:
            self._hold -= 1
        else:
            self.run()
            if not self._sound and self.ledger.idle:
                self._trust()
            self._nothing_left()

    def _nothing_left(self):
        """What a driver that kept to the rules asked of a queue that is served at once has been answered."""
        device = self.device
        if self._correct and device.live and device.faults is None:
            for index, ring in enumerate(self.rings):
                told = self._notified.get(index, 0) == ring.avail
                if told and self.subject.prompt(index) and not self.ledger.empty(index):
                    raise Fault("stuck", f"queue {index}: requests are not served")

    def put(self, register, value, size=4):
        self.do_write(REGISTERS[register].offset, size, value)

    def kick(self, queue=0):
        self._notify(queue)
        self.run()

    def _notify(self, queue):
        """2.7.10: unless the device does not want it."""
        ring = self.rings[queue]
        if self.device.features >> spec.F_RING_EVENT_IDX & 1:
            new = (ring.avail - self._notified.get(queue, 0)) & U16
            wanted = (ring.avail - ring.avail_event - 1) & U16 < new
        else:
            wanted = not ring.no_notify
        self._notified[queue] = ring.avail
        if wanted or not self._correct:
            self.do_kick(queue)

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
        return self.negotiate(self.offered ^ dropped)

    def set_up_queues(self, size=None, spoilt=0, part="", value=0):
        at = RINGS
        self.rings = []
        self._notified.clear()
        for index, queue in enumerate(self.device.queues):
            ring = Ring(self.memory, index, min(size or 16, queue.max_size), at)
            at = ring.end
            self.rings.append(ring)
            self._set_up(index, ring, part if index == spoilt else "", value)

    def _set_up(self, index, ring, part, value):
        """The driver itself goes on with its good ring, whatever it tells the device of it."""
        told = SimpleNamespace(size=ring.size, descriptors=ring.descriptors, driver=ring.driver, device=ring.device)
        self._correct = self._correct and not part
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
        events = self.acknowledge()
        if self.transport.pending & events:
            raise Fault("interrupt", f"events {events} were acknowledged, and are still there")

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
            self._features_agreed()
            if value & 0xFF == 0:
                self.forget()

    def _features_agreed(self):
        """2.2: what was negotiated was offered, and has what this device cannot do without (6.1)."""
        features = self.device.features
        if features & ~self.device.offered or (features and not features >> spec.F_VERSION_1 & 1):
            raise Fault("features", f"{features:#x} were accepted of {self.device.offered:#x}")

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
        legal = len(buffers) <= ring.size and (not inner or self.device.features >> spec.F_RING_INDIRECT_DESC & 1)
        self._correct = self._correct and bool(legal) and not spoilt
        entries = self._entries(ring, direct, inner)
        head = entries[0][0] - ring.descriptors >> 4
        if spoilt:
            head = self._spoil(entries, head, *spoilt)
        for at, gpa, length, flags, following in entries:
            self.memory.write(at, pack("<QIHH", gpa, length, flags, following))
        if self.device.queues[queue].descriptors != ring.descriptors:
            self._sound = False  # the device was told of another place
        elif not spoilt:
            self._asked[queue, head] = b"".join(readable), [(gpa, length) for gpa, length, flags in buffers if flags]
        ring.make_available(head & U16)
        if spoilt and spoilt[0] == "twice":
            ring.make_available(head & U16)
        if kicked:
            self._notify(queue)

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
