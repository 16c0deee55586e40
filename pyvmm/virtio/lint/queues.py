"""What a driver does with one virtqueue in memory, judged when the device takes a chain and gives it back (2.7).

Imports spec and errors. What makes a ring unusable `Virtqueue` itself finds; here is what a device gets along with, and
should not have to. Between two looks the driver may write anything: what is called wrong is wrong whenever it was
written. A driver may reuse the entry of the available ring at position p for p + size as soon as it has seen
a used element at or beyond p: so entries from the used index on are the device's.
"""

from __future__ import annotations

from struct import Struct
from threading import Lock

from pyvmm.errors import GuestMemoryError
from pyvmm.virtio.spec import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, USED_F_NO_NOTIFY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.lint.config import Report
    from pyvmm.virtio.queue import Virtqueue

_DESCRIPTOR = Struct("<QIHH")
KNOWN_FLAGS = DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT
NEEDLESS = 8
"""Notifications in a row that the device had asked not to get, from which on the driver does not look whether it did.
A few are nobody's fault: another CPU looked before the device asked, and was interrupted before it notified."""


class _Taken:
    """A chain that the device has: where it is in the available ring, its descriptors, and what was in them."""

    __slots__ = ("contents", "descriptors", "position", "tables")

    def __init__(self, position: int) -> None:
        self.position = position
        self.descriptors: list[int] = []
        self.contents = 0  # a hash: what is in them may be long
        self.tables: tuple[int, int, int] | None = None  # gpa, length and hash of an indirect table


class QueueLint:
    """Judges the ring of `queue`. `took` and `gave` are called with the device's `plane` held, others with `lock`."""

    __slots__ = (
        "_lock",
        "_announced",
        "_event",
        "_generation",
        "_highest",
        "_last",
        "_needless",
        "_owners",
        "_queue",
        "_report",
        "_shown",
        "_taken",
    )

    def __init__(self, queue: Virtqueue, report: Report) -> None:
        self._queue = queue
        self._report = report
        self._lock = Lock()
        self._forget()
        self._generation = -1  # a queue that nobody has seen enabled was restored: see where it is when it is used

    def _forget(self) -> None:
        self._generation = self._queue._generation
        self._taken: dict[int, _Taken] = {}
        self._owners: dict[int, int] = {}  # descriptor in flight -> head of its chain
        self._highest = self._queue._next_avail  # the available index, as far as it was seen
        self._announced: int | None = None  # the same when the driver notified last
        self._shown = self._queue._next_used  # the used index, as the device has shown it
        self._event: int | None = None  # avail_event when the driver notified last
        self._needless = 0
        self._last: tuple[int, int] | None = None  # position and head taken last

    def _found(self, rule: str, descriptor: int | None = None, detail: str = "") -> None:
        self._report(rule, queue=self._queue.index, descriptor=descriptor, detail=detail)

    # --- From the transport -------------------------------------------------------------------------------------------

    def enabled(self) -> None:
        """The driver has enabled the queue."""
        self._forget()
        flags, index = self._used_head()
        if flags or index:
            self._found("used-ring-dirty", detail=f"flags {flags:#x}, idx {index}")

    def went_live(self) -> None:
        """DRIVER_OK: the device looks by itself for what is there already."""
        if self._queue.ready:
            self._announced = self._index

    def notified(self) -> None:
        """The driver notifies of this queue, which is ready, and the device has not been told yet."""
        with self._lock:
            self._notified()

    def _notified(self) -> None:
        queue = self._queue
        if self._generation != queue._generation:
            self._forget()
        self._look()
        index = self._index
        if queue._event_idx:
            event = self._event_now
            needless = event == self._event and self._announced is not None and _passed(event, self._announced)
            self._event = event
        else:
            needless = bool(self._used_head()[0] & USED_F_NO_NOTIFY)
        self._needless = self._needless + 1 if needless else 0
        self._announced = index
        if self._needless >= NEEDLESS:
            self._found("notify-suppressed", detail=f"{self._needless} times in a row")

    @property
    def outstanding(self) -> int:
        """Chains that the driver has made available and not got back."""
        return (self._index - self._used_head()[1]) & 0xFFFF

    def went_back(self) -> bool:
        """Whether the available index, which the device cannot follow, has been moved back."""
        return self._generation == self._queue._generation and (self._index - self._highest) & 0xFFFF > 0x8000

    def settle(self) -> None:
        """Nothing more comes: does the device wait for a notification that it should have had?"""
        queue = self._queue
        if not queue.ready or self._generation != queue._generation:
            return
        taken = queue._next_avail
        listens = self._event_now == taken if queue._event_idx else not self._used_head()[0] & USED_F_NO_NOTIFY
        waiting = (self._index - taken) & 0xFFFF
        told = self._announced is not None and _passed(taken, self._announced)
        if listens and waiting and not told:
            self._found("notify-missing", detail=f"{waiting} wait")

    # --- From the queue -----------------------------------------------------------------------------------------------

    def took(self, chain: Chain) -> None:
        """The device has taken `chain`: it was well-formed when it did."""
        with self._lock:
            if self._generation != chain.generation:
                self._forget()
            self._look()
            self._look_at_used()
            position = (self._queue._next_avail - 1) & 0xFFFF
            self._last = position, chain.head
            self._taken[chain.head] = taken = _Taken(position)
            self._follow(chain.head, taken)

    def gave(self, chain: Chain, more: bool) -> None:
        """The device is about to give `chain` back; with `more` it does not show the driver yet."""
        with self._lock:
            taken = self._taken.pop(chain.head, None)
            if self._generation != chain.generation or taken is None:
                self._generation = -1  # one of before a restore: begin anew with the next
                return
            self._look()
            self._look_at_used()
            self._compare(chain.head, taken)
            for descriptor in taken.descriptors:
                del self._owners[descriptor]
            if not more:
                self._shown = (self._queue._next_used + 1) & 0xFFFF

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """What the driver may never do in the available ring, whenever one looks."""
        queue = self._queue
        flags, index = queue._avail[0], self._index
        if flags & ~(0 if queue._event_idx else 1):
            self._found("available-flags", detail=f"{flags:#x}")
        if (index - self._highest) & 0xFFFF > 0x8000:
            self._found("index-decremented", detail=f"from {self._highest} to {index}")
        if self._last is not None:
            position, head = self._last
            # What has been given back may have its entry written anew, when the index gets there after a lap.
            lap = (position + queue.size - index) & 0xFFFF
            if self._entry(position) != head and (not _passed(position, self._shown) or 0 < lap < 0x8000):
                self._late(position, head)
                self._last = None
        self._highest = index

    def _look_at_used(self) -> None:
        """Is the used ring as the device left it? It does not change while its data plane asks."""
        _, used = self._used_head()
        if used != self._shown:
            self._found("used-ring-written", detail=f"idx {used}, which the device left at {self._shown}")
            self._shown = used

    def _late(self, position: int, head: int) -> None:
        entry, now = position % self._queue.size, self._entry(position)
        self._found("entry-late", now, f"entry {entry} was {head} when the index told of it, and is {now}")

    def _follow(self, head: int, taken: _Taken) -> None:
        """Note the chain's descriptors, and judge each."""
        queue = self._queue
        at, contents = head, []
        for _ in range(queue.size):
            entry = self._descriptor(at)
            gpa, length, flags, following = _DESCRIPTOR.unpack(entry)
            if at in self._owners:
                self._found("descriptor-in-flight", at, f"chains {self._owners[at]} and {head} both have it")
                break
            self._owners[at] = head
            taken.descriptors.append(at)
            contents.append(entry)
            self._judge(at, length, flags)
            if flags & DESC_F_INDIRECT:
                taken.tables = gpa, length, self._table(at, gpa, length)
            if not flags & DESC_F_NEXT or following >= queue.size:
                break
            at = following
        taken.contents = hash(b"".join(contents))

    def _judge(self, at: int, length: int, flags: int) -> None:
        if flags & ~KNOWN_FLAGS:
            self._found("descriptor-flags", at, f"{flags:#x}")
        if not length and not flags & DESC_F_INDIRECT:
            self._found("descriptor-empty", at)

    def _table(self, at: int, gpa: int, length: int) -> int:
        table = self._indirect(gpa, length)
        for start in range(0, len(table) // DESC_SIZE * DESC_SIZE, DESC_SIZE):
            _, size, flags, _ = _DESCRIPTOR.unpack_from(table, start)
            self._judge(at, size, flags)
        return hash(table)

    def _compare(self, head: int, taken: _Taken) -> None:
        """Is all that the device was given still as it was?"""
        contents = b"".join(self._descriptor(at) for at in taken.descriptors)
        changed = hash(contents) != taken.contents
        if taken.tables is not None and not changed:
            gpa, length, before = taken.tables
            changed = hash(self._indirect(gpa, length)) != before
        if changed:
            self._found("descriptor-changed", head)
        if self._entry(taken.position) != head and not _passed(taken.position, self._shown):
            self._late(taken.position, head)
            self._last = None

    # --- The ring as it is --------------------------------------------------------------------------------------------

    @property
    def _index(self) -> int:
        """The available index."""
        return self._queue._avail[1]

    @property
    def _event_now(self) -> int:
        """avail_event, from which index on the device wants to be notified (2.7.10)."""
        return self._queue._used[2 + 4 * self._queue.size]

    def _entry(self, position: int) -> int:
        return self._queue._avail[2 + (position & (self._queue.size - 1))]

    def _used_head(self) -> tuple[int, int]:
        """Flags and index of the used ring."""
        return self._queue._used[0], self._queue._used[1]

    def _descriptor(self, at: int) -> bytes:
        return bytes(self._queue._table[DESC_SIZE * at : DESC_SIZE * (at + 1)])

    def _indirect(self, gpa: int, length: int) -> bytes:
        memory = self._queue._memory
        try:
            return b"" if memory is None else memory.read(gpa, min(length, DESC_SIZE * self._queue.size))
        except GuestMemoryError:
            return b""


def _passed(event: int, index: int) -> bool:
    """Whether `index` is beyond `event`, of two that are not far apart."""
    return (index - event - 1) & 0xFFFF < 0x8000
