"""A record of a trace as a line, and as all that is known of it. Imports fields.

Whatever the file says, what comes out is printable text without line breaks.
"""

from __future__ import annotations

from pyvmm.trace.fields import clean, direction, duration, kind, number, place, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.trace.fields import Record

HEAD = f"{'time':>13}  cpu  {'device':<18}{'register':<20}what"
"""What stands above lines of `line`."""


def line(record: Record) -> str:
    """The record in one line: time in seconds, vCPU, device, register or event, and words."""
    name = text(record, "kind")
    seconds, below = divmod(number(record, "t"), 1_000_000_000)
    cpu = str(number(record, "vcpu")) if "vcpu" in record and record["vcpu"] is not None else ""
    device, what, words = _columns(record, name)
    return f"{seconds:>6}.{below // 1000:06}  {cpu:>3}  {device:<17} {what:<19} {words}".rstrip()


def _columns(record: Record, name: str) -> tuple[str, str, str]:
    if name == "exit":
        words = text(record, "words")
        if "space" not in record:
            return kind(record), "", "" if words == kind(record) else words
        arrow = "<-" if direction(record) == "write" else "->"
        return kind(record), f"{text(record, 'register') or place(record)} {arrow}", words or text(record, "data")
    if name == "queue":
        event = f"{text(record, 'event')} {number(record, 'count')}"
        return (
            text(record, "device"),
            f"queue {number(record, 'queue')}",
            f"{event}, {number(record, 'depth')} in flight",
        )
    if name == "interrupt":
        return text(record, "device") or f"GSI {number(record, 'gsi')}", "interrupt", _level(record)
    if name in ("lifecycle", "phase"):
        return "", name, text(record, "state") or text(record, "name")
    if name == "end":
        return "", name, f"{text(record, 'reason')}, status {number(record, 'status')}"
    if name == "lost":
        return "", name, f"{number(record, 'count')} records were lost here"
    if name == "statistics":
        counters = record.get("counters")
        return "", name, f"{len(counters) if isinstance(counters, dict) else 0} counters of KVM's"
    return "", name or "?", clean(str({key: value for key, value in record.items() if key not in ("kind", "t")}))


def _level(record: Record) -> str:
    level = record.get("level")
    return {0: "lowered", 1: "raised"}.get(level, "pulse") if type(level) is int else "pulse"


def details(record: Record) -> list[str]:
    """All that is known of the record, in lines; the first is a title."""
    name = text(record, "kind")
    at = f"at {number(record, 't') / 1e9:.9f} s"
    if name == "exit":
        return _exit(record, at)
    rest = [key for key in record if key not in ("kind", "t")]
    lines = [f"{name} {at}"]
    for key in rest:
        value = record[key]
        if isinstance(value, dict):
            lines += [f"  {clean(str(one))}: {clean(str(many))}" for one, many in list(value.items())[:LONGEST]]
        else:
            lines.append(f"  {clean(str(key))}: {clean(str(value))}")
    return lines


LONGEST = 64
"""Entries of a record that are listed."""


def _exit(record: Record, at: str) -> list[str]:
    by = "C" if record.get("by") == "c" else "Python"
    rip = record.get("rip")
    lines = [f"{text(record, 'reason')} exit {at}, vCPU {number(record, 'vcpu')}, dealt with by {by}"]
    if "space" in record:
        count = number(record, "count")
        times = f", {count} times" if count > 1 else ""
        size = number(record, "size")
        lines.append(
            f"  {' '.join(part for part in (kind(record), text(record, 'register'), direction(record)) if part)},"
            f" {place(record)}, {size} byte{'s' * (size != 1)}{times}, data {_data(text(record, 'data'))}"
        )
    name, found, bits = text(record, "words").partition(": ")
    lines.append(f"  {name}{found.rstrip()}")
    if bits:
        lines.append(f"    {bits}")
    if text(record, "spec"):
        lines.append(f"  specified in {text(record, 'spec')}")
    where = f"RIP {rip:#x}, " if type(rip) is int and rip > 0 else ""
    run, handle = duration(number(record, "run")), duration(number(record, "handle"))
    lines.append(f"  {where}KVM_RUN before {run}, handler {handle}")
    return [one for one in lines if one.strip()]


def _data(digits: str) -> str:
    return digits if len(digits) <= 32 else f"{digits[:32]}... ({len(digits) // 2} bytes)"
