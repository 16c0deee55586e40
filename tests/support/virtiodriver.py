"""The driver's side of virtio, for the tests of every device: it negotiates, writes rings, and looks at what came back.

It can do all that a good driver does, and, since tests need that too, everything that a bad one does: descriptors,
indices and registers can be written raw.
"""

from struct import pack, unpack_from

from pyvmm.memory import GuestMemory
from pyvmm.virtio import spec
from pyvmm.virtio.device import VirtioDevice
from tests.support.registers import TRANSPORTS

RAM = 1 << 20
RINGS = 0x1000
"""Where the rings lie, one after the other; buffers come from HEAP on."""
HEAP = 0x40000
TABLES = 0x20000
"""Where indirect tables lie."""

NEXT, WRITE, INDIRECT = spec.DESC_F_NEXT, spec.DESC_F_WRITE, spec.DESC_F_INDIRECT


class Ring:
    """One queue as its driver has it: which descriptors are free, what is in flight, which used elements were seen."""

    def __init__(self, memory, index, size, at):
        self.memory, self.index, self.size = memory, index, size
        self.descriptors = at
        self.driver = at + 16 * size
        self.device = (self.driver + 6 + 2 * size + 3) & ~3
        self.end = (self.device + 6 + 8 * size + 15) & ~15
        memory.fill(at, self.end - at)
        self.free = list(range(size))
        self.chains = {}
        self.avail = self.seen = 0

    def descriptor(self, index, gpa, length, flags=0, following=0):
        """Write one descriptor, whatever it says."""
        self.memory.write(self.descriptors + 16 * index, pack("<QIHH", gpa, length, flags, following))

    def make_available(self, head, publish=True):
        """Put `head` into the available ring."""
        self.memory.write_u16(self.driver + 4 + 2 * (self.avail % self.size), head)
        self.avail = (self.avail + 1) & 0xFFFF
        if publish:
            self.memory.write_u16(self.driver + 2, self.avail)

    def publish(self):
        self.memory.write_u16(self.driver + 2, self.avail)

    def add(self, heap, readable=(), writable=(), indirect=False, publish=True):
        """A chain of the `readable` byte strings and of `writable` many bytes each; returns its head."""
        buffers = []
        for data in readable:
            gpa = heap.take(len(data))
            self.memory.write(gpa, data)
            buffers.append((gpa, len(data), 0))
        buffers += [(heap.take(length, b"\xa5"), length, WRITE) for length in writable]
        return self.add_buffers(buffers, heap.table(len(buffers)) if indirect else None, publish)

    def add_buffers(self, buffers, table=None, publish=True):
        """A chain of (gpa, length, flags), in the descriptor table or in an indirect one at `table`."""
        count = 1 if table is not None else len(buffers)
        taken = [self.free.pop(0) for _ in range(count)]
        if table is not None:
            for number, (gpa, length, flags) in enumerate(buffers):
                last = number == len(buffers) - 1
                entry = pack("<QIHH", gpa, length, flags | (0 if last else NEXT), 0 if last else number + 1)
                self.memory.write(table + 16 * number, entry)
            self.descriptor(taken[0], table, 16 * len(buffers), INDIRECT)
        else:
            for number, (gpa, length, flags) in enumerate(buffers):
                last = number == count - 1
                self.descriptor(
                    taken[number], gpa, length, flags | (0 if last else NEXT), 0 if last else taken[number + 1]
                )
        self.chains[taken[0]] = (taken, [(gpa, length) for gpa, length, flags in buffers if flags & WRITE])
        self.make_available(taken[0], publish)
        return taken[0]

    @property
    def used_index(self):
        return self.memory.read_u16(self.device + 2)

    def used(self):
        """The used elements not seen yet, as (head, written); their descriptors are free again."""
        found = []
        while self.seen != self.used_index:
            at = self.device + 4 + 8 * (self.seen % self.size)
            head, written = unpack_from("<II", self.memory.read(at, 8))
            self.seen = (self.seen + 1) & 0xFFFF
            found.append((head, written))
            if head in self.chains:
                self.free += self.chains[head][0]
        return found

    def written(self, head):
        """All writable bytes of chain `head`."""
        return b"".join(self.memory.read(gpa, length) for gpa, length in self.chains[head][1])

    @property
    def no_notify(self):
        return bool(self.memory.read_u16(self.device) & spec.USED_F_NO_NOTIFY)

    @property
    def avail_event(self):
        return self.memory.read_u16(self.device + 4 + 8 * self.size)

    def set_flags(self, flags):
        self.memory.write_u16(self.driver, flags)

    def set_used_event(self, index):
        self.memory.write_u16(self.driver + 4 + 2 * self.size, index)


class Heap:
    """Guest memory for buffers, given out from one end to the other and round again."""

    def __init__(self, memory, start=HEAP, end=RAM):
        self.memory, self.start, self.end = memory, start, end
        self.at = start
        self.tables = TABLES

    def take(self, length, fill=b"\0"):
        if self.at + length > self.end:
            self.at = self.start
        gpa = self.at
        self.at += (length + 15) & ~15
        if length:
            self.memory.fill(gpa, length, fill[0])
        return gpa

    def table(self, entries):
        at = self.tables
        self.tables = TABLES if at + 32 * entries > HEAP else at + 16 * entries
        return at


class Driver:
    """A driver with its device behind a transport, one of TRANSPORTS or a class like those, and a megabyte of RAM.

    `get` and `put` take MMIO's names of registers whatever the transport; `registers` is the transport's driver.
    `on_interrupt()` is called at each interrupt, which `interrupts` counts.
    """

    default = "mmio"
    """Which of TRANSPORTS."""

    def __init__(self, device: VirtioDevice, ram=RAM, transport=None):
        self.memory = GuestMemory.allocate([(0, ram)])
        self.device = device
        device.memory = self.memory
        self.interrupts = 0
        self.on_interrupt = lambda: None
        transport = transport or self.default
        self.registers = TRANSPORTS.get(transport, transport)(device, self._interrupt)
        self.transport = self.registers.transport
        self.heap = Heap(self.memory, end=ram)
        self.rings: list[Ring] = []

    def _interrupt(self):
        self.interrupts += 1
        self.on_interrupt()

    # --- Registers ----------------------------------------------------------------------------------------------------

    def get(self, register):
        return self.registers.get(register)

    def put(self, register, value):
        self.registers.put(register, value)

    def config(self, offset, size):
        return self.registers.config(offset, size)

    def put_config(self, offset, size, value):
        self.registers.put_config(offset, size, value)

    @property
    def status(self):
        return self.get("Status")

    @property
    def offered(self):
        value = 0
        for word in (0, 1):
            self.put("DeviceFeaturesSel", word)
            value |= self.get("DeviceFeatures") << 32 * word
        return value

    def accept(self, features):
        for word in (0, 1):
            self.put("DriverFeaturesSel", word)
            self.put("DriverFeatures", features >> 32 * word & 0xFFFFFFFF)

    # --- Bringing up (3.1.1) ------------------------------------------------------------------------------------------

    def negotiate(self, features=None, without=()):
        """Up to FEATURES_OK, with everything offered but `without`, or just `features` (bits)."""
        self.put("Status", 0)
        self.put("Status", 1)
        self.put("Status", 3)
        if features is None:
            features = self.offered
        for bit in without:
            features &= ~(1 << bit)
        self.accept(features)
        self.put("Status", 11)
        return bool(self.status & spec.STATUS_FEATURES_OK)

    def set_up_queue(self, index, ring):
        self.put("QueueSel", index)
        self.put("QueueSize", ring.size)
        for name, gpa in (("Desc", ring.descriptors), ("Driver", ring.driver), ("Device", ring.device)):
            self.put(f"Queue{name}Low", gpa & 0xFFFFFFFF)
            self.put(f"Queue{name}High", gpa >> 32)
        self.put("QueueReady", 1)

    def set_up_queues(self, size=None):
        at = RINGS
        self.rings = []
        for index in range(len(self.device.queues)):
            self.put("QueueSel", index)
            ring = Ring(self.memory, index, min(size or 16, self.get("QueueSizeMax")), at)
            at = ring.end
            self.rings.append(ring)
            self.set_up_queue(index, ring)

    def bring_up(self, features=None, without=(), size=None):
        """The whole way to DRIVER_OK; returns this driver."""
        assert self.negotiate(features, without)
        self.set_up_queues(size)
        self.put("Status", 15)
        assert self.status == 15
        return self

    # --- Requests -----------------------------------------------------------------------------------------------------

    def kick(self, queue=0):
        self.put("QueueNotify", queue)

    def send(self, queue=0, readable=(), writable=(), indirect=False):
        """One chain, published and notified; returns its head."""
        head = self.rings[queue].add(self.heap, readable, writable, indirect)
        self.kick(queue)
        return head

    def request(self, queue=0, readable=(), writable=(), indirect=False):
        """One chain that is used at once: (written, all writable bytes)."""
        head = self.send(queue, readable, writable, indirect)
        ring = self.rings[queue]
        [(used, written)] = ring.used()
        assert used == head
        return written, ring.written(head)

    def acknowledge(self):
        """What an interrupt handler does; returns the events."""
        events = self.get("InterruptStatus")
        self.put("InterruptACK", events)
        return events

    @property
    def needs_reset(self):
        return bool(self.status & spec.STATUS_NEEDS_RESET)

    def close(self):
        self.put("Status", 0)
        self.device.close()
        self.memory.close()
