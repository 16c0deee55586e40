"""Fields of a trace's records as what they ought to be, whatever the file says, and figures as people write them.

Imports nothing. A trace may come from anybody: a number that is none counts as 0, and text loses what would steer a
terminal. Nothing here raises.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Record = Mapping[str, Any]

SENSELESS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What fields that make no sense lead to."""
LARGEST = 1 << 63
LONGEST = 200
"""Characters that any text of a record is cut to."""
UNITS = ((1_000_000_000, "s"), (1_000_000, "ms"), (1000, "µs"))
WIDTH = 100
"""Columns that a page of text may have."""


def number(record: Record, key: str) -> int:
    """The field `key`, 0 to 2^63 - 1; 0 where it is absent or is something else."""
    value = record.get(key)
    return value if type(value) is int and 0 <= value < LARGEST else 0


def text(record: Record, key: str) -> str:
    """The field `key` as printable text of at most LONGEST characters; "" where it is absent or is no text."""
    value = record.get(key)
    return clean(value) if type(value) is str else ""


def clean(value: str) -> str:
    """`value` in one line without anything that is not printable, cut to LONGEST."""
    if len(value) > LONGEST:
        value = value[: LONGEST - 1] + "…"
    if value.isprintable():
        return value
    return "".join(one if one.isprintable() else f"\\x{ord(one):02x}" for one in value)[: LONGEST * 2]


def direction(record: Record) -> str:
    """ "read" or "write" for an access, "" for what is none."""
    return ("write" if record.get("write") is True else "read") if "space" in record else ""


def place(record: Record) -> str:
    """Where an access went: "port 0x3f8" or "0xfebd0000"; "" for what is none."""
    if "space" not in record:
        return ""
    at = f"{number(record, 'at'):#x}"
    return f"port {at}" if record["space"] == "pio" else at


def kind(record: Record) -> str:
    """What an exit is counted under: its device, "unclaimed" for an access that no device claims, or its reason."""
    return text(record, "device") or ("unclaimed" if "space" in record else text(record, "reason") or "?")


def duration(nanoseconds: float) -> str:
    """A time with three digits: "1.23 s", "45.6 ms", "789 ns"."""
    for scale, unit in UNITS:
        if nanoseconds >= scale * 0.9995:
            value = nanoseconds / scale
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{nanoseconds:.0f} ns"


def percent(part: float, whole: float) -> str:
    """ "12.3 %", or "" where there is no whole."""
    if not whole:
        return ""
    return "< 0.1 %" if 0 < part < whole / 2000 else f"{100 * part / whole:.1f} %"


def grouped(count: int) -> str:
    """A count with its thousands apart: "12,345"."""
    return f"{count:,}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Aligned lines: the first `left` columns to the left, the others to the right; fits WIDTH.

    What is too wide is taken from the widest of the left columns.
    """
    widths = [max(len(row[at]) for row in (head, *rows)) for at in range(len(head))]
    while (over := sum(widths) + 2 * len(widths) - WIDTH) > 0:
        widest = max(range(left), key=lambda at: widths[at])
        if widths[widest] <= 8:
            break
        widths[widest] -= min(over, widths[widest] - 8, max(1, widths[widest] // 4))
    return [_line(row, widths, left) for row in (head, *rows)]


def _line(cells: Sequence[str], widths: Sequence[int], left: int) -> str:
    shown = []
    for at, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        # Names that are long differ at their ends, as those of ports do.
        cut = cell if len(cell) <= width else cell[: width - 6] + "…" + cell[-5:]
        shown.append(f"{cut:<{width}}" if at < left else f"{cut:>{width}}")
    return ("  " + "  ".join(shown)).rstrip()
