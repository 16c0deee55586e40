"""What a page can draw of a trace of any length: single exits up to a bound, everything in bins that widen as it grows.

Imports fields. One pass, bounded memory: when there are too many exits, about every second of those kept is dropped
(`stride` doubles); when time outgrows the bins, they are merged in pairs. What is in bins is exact in any case. Which
exits are kept is spread evenly and follows no rhythm, since exits have one: of LSR, THR, LSR, THR both must stay.
"""

from __future__ import annotations

from array import array
from heapq import heappush, heapreplace

from pyvmm.trace.fields import direction, kind, number, place, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable
    from typing import Any

    from pyvmm.trace.fields import Record

BINS = 1024
SERIES = 64
"""Different things that are counted in bins; further ones are counted together."""
POINTS = 40_000
"""Exits that are kept by themselves."""
WORDS = 20_000
"""Different descriptions of exits that are kept; further exits are described without the words on their value."""
SLOWEST = 20
GOLDEN = 0x9E3779B1
"""2^32 over the golden ratio: multiples of it are spread evenly modulo 2^32 (Knuth, volume 3, 6.4)."""
REST = "(others)"


class Bins:
    """Values over time: `series` by key, BINS numbers each, one for every `width` nanoseconds."""

    __slots__ = ("_highest", "series", "width")

    def __init__(self, width: int = 1 << 10, highest: bool = False) -> None:
        """Values in one bin add up, or with `highest` the highest counts."""
        self.width = width
        self.series: dict[Hashable, array[int]] = {}
        self._highest = highest

    def add(self, key: Hashable, t: int, value: int) -> None:
        """Enter `value` (0 or more) at `t` nanoseconds."""
        while t >= self.width * BINS:
            self._widen()
        bins = self.series.get(key)
        if bins is None:
            if len(self.series) >= SERIES:
                key = REST
            bins = self.series.setdefault(key, array("Q", bytes(8 * BINS)))
        at = t // self.width
        bins[at] = max(bins[at], value) if self._highest else min(bins[at] + value, (1 << 64) - 1)

    def _widen(self) -> None:
        self.width *= 2
        for key, bins in self.series.items():
            pairs = zip(bins[::2], bins[1::2], strict=True)
            merged = [max(pair) if self._highest else min(sum(pair), (1 << 64) - 1) for pair in pairs]
            self.series[key] = array("Q", [*merged, *[0] * (BINS // 2)])


class Timeline:
    """Give every record to `add`, then read.

    points    (t, vcpu, place in `told`, run, handle, rip) of one exit in `stride`
    told      what such exits were: (kind, reason, register, direction, place, size, words, spec, by)
    slowest   the exits with the longest handlers, as (handle, number, point)
    counts, times, depths, interrupts   Bins: exits and handler time by kind, requests in flight by (device, queue),
                                        interrupts
    """

    def __init__(self) -> None:
        self.exits = 0
        self.stride = 1
        self.points: list[tuple[int, int, int, int, int, int]] = []
        self._ranks: list[int] = []
        self.told: dict[tuple[Any, ...], int] = {}
        self.slowest: list[tuple[int, int, tuple[int, int, int, int, int, int]]] = []
        self.counts = Bins()
        self.times = Bins()
        self.depths = Bins(highest=True)
        self.interrupts = Bins()
        self._in_flight: dict[tuple[str, int], tuple[int, int]] = {}

    def add(self, record: Record) -> None:
        """Take one record in."""
        name = record.get("kind")
        if name == "exit":
            self._exit(record)
        elif name == "queue":
            key = (text(record, "device"), number(record, "queue"))
            self._depth(key, number(record, "t"), min(number(record, "depth"), 1 << 32))
        elif name == "interrupt" and record.get("level") != 0:
            self.interrupts.add("", number(record, "t"), 1)

    def _depth(self, key: tuple[str, int], t: int, depth: int) -> None:
        """Requests that are in flight at two events were so between them."""
        since, before = self._in_flight.get(key, (t, 0))
        self.depths.add(key, t, depth)
        for at in range(since, t, self.depths.width) if before else ():
            self.depths.add(key, at, before)
        if key in self._in_flight or len(self._in_flight) < SERIES:
            self._in_flight[key] = (max(since, t), depth)

    def _exit(self, record: Record) -> None:
        t, handle, what = number(record, "t"), number(record, "handle"), kind(record)
        self.counts.add(what, t, 1)
        self.times.add(what, t, handle)
        self.exits += 1
        rank = self.exits * GOLDEN & 0xFFFFFFFF
        keep = rank * self.stride >> 32 == 0
        slow = handle > self.slowest[0][0] if len(self.slowest) >= SLOWEST else handle > 0
        if not keep and not slow:
            return
        told = self._told(record, what)
        point = (t, number(record, "vcpu"), told, number(record, "run"), handle, _rip(record))
        if slow:
            (heapreplace if len(self.slowest) >= SLOWEST else heappush)(self.slowest, (handle, self.exits, point))
        if keep:
            self.points.append(point)
            self._ranks.append(rank)
            if len(self.points) > POINTS:
                self._thin()

    def _thin(self) -> None:
        self.stride *= 2
        kept = [at for at, rank in enumerate(self._ranks) if rank * self.stride >> 32 == 0]
        self.points = [self.points[at] for at in kept]
        self._ranks = [self._ranks[at] for at in kept]

    def _told(self, record: Record, what: str) -> int:
        reason, size = text(record, "reason"), number(record, "size")
        parts = (what, reason, text(record, "register"), direction(record), place(record), size)
        words, spec = text(record, "words"), text(record, "spec")
        by = "C" if record.get("by") == "c" else "Python"
        full = (*parts, words, spec, by)
        if len(self.told) >= 2 * WORDS:
            full = (what, *("",) * 4, 0, "", "", by) if full not in self.told else full
        elif len(self.told) >= WORDS and full not in self.told:
            full = (*parts, "", spec, by)
        return self.told.setdefault(full, len(self.told)) if len(self.told) < 3 * WORDS else self.told.get(full, 0)


def _rip(record: Record) -> int:
    value = record.get("rip")
    return value if type(value) is int and 0 <= value < 1 << 64 else 0
