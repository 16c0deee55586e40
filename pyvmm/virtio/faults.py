"""Faults on purpose: a plan that has devices fail, dawdle and repeat themselves, for those who test drivers.

Imports faultrules, spec and errors. A device with a plan draws for each request that it begins (`draw`) and makes the
faults "error" and "short" itself; all its completions go through `complete`, which makes the others. A device that
never draws has those others just the same.

What is drawn follows from the seed, the device, the queue and the number of the request in it, never from the time or
from which thread came first: the same requests meet the same faults again. The plan's state of a device is touched with
that device's `plane` held.
"""

from __future__ import annotations

from collections import deque
from hashlib import blake2b
from time import monotonic

from pyvmm.errors import UsageError
from pyvmm.virtio.faultrules import (
    DELAY,
    ERROR,
    KINDS,
    LOST,
    MADE_BY_DEVICES,
    MAX_DEPTH,
    REORDER,
    REPEAT,
    SHORT,
    Rule,
    parse_rule,
)
from pyvmm.virtio.spec import SECTOR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Virtqueue

OVERTAKE_WAIT = 0.05
"""Seconds that a request waits to be overtaken: a driver that has nothing else to ask would wait for it for ever."""
REPEAT_AFTER = 0.001
"""Seconds between repeated interrupts: at once, the interrupt controller would take two edges for one."""


class Fault:
    """What a device is to do to a request: `kind` is ERROR or SHORT, `number` that of the request in its queue.

    `amount` is for SHORT: how many bytes are transferred, fewer than were asked for; 0 for ERROR.
    """

    __slots__ = ("amount", "kind", "number")

    def __init__(self, kind: str, amount: int, number: int) -> None:
        self.kind = kind
        self.amount = amount
        self.number = number

    def __repr__(self) -> str:
        return f"<Fault {self.kind}={self.amount} of request {self.number}>"


class _Tally:
    """How one rule goes in one queue: requests that it matched, and those that it hit."""

    __slots__ = ("hits", "matched", "rank", "rule")

    def __init__(self, rule: Rule, rank: int) -> None:
        self.rule = rule
        self.rank = rank  # its place in the plan
        self.matched = self.hits = 0

    @property
    def amount(self) -> float:
        return self.rule.amount or 0


class _Line:
    """The plan's state of one queue."""

    __slots__ = ("device", "drawn", "missed", "number", "overtaken", "queue", "tallies")

    def __init__(self, device: str, queue: int, tallies: list[_Tally]) -> None:
        self.device = device
        self.queue = queue
        self.tallies = tallies
        self.number = 0  # requests so far
        self.clear()

    def clear(self) -> None:
        # What was drawn for requests that are not complete, oldest first: each kind with the rule that brought it.
        self.drawn: deque[dict[str, _Tally]] = deque(maxlen=MAX_DEPTH)
        self.missed = False  # the driver was to be interrupted, and was not
        self.overtaken: _Held | None = None  # the one that waits for others to complete first


class _Held:
    """What happens later: `chain` completes, or, if None, the queue's interrupt comes `left` times more."""

    __slots__ = ("chain", "due", "faults", "left", "line", "queue", "written")

    def __init__(self, due: float, line: _Line, queue: Virtqueue, left: int) -> None:
        self.due = due
        self.line = line
        self.queue = queue
        self.left = left  # for REORDER: completions that come first
        self.chain: Chain | None = None
        self.written = 0
        self.faults: dict[str, _Tally] = {}


class FaultPlan:
    """`rules`, as Rule or as text (see `parse_rule`), for all devices of a VM. Raises UsageError for bad text.

    Of several rules that hit one request the first of each kind counts, and of "error" and "short" the first at all.
    """

    def __init__(self, rules: Iterable[Rule | str], seed: int = 0) -> None:
        self.rules = tuple(rule if isinstance(rule, Rule) else parse_rule(rule) for rule in rules)
        self.seed = seed
        self._lines: dict[tuple[str, int], _Line] = {}
        self._held: dict[str, list[_Held]] = {}

    def check(self, devices: Collection[str]) -> None:
        """Raise UsageError, which names the rule, if one is about a device that is not among `devices`."""
        for rule in self.rules:
            if rule.device != "*" and rule.device not in devices:
                there = ", ".join(devices) or "none"
                raise UsageError(f"fault {rule.text!r}: no device {rule.device!r} (there are: {there})")

    # --- What happened ------------------------------------------------------------------------------------------------

    @property
    def counts(self) -> list[tuple[Rule, int, int]]:
        """Each rule with how many requests it hit so far, and how many `queue`, `op` and `sectors` let through."""
        tallies = [tally for line in list(self._lines.values()) for tally in line.tallies]
        return [
            (
                rule,
                sum(tally.hits for tally in tallies if tally.rank == rank),
                sum(tally.matched for tally in tallies if tally.rank == rank),
            )
            for rank, rule in enumerate(self.rules)
        ]

    def describe(self) -> list[str]:
        """`counts` as lines of text."""
        return [f"{rule.text}: {hits} of {matched} requests" for rule, hits, matched in self.counts]

    # --- For devices --------------------------------------------------------------------------------------------------

    def draw(
        self, device: str, queue: int, op: str | None = None, sector: int | None = None, length: int = 0
    ) -> Fault | None:
        """Number the request that the device named `device` begins in queue number `queue`, and decide on it.

        `op` is what it asks for, `sector` where (512 bytes each), `length` how many bytes. Returns what the device is
        to do itself, or None. To be called once for each request, in the order in which `complete` will be.
        """
        line = self._line(device, queue)
        faults = self._judge(line, op, sector, length, MADE_BY_DEVICES)
        line.drawn.append(faults)
        for kind in MADE_BY_DEVICES:
            if kind in faults:
                faults[kind].hits += 1
                return Fault(kind, self._part(line, faults[kind], length) if kind == SHORT else 0, line.number)
        return None

    def withdraw(self, device: str, queue: int) -> None:
        """What was drawn last has no completion of its own: a received frame that is lost takes no buffer."""
        drawn = self._line(device, queue).drawn
        if drawn:
            drawn.pop()

    def complete(self, device: VirtioDevice, queue: Virtqueue, chain: Chain, written: int) -> None:
        """Give `chain` back as the plan wants it, now or later. `plane` is held."""
        line = self._line(device.name, queue.index)
        faults = line.drawn.popleft() if line.drawn else self._judge(line, None, None, 0, ())
        held = None
        if DELAY in faults:
            held = _Held(monotonic() + faults[DELAY].amount, line, queue, 0)
            faults[DELAY].hits += 1
        elif REORDER in faults and line.overtaken is None:
            held = line.overtaken = _Held(monotonic() + OVERTAKE_WAIT, line, queue, int(faults[REORDER].amount))
            faults[REORDER].hits += 1
        if held is None:
            self._finish(device, line, queue, chain, written, faults)
            return
        chain.readable, chain.writable = [], []  # the device is done with the guest's memory
        held.chain, held.written, held.faults = chain, written, faults
        self._hold(device, held)

    # --- For VirtioDevice ---------------------------------------------------------------------------------------------

    def deadline(self, device: VirtioDevice) -> float | None:
        """When (time.monotonic()) something held of `device` is due, or None. On its data plane."""
        held = self._held.get(device.name)
        return min(entry.due for entry in held) if held else None

    def run_due(self, device: VirtioDevice, now: float) -> None:
        """Let happen what was held until `now`. `plane` is held."""
        due = [entry for entry in self._held.get(device.name, ()) if entry.due <= now]
        for entry in sorted(due, key=lambda entry: entry.due):
            if entry.chain is not None:
                self._let_go(device, entry)
                continue
            if entry.queue.ready:
                self._interrupt(device, entry.queue)
                entry.left -= 1
                entry.due = now + REPEAT_AFTER
            if entry.left <= 0 or not entry.queue.ready:
                self._drop(device, entry)

    def discard(self, device: VirtioDevice) -> None:
        """A reset: what is held of `device` never happens. Numbers go on. `plane` is held."""
        self._held.pop(device.name, None)
        for line in list(self._lines.values()):
            if line.device == device.name:
                line.clear()

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _line(self, device: str, queue: int) -> _Line:
        line = self._lines.get((device, queue))
        if line is None:
            tallies = [_Tally(rule, rank) for rank, rule in enumerate(self.rules) if rule.concerns(device, queue)]
            line = self._lines[device, queue] = _Line(device, queue, tallies)
        return line

    def _judge(
        self, line: _Line, op: str | None, sector: int | None, length: int, makes: tuple[str, ...]
    ) -> dict[str, _Tally]:
        """Number a request and find its faults, of kinds that the device `makes` itself, and of all others."""
        line.number += 1
        found: dict[str, _Tally] = {}
        for tally in line.tallies:
            rule = tally.rule
            if rule.kind in MADE_BY_DEVICES and rule.kind not in makes:
                continue
            if not rule.matches(op, sector, -(-length // SECTOR)):
                continue
            tally.matched += 1
            if (
                rule.chooses(tally.matched)
                and (rule.times is None or tally.hits < rule.times)
                and (rule.rate == 1 or self._lot(line, tally.rank, "hit") < rule.rate)
                and not (rule.kind in MADE_BY_DEVICES and any(kind in found for kind in MADE_BY_DEVICES))
                and (rule.kind != SHORT or length > 0)
            ):
                found.setdefault(rule.kind, tally)
        return found

    def _lot(self, line: _Line, rank: int, purpose: str) -> float:
        """A number from 0 to 1, without 1, drawn by lot for the request that was numbered last."""
        name = f"{self.seed} {line.device} {line.queue} {line.number} {rank} {purpose}"
        return int.from_bytes(blake2b(name.encode(), digest_size=6).digest(), "little") / (1 << 48)

    def _part(self, line: _Line, tally: _Tally, length: int) -> int:
        if tally.rule.amount is not None:
            return min(int(tally.rule.amount), length - 1)
        return int(self._lot(line, tally.rank, "part") * length)

    def _finish(
        self,
        device: VirtioDevice,
        line: _Line,
        queue: Virtqueue,
        chain: Chain,
        written: int,
        faults: dict[str, _Tally],
    ) -> None:
        """Give `chain` back, and see to its interrupt."""
        if LOST in faults or REPEAT in faults or line.missed:
            device.tell(queue)  # those before it have interrupts of their own
            queue.push(chain, written)
            self._interrupt_amiss(device, line, queue, faults)
        else:
            queue.push(chain, written)
        ahead = line.overtaken
        if ahead is not None:
            ahead.left -= 1
            if ahead.left <= 0:
                self._let_go(device, ahead)

    def _interrupt_amiss(self, device: VirtioDevice, line: _Line, queue: Virtqueue, faults: dict[str, _Tally]) -> None:
        wanted = queue.wants_interrupt()
        if LOST in faults:
            if wanted:
                faults[LOST].hits += 1
                line.missed = True
        elif wanted or line.missed:
            # With event indices a driver that missed one asks for no other: it is told with the next completion.
            line.missed = False
            self._interrupt(device, queue)
            if REPEAT in faults and not self._repeats(device, queue):
                faults[REPEAT].hits += 1
                self._hold(device, _Held(monotonic() + REPEAT_AFTER, line, queue, int(faults[REPEAT].amount)))

    def _repeats(self, device: VirtioDevice, queue: Virtqueue) -> bool:
        """Whether `queue` has an interrupt to repeat already: one at a time keeps it bounded."""
        return any(entry.chain is None and entry.queue is queue for entry in self._held.get(device.name, ()))

    @staticmethod
    def _interrupt(device: VirtioDevice, queue: Virtqueue) -> None:
        if device.notifications is not None:
            device.notifications.used_buffer(queue.index)

    def _hold(self, device: VirtioDevice, entry: _Held) -> None:
        # A new list each time: the data plane may be looking at the old one for its deadline.
        self._held[device.name] = [*self._held.get(device.name, ()), entry]

    def _drop(self, device: VirtioDevice, entry: _Held) -> None:
        self._held[device.name] = [other for other in self._held.get(device.name, ()) if other is not entry]

    def _let_go(self, device: VirtioDevice, entry: _Held) -> None:
        """What was held completes; a second time is nothing, since a chain is given back once."""
        self._drop(device, entry)
        if entry.line.overtaken is entry:
            entry.line.overtaken = None
        assert entry.chain is not None
        self._finish(device, entry.line, entry.queue, entry.chain, entry.written, entry.faults)


__all__ = ["DELAY", "ERROR", "KINDS", "LOST", "REORDER", "REPEAT", "SHORT", "Fault", "FaultPlan", "Rule", "parse_rule"]
