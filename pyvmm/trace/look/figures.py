"""What a trace adds up to: one pass over its records, in memory that does not grow with their number.

Imports fields and histogram. The summary and the page are made of these figures.
"""

from __future__ import annotations

from pyvmm.trace.fields import clean, direction, kind, number, place, text
from pyvmm.trace.look.histogram import Histogram

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    from pyvmm.trace.fields import Record

    K = TypeVar("K")
    T = TypeVar("T", bound="Tally")

NAMES = 4096
"""Different names that are kept of one sort; what else comes is counted under OTHERS."""
OTHERS = "(others)"
PHASES = 256
LEVELS = ("pages_", "max_", "nx_lpage_splits")
"""How KVM's statistics begin that are no counters."""


class Tally:
    """What exits of one sort cost: how many, nanoseconds in KVM_RUN before them and in their handlers."""

    __slots__ = ("by_c", "count", "handle", "run")

    def __init__(self) -> None:
        self.count = 0
        self.by_c = 0
        self.run = 0
        self.handle = 0

    def add(self, run: int, handle: int, by_c: bool) -> None:
        """One more."""
        self.count += 1
        self.by_c += by_c
        self.run += run
        self.handle += handle


class Cost(Tally):
    """A tally with the handlers' times (`latency`), and the section that specifies a register (`spec`)."""

    __slots__ = ("latency", "spec")

    def __init__(self) -> None:
        super().__init__()
        self.latency = Histogram()
        self.spec = ""

    def add(self, run: int, handle: int, by_c: bool) -> None:
        """One more."""
        super().add(run, handle, by_c)
        self.latency.add(handle)


class Queue:
    """A virtqueue: its events by name, what they moved, and how many requests were in flight at most."""

    __slots__ = ("deepest", "events", "latency", "requests")

    def __init__(self) -> None:
        self.events: dict[str, int] = {}
        self.requests = 0
        self.deepest = 0
        self.latency = Histogram()


class Phase:
    """A stage of the run from `start` (ns) on, and the exits in it by kind."""

    __slots__ = ("kinds", "name", "start")

    def __init__(self, name: str, start: int) -> None:
        self.name = name
        self.start = start
        self.kinds: dict[str, int] = {}

    @property
    def exits(self) -> int:
        """How many exits were made in it."""
        return sum(self.kinds.values())

    def most(self, count: int = 3) -> list[tuple[str, int]]:
        """Its commonest kinds of exit."""
        return sorted(self.kinds.items(), key=lambda item: -item[1])[:count]


class Figures:
    """All that is known once every record was given to `add`.

    total, reasons, vcpus   Tally of all exits, by KVM's exit reason, by vCPU
    kinds, registers        Cost by device (or reason), by (device, register, direction)
    queues, interrupts      by (device, queue), and counts by source
    counters                KVM's own: vCPU (None: the VM) to (first, last)
    length                  nanoseconds from the beginning of the trace to its last record
    """

    def __init__(self) -> None:
        self.records = 0
        self.length = 0
        self.lost = 0
        self.total = Tally()
        self.reasons: dict[str, Tally] = {}
        self.kinds: dict[str, Cost] = {}
        self.registers: dict[tuple[str, str, str], Cost] = {}
        self.vcpus: dict[int, Tally] = {}
        self.queues: dict[tuple[str, int], Queue] = {}
        self.interrupts: dict[str, int] = {}
        self.states: list[tuple[int, str]] = []
        self.phases: list[Phase] = [Phase("", 0)]
        self.counters: dict[int | None, tuple[dict[str, int], dict[str, int]]] = {}
        self.end: tuple[str, int] | None = None

    def add(self, record: Record) -> None:
        """Count one record."""
        self.records += 1
        self.length = max(self.length, number(record, "t"))
        name = record.get("kind")
        if name == "exit":
            self._exit(record)
        elif name == "queue":
            self._queue(record)
        elif name == "interrupt":
            source = text(record, "device") or f"GSI {number(record, 'gsi')}"
            if record.get("level") != 0:  # lowering a line is the end of one, not another
                source = source if source in self.interrupts or len(self.interrupts) < NAMES else OTHERS
                self.interrupts[source] = self.interrupts.get(source, 0) + 1
        elif name == "phase":
            if len(self.phases) < PHASES:
                self.phases.append(Phase(text(record, "name"), number(record, "t")))
        elif name == "lifecycle":
            if len(self.states) < PHASES:
                self.states.append((number(record, "t"), text(record, "state")))
        elif name == "statistics":
            self._statistics(record)
        elif name == "lost":
            self.lost += number(record, "count")
        elif name == "end":
            self.end = (text(record, "reason"), number(record, "status"))

    def _exit(self, record: Record) -> None:
        run, handle, by_c = number(record, "run"), number(record, "handle"), record.get("by") == "c"
        what = kind(record)
        self.total.add(run, handle, by_c)
        _of(self.reasons, text(record, "reason") or "?", OTHERS, Tally).add(run, handle, by_c)
        _of(self.kinds, what, OTHERS, Cost).add(run, handle, by_c)
        _of(self.vcpus, number(record, "vcpu"), -1, Tally).add(run, handle, by_c)
        name, kinds = what, self.phases[-1].kinds
        what = what if what in kinds or len(kinds) < NAMES // 16 else OTHERS
        kinds[what] = kinds.get(what, 0) + 1
        if "space" in record:
            register = text(record, "register") or place(record)
            cost = _of(self.registers, (name, register, direction(record)), (OTHERS, "", ""), Cost)
            cost.add(run, handle, by_c)
            cost.spec = cost.spec or text(record, "spec")

    def _queue(self, record: Record) -> None:
        key = (text(record, "device"), number(record, "queue"))
        if key not in self.queues and len(self.queues) >= NAMES:
            key = (OTHERS, 0)
        queue = self.queues.setdefault(key, Queue())
        event = text(record, "event")
        if event in queue.events or len(queue.events) < 16:
            queue.events[event] = queue.events.get(event, 0) + 1
        if event == "complete":
            queue.requests += number(record, "count")
        queue.deepest = max(queue.deepest, number(record, "depth"))
        if "handle" in record:
            queue.latency.add(number(record, "handle"))

    def _statistics(self, record: Record) -> None:
        whose = record.get("vcpu") if type(record.get("vcpu")) is int else None
        counters = record.get("counters")
        if not isinstance(counters, dict) or (whose not in self.counters and len(self.counters) >= NAMES):
            return
        now = {
            clean(name): value for name, value in list(counters.items())[:NAMES] if type(value) is int and value >= 0
        }
        self.counters[whose] = (self.counters.get(whose, (now, now))[0], now)

    @property
    def kvm(self) -> dict[str, int]:
        """By how much KVM's own counters grew between their first and last reading, over all vCPUs; only what did.

        What is no counter but a level is left out.
        """
        grown: dict[str, int] = {}
        for first, last in self.counters.values():
            for name, value in last.items():
                if value > first.get(name, 0) and not name.startswith(LEVELS):
                    grown[name] = grown.get(name, 0) + value - first.get(name, 0)
        return grown

    @property
    def stages(self) -> list[tuple[Phase, int]]:
        """The phases that have a name or exits, with how long each lasted in nanoseconds."""
        ends = [phase.start for phase in self.phases[1:]] + [self.length]
        pairs = zip(self.phases, ends, strict=True)
        return [(phase, max(0, end - phase.start)) for phase, end in pairs if phase.name or phase.kinds]


def _of(costs: dict[K, T], key: K, others: K, make: type[T]) -> T:
    cost = costs.get(key)
    if cost is None:
        cost = costs.setdefault(key if len(costs) < NAMES else others, make())
    return cost


def by_count(costs: dict[K, T]) -> list[tuple[K, T]]:
    """The most frequent first."""
    return sorted(costs.items(), key=lambda item: -item[1].count)
