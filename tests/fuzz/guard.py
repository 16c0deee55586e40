"""Guest memory as a device under test has it, and the judgement of what it did there.

Guard is the only way by which the device gets at RAM: it sees what is asked of it, and nothing else is there. Ledger
follows the rings as a driver could, so that after the device has run it knows what may have changed (the used rings,
and the writable buffers of chains that are the device's) and which chains may have come back.
"""

from __future__ import annotations

import sys
from collections import Counter
from struct import iter_unpack, unpack_from

from pyvmm.errors import GuestMemoryError
from pyvmm.memory import GuestMemory
from pyvmm.virtio import native
from pyvmm.virtio.spec import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE
from tests.fuzz.cases import HIGH, HIGH_END, LOW_END

RANGES = ((0, LOW_END), (HIGH, HIGH_END - HIGH))


class Fault(Exception):
    """The device did what it must not; the text says what. `kind` is a word for it, `where` tells two apart."""

    def __init__(self, kind, text, where=""):
        super().__init__(text)
        self.kind = kind
        self.where = where


class Guard:
    """What a device sees of `memory`. What it does wrong is kept in `fault`, in case it catches the exception."""

    read, write, fill = GuestMemory.read, GuestMemory.write, GuestMemory.fill
    read_u8, read_u16, read_u32, read_u64 = (
        GuestMemory.read_u8,
        GuestMemory.read_u16,
        GuestMemory.read_u32,
        GuestMemory.read_u64,
    )
    write_u8, write_u16, write_u32, write_u64 = (
        GuestMemory.write_u8,
        GuestMemory.write_u16,
        GuestMemory.write_u32,
        GuestMemory.write_u64,
    )

    def __init__(self, memory):
        self._memory = memory
        self.size = memory.size
        self.fault = None

    def contains(self, gpa, length):
        return any(base <= gpa and length >= 0 and gpa + length <= base + size for base, size in RANGES)

    def view(self, gpa, length):
        """As GuestMemory's, which is not trusted: it is asked, and its answer is judged."""
        try:
            found = self._memory.view(gpa, length)
        except GuestMemoryError:
            if self.contains(gpa, length):
                self._wrong(f"{length:#x} bytes at {gpa:#x} are RAM, and were refused")
            raise
        if not self.contains(gpa, length) or found.nbytes != length:
            self._wrong(f"{length:#x} bytes at {gpa:#x} were given, which is not RAM")
        return found

    @property
    def regions(self):
        """For C alone, whose own checks are held to Python's elsewhere; what it writes the Ledger sees."""
        if sys._getframe(1).f_globals["__name__"] != native.__name__:
            self._wrong("the device reaches around the checks, by GuestMemory.regions")
        return self._memory.regions

    def __getattr__(self, name):
        self._wrong(f"the device reaches around the checks, by GuestMemory.{name}")

    def _wrong(self, text):
        self.fault = self.fault or Fault("outside RAM", text)
        raise self.fault


class _Given:
    """What the device has of one queue: each chain's writable buffers and their bytes, by its head, and its ring.

    A head that is available twice is in `times` with 2.
    """

    __slots__ = ("chains", "entered", "parts", "rooms", "seen", "times", "used", "waiting")

    def __init__(self, queue):
        size = queue.size
        self.used = (queue.device, 6 + 8 * size)
        self.parts = {(queue.descriptors, DESC_SIZE * size), (queue.driver, 6 + 2 * size), self.used}
        self.chains: dict[int, set[tuple[int, int]]] = {}
        self.rooms: dict[int, int] = {}
        self.times: Counter[int] = Counter()
        self.seen = self.waiting = self.entered = 0


def _meet(some, others):
    """Whether a range (gpa, length) of the one lies over one of the other."""
    first, end = min(start for start, _ in others), max(start + size for start, size in others)
    some = [(gpa, length) for gpa, length in some if gpa < end and first < gpa + length]  # few are near
    return any(gpa < start + size and start < gpa + length for gpa, length in some for start, size in others)


class Ledger:
    """The books of one device. `fouled`: rings lie over each other, or the device is to write over them."""

    def __init__(self, device, memory, interrupt_is_due):
        self._device = device
        self._memory = memory
        self._due = interrupt_is_due
        self._given: dict[int, _Given] = {}
        self._shadow = b""
        self.fouled = False

    def _ram(self):
        return b"".join(region.view for region in self._memory.regions)

    def forget(self):
        """A reset: everything is the driver's again."""
        self._given.clear()
        self.fouled = False

    # --- Before the device runs ---------------------------------------------------------------------------------------

    def before(self, serving):
        """The device is about to run; `serving`, so that it may use its queues."""
        for queue in self._device.queues:
            if not queue.ready:
                self._given.pop(queue.index, None)
            elif queue.index not in self._given:
                new = _Given(queue)
                self.fouled = self.fouled or any(_meet(new.parts, other.parts) for other in self._given.values())
                self._given[queue.index] = new
        for index, given in self._given.items():
            # The used index is how this sees what the device does: the driver keeps its hands off it.
            self._memory.write_u16(self._device.queues[index].device + 2, given.seen)
        self._shadow = self._ram()
        if serving:
            for index, given in self._given.items():
                self._follow(self._device.queues[index], given)
            self._foul()

    def _follow(self, queue, given):
        """Enter each chain that the device may find in the ring, as it is now."""
        memory = self._memory
        slots = unpack_from(f"<{queue.size + 2}H", memory.view(queue.driver, 4 + 2 * queue.size))
        available = slots[1]
        given.waiting = (available - given.seen) & 0xFFFF
        fresh, given.entered = (available - given.entered) & 0xFFFF, available
        given.times.update(slots[2 + (available - back) % queue.size] for back in range(1, min(fresh, queue.size) + 1))
        for back in range(1, min(given.waiting, queue.size) + 1):
            head = slots[2 + (available - back) % queue.size]
            if head < queue.size:
                buffers = self._walk(queue, given, head)
                given.chains.setdefault(head, set()).update(buffers)
                given.rooms[head] = max(given.rooms.get(head, 0), sum(length for _, length in buffers))

    def _walk(self, queue, given, head):
        memory, found = self._memory, []
        table = list(iter_unpack("<QIHH", memory.view(queue.descriptors, DESC_SIZE * queue.size)))
        at = head
        for _ in range(queue.size + 1):
            gpa, length, flags, following = table[at]
            if flags & DESC_F_INDIRECT:
                length -= length % DESC_SIZE
                if not 0 < length <= DESC_SIZE * queue.size or not memory.contains(gpa, length):
                    break
                given.parts.add((gpa, length))
                table, at = list(iter_unpack("<QIHH", memory.view(gpa, length))), 0
                continue
            if flags & DESC_F_WRITE and memory.contains(gpa, length):
                found.append((gpa, length))
            if not flags & DESC_F_NEXT or following >= len(table):
                break
            at = following
        return found

    def _foul(self):
        """Whether a buffer lies over a ring or a table: what the device finds there then is not known here."""
        parts = {part for given in self._given.values() for part in given.parts}
        self.fouled = self.fouled or (bool(parts) and _meet(self._buffers(), parts))

    def _buffers(self):
        return [buffer for given in self._given.values() for buffers in given.chains.values() for buffer in buffers]

    # --- After it -----------------------------------------------------------------------------------------------------

    def after(self, serving):
        """Judge what it did. Yields each chain that came back: queue, head, bytes written. Raises Fault."""
        for queue in self._device.queues if serving else ():
            if queue.in_flight > queue.size:
                raise Fault("in flight", f"queue {queue.index}: {queue.in_flight} of {queue.size} chains are in flight")
        if self.fouled:
            return []
        now = self._ram()
        if now == self._shadow:
            return []
        allowed = [*self._buffers(), *(given.used for given in self._given.values())] if serving else []
        self._compare(now, allowed)
        return [back for index, given in self._given.items() for back in self._back(index, given)] if serving else []

    def _compare(self, now, allowed):
        expected = bytearray(self._shadow)
        for gpa, length in allowed:
            at = gpa if gpa < LOW_END else gpa - HIGH + LOW_END
            expected[at : at + length] = now[at : at + length]
        if expected != now:
            at = next(at for at, (old, new) in enumerate(zip(expected, now, strict=True)) if old != new)
            gpa = at if at < LOW_END else at + HIGH - LOW_END
            raise Fault("memory", f"the device has written to {gpa:#x}, which is not its to write to")

    def _back(self, index, given):
        queue, memory = self._device.queues[index], self._memory
        if not queue.ready:
            return []
        new = (memory.read_u16(queue.device + 2) - given.seen) & 0xFFFF
        if not new:
            return []
        most = max(given.waiting, given.times.total())  # the available index may have gone back meanwhile
        if new > most:
            raise Fault("used ring", f"queue {index}: {new} chains come back of {most} that were available")
        back = []
        for position in range(given.seen + max(0, new - queue.size), given.seen + new):
            element = queue.device + 4 + 8 * (position % queue.size)
            head, written = unpack_from("<II", memory.view(element, 8))
            if head not in given.chains:
                raise Fault("used ring", f"queue {index}: head {head} comes back, which the device did not have")
            if written > given.rooms[head]:
                raise Fault("used ring", f"queue {index}: {written} bytes written in a chain of {given.rooms[head]}")
            back.append((index, head, written))
        for _, head, _ in back:
            given.times[head] -= 1
            if given.times[head] <= 0:
                del given.times[head]
                given.chains.pop(head, None)
                given.rooms.pop(head, None)
        given.seen = (given.seen + new) & 0xFFFF
        given.waiting = max(0, given.waiting - new)
        self._due(queue, given.seen, new)
        return back

    @property
    def idle(self):
        """Whether the device has nothing of the driver's."""
        return all(map(self.empty, self._given))

    def empty(self, queue):
        """Whether the device has nothing of the driver's in queue number `queue`."""
        given = self._given.get(queue)
        return given is None or (given.waiting == 0 and not given.chains)
