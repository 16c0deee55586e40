"""Which records of a trace are wanted. Imports errors, fields and show.

    device=serial register=LSR vcpu=0 from=1.5s to=2s THRE

Words with `=` name a field, the others are looked for in the line that shows a record. All of them must hold; case does
not matter.
"""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.trace.fields import kind, number, text
from pyvmm.trace.look.show import line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.trace.fields import Record

FIELDS = ("device", "register", "reason", "kind", "vcpu", "from", "to")
HEXADECIMAL = frozenset("abcdefx")
OURS = (
    *("unclaimed", "port", "gsi", "queue", "in flight", "interrupt", "lowered", "raised", "pulse", "status", "damaged"),
    *("records were lost here", "counters of kvm's", "kind", "none", "true", "false"),
)
"""What show.py adds to a line, in small letters."""
UNITS = {"ns": 1, "us": 1000, "µs": 1000, "ms": 1_000_000, "s": 1_000_000_000}


class Filter:
    """One that lets everything through until something is asked for."""

    def __init__(self, wanted: Mapping[str, str] | None = None, words: tuple[str, ...] = ()) -> None:
        """`wanted` has values by FIELDS; `words` stand in the line. Raises UsageError."""
        self.wanted = dict(wanted or {})
        self.words = tuple(word.lower() for word in words)
        self._exact = [(key, value.lower()) for key, value in self.wanted.items() if key in FIELDS[:4]]
        self._vcpu = _vcpu(self.wanted["vcpu"]) if "vcpu" in self.wanted else None
        self._since = moment(self.wanted["from"]) if "from" in self.wanted else 0
        self._until = moment(self.wanted["to"]) if "to" in self.wanted else None
        # In a line of JSON a name stands as it is; one with other characters may be written in several ways.
        names = (value for key, value in self._exact if key in ("device", "register", "reason"))
        self._needles = [value.encode() for value in names if value.replace("-", "").replace("_", "").isalnum()]
        self._needles += [word.encode() for word in self.words if word.isalpha() and _is_the_traces(word)]
        self._needles = [needle for needle in self._needles if needle.isascii() and needle != b"unclaimed"]

    @classmethod
    def parse(cls, typed: str) -> Filter:
        """From what a person types. Raises UsageError."""
        wanted: dict[str, str] = {}
        words = []
        for part in typed.split():
            key, found, value = part.partition("=")
            if found and key in FIELDS:
                wanted[key] = value
            elif found and key.isalpha() and key.islower():
                raise UsageError(f"a filter has no {key!r} (expected {', '.join(FIELDS)}, or words)")
            else:
                words.append(part)
        return cls(wanted, tuple(words))

    def __bool__(self) -> bool:
        """Whether it keeps anything out."""
        return bool(self.wanted or self.words)

    def __str__(self) -> str:
        return " ".join([*(f"{key}={value}" for key, value in self.wanted.items()), *self.words])

    def may_match(self, raw: bytes) -> bool:
        """False if the record in the line of JSON `raw` cannot be wanted: this is fast."""
        lower = raw.lower() if self._needles else raw
        return all(needle in lower for needle in self._needles)

    def matches(self, record: Record) -> bool:
        """Whether the record is wanted."""
        for key, value in self._exact:
            shown = kind(record) if key == "device" and record.get("kind") == "exit" else text(record, key)
            if shown.lower() != value:
                return False
        if self._vcpu is not None and record.get("vcpu") != self._vcpu:
            return False
        t = number(record, "t")
        if t < self._since or (self._until is not None and t > self._until):
            return False
        if self.words:
            shown = line(record).lower()
            return all(word in shown for word in self.words)
        return True


def _is_the_traces(word: str) -> bool:
    """Whether a word of letters that is in a record's line must be in the record: it is no number, and not ours."""
    return not set(word) <= HEXADECIMAL and not any(word in ours for ours in OURS)


def moment(value: str) -> int:
    """A time in the trace in nanoseconds: "1.5s", "20ms", "3us"; a bare number is seconds. Raises UsageError."""
    digits = value.rstrip("nuµms")
    try:
        at = float(digits) * UNITS[value[len(digits) :] or "s"]
        if 0 <= at < 1 << 63:
            return round(at)
    except (ValueError, KeyError):
        pass
    raise UsageError(f"{value!r} is not a time in the trace (expected 1.5s, 20ms, 300us)")


def _vcpu(value: str) -> int:
    if value.isdecimal() and len(value) < 6:
        return int(value)
    raise UsageError(f"vCPU {value!r} (expected a number)")
