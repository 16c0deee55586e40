"""From one form of a trace to another, a file at a time.

Imports reader and writer. What is written appears under its name when it is whole: a reader never meets half of it.
"""

from __future__ import annotations

import os

from pyvmm.errors import BackendError, UsageError
from pyvmm.trace.reader import JSON_LINES, SPOOL, TRACE_EVENTS, read
from pyvmm.trace.writer import write_events, write_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

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
    """Write `records`, the header first, to `path`, which appears, or is replaced, when they are all there.

    Raises BackendError where the host cannot, LoadError where `records` does; then there is no trace of it.
    """
    part = f"{path}.{os.getpid()}.part"
    try:
        with open(part, "x", encoding="utf-8") as file:
            (write_events if form == TRACE_EVENTS else write_lines)(file, records)
        os.replace(part, path)
    except BaseException as error:
        try:
            os.unlink(part)
        except OSError:
            pass
        if isinstance(error, OSError):
            raise BackendError(f"{path} cannot be written: {error.strerror}") from None
        raise
