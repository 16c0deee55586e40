"""Whether a trace says what a replay needs: a file may come from anybody, or be damaged.

Imports errors. What is checked is that fields are there and of their kind; what they say is for the device to judge.
"""

from __future__ import annotations

from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.trace.reader import Trace

    Record = dict[str, Any]

NEEDED: dict[str, dict[str, type]] = {
    "exit": {"t": int, "vcpu": int, "at": int, "size": int, "write": bool, "data": str, "by": str, "device": str},
    "outside": {"t": int, "name": str},
    "interrupt": {"t": int},
    "lost": {"count": int},
    "memory": {"at": int, "data": str, "by": str},
}
"""The fields of records that a replay uses, by the record's kind."""
MEMORY = 1 << 28
"""Bytes of RAM that a recording of one device may have: all of it is compared at every access."""


def header(trace: Trace) -> None:
    """Raises LoadError if the header lacks what a replay needs."""
    top = trace.header
    recording = top.get("recording")
    if recording is None:
        entries = top.get("devices")
        good = type(entries) is list and all(map(_is_entry, entries))
    else:
        good = isinstance(recording, dict) and type(recording.get("model")) is str
        good = good and isinstance(recording.get("options"), dict)
    mem = top.get("mem")
    if not good or type(mem) is not int or not 0 <= mem <= (MEMORY if recording else 1 << 63):
        raise LoadError(trace.path, "has a header that cannot be played", expected="what a run or a recording writes")


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or type(entry.get("name")) is not str:
        return False
    return all(type(entry.get(name, 0)) is int for name in ("base", "length", "offset"))


def record(trace: Trace, found: Record) -> None:
    """Raises LoadError if `found` lacks a field that a record of its kind must have."""
    kind = found["kind"]
    missing = [name for name, kept in NEEDED.get(kind, {}).items() if type(found.get(name)) is not kept]
    if not missing and kind != "lost":
        try:
            bytes.fromhex(found.get("data", ""))
        except (TypeError, ValueError):
            missing = ["data"]
    if not missing and kind == "exit" and not 0 < found["size"] <= 16:
        missing = ["size"]
    if missing:
        raise LoadError(trace.path, f"has a record of the kind {kind!r} whose {missing[0]!r} cannot be played")
