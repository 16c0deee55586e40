"""Writing a trace in the forms that other programs read: JSON lines, and the trace-event form of Perfetto.

Imports fields. The trace-event form is Google's ("Trace Event Format", 2016, JSON Object Format), which
ui.perfetto.dev and chrome://tracing open: a slice for each stay in KVM_RUN and each exit's handling on its vCPU's
track, a counter for each queue's depth, instants for the rest. Each record is in the "args" of one event, so that
nothing is lost; one event a line.
"""

from __future__ import annotations

import json

from pyvmm.trace.fields import direction, number, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any, TextIO

    Record = dict[str, Any]

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_PID = 1
_EVENTS = 1000
"""The track of what is no vCPU's; those of devices follow. The tracks before are vCPUs'."""


def write_lines(file: TextIO, records: Iterable[Record]) -> None:
    """Write `records`, the header first, as JSON lines."""
    write = file.write
    for record in records:
        write(f"{_encode(record)}\n")


def write_events(file: TextIO, records: Iterable[Record]) -> None:
    """Write `records`, the header first, in the trace-event form."""
    file.write('{"displayTimeUnit":"ns","traceEvents":[\n')
    comma = ""
    for event in _events(records):
        file.write(f"{comma}{_encode(event)}")
        comma = ",\n"
    file.write("\n]}\n")


def _events(records: Iterable[Record]) -> Iterator[Record]:
    tracks: dict[str, int] = {}

    def track(name: str) -> Iterator[Record]:
        if name not in tracks:
            tracks[name] = _EVENTS + len(tracks)
            yield _named("thread_name", tracks[name], name)

    for record in records:
        kind = record["kind"]
        at = number(record, "t") / 1000
        event: Record = {"name": title(record), "cat": kind, "ph": "i", "s": "t", "ts": at, "pid": _PID}
        if kind == "trace":
            yield _named("process_name", 0, f"pyvmm {text(record, 'kernel')}".strip())
            for vcpu in range(min(number(record, "cpus"), _EVENTS)):
                yield _named("thread_name", vcpu, f"vCPU {vcpu}")
            event |= {"s": "p", "tid": 0}
        elif kind == "exit":
            vcpu, run = number(record, "vcpu"), number(record, "run") / 1000
            yield {"name": "KVM_RUN", "cat": "run", "ph": "X", "ts": at - run, "dur": run, "pid": _PID, "tid": vcpu}
            del event["s"]
            event |= {"ph": "X", "dur": number(record, "handle") / 1000, "tid": vcpu}
        elif kind in ("queue", "interrupt"):
            name = text(record, "device")
            yield from track(name)
            event["tid"] = tracks[name]
            if "depth" in record:
                counter = {"name": f"{name} queue {number(record, 'queue')}", "ph": "C", "ts": at, "pid": _PID}
                yield counter | {"args": {"depth": number(record, "depth")}}
        else:
            yield from track("VM")
            event |= {"s": "g", "tid": tracks["VM"]}
        event["args"] = {"record": record}
        yield event


def _named(what: str, track: int, name: str) -> Record:
    return {"name": what, "ph": "M", "pid": _PID, "tid": track, "args": {"name": name}}


def title(record: Record) -> str:
    """A record in a few words: "serial LSR", "blk0 queue 0 complete 3", "running"."""
    kind = record["kind"]
    if kind == "exit":
        if "space" not in record:
            return text(record, "reason") or "?"
        what = text(record, "register") or f"{number(record, 'at'):#x}"
        arrow = "<-" if direction(record) == "write" else "->"
        return f"{text(record, 'device') or text(record, 'space')} {what} {arrow}"
    if kind == "queue":
        count = f" {number(record, 'count')}" if "count" in record else ""
        return f"{text(record, 'device')} queue {number(record, 'queue')} {text(record, 'event')}{count}"
    if kind == "interrupt":
        return f"interrupt {number(record, 'gsi')} {record.get('level')}"
    return text(record, "state") or text(record, "name") or str(kind)
