"""Records of a trace by their number, found at once however many there are.

Imports reader and writer. Of JSON lines only the offsets of the lines are kept, 8 bytes a record; a trace in another
form is written as JSON lines to an unnamed file first. A line is parsed when somebody looks at it.
"""

from __future__ import annotations

import json
import os
import tempfile
from array import array

from pyvmm.trace.reader import JSON_LINES, LONGEST
from pyvmm.trace.writer import write_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from pyvmm.trace.reader import Trace

    Record = dict[str, Any]

CHUNK = 1 << 20
DAMAGED = "damaged"


class Lines:
    """The records of `trace`; its `header` is apart. To be entered by `with`, and closed at its end."""

    def __init__(self, trace: Trace) -> None:
        """Raises LoadError, and OSError where there is no room for a trace in another form."""
        self.header = trace.header
        self._file = _as_lines(trace)
        try:
            self._offsets = _offsets(self._file)
            if len(self) and parse(self.raw(len(self) - 1))["kind"] == DAMAGED:
                self._offsets.pop()  # what a killed process left of its last line
        except BaseException:
            self._file.close()
            raise

    def __len__(self) -> int:
        return len(self._offsets) - 2 if len(self._offsets) > 2 else 0

    def raw(self, number: int) -> bytes:
        """The line of record `number`, from 0 on; what is longer than a record can be is cut."""
        start, end = self._offsets[number + 1], self._offsets[number + 2]
        return os.pread(self._file.fileno(), min(end - start, LONGEST), start)

    def __getitem__(self, number: int) -> Record:
        """Record `number`; a line that is none is a record of kind "damaged"."""
        return parse(self.raw(number))

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def parse(raw: bytes) -> Record:
    """The record in a line of JSON."""
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError):
        return {"kind": DAMAGED, "t": 0}
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else {"kind": DAMAGED, "t": 0}


def _as_lines(trace: Trace) -> BinaryIO:
    if trace.form == JSON_LINES:
        return open(trace.path, "rb")
    with tempfile.TemporaryFile("w+", encoding="utf-8", prefix="pyvmm-trace-") as file:
        write_lines(file, [trace.header])
        write_lines(file, trace.records())
        file.flush()
        return os.fdopen(os.dup(file.fileno()), "rb")


def _offsets(file: BinaryIO) -> array[int]:
    """Where each line begins, the header's included, and the end of the last."""
    offsets = array("Q", [0])
    file.seek(0)
    at = 0
    while chunk := file.read(CHUNK):
        found = chunk.find(b"\n")
        while found >= 0:
            offsets.append(at + found + 1)
            found = chunk.find(b"\n", found + 1)
        at += len(chunk)
    if offsets[-1] != at:
        offsets.append(at)
    return offsets
