"""The split virtqueue, from the device's side: take a descriptor chain, use its buffers, give it back.

Imports chain, errors and spec. After virtio 1.3, 2.7. A queue belongs to whoever serves it (the device's data plane)
from the moment it is enabled until `disable()` has returned: nothing here locks. The driver runs at the same time and
may write anything anywhere at any moment, so every field of the ring is read once and judged on the copy.

What is wrong with a ring is a QueueError: the device can only ask to be reset. What is wrong with a request inside a
well-formed chain is the device model's business.
"""

from __future__ import annotations

from itertools import pairwise
from struct import Struct
from threading import Lock

from pyvmm.errors import GuestMemoryError
from pyvmm.virtio.chain import Chain
from pyvmm.virtio.spec import (
    AVAIL_ALIGN,
    AVAIL_F_NO_INTERRUPT,
    CHAIN_LIMIT,
    DESC_ALIGN,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESC_SIZE,
    F_RING_EVENT_IDX,
    F_RING_INDIRECT_DESC,
    USED_ALIGN,
    USED_F_NO_NOTIFY,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Protocol

    from pyvmm.memory import GuestMemory
    from pyvmm.virtio.native import NativeQueue

    class Watch(Protocol):
        """Who looks on; both with the device's `plane` held."""

        def took(self, queue: Virtqueue, chain: Chain) -> None:
            """`chain` has been taken."""

        def gave(self, queue: Virtqueue, chain: Chain, more: bool) -> None:
            """`chain` is about to be given back; with `more`, so that the driver does not see it yet."""


_DESCRIPTOR = Struct("<QIHH")
_FENCE = Lock()


def fence() -> None:
    """A full memory barrier: no later load is done before an earlier store is seen by the other processors.

    x86 reorders just these two. Taking a lock that is free is a locked instruction, which orders both (Intel SDM
    volume 3A, 9.2.2).
    """
    if _FENCE.acquire(blocking=False):
        _FENCE.release()


class QueueError(Exception):
    """The driver has broken the rules of the ring; the text says which. Data for the device, never raised out of it.

    rule    the rule's name in `pyvmm.virtio.lint`
    queue   the queue's number, or None where it is that of the chain taken last
    """

    def __init__(self, text: str, *, rule: str, queue: int | None = None) -> None:
        super().__init__(text)
        self.rule = rule
        self.queue = queue


class Virtqueue:
    """One virtqueue.

    index       its number in the device
    max_size    entries that the device supports, a power of two up to 32,768
    size, descriptors, driver, device    as the driver sets them before `enable()`: number of entries, and the gpas of
                the descriptor table, the available ring ("driver area") and the used ring ("device area")
    ready       whether it is enabled
    unfinished  whether `chains()` has ended before the queue was empty: the driver will not notify of the rest
    native      what C needs of this use of the queue, if it was made (pyvmm.virtio.native), or None
    watch       who is told of every chain that is taken and given back (pyvmm.virtio.lint), or None
    """

    __slots__ = (
        "_avail",
        "_event_idx",
        "_generation",
        "_in_flight",
        "_indirect",
        "_memory",
        "_next_avail",
        "_next_used",
        "_notified",
        "_table",
        "_used",
        "_used_elements",
        "descriptors",
        "device",
        "driver",
        "index",
        "max_size",
        "native",
        "ready",
        "size",
        "unfinished",
        "watch",
    )

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.ready = False
        self.watch: Watch | None = None
        self._generation = 0
        self._drop()
        self.clear()

    def clear(self) -> None:
        """Forget everything that a driver has set, as a device reset does (2.4)."""
        self.disable()
        self.size = self.max_size
        self.descriptors = self.driver = self.device = 0

    def disable(self) -> None:
        """Stop using the ring and let go of the guest's memory. Chains still in flight can no longer be pushed."""
        self.ready = False
        self._drop()

    def _drop(self) -> None:
        self._generation += 1  # so that a chain taken before is not pushed to what comes after
        self._table = self._avail = self._used = self._used_elements = memoryview(b"")
        self._memory: GuestMemory | None = None
        self.native: NativeQueue | None = None
        self._in_flight = bytearray()
        self._event_idx = self._indirect = self.unfinished = False
        self._next_avail = self._next_used = self._notified = 0

    def enable(self, memory: GuestMemory, features: int) -> None:
        """Take the ring that the driver has described into use, with the negotiated `features`.

        Raises QueueError: a size that is no power of two or too large, a part that is misaligned (2.7) or not wholly
        in guest RAM, or parts that overlap.
        """
        size = self.size
        if not 0 < size <= self.max_size or size & (size - 1):
            raise self._wrong("queue-size", f"size {size} (expected a power of two up to {self.max_size})")
        parts = (
            ("descriptor table", self.descriptors, DESC_SIZE * size, DESC_ALIGN),
            ("available ring", self.driver, 6 + 2 * size, AVAIL_ALIGN),
            ("used ring", self.device, 6 + 8 * size, USED_ALIGN),
        )
        views = []
        for name, gpa, length, align in parts:
            if gpa % align:
                raise self._wrong("queue-misaligned", f"{name} at {gpa:#x} (expected a multiple of {align})")
            try:
                views.append(memory.view(gpa, length))
            except GuestMemoryError:
                raise self._wrong("queue-outside-ram", f"{name} at {gpa:#x}+{length:#x} is not in RAM") from None
        ordered = sorted(parts, key=lambda part: part[1])
        for (first, start, length, _), (second, gpa, _, _) in pairwise(ordered):
            if start + length > gpa:
                raise self._wrong("queue-overlap", f"{first} and {second} overlap at {gpa:#x}")
        self._table = views[0]
        self._avail = views[1].cast("H")
        self._used = views[2].cast("H")
        self._used_elements = views[2][4 : 4 + 8 * size].cast("I")
        self._memory = memory
        self._in_flight = bytearray(size)
        self._event_idx = bool(features >> F_RING_EVENT_IDX & 1)
        self._indirect = bool(features >> F_RING_INDIRECT_DESC & 1)
        self.ready = True

    def _wrong(self, rule: str, text: str) -> QueueError:
        return QueueError(f"queue {self.index}: {text}", rule=rule, queue=self.index)

    @property
    def position(self) -> int | None:
        """The available index from which on nothing has been given back: where one goes on who serves the queue anew.

        None if chains are in flight that are not the last ones taken.
        """
        taken = self.in_flight
        first, mask = self._next_avail - taken, self.size - 1
        heads = {self._avail[2 + (first + number & mask)] for number in range(taken)}
        if len(heads) < taken or not all(head < self.size and self._in_flight[head] for head in heads):
            return None
        return first & 0xFFFF

    @property
    def positions(self) -> tuple[int, int]:
        """How many chains have been taken and how many given back since it was enabled, each modulo 2^16."""
        return self._next_avail, self._next_used

    # --- Taking chains ------------------------------------------------------------------------------------------------

    @property
    def taken_index(self) -> int:
        """The available index up to which chains have been taken."""
        return self._next_avail

    @property
    def in_flight(self) -> int:
        """Chains taken and not yet pushed: never more than `size`."""
        return self._in_flight.count(1)

    def pop(self) -> Chain | None:
        """The next chain that the driver has made available, or None. Raises QueueError."""
        if not self.ready:
            return None
        position = self._next_avail
        waiting = (self._avail[1] - position) & 0xFFFF
        if waiting == 0:
            return None
        size = self.size
        if waiting > size:
            raise self._wrong("index-jump", f"available index jumps by {waiting} in a ring of {size}")
        head = self._avail[2 + (position & (size - 1))]
        if head >= size:
            raise self._wrong("head-out-of-range", f"head {head} is made available in a table of {size}")
        if self._in_flight[head]:
            raise self._wrong("descriptor-in-flight", f"head {head} is made available while it is in flight")
        chain = self._walk(head)
        self._in_flight[head] = 1
        self._next_avail = (position + 1) & 0xFFFF
        if self.watch is not None:
            self.watch.took(self, chain)
        return chain

    def chains(self, limit: int = 0) -> Iterator[Chain]:
        """All chains that are available, and those that come meanwhile; the driver need not notify until it ends.

        A driver that keeps adding some could have that go on for ever. With `limit` it ends after so many, and
        `unfinished` then tells whoever serves to do so again, when others had their turn. Raises QueueError.
        """
        self.unfinished = False
        self.suppress()
        while True:
            while (chain := self.pop()) is not None:
                limit -= 1
                yield chain
                if limit == 0:
                    self.unfinished = self.ready
                    return
            if not self.ready or not self.listen():
                return
            self.suppress()

    def _walk(self, head: int) -> Chain:
        """Follow the chain that begins at `head` (2.7.5, 2.7.5.3)."""
        memory = self._memory
        assert memory is not None
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        gpas: list[int] = []
        table: memoryview | bytes = self._table
        entries, at = self.size, head
        left = self.size  # 2.7.5.3.1: an indirect table makes no chain longer than the queue
        total = 0
        inside = False
        while True:
            gpa, length, flags, following = _DESCRIPTOR.unpack_from(table, at * DESC_SIZE)
            if flags & DESC_F_INDIRECT:
                table = self._indirect_table(memory, gpa, length, flags, inside)
                entries, at, inside = length // DESC_SIZE, 0, True
                continue
            left -= 1
            if left < 0:
                raise self._wrong("chain-loop", f"chain {head} is longer than the queue, or a loop")
            total += length
            if total > CHAIN_LIMIT:
                raise self._wrong("chain-too-long", f"chain {head} is longer than 2^32 bytes")
            if length:
                try:
                    view = memory.view(gpa, length)
                except GuestMemoryError:
                    raise self._wrong("buffer-outside-ram", f"buffer at {gpa:#x}+{length:#x} is not in RAM") from None
                if flags & DESC_F_WRITE:
                    writable.append(view)
                    gpas.append(gpa)
                elif writable:
                    raise self._wrong(
                        "readable-after-writable", f"chain {head} has a readable buffer after a writable one"
                    )
                else:
                    readable.append(view)
            if not flags & DESC_F_NEXT:
                return Chain(head, readable, writable, self._generation, gpas)
            if following >= entries:
                raise self._wrong("next-out-of-range", f"chain {head} goes on at {following} in a table of {entries}")
            at = following

    def _indirect_table(self, memory: GuestMemory, gpa: int, length: int, flags: int, inside: bool) -> bytes:
        """A copy of an indirect table: the driver could change it between two looks (2.7.5.3)."""
        if not self._indirect:
            raise self._wrong("indirect-not-negotiated", "indirect descriptor, which was not negotiated")
        if inside:
            raise self._wrong("indirect-nested", "indirect descriptor in an indirect table")
        if flags & DESC_F_NEXT:
            raise self._wrong("indirect-next", "indirect descriptor with NEXT")
        if length == 0 or length % DESC_SIZE:
            raise self._wrong("indirect-length", f"indirect table of {length} bytes (expected a multiple of 16)")
        if length > DESC_SIZE * self.size:
            raise self._wrong("indirect-too-long", f"indirect table of {length} bytes for a queue of {self.size}")
        try:
            return memory.read(gpa, length)
        except GuestMemoryError:
            raise self._wrong("indirect-outside-ram", f"indirect table at {gpa:#x}+{length:#x} is not in RAM") from None

    def taken(self, head: int) -> Chain:
        """The chain that C has taken and has done with, but for giving it back: its buffers are not among it."""
        return Chain(head, [], [], self._generation)

    def untake(self, chains: Sequence[Chain]) -> None:
        """Make `chains`, which are the last ones that were taken, available again."""
        current = self._generation if self.ready else -1
        for chain in chains:
            if chain.give_back() and chain.generation == current:
                self._in_flight[chain.head], self._next_avail = 0, (self._next_avail - 1) & 0xFFFF

    # --- Giving them back ---------------------------------------------------------------------------------------------

    def push(self, chain: Chain, written: int = 0, *, more: bool = False) -> None:
        """Give `chain` back with `written` bytes written to its writable buffers, from their beginning on.

        A chain whose queue has been disabled meanwhile is dropped: nothing may land after a reset (2.4). With `more`
        the driver does not see it before the next one is given back: a network device may need that (5.1.6.4.1).
        """
        if chain.give_back() and chain.generation == self._generation and self.ready:
            if self.watch is not None:
                self.watch.gave(self, chain, more)
            self._in_flight[chain.head] = 0
            at = (self._next_used & (self.size - 1)) * 2
            self._used_elements[at] = chain.head
            self._used_elements[at + 1] = written
            # The element is complete before the index tells of it (2.7.8.2): x86 keeps stores in order.
            self._next_used = (self._next_used + 1) & 0xFFFF
            if not more:
                self._used[1] = self._next_used

    def wants_interrupt(self) -> bool:
        """Whether the driver is to be told of what was pushed since the last call (2.7.7)."""
        if not self.ready or self._next_used == self._notified:
            return False
        before, self._notified = self._notified, self._next_used
        fence()
        if not self._event_idx:
            return not self._avail[0] & AVAIL_F_NO_INTERRUPT
        event = self._avail[2 + self.size]
        # Did the index pass the event, that is, is it among those pushed (2.7.7.2)?
        return (self._next_used - event - 1) & 0xFFFF < (self._next_used - before) & 0xFFFF

    # --- Being told ---------------------------------------------------------------------------------------------------

    def suppress(self) -> None:
        """Tell the driver that it need not notify (2.7.10). With event indices, leaving the old one behind says so."""
        if self.ready and not self._event_idx:
            self._used[0] = USED_F_NO_NOTIFY

    def listen(self) -> bool:
        """Ask the driver to notify from the next chain on; True if one has come already."""
        if not self.ready:
            return False
        if self._event_idx:
            self._used[2 + 4 * self.size] = self._next_avail
        else:
            self._used[0] = 0
        # What the driver made available before it could see this, it did not notify of.
        fence()
        return self._avail[1] != self._next_avail
