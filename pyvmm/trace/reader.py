"""Reading a trace, in whichever of its forms it is.

    trace = read("boot.jsonl")
    print(trace.header["kernel"])
    for record in trace.records(): ...

Imports spool, decode, fields and errors. The file's content says which form it has, not its name: JSON lines, the
trace-event form, or what was recorded, complete or by a process that was killed. Records come one at a time, in the
order of time.
"""

from __future__ import annotations

import json
import os

from pyvmm.errors import LoadError
from pyvmm.trace import spool
from pyvmm.trace.decode import Decoder
from pyvmm.trace.fields import SENSELESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    Record = dict[str, Any]

FORMAT = 1
"""The format of records that this pyvmm writes and reads; it counts up when a reader would misunderstand."""
JSON_LINES, TRACE_EVENTS, SPOOL = "jsonl", "json", "trace"
"""The forms, by the suffix of their files."""
LONGEST = 1 << 24
"""Bytes of a line at most: of a header with many devices, or of an access by a long string instruction."""


class Trace:
    """A trace. `header` is its first record, `form` JSON_LINES, TRACE_EVENTS or SPOOL."""

    __slots__ = ("form", "header", "path")

    def __init__(self, path: str, form: str, header: Record) -> None:
        self.path = path
        self.form = form
        self.header = header

    def records(self) -> Iterator[Record]:
        """All records but the header, as docs/trace.md has them. Each call reads the file anew; raises LoadError."""
        with _open(self.path) as file:
            records = _records(file, self.path, self.form)
            next(records, None)
            yield from records


def read(path: str | os.PathLike[str]) -> Trace:
    """The trace in the file `path`. Raises LoadError for what is none."""
    path = os.fspath(path)
    with _open(path) as file:
        form = _form(file, path)
        header = next(_records(file, path, form), None)
    if header is None or header.get("kind") != "trace":
        raise LoadError(path, "is no trace", expected="a file that pyvmm run --trace has written")
    if header.get("format") != FORMAT:
        raise LoadError(path, f"has format {header.get('format')!r}", expected=f"format {FORMAT}")
    return Trace(path, form, header)


def _open(path: str) -> BinaryIO:
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            raise LoadError(path, "is no file", expected="a trace")
        return open(path, "rb")
    except OSError as error:
        raise LoadError(path, f"cannot be read: {error.strerror}") from None


def _form(file: BinaryIO, path: str) -> str:
    if spool.is_spool(file):
        return SPOOL
    head = file.read(64).lstrip()
    file.seek(0)
    if head.startswith(spool.FAMILY):
        raise LoadError(path, "was recorded by another version of pyvmm", expected=f"{spool.MAGIC.decode()} first")
    return TRACE_EVENTS if head.startswith((b"[", b'{"traceEvents"', b'{"displayTimeUnit"')) else JSON_LINES


def _records(file: BinaryIO, path: str, form: str) -> Iterator[Record]:
    if form == SPOOL:
        return explained(spool.records(file, path), path)
    return _lines(file, path, form == TRACE_EVENTS)


def explained(records: Iterator[Record], path: str) -> Iterator[Record]:
    """`records` as they were recorded in the file `path`, the header among them, with the words for each access."""
    decoder = Decoder()
    for record in records:
        kind = record["kind"]
        try:
            if kind == "exit":
                decoder.explain(record)
            elif kind == "trace":
                decoder.place(record.get("devices", ()))
            elif kind == "device":
                decoder.move(record)
        except SENSELESS as error:
            raise LoadError(
                path, f"has a record of the kind {kind!r} that makes no sense", expected="a trace"
            ) from error
        yield record


def _lines(file: BinaryIO, path: str, events: bool) -> Iterator[Record]:
    """Of trace events those that have a record in their "args", one event a line as writer.py has them."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if events:
            line = line.strip().rstrip(b",")
            if not line.endswith(b"}") or b'"record"' not in line:
                continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            if not line.endswith(b"\n") and not events:
                return  # the end of what a process wrote that was killed
            raise LoadError(path, f"line {number} is no JSON", expected="a record of a trace") from None
        if events:
            found = found.get("args", {}).get("record") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
            raise LoadError(path, f"line {number} is no record", expected='an object with a "kind"')
        yield found
