"""Drivers that do anything in any order, good and bad, against devices: a model says what each step may change.

The model knows the standard's rules and nothing of the engine: which status follows which, which queue is served when,
what becomes of each chain. After every step all of RAM is compared, so that a byte too many is found wherever it lands.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from struct import pack

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvmm.virtio import spec
from pyvmm.virtio.block import VirtioBlock
from tests.support.echo import Echo
from tests.support.memorydisk import MemoryDisk
from tests.support.virtiodriver import INDIRECT, NEXT, RINGS, WRITE, Driver, Ring

RAM = 0x60000
SLOT = 0x200
"""Where the next ring is laid out: each in a place of its own, so that an old one is not mistaken for it."""
COPIES = bytearray(RAM), bytearray(RAM)
SECTORS = 12
BROKEN, FAILED = spec.STATUS_NEEDS_RESET, spec.STATUS_FAILED
STEPS = {0: (1, 3), 1: (3,), 3: (11,), 11: (15,), 15: ()}
"""3.1.1: which status a driver may write after which."""
VERSION_1, EVENT_IDX = 1 << spec.F_VERSION_1, 1 << spec.F_RING_EVENT_IDX
CHANGES = ("status", "status", "features", "queue", "queue", "bad queue", "less", "reset")
STUMBLES = ("", "", "version", "more", "queue", "queue", "late")
QUEUE_FAULTS = ("size", "align", "outside", "overlap")
REACHED: Counter[str] = Counter()
"""What came about while a machine ran: a test that did not get far has shown nothing."""


class Request:
    """A chain that is available: what it becomes when it is served.

    `bad` breaks the device; `indirect` does so where that was not negotiated. Otherwise `answer()` says which bytes
    come into its writable buffers, from the first on, and the used length.
    """

    def __init__(self, head, room=(), answer=None, bad=False, indirect=False):
        self.head, self.room, self.answer, self.bad, self.indirect = head, room, answer, bad, indirect


class Queue:
    """The model of one queue."""

    def __init__(self):
        self.ring: Ring | None = None
        self.ready = False
        self.waiting: list[Request] = []
        self.held: list[Request] = []
        self.unseen: list[tuple[int, int]] = []  # used elements that the driver has not looked at
        self.used = 0
        self.jumped = False
        self.flags = self.event = 0


class Machine(RuleBasedStateMachine):
    """What is common to all devices. Subclasses make the driver and good requests."""

    driver: Driver

    def set_up(self, device):
        self.driver = Driver(device, ram=RAM)
        self.device = device
        self.places = iter(range(RINGS, 0x20000, SLOT))
        self.status = 0
        self.broken = False
        self.driver_features = self.features = 0
        self.queues = [Queue() for _ in device.queues]

    def teardown(self):
        if hasattr(self, "driver"):
            self.driver.close()

    # --- The model ----------------------------------------------------------------------------------------------------

    @property
    def live(self):
        return bool(self.status & 4) and not self.broken and not self.status & FAILED

    def disabled(self, index):
        """Queue `index` is not in use any more."""
        self.queues[index].ready, self.queues[index].held = False, []

    def forget(self):
        """After a reset there is nothing left of it."""
        self.status = self.driver_features = self.features = 0
        self.broken = False
        self.queues = [Queue() for _ in self.queues]

    def serve(self, index, changes):
        """Queue `index` is served; what is written goes into `changes`, as (gpa, bytes)."""
        queue = self.queues[index]
        while self.live and queue.ready and (queue.waiting or queue.jumped):
            request = None if queue.jumped else queue.waiting.pop(0)
            if request is None or request.bad or (request.indirect and not self.features >> 28 & 1):
                self.broken = True
                REACHED["broken"] += 1
            elif self.holds(index):
                queue.held.append(request)
                REACHED["held"] += 1
            else:
                self.complete(queue, request, changes)

    def holds(self, index):
        return False

    def complete(self, queue, request, changes):
        data, length = request.answer()
        for gpa, room in request.room:
            changes += [(gpa + at, byte) for at, byte in enumerate(data[:room]) if byte is not None]
            data = data[room:]
        queue.unseen.append((request.head, length))
        queue.used += 1
        REACHED["completed"] += 1

    def step(self, work, served=(), answered=None, news=False):
        """Do `work`, which has the queues `served` served, or the oldest held chain of queue `answered` answered.

        `news`: the configuration changes.
        """
        driver = self.driver
        driver.acknowledge()
        was_live, was_broken, used = self.live, self.broken, [queue.used for queue in self.queues]
        expected = self.copy_ram(0)
        work()
        changes: list[tuple[int, int]] = []
        for index in served:
            self.serve(index, changes)
        if answered is not None:
            self.complete(self.queues[answered], self.queues[answered].held.pop(0), changes)
        for gpa, byte in changes:
            expected[gpa] = byte
        after = self.copy_ram(1)
        for queue in self.queues:
            if queue.ring is not None and queue.ready and was_live | self.live:
                part = slice(queue.ring.device, queue.ring.end)
                expected[part] = after[part]  # looked at in used_rings()
        assert expected == after
        broke = self.status & 4 and self.broken and not was_broken
        self.check_interrupts(used, broke or (news and self.live))

    def copy_ram(self, number):
        """All of RAM, in one of two buffers: new ones at every step would take most of the time."""
        with self.driver.memory.view(0, RAM) as view:
            COPIES[number][:] = view
        return COPIES[number]

    def check_interrupts(self, used, news):
        """2.7.7.2 and 2.1.2, of what one step has changed: used elements since `used`, and whether there was `news`."""
        events, told = self.driver.acknowledge(), False
        for queue, before in zip(self.queues, used, strict=True):
            if queue.used > before and self.features & EVENT_IDX:
                told |= (queue.event - before) & 0xFFFF < queue.used - before
            elif queue.used > before:
                told |= not queue.flags
        assert bool(events & spec.INTERRUPT_USED_BUFFER) == told
        assert bool(events & spec.INTERRUPT_CONFIG_CHANGE) == bool(news)
        if told:
            REACHED["told"] += 1

    # --- Invariants ---------------------------------------------------------------------------------------------------

    @invariant()
    def the_status_is_that_of_the_model(self):
        if hasattr(self, "driver"):
            status = self.driver.status
            assert status == self.status | (BROKEN if self.broken else 0)
            assert status & ~(BROKEN | FAILED) in STEPS

    @invariant()
    def used_rings_tell_of_what_is_complete(self):
        if hasattr(self, "driver"):
            for queue, real in zip(self.queues, self.device.queues, strict=True):
                assert real.ready == queue.ready
                assert real.in_flight <= real.size and (self.broken or real.in_flight == len(queue.held))
                if queue.ring is not None:
                    assert queue.ring.used_index == queue.used & 0xFFFF
                    if self.features & EVENT_IDX or not self.features:
                        assert not queue.ring.no_notify

    # --- Status and features ------------------------------------------------------------------------------------------

    def write_status(self, value):
        """What the driver's write of `value` does; returns the queues that are served then."""
        current, value = self.status & ~FAILED, value & ~BROKEN
        if value & FAILED or self.status & FAILED:
            self.status |= value & FAILED
        elif value in STEPS[current] and not self.broken:
            if value == 11:
                if not self.acceptable(self.driver_features):
                    return []
                self.features = self.driver_features
            self.status = value
            if value == 15:
                REACHED["live"] += 1
                return list(range(len(self.queues)))
        return []

    def acceptable(self, features):
        return not features & ~self.driver.device.offered and bool(features & VERSION_1)

    def writes_status(self, value):
        live = self.live
        served = self.write_status(value)
        self.step(lambda: self.driver.put("Status", value), served if not live else [])

    def resets(self):
        self.forget()
        self.step(lambda: self.driver.put("Status", 0))
        REACHED["reset"] += 1

    def accepts_features(self, without, more):
        features = self.device.offered & ~sum(1 << bit for bit in without) | (1 << more if more else 0)
        if self.status == 3:
            self.driver_features = features
        self.step(lambda: self.driver.accept(features))

    # --- Queues -------------------------------------------------------------------------------------------------------

    def may_enable(self, queue):
        return not queue.ready and self.status == 11 and not self.broken

    def lay_out(self, index, size):
        """A new ring for queue `index`."""
        ring = Ring(self.driver.memory, index, size, next(self.places))
        assert ring.end <= ring.descriptors + SLOT
        return ring

    def sets_up_a_queue(self, index, size):
        queue, ring = self.queues[index], self.lay_out(index, size)
        if self.may_enable(queue):
            queue.ring, queue.ready, queue.waiting, queue.unseen = ring, True, [], []
            queue.used, queue.flags, queue.event, queue.jumped = 0, 0, 0, False
        self.step(lambda: self.driver.set_up_queue(index, ring))

    def sets_up_a_queue_that_cannot_be(self, index, fault):
        ring = self.lay_out(index, 4)
        if fault == "size":
            ring.size = 3
        elif fault == "align":
            ring.device += 2
        elif fault == "outside":
            ring.driver = RAM - 4
        else:
            ring.descriptors = ring.device & ~15
        if self.may_enable(self.queues[index]):
            self.broken = True
        self.step(lambda: self.driver.set_up_queue(index, ring))

    def takes_a_queue_out_of_use(self, index):
        if self.driver.registers.can_disable:
            self.disabled(index)
        self.driver.put("QueueSel", index)
        self.step(lambda: self.driver.put("QueueReady", 0))

    @initialize(features=st.data())
    def begins(self, features):
        self.start(features)
        self.goes_the_whole_way(16, True)

    @precondition(lambda self: not self.live)
    @rule(size=st.sampled_from([4, 16]), events=st.booleans(), stumbles=st.sampled_from(STUMBLES))
    def goes_the_whole_way(self, size, events, stumbles=""):
        """What a good driver does, or one that goes wrong on its way."""
        self.resets()
        self.writes_status(1)
        self.writes_status(3)
        lacking = {"version": spec.F_VERSION_1}.get(stumbles, spec.F_RING_EVENT_IDX)
        self.accepts_features(set() if events and stumbles != "version" else {lacking}, 24 if stumbles == "more" else 0)
        self.writes_status(11)
        for index in range(1 if stumbles == "queue" else 2):
            self.sets_up_a_queue(index, size)
        if stumbles == "queue":
            self.sets_up_a_queue_that_cannot_be(1, QUEUE_FAULTS[size % 3 + events])
        if stumbles != "late":
            self.writes_status(15)
        assert self.status == {"": 15, "late": 11, "queue": 11}.get(stumbles, 3)
        self.arrived()

    def arrived(self):
        """For what subclasses do then."""

    @rule(data=st.data(), what=st.sampled_from(CHANGES))
    def changes_something(self, data, what):
        """One rule for all that a driver does once in a while, so that most steps are requests."""
        index = data.draw(st.integers(0, 1), "index")
        if what == "status":
            likely = STEPS[self.status & ~FAILED] or (15,)
            self.writes_status(data.draw(st.sampled_from(likely) | st.integers(1, 255), "value"))
        elif what == "features":
            without = data.draw(st.sets(st.sampled_from([28, 29, 32, *range(24)])), "without")
            self.accepts_features(without, data.draw(st.sampled_from([0, 0, 24, 33, 34, 63]), "more"))
        elif what == "queue":
            self.sets_up_a_queue(index, data.draw(st.sampled_from([2, 4, 8, 16]), "size"))
        elif what == "bad queue":
            self.sets_up_a_queue_that_cannot_be(index, data.draw(st.sampled_from(QUEUE_FAULTS), "fault"))
        elif what == "less":
            self.takes_a_queue_out_of_use(index)
        else:
            self.resets()

    # --- Requests -----------------------------------------------------------------------------------------------------

    @rule(index=st.integers(0, 3) | st.sampled_from([0xFFFF, 0x10000, 0xFFFFFFFF]))
    def rings_the_bell(self, index):
        self.step(lambda: self.driver.kick(index), [index] if index < len(self.queues) else [])

    @rule(index=st.integers(0, 1), flags=st.integers(0, 1), ahead=st.integers(-2, 4))
    def says_when_it_wants_to_be_told(self, index, flags, ahead):
        queue = self.queues[index]
        if queue.ring is not None:
            queue.flags, queue.event = flags, (queue.used + ahead) & 0xFFFF
            queue.ring.set_flags(flags)
            queue.ring.set_used_event(queue.event)

    @rule(index=st.integers(0, 1))
    def looks_at_what_is_used(self, index):
        queue = self.queues[index]
        if queue.ring is not None:
            assert queue.ring.used() == queue.unseen
            queue.unseen = []

    def publish(self, data, index, readable, writable, answer):
        """Make a chain of `readable` bytes and `writable` many available, cut as `data` says, if it has a place."""
        queue = self.queues[index]
        ring = queue.ring
        if ring is None or not ring.free or len(queue.waiting) >= ring.size or not len(readable) + writable:
            return
        indirect = data.draw(st.booleans(), "indirect")
        most = ring.size if indirect else min(len(ring.free), ring.size)
        cuts = data.draw(st.lists(st.integers(1, 700), max_size=6), "cuts")
        inward, outward = cut(readable, cuts), cut(bytes(writable), cuts)
        if len(inward) + len(outward) > most:
            inward, outward = [readable][: bool(readable)], [bytes(writable)][: bool(writable)]
            if len(inward) + len(outward) > most:
                return
        head = ring.add(self.driver.heap, inward, list(map(len, outward)), indirect)
        queue.waiting.append(Request(head, ring.chains[head][1], answer, indirect=indirect))
        if data.draw(st.booleans(), "kick"):
            self.rings_the_bell(index)

    BAD = ("itself", "next", "outside", "order", "nested", "length", "head", "jump")

    @rule(index=st.integers(0, 1), kind=st.sampled_from(BAD), kick=st.booleans())
    def publishes_a_bad_chain(self, index, kind, kick):
        queue = self.queues[index]
        ring = queue.ring
        if ring is None or len(ring.free) < 2 or len(queue.waiting) >= ring.size:
            return
        first, second = ring.free.pop(0), ring.free.pop(0)
        gpa, table = self.driver.heap.take(64), self.driver.heap.table(1)
        if kind == "itself":
            ring.descriptor(first, gpa, 1, NEXT, first)
        elif kind == "next":
            ring.descriptor(first, gpa, 1, NEXT, ring.size)
        elif kind == "outside":
            ring.descriptor(first, RAM - 8, 16, WRITE)
        elif kind == "order":
            ring.descriptor(first, gpa, 8, NEXT | WRITE, second)
            ring.descriptor(second, gpa, 8)
        elif kind == "nested":
            self.driver.memory.write(table, pack("<QIHH", table, 16, INDIRECT, 0))
            ring.descriptor(first, table, 16, INDIRECT)
        elif kind == "length":
            ring.descriptor(first, table, 17, INDIRECT)
        if kind == "jump":
            queue.jumped = True
            ring.avail = (ring.avail + ring.size + 1) & 0xFFFF
            ring.publish()
        else:
            ring.make_available(ring.size + first if kind == "head" else first)
            queue.waiting.append(Request(first, bad=True))
        if kick:
            self.rings_the_bell(index)


def cut(data, cuts):
    parts = []
    for length in cuts:
        if data:
            parts.append(data[:length])
            data = data[length:]
    return [*parts, data] if data else parts


class EchoMachine(Machine):
    """Against the smallest device, which keeps what comes in queue 1 in flight."""

    def start(self, data):
        self.set_up(Echo())
        self.stale = []

    def teardown(self):
        self.stale = []  # which hold guest memory
        super().teardown()

    def holds(self, index):
        return index == 1

    @rule(data=st.data(), text=st.binary(max_size=40), room=st.integers(0, 60))
    def publishes_a_good_chain(self, data, text, room, index=0):
        self.publish(data, index, text, room, lambda: (list(text[:room]), min(len(text), room)))

    @rule(data=st.data(), text=st.binary(max_size=40), room=st.integers(0, 60))
    def publishes_one_that_is_held(self, data, text, room):
        self.publishes_a_good_chain(data, text, room, 1)

    @precondition(lambda self: self.live and self.queues[1].held)
    @rule()
    def answers_what_it_held(self):
        self.step(self.device.answer, answered=1)

    @rule()
    def changes_its_configuration(self):
        generation = self.driver.get("ConfigGeneration")
        self.step(self.device.config_changed, news=True)
        assert self.driver.get("ConfigGeneration") == generation + 1

    def arrived(self):
        """What was held before a reset, or before its queue was taken out of use, is none of the next driver's."""
        if self.live or len(self.stale) > 8:
            for chain in self.stale:
                self.step(partial(self.device.queues[1].push, chain, 4))
            self.stale = []

    def forget(self):
        super().forget()
        self.stale += self.device.held

    def disabled(self, index):
        if index == 1:
            self.stale, self.device.held = self.stale + self.device.held, []
        super().disabled(index)

    @precondition(lambda self: self.live and self.queues[1].held)
    @rule()
    def publishes_what_is_in_flight(self):
        queue = self.queues[1]
        if len(queue.waiting) < queue.ring.size:
            queue.ring.make_available(queue.held[0].head)
            queue.waiting.append(Request(queue.held[0].head, bad=True))
            self.rings_the_bell(1)


def header(kind, sector=0):
    return pack("<IIQ", kind, 0, sector)


OK, IOERR, UNSUPP = spec.BLK_S_OK, spec.BLK_S_IOERR, spec.BLK_S_UNSUPP


class BlockMachine(Machine):
    """Against a disk, whose data and calls the model foretells too."""

    def start(self, data):
        readonly = data.draw(st.sampled_from([False, False, True]), "readonly")
        self.disk = MemoryDisk(SECTORS, readonly=readonly)
        self.set_up(VirtioBlock(self.disk, queues=2, queue_size=16, serial="model"))
        self.data = bytearray(self.disk.data)
        self.calls: list[str] = []
        self.chosen: bool | None = None

    def forget(self):
        super().forget()
        self.chosen = None

    def negotiated(self, feature):
        return bool(self.features >> feature & 1)

    @property
    def writeback(self):
        return self.negotiated(spec.BLK_F_FLUSH) if self.chosen is None else self.chosen

    @invariant()
    def the_disk_is_that_of_the_model(self):
        if hasattr(self, "driver"):
            assert self.disk.data == self.data
            assert [name for name, *_ in self.disk.calls] == self.calls
            assert self.driver.config(32, 1) == self.writeback

    @rule(value=st.integers(0, 2), offset=st.sampled_from([32, 32, 32, 0, 8, 33, 34, 60]))
    def writes_the_configuration(self, value, offset):
        if offset == 32 and value < 2 and self.negotiated(spec.BLK_F_CONFIG_WCE):
            self.chosen = bool(value)
        self.step(lambda: self.driver.put_config(offset, 1, value))

    def done(self, name, room=b""):
        """The disk did `name`, which changes it."""
        self.calls.append(name)
        if name != "flush" and not self.writeback:
            self.calls.append("flush")
        return self.answered(OK, room)

    def answered(self, status, data=b""):
        return [*data, status], len(data) + 1

    def refused(self, status, room=0):
        REACHED[f"status {status}"] += 1
        return [*[None] * room, status], 0 if room else 1

    @rule(data=st.data(), index=st.integers(0, 1), sector=st.integers(0, SECTORS + 1), count=st.integers(0, 3))
    def reads(self, data, index, sector, count):
        def answer():
            if sector + count > SECTORS:
                return self.refused(IOERR, 512 * count)
            self.calls.append("read")
            return self.answered(OK, self.data[512 * sector : 512 * (sector + count)])

        self.publish(data, index, header(spec.BLK_T_IN, sector), 512 * count + 1, answer)

    @rule(
        data=st.data(),
        index=st.integers(0, 1),
        sector=st.integers(0, SECTORS + 1),
        length=st.sampled_from([512, 512, 1024, 1536, 0, 511]),
        fill=st.integers(0, 255),
    )
    def writes(self, data, index, sector, length, fill):
        text = bytes([fill]) * length

        def answer():
            if self.disk.readonly or length % 512 or 512 * sector + length > 512 * SECTORS:
                return self.refused(IOERR)
            self.data[512 * sector : 512 * sector + length] = text
            return self.done("write")

        self.publish(data, index, header(spec.BLK_T_OUT, sector) + text, 1, answer)

    @rule(data=st.data(), index=st.integers(0, 1))
    def flushes(self, data, index):
        self.publish(data, index, header(spec.BLK_T_FLUSH), 1, lambda: self.done("flush"))

    @rule(data=st.data(), index=st.integers(0, 1), room=st.sampled_from([20, 20, 19]))
    def asks_for_the_serial(self, data, index, room):
        good = lambda: self.answered(OK, b"model".ljust(20, b"\0"))  # noqa: E731
        bad = lambda: self.refused(IOERR, room)  # noqa: E731
        self.publish(data, index, header(spec.BLK_T_GET_ID), room + 1, good if room == 20 else bad)

    @rule(
        data=st.data(),
        index=st.integers(0, 1),
        zeroes=st.booleans(),
        sector=st.integers(0, SECTORS),
        count=st.integers(0, 3),
        flags=st.integers(0, 2),
    )
    def discards_or_zeroes(self, data, index, zeroes, sector, count, flags):
        kind = spec.BLK_T_WRITE_ZEROES if zeroes else spec.BLK_T_DISCARD
        feature = spec.BLK_F_WRITE_ZEROES if zeroes else spec.BLK_F_DISCARD

        def answer():
            if not self.negotiated(feature) or flags > zeroes:
                return self.refused(UNSUPP)
            if sector + count > SECTORS:
                return self.refused(IOERR)
            if zeroes:
                self.data[512 * sector : 512 * (sector + count)] = bytes(512 * count)
            if count:
                return self.done("zero" if zeroes else "discard")
            if not self.writeback:
                self.calls.append("flush")
            return self.answered(OK)

        self.publish(data, index, header(kind) + pack("<QII", sector, count, flags), 1, answer)

    @rule(data=st.data(), index=st.integers(0, 1), kind=st.sampled_from([2, 3, 14, 15, 99]), room=st.integers(0, 40))
    def asks_for_what_there_is_not(self, data, index, kind, room):
        self.publish(data, index, header(kind), room + 1, lambda: self.refused(UNSUPP, room))

    @rule(index=st.integers(0, 1), readable=st.sampled_from([0, 8, 15, 16]), kick=st.booleans())
    def publishes_what_cannot_be_answered(self, index, readable, kick):
        queue = self.queues[index]
        ring = queue.ring
        if ring is not None and len(ring.free) >= 2 and len(queue.waiting) < ring.size:
            head = ring.add(self.driver.heap, [bytes(readable)], [0] if readable == 16 else [1])
            queue.waiting.append(Request(head, bad=True))
            if kick:
                self.rings_the_bell(index)


COMMON = {"broken", "completed", "told", "live", "reset"}


def run(machine, reached):
    """As many examples as a few seconds have; everything in `reached` must have come about."""
    REACHED.clear()
    case = machine.TestCase
    case.settings = settings(
        max_examples=80,
        stateful_step_count=40,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # Phase.shrink takes minutes: for whoever looks into a failure
    )
    case().runTest()
    assert set(REACHED) >= COMMON | reached, REACHED


def test_any_driver_of_the_smallest_device():
    run(EchoMachine, {"held"})


def test_any_driver_of_a_disk():
    run(BlockMachine, {f"status {IOERR}", f"status {UNSUPP}"})
