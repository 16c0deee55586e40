"""Where two traces part: their device accesses side by side, and how often each register was used in both.

Imports reader, fields and errors. Two runs of a guest never take the same time, so records are compared by what the
guest did and what it got: vCPU by vCPU, access by access, without time, RIP or who dealt with it.
"""

from __future__ import annotations

from collections import Counter, deque
from itertools import zip_longest

from pyvmm.errors import UsageError
from pyvmm.trace.fields import direction, number, text
from pyvmm.trace.reader import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Record = dict[str, Any]

CONTEXT = 5
"""Accesses shown before the first difference, and after it of each trace."""
MOST_COUNTS = 40


class Difference:
    """What was found.

    different   whether anything was
    """

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.different = False

    def text(self) -> str:
        """It in lines."""
        return "".join(f"{line}\n" for line in self.parts)


def compare(first: str, second: str, *, device: str = "") -> Difference:
    """Compare the accesses in the traces of these two files, those of `device` if one is named.

    Raises LoadError, UsageError for a device that neither trace has an exit of.
    """
    found = Difference()
    paths = first, second
    vcpus: set[int] = set()
    counts = [_counts(path, device, vcpus) for path in paths]
    if device and not any(counts):
        raise UsageError(f"neither {first} nor {second} has an access of a device {device!r}")
    for vcpu in sorted(vcpus):
        lines = _parting(*(_accesses(path, device, vcpu) for path in paths))
        if lines:
            found.different = True
            found.parts += [f"vCPU {vcpu}: the accesses differ from number {lines[0]} on"] + lines[1:]
    changed = [key for key in counts[0].keys() | counts[1].keys() if counts[0][key] != counts[1][key]]
    changed.sort(key=lambda key: (-abs(counts[0][key] - counts[1][key]), key))
    if changed:
        found.different = True
        found.parts.append("counts that differ:")
        found.parts += [f"  {key:<44}{counts[0][key]:>10} {counts[1][key]:>10}" for key in changed[:MOST_COUNTS]]
        if len(changed) > MOST_COUNTS:
            found.parts.append(f"  and {len(changed) - MOST_COUNTS} more")
    if not found.different:
        found.parts.append(f"the same {sum(counts[0].values())} exits")
    return found


def _exits(path: str, device: str) -> Iterator[Record]:
    for record in read(path).records():
        if record["kind"] == "exit" and (not device or record.get("device") == device):
            yield record


def _accesses(path: str, device: str, vcpu: int) -> Iterator[Record]:
    return (record for record in _exits(path, device) if "at" in record and number(record, "vcpu") == vcpu)


def _counts(path: str, device: str, vcpus: set[int]) -> Counter[str]:
    """How often each exit was made; `vcpus` gets those that made an access."""
    counts: Counter[str] = Counter()
    for record in _exits(path, device):
        counts[label(record)] += 1
        if "at" in record:
            vcpus.add(number(record, "vcpu"))
    return counts


def label(record: Record) -> str:
    """What an exit is counted under: "IO serial LSR read", "MMIO 0xd0000000 write", "HLT"."""
    if "at" not in record:
        return text(record, "reason")
    what = f"{text(record, 'device')} {text(record, 'register') or hex(number(record, 'at'))}".strip()
    return f"{text(record, 'reason')} {what} {direction(record)}"


def key(record: Record) -> tuple[Any, ...]:
    """What two accesses must have in common to be the same."""
    return tuple(record.get(name) for name in ("space", "at", "size", "count", "write", "data"))


def show(record: Record) -> str:
    """An access in a line."""
    count = number(record, "count")
    times = f" x{count}" if count > 1 else ""
    where = f"{text(record, 'space')} {number(record, 'at'):#x} size {number(record, 'size')}{times}"
    words = text(record, "words") or text(record, "data")
    at = number(record, "t") / 1e6
    return f"{at:12.3f} ms  {direction(record)}s {where:<24} {text(record, 'device')} {words}".rstrip()


def _parting(first: Iterator[Record], second: Iterator[Record]) -> list[Any]:
    """The number of the first access that differs, from 1, then lines that show it; nothing where none does."""
    before: deque[Record] = deque(maxlen=CONTEXT)
    for at, (one, other) in enumerate(zip_longest(first, second), 1):
        if one is not None and other is not None and key(one) == key(other):
            before.append(one)
            continue
        lines: list[Any] = [at, *(f"   {show(record)}" for record in before)]
        for sign, begin, rest in (("-", one, first), ("+", other, second)):
            after = [begin] if begin is not None else []
            after += [record for record, _ in zip(rest, range(CONTEXT - 1), strict=False)]
            lines += [f" {sign} {show(record)}" for record in after] or [f" {sign} (no more accesses)"]
        return lines
    return []
