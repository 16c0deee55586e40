"""The rules of a fault plan, and how they are written: `blk0:error,op=write,sector=100-200,rate=0.1`.

Imports errors alone. `faults` is what acts on them.
"""

from __future__ import annotations

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

ERROR, SHORT, DELAY, LOST, REPEAT, REORDER = "error", "short", "delay", "lost", "repeat", "reorder"
KINDS = {
    ERROR: "the request fails",
    SHORT: "part of the data is transferred",
    DELAY: "the completion comes late",
    LOST: "the interrupt of the completion does not come",
    REPEAT: "the interrupt of the completion comes again",
    REORDER: "later requests complete before this one",
}
MADE_BY_DEVICES = (ERROR, SHORT)
"""The kinds that a device model makes itself; the others are made of the completion of any request."""

DEFAULT_DELAY = 0.01
MAX_DELAY = 3600.0
"""Seconds."""
MAX_REPEATS = 100
MAX_DEPTH = 1 << 15
"""No queue is longer (virtio 1.3, 2.7)."""
LARGEST = (1 << 64) - 1
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Rule:
    """One rule: which requests of which device meet which fault.

    device       name of the device ("blk0"), or "*" for all
    kind         one of KINDS
    amount       DELAY: seconds (default 0.01). SHORT: bytes that are transferred (default: by lot). REPEAT: how often
                 the interrupt comes again (default 1). REORDER: how many later requests complete first (default 1)
    queue        the queue's number, or None for all of the device's
    op           what is asked for, as the device calls it ("read", "write", "flush", ...), or None for anything
    sectors      first and last sector, one of which the request touches, or None
    nth          its number, or None
    first, last  its number is in this range; `last` None: open
    every        the first that these let through, and then one of so many
    rate         share of those that are hit, 0 to 1, by lot
    times        how many are hit at most, or None

    Numbers begin at 1 and count, for each queue by itself, the requests that `queue`, `op` and `sectors` let through;
    `times` too is meant for each queue. Raises UsageError, which names the rule.
    """

    __slots__ = (
        "amount",
        "device",
        "every",
        "first",
        "kind",
        "last",
        "nth",
        "op",
        "queue",
        "rate",
        "sectors",
        "text",
        "times",
    )

    def __init__(
        self,
        device: str,
        kind: str,
        *,
        amount: float | None = None,
        queue: int | None = None,
        op: str | None = None,
        sectors: tuple[int, int] | None = None,
        nth: int | None = None,
        first: int = 1,
        last: int | None = None,
        every: int = 1,
        rate: float = 1.0,
        times: int | None = None,
        text: str = "",
    ) -> None:
        self.device = device
        self.kind = kind
        self.queue = queue
        self.op = op
        self.sectors = sectors
        self.nth = nth
        self.first = first
        self.last = last
        self.every = every
        self.rate = rate
        self.times = times
        self.text = text or self._written(amount)
        self._need(kind in KINDS, f"unknown kind of fault {kind!r} (expected {', '.join(KINDS)})")
        self._need(bool(device), "whose fault? (expected a device's name or *)")
        self._need(
            nth is None or (first == 1 and last is None and every == 1),
            "nth is one request: without from, to and every",
        )
        for name, value in (("nth", nth), ("from", first), ("to", last), ("every", every), ("times", times)):
            self._need(value is None or value >= 1, f"{name}={value} (expected 1 or more)")
        self._need(last is None or first <= last, f"from {first} to {last} is empty")
        self._need(sectors is None or 0 <= sectors[0] <= sectors[1], f"sectors {sectors} are empty")
        self._need(0 < rate <= 1, f"rate={rate} (expected more than 0, and 1 at most)")
        self.amount = self._check_amount(amount)

    def _written(self, amount: float | None) -> str:
        """The rule as `parse_rule` would read it, more or less."""
        words = [f"{self.device}:{self.kind}" + ("" if amount is None else f"={amount:g}")]
        for name, (field, _) in _OPTIONS.items():
            value = getattr(self, field)
            if value not in (None, 1, 1.0):
                words.append(f"{name}={'-'.join(map(str, value)) if field == 'sectors' else value}")
        return ",".join(words)

    def _check_amount(self, amount: float | None) -> float | None:
        kind = self.kind
        if kind == DELAY:
            amount = DEFAULT_DELAY if amount is None else amount
            self._need(0 < amount <= MAX_DELAY, f"a delay of {amount} s (expected up to {MAX_DELAY:g} s)")
        elif kind in (REPEAT, REORDER):
            amount = 1 if amount is None else amount
            most = MAX_REPEATS if kind == REPEAT else MAX_DEPTH
            self._need(1 <= amount <= most and amount == int(amount), f"{kind}={amount} (expected 1 to {most})")
        elif kind == SHORT:
            self._need(amount is None or (amount >= 0 and amount == int(amount)), f"short={amount} (expected bytes)")
        else:
            self._need(amount is None, f"{kind} takes no value")
        return amount

    def _need(self, good: bool, problem: str) -> None:
        if not good:
            raise UsageError(f"fault {self.text!r}: {problem}")

    def concerns(self, device: str, queue: int) -> bool:
        """Whether any request of queue number `queue` of `device` can meet it."""
        return self.device in ("*", device) and self.queue in (None, queue)

    def matches(self, op: str | None, sector: int | None, count: int) -> bool:
        """Whether it is about a request for `op` with `count` sectors (at least 1 is assumed) from `sector` on."""
        if self.op is not None and self.op != op:
            return False
        if self.sectors is None:
            return True
        return sector is not None and sector <= self.sectors[1] and sector + max(count, 1) > self.sectors[0]

    def chooses(self, number: int) -> bool:
        """Whether request number `number` of those that match is one to be hit, before `rate` and `times`."""
        if self.nth is not None:
            return number == self.nth
        return (
            self.first <= number
            and (self.last is None or number <= self.last)
            and (number - self.first) % self.every == 0
        )

    def __repr__(self) -> str:
        return f"<Rule {self.text}>"


def parse_rule(text: str) -> Rule:
    """The rule that `text` writes as DEVICE:KIND[=AMOUNT][,NAME=VALUE]..., as `--fault` takes it.

    Names are op, queue, sector (N or N-M), nth, from, to, every, rate and times. Raises UsageError, which names the
    rule, the part and what was expected.
    """
    head, *parts = text.split(",")
    device, colon, what = head.partition(":")
    if not colon or not device or not what:
        raise UsageError(f"fault {text!r}: expected DEVICE:KIND, then sub-options, as in blk0:error,op=write,rate=0.1")
    kind, equals, value = what.partition("=")
    settings: dict[str, object] = {}
    try:
        if equals:
            settings["amount"] = _duration(value) if kind == DELAY else _number(value)
        for part in parts:
            name, equals, value = part.partition("=")
            option = _OPTIONS.get(name)
            if option is None or not equals:
                raise UsageError(f"unknown sub-option {part!r} (expected {', '.join(_OPTIONS)}, each =VALUE)")
            field, convert = option
            if field in settings:
                raise UsageError(f"{name} is given twice")
            settings[field] = convert(value)
    except UsageError as error:
        raise UsageError(f"fault {text!r}: {error}") from None
    return Rule(device, kind, text=text, **settings)  # type: ignore[arg-type]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20 and int(text) <= LARGEST):
        raise UsageError(f"{text!r} is not a number")
    return int(text)


def _decimal(text: str) -> float:
    if not (text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 20):
        raise UsageError(f"{text!r} is not a number (expected for example 0.1)")
    return float(text)


def _duration(text: str) -> float:
    for unit, scale in _UNITS.items():
        if text.endswith(unit):
            return _decimal(text[: -len(unit)]) * scale
    return _decimal(text)


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    return _number(first), _number(last if dash else first)


def _word(text: str) -> str:
    if not text:
        raise UsageError("op= needs the name of an operation")
    return text


_OPTIONS: dict[str, tuple[str, Callable[[str], object]]] = {
    "op": ("op", _word),
    "queue": ("queue", _number),
    "sector": ("sectors", _range),
    "nth": ("nth", _number),
    "from": ("first", _number),
    "to": ("last", _number),
    "every": ("every", _number),
    "rate": ("rate", _decimal),
    "times": ("times", _number),
}
"""Sub-options by name: the rule's field, and what makes its value of the text."""
