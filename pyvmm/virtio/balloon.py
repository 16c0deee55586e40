"""The memory balloon: pages that the guest does without, so that the host has them back (virtio 1.3, 5.5).

Imports device, spec, state and errors. The driver puts pages into the balloon when it is told of a larger target, takes
them out as it likes or must, and reports others that it does not use just now. Whichever it names, its memory is given
back to the host by `GuestMemory.discard`: the pages come back, all zero, when they are touched. What is given back so
is single pages of 4 KiB, or runs of them. Where the host has huge pages beneath, it gets one back when all of it is in
the balloon; and its khugepaged may make a huge page of one that is there in part, which then costs as before.
"""

from __future__ import annotations

import time
from struct import Struct
from threading import Event

from pyvmm.errors import UsageError
from pyvmm.state import U32
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.spec import (
    BALLOON_F_DEFLATE_ON_OOM,
    BALLOON_F_REPORTING,
    BALLOON_F_STATS_VQ,
    BALLOON_PFN_SHIFT,
    BALLOON_S_AVAIL,
    BALLOON_S_CACHES,
    BALLOON_S_HTLB_PGALLOC,
    BALLOON_S_HTLB_PGFAIL,
    BALLOON_S_MAJFLT,
    BALLOON_S_MEMFREE,
    BALLOON_S_MEMTOT,
    BALLOON_S_MINFLT,
    BALLOON_S_SWAP_IN,
    BALLOON_S_SWAP_OUT,
    ID_BALLOON,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue

QUEUE_SIZE = 128
INFLATE, DEFLATE, STATISTICS, HINTS, REPORTING = range(5)
"""5.5.2: the queues. There are no hints. But Linux has long numbered the queues that there are, one after the other, so
that its reports come in number 3, and QEMU went along with it: reports are taken from both."""
CONFIG = Struct("<II")
"""struct virtio_balloon_config (5.5.4), as far as it is there without hints and poison: num_pages, actual."""
ACTUAL = range(4, 8)
"""Offsets of `actual`, the only field that a driver may write."""
PAGE = 1 << BALLOON_PFN_SHIFT
MOST_PAGES = (1 << 32) - 1
PFN = 4
"""Bytes of a page's number."""
MOST_PFNS = 1 << 14
"""Pages that one request may name (Linux: 256). Those beyond are neither looked at nor given back."""
TURN = 16
"""Requests that are served before other queues, a pause or a reset have their turn."""
STATISTIC = Struct("<HQ")
"""struct virtio_balloon_stat (5.5.6.3): tag, value."""
MOST_STATISTICS = 64
"""Entries that are looked at in one buffer."""

TAGS = {
    BALLOON_S_SWAP_IN: "swap-in",
    BALLOON_S_SWAP_OUT: "swap-out",
    BALLOON_S_MAJFLT: "major-faults",
    BALLOON_S_MINFLT: "minor-faults",
    BALLOON_S_MEMFREE: "free",
    BALLOON_S_MEMTOT: "total",
    BALLOON_S_AVAIL: "available",
    BALLOON_S_CACHES: "caches",
    BALLOON_S_HTLB_PGALLOC: "huge-allocations",
    BALLOON_S_HTLB_PGFAIL: "huge-failures",
}
"""5.5.6.4: our names of the statistics; bytes, but for faults and huge pages, which are counted."""


class VirtioBalloon(VirtioDevice):
    """A balloon of `size` bytes at first.

    With `deflate_on_oom` the guest may take pages back when it runs out of memory; with `reporting` it names free pages
    by itself. `interval` is the seconds between two looks at the guest's statistics, or None: on request alone.
    `report(text)` is told once if the host does not take memory back.

    counts      pages of 4 KiB: put into the balloon, taken out, reported free; "ignored": named, but no RAM of the
                guest's, or beyond MOST_PFNS; and "refused": the host does not take them
    statistics  what the guest has last told of itself, by TAGS; {} before it has

    Raises UsageError.
    """

    device_id = ID_BALLOON
    STATE = {"_target": U32, "_actual": U32}

    def __init__(
        self,
        *,
        name: str = "",
        size: int = 0,
        deflate_on_oom: bool = True,
        reporting: bool = True,
        interval: float | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        if interval is not None and interval <= 0:
            raise UsageError(f"statistics of the balloon every {interval} s (expected more than 0)")
        self.queue_sizes = (QUEUE_SIZE,) * (REPORTING + 1 if reporting else STATISTICS + 1)
        super().__init__(name)
        self._offer = 1 << BALLOON_F_STATS_VQ
        self._offer |= 1 << BALLOON_F_DEFLATE_ON_OOM if deflate_on_oom else 0
        self._offer |= 1 << BALLOON_F_REPORTING if reporting else 0
        self._target = self._actual = 0
        self._interval = interval
        self._report = report
        self.counts = dict.fromkeys(("inflated", "deflated", "reported", "ignored", "refused"), 0)
        self.statistics: dict[str, int] = {}
        self._waiting: Chain | None = None  # the driver's buffer: it comes back with news when it is given back
        self._news = Event()
        self._due: float | None = None
        self._target = self._pages(size)

    # --- Features and configuration space -----------------------------------------------------------------------------

    def device_features(self) -> int:
        return self._offer

    def config(self) -> bytes:
        """5.5.4"""
        return CONFIG.pack(self._target, self._actual)

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver says how many pages it has put into the balloon; it may do so byte by byte."""
        field = bytearray(self._actual.to_bytes(4, "little"))
        for at, byte in enumerate(data, offset):
            if at in ACTUAL:
                field[at - ACTUAL.start] = byte
        self._actual = int.from_bytes(field, "little")

    # --- For other threads --------------------------------------------------------------------------------------------

    @property
    def target(self) -> int:
        """Bytes that the guest is asked to put into the balloon."""
        return self._target * PAGE

    @property
    def actual(self) -> int:
        """Bytes that are in it, as the guest says."""
        return self._actual * PAGE

    def set_target(self, size: int) -> None:
        """Ask the guest for a balloon of `size` bytes, rounded down to pages. Any thread; the guest takes its time.

        Raises UsageError for less than nothing, or more than the guest's memory.
        """
        pages = self._pages(size)
        with self.lock:
            if pages != self._target:
                self._target = pages
                self.config_changed()

    def _pages(self, size: int) -> int:
        most = MOST_PAGES * PAGE if self.memory is None else self.memory.size
        if not 0 <= size <= most:
            raise UsageError(f"a balloon of {size} bytes (expected 0 to the guest's memory, {most} bytes)")
        return size // PAGE

    def request_statistics(self, wait: float = 0.0) -> bool:
        """Ask the guest for new `statistics`; whether they have come within `wait` seconds. Any thread but its own."""
        with self.plane:
            if not self.live:
                return False
            if self._news.is_set():
                self._news = Event()  # whoever waits for the old one has what it waits for
            news = self._news
            self.guarded(self._ask)
        return news.wait(wait)

    # --- Serving ------------------------------------------------------------------------------------------------------

    def serve(self, queue: Virtqueue) -> None:
        if queue.index in (INFLATE, DEFLATE):
            self._move(queue)
        elif queue.index == STATISTICS:
            if self.features >> BALLOON_F_STATS_VQ & 1:
                self._listen(queue)
        elif self.features >> BALLOON_F_REPORTING & 1:
            self._take_reports(queue)

    def discard(self) -> None:
        """A reset: nothing is in the balloon of the next driver."""
        self._waiting = self._due = None
        self._actual = 0

    def deadline(self) -> float | None:
        return self._due

    def tick(self, now: float) -> None:
        self._ask()

    # --- Inflating and deflating (5.5.6) ------------------------------------------------------------------------------

    def _move(self, queue: Virtqueue) -> None:
        """Pages go into the balloon or come out. Those that come out the host gives again when they are touched."""
        for chain in queue.chains(TURN):
            count = chain.readable_length // PFN
            looked_at = min(count, MOST_PFNS)
            self.counts["ignored"] += count - looked_at
            if queue.index == INFLATE:
                numbers = memoryview(chain.read(0, PFN * looked_at)).cast("I")
                self._give_back("inflated", looked_at, runs(numbers))
            else:
                self.counts["deflated"] += looked_at
            self.complete(queue, chain)

    def _give_back(self, what: str, named: int, stretches: Iterable[tuple[int, int]]) -> None:
        """Give `stretches` of (gpa, length) to the host, in which the driver has named `named` pages."""
        assert self.memory is not None
        taken = refused = 0
        for gpa, length in stretches:
            try:
                taken += self.memory.discard(gpa, length) // PAGE
            except OSError as error:
                refused += length // PAGE
                self._tell_host(error)
        self.counts[what] += taken
        self.counts["refused"] += refused
        self.counts["ignored"] += max(0, named - taken - refused)

    def _tell_host(self, error: OSError) -> None:
        report, self._report = self._report, None
        if report is not None:
            report(f"the host does not take back what the guest gives: {error.strerror or error}")

    # --- Free page reporting (5.5.6.7) --------------------------------------------------------------------------------

    def _take_reports(self, queue: Virtqueue) -> None:
        """The buffers are the free pages themselves."""
        for chain in queue.chains(TURN):
            lengths = map(len, chain.writable)
            self._give_back("reported", chain.writable_length // PAGE, zip(chain.gpas, lengths, strict=True))
            self.complete(queue, chain)

    # --- Statistics (5.5.6.3) -----------------------------------------------------------------------------------------

    def _listen(self, queue: Virtqueue) -> None:
        """Take the buffer in which the driver tells of itself, and keep it: giving it back asks for the next one.

        There is never more than one (5.5.6.3.1). Others that a driver makes available stay where they are until then.
        """
        if self._waiting is None and (chain := queue.pop()) is not None:
            self._waiting = chain
            self.statistics = statistics(chain.read(0, STATISTIC.size * MOST_STATISTICS))
            self._news.set()
            if self._interval is not None:
                self._due = time.monotonic() + self._interval
        queue.listen()

    def _ask(self) -> None:
        """Give the driver its buffer back, so that it tells anew. `plane` is held."""
        queue = self.queues[STATISTICS]
        chain, self._waiting, self._due = self._waiting, None, None
        if chain is not None:
            self.complete(queue, chain)
            self._listen(queue)


def runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The pages with these `numbers`, each once, as the fewest stretches of (gpa, length)."""
    first = end = -1
    for number in sorted(set(numbers)):
        if number != end:
            if first >= 0:
                yield first * PAGE, (end - first) * PAGE
            first = number
        end = number + 1
    if first >= 0:
        yield first * PAGE, (end - first) * PAGE


def statistics(data: bytes) -> dict[str, int]:
    """What the entries in `data` say, by TAGS; unknown tags and half an entry are left out."""
    whole = len(data) // STATISTIC.size * STATISTIC.size
    found = STATISTIC.iter_unpack(data[:whole])
    return {TAGS[tag]: value for tag, value in found if tag in TAGS}
