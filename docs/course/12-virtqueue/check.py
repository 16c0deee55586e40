"""Judges the exercises of lesson 12 against a driver of its own; needs no KVM."""

import random
from struct import pack, unpack

from pyvmm.errors import GuestMemoryError
from pyvmm.memory import GuestMemory

SIZE, TABLE, AVAILABLE, USED = 8, 0x1000, 0x2000, 0x3000
NEXT, WRITE = 1, 2
LOOKS = 10_000  # more than any of these checks needs


class Watched(GuestMemory):
    """64 KiB that note in which order the used ring is written, and how often they are looked at."""

    __slots__ = ("looks", "stores", "watching")

    def view(self, gpa, length):
        self.looks = getattr(self, "looks", 0) + 1
        if self.looks > LOOKS:
            raise AssertionError("it goes round and round: a chain may be a loop")
        return super().view(gpa, length)

    def write(self, gpa, data):
        self.note(gpa, len(data))
        super().write(gpa, data)

    def write_u16(self, gpa, value):
        self.note(gpa, 2)
        super().write_u16(gpa, value)

    def write_u32(self, gpa, value):
        self.note(gpa, 4)
        super().write_u32(gpa, value)

    def note(self, gpa, length):
        if getattr(self, "watching", False):
            self.stores.append((gpa, length))


class Driver:
    def __init__(self, work, start=0):
        self.memory = Watched.allocate([(0, 1 << 16)])
        self.memory.stores, self.memory.watching = [], False
        self.queue = work.exercise.Queue(SIZE, TABLE, AVAILABLE, USED)
        self.queue.next_available = self.queue.next_used = self.index = start
        self.memory.write_u16(AVAILABLE + 2, start)
        self.memory.write_u16(USED + 2, start)

    def descriptor(self, number, gpa, length, flags=0, following=0):
        self.memory.write(TABLE + 16 * number, pack("<QIHH", gpa, length, flags, following))

    def available(self, head):
        self.memory.write_u16(AVAILABLE + 4 + 2 * (self.index % SIZE), head)
        self.index = (self.index + 1) % 65536
        self.memory.write_u16(AVAILABLE + 2, self.index)

    def chain(self, *buffers):
        """Descriptors 5, 4, 3, ... in this order: (gpa, length, flags)."""
        for number, (gpa, length, flags) in enumerate(buffers):
            last = number == len(buffers) - 1
            self.descriptor(5 - number, gpa, length, flags | (0 if last else NEXT), 0 if last else 4 - number)
        self.available(5)

    def used(self, entry):
        return unpack("<II", self.memory.read(USED + 4 + 8 * entry, 8))


def check_pop(work):
    pop = work.exercise.pop
    driver = Driver(work)
    if (found := pop(driver.memory, driver.queue)) is not None:
        return f"the ring is empty, and pop() gives {found!r}, not None"
    driver.chain((0x4000, 16, 0), (0x5000, 512, WRITE), (0x6000, 1, WRITE))
    found = pop(driver.memory, driver.queue)
    if found is None:
        return "one chain is available (index 1, and next_available is 0), and pop() gives None"
    if found != (5, [(0x4000, 16)], [(0x5000, 512), (0x6000, 1)]):
        return f"descriptors 5, 4, 3 are 16 readable, 512 and 1 writable bytes; pop() gives {found!r}"
    if driver.queue.next_available != 1:
        return f"after one chain next_available is {driver.queue.next_available}, not 1"
    if pop(driver.memory, driver.queue) is not None:
        return "the same chain comes twice"
    driver = Driver(work, start=65533)
    for number in range(SIZE):
        driver.descriptor(number, 0x4000 + 16 * number, 16)
        driver.available((3 * number) % SIZE)
    for number in range(SIZE):
        found = pop(driver.memory, driver.queue)
        if found is None or found[0] != (3 * number) % SIZE:
            return (
                f"the index goes from 65533 to 5 with {SIZE} chains: number {number} should be head {3 * number % SIZE}"
            )
    if pop(driver.memory, driver.queue) is not None or driver.queue.next_available != 5:
        return f"after 65535 comes 0: next_available should be 5, not {driver.queue.next_available}"
    return broken_rings(work, pop)


def broken_rings(work, pop):
    def head_beyond(driver):
        driver.available(SIZE)

    def next_beyond(driver):
        driver.descriptor(0, 0x4000, 16, NEXT, SIZE)
        driver.available(0)

    def loop(driver):
        driver.descriptor(0, 0x4000, 16, NEXT, 1)
        driver.descriptor(1, 0x4000, 16, NEXT, 0)
        driver.available(0)

    for spoil, what in (
        (head_beyond, f"head {SIZE} in a table of {SIZE}"),
        (next_beyond, f"`next` is {SIZE} in a table of {SIZE}"),
        (loop, "a chain that is a loop"),
    ):
        driver = Driver(work)
        spoil(driver)
        try:
            found = pop(driver.memory, driver.queue)
        except work.exercise.BrokenRing:
            continue
        except GuestMemoryError as error:
            return f"{what}: there should be a BrokenRing, not {error}"
        return f"{what}: there should be a BrokenRing, not {found!r}"
    driver = Driver(work)
    for number in range(SIZE):
        driver.descriptor(number, 0x4000, 16, 0 if number == SIZE - 1 else NEXT, number + 1)
    driver.available(0)
    try:
        found = pop(driver.memory, driver.queue)
    except work.exercise.BrokenRing:
        return f"a chain of {SIZE} descriptors in a queue of {SIZE} is legal"
    return "" if found == (0, [(0x4000, 16)] * SIZE, []) else f"a chain of {SIZE} descriptors comes as {found!r}"


def check_push(work):
    push = work.exercise.push
    driver = Driver(work, start=65534)
    driver.memory.watching = True
    push(driver.memory, driver.queue, 5, 513)
    stores, index = driver.memory.stores, driver.memory.read_u16(USED + 2)
    if not stores:
        return "push() writes nothing"
    if any(not USED <= gpa <= gpa + length <= USED + 4 + 8 * SIZE for gpa, length in stores):
        return "push() writes outside of the used ring"
    if index != 65535:
        return f"the used index is {index}, not one more than 65534"
    entry = 65534 % SIZE
    if driver.used(entry) != (5, 513):
        return f"element {entry} (65534 modulo {SIZE}) is {driver.used(entry)}, not head 5 and 513 bytes"
    if stores[-1] != (USED + 2, 2):
        return "the index is not what is stored last: a driver that looks in between finds an old element"
    push(driver.memory, driver.queue, 2, 0)
    if driver.memory.read_u16(USED + 2) != 0:
        return "after 65535 comes 0"
    for number in range(40):
        push(driver.memory, driver.queue, number % SIZE, number)
        if driver.used(number % SIZE) != (number % SIZE, number) or driver.memory.read_u16(USED + 2) != number + 1:
            return f"it goes wrong at the {number + 3}rd chain: the entry is the index modulo {SIZE}"
    return ""


def check_must_notify(work):
    must_notify = work.exercise.must_notify
    cases = [
        (0, 1, 0, True, "entry 0 was waited for, and is done"),
        (0, 1, 1, False, "entry 1 is not done yet"),
        (4, 8, 5, True, "entries 4 to 7 are done, 5 is among them"),
        (4, 8, 8, False, "entry 8 is the next one"),
        (4, 8, 3, False, "entry 3 was done before: it was told of then"),
        (65534, 2, 65535, True, "entries 65534, 65535, 0 and 1 are done"),
        (65534, 2, 1, True, "entries 65534, 65535, 0 and 1 are done"),
        (65534, 2, 2, False, "entry 2 is the next one"),
        (7, 7, 6, False, "nothing was done"),
    ]
    source = random.Random(12)
    for _ in range(200):
        old, count, event = source.randrange(65536), source.randrange(1, 300), source.randrange(-400, 400)
        event = (old + event) % 65536
        cases.append((old, (old + count) % 65536, event, (event - old) % 65536 < count, "count the entries one by one"))
    for old, new, event, expected, why in cases:
        found = must_notify(old, new, event)
        if found is None or bool(found) != expected:
            return f"must_notify({old}, {new}, {event}) is {found}, not {expected}: {why}"
    return ""
