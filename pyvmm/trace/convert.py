"""From one form of a trace to another, a file at a time.

Imports reader, writer and where files go. What is written appears under its name when it is whole: a reader never
meets half of it.
"""

from __future__ import annotations

import os

from pyvmm.errors import BackendError, PyvmmError, UsageError
from pyvmm.trace.reader import JSON_LINES, SPOOL, TRACE_EVENTS, read
from pyvmm.trace.writer import write_events, write_lines
from pyvmm.writing import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, TextIO

    Record = dict[str, Any]


def form_of(path: str) -> str:
    """The form that the suffix of `path` names: TRACE_EVENTS for ".json", SPOOL for ".trace", else JSON_LINES."""
    suffix = os.path.splitext(path)[1]
    return {".json": TRACE_EVENTS, ".trace": SPOOL}.get(suffix, JSON_LINES)


def convert(source: str, target: str) -> None:
    """Write the trace `source` to `target`, in the form that its suffix names.

    Raises LoadError for what is no trace, UsageError for a form that is only recorded, or where the two are one file,
    BackendError where the host cannot write it.
    """
    trace = read(source)
    if form_of(target) == SPOOL:
        raise UsageError(f"{target}: this form is recorded, not converted to (expected .jsonl or .json)")
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(f"{target}: would overwrite the trace that it is made from")

    def records() -> Iterator[Record]:
        yield trace.header
        yield from trace.records()

    write(target, form_of(target), records())


def write(path: str, form: str, records: Iterable[Record]) -> None:
    """Write `records`, the header first, to `path`, as `whole` does."""
    whole(path, lambda file: (write_events if form == TRACE_EVENTS else write_lines)(file, records))


def whole(path: str, fill: Callable[[TextIO], object]) -> None:
    """Have `fill` write the text of the file `path`, which appears, or is replaced, when all of it is there.

    What is there and no file, a pipe, a terminal or standard output, is written to as it is. Raises UsageError for a
    directory, BackendError where the host cannot, LoadError where `fill` does; then there is nothing new.
    """
    if os.path.isdir(path):
        raise UsageError(f"{path} is a directory (expected the file to write)")
    part = ""
    try:
        target, new = place(path)
        if new:
            part = f"{target}.{os.getpid()}.part"
        with open(part or target, "x" if new else "w", encoding="utf-8") as file:
            fill(file)
        if new:
            os.replace(part, target)
    except BaseException as error:
        if part:
            try:
                os.unlink(part)
            except OSError:
                pass
        if isinstance(error, OSError) and not isinstance(error, PyvmmError):
            raise BackendError(f"{path} cannot be written: {error.strerror}") from None
        raise
