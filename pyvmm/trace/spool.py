"""The form in which a trace is recorded: chunks of records of 64 bytes, which C and Python append to in mapped memory.

Imports errors. A chunk belongs to one stream: a vCPU's exits, or the events of everything else. Whoever appends writes
a record's kind last, and the file has been zero there before: so a process may be killed at any moment, and what it has
recorded up to then can be read. _native/run_abi.h has the same layout for C; a test holds the two together.
"""

from __future__ import annotations

import heapq
import json
from operator import itemgetter
from struct import Struct

from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO

    Record = dict[str, Any]

MAGIC = b"PYVMMTR1"
FAMILY = MAGIC[:-1]
"""What it begins with in every version."""
CHUNK = Struct("<8sIIQ40x")
"""The head of a chunk: MAGIC, its length in bytes with this head, its stream, and how many records were lost since."""
LOST_AT, LOST = 16, Struct("<Q")
"""Where in the head that number is."""
RECORD = Struct("<BBBBIQQQQQQQ")
"""kind, flags, size, reason, count, t, run, handle, rip, address, value, tsc. What they mean depends on the kind."""
SIZE = RECORD.size
EVENTS = 0xFFFFFFFF
"""The stream of what no vCPU's run loop records."""
LARGEST = 1 << 24
"""Bytes of a chunk at most, so that a damaged file asks for no more memory than that."""

END, EXIT, QUEUE, INTERRUPT, TEXT, NAME, OUTSIDE = range(7)
"""Kinds. TEXT is a record as JSON, NAME a name that has a number; the last three go on in the bytes behind the record,
`count` of them."""
DATA, NUMBER, FLOAT = 1, 2, 4
"""Flags of an OUTSIDE record: which of the two it has, and that the number is a double."""
DOUBLE = Struct("<d")
WRITE, BY_C, OPEN, MMIO, ACCESS = 1, 2, 4, 8, 16
"""Flags of an EXIT. OPEN: it has not been handled yet."""
QUEUE_EVENTS = ("notify", "take", "complete", "interrupt")
"""The flags of a QUEUE record say which of them."""
LEVELS: tuple[int | str, ...] = (0, 1, "pulse")
"""The flags of an INTERRUPT record say which of them."""
INLINE = 8
"""Bytes of an access that are in the record's `value`; longer data is behind the record as a whole."""


def trailing(length: int) -> int:
    """How many bytes `length` bytes behind a record take: whole records."""
    return (length + SIZE - 1) // SIZE * SIZE


def is_spool(file: BinaryIO) -> bool:
    """Whether `file`, at its beginning, is one; it is there again afterwards."""
    head = file.read(len(MAGIC))
    file.seek(0)
    return head == MAGIC


def records(file: BinaryIO, path: str) -> Iterator[Record]:
    """What was recorded, in the order of time; the first record is the header, its `t` the beginning of all others'.

    A lost record is told of where its chunk ends. Raises LoadError for what is no spool.
    """
    chunks: dict[int, list[tuple[int, int, int]]] = {}
    at = 0
    while len(head := _at(file, at, CHUNK.size)) == CHUNK.size:
        magic, length, stream, lost = CHUNK.unpack(head)
        if magic == bytes(len(MAGIC)):
            break  # the last one was not begun
        if magic != MAGIC or not CHUNK.size <= length <= LARGEST:
            raise LoadError(path, "is damaged", offset=at, expected="a chunk of a trace")
        chunks.setdefault(stream, []).append((at, length, lost))
        at += length
    if EVENTS not in chunks:
        raise LoadError(path, "has no header", expected="a trace")
    names: dict[int, str] = {}
    began = next(_stream(file, EVENTS, chunks[EVENTS][:1], names, 0), {"t": 0})["t"]
    # The events first: of two records of the same time the header is the earlier.
    order = sorted(chunks, reverse=True)
    return heapq.merge(*(_stream(file, stream, chunks[stream], names, began) for stream in order), key=itemgetter("t"))


def _at(file: BinaryIO, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def _stream(
    file: BinaryIO, stream: int, places: list[tuple[int, int, int]], names: dict[int, str], began: int
) -> Iterator[Record]:
    last = began
    for offset, length, lost in places:
        chunk = _at(file, offset, length)
        at = CHUNK.size
        while at + SIZE <= len(chunk):
            fields = RECORD.unpack_from(chunk, at)
            kind = fields[0]
            at += SIZE
            if kind == END:
                break
            behind = b""
            if kind in (TEXT, NAME, OUTSIDE):
                behind = chunk[at : at + fields[4]]
                at += trailing(fields[4])
            elif kind == EXIT and fields[1] & ACCESS and (data := fields[2] * fields[4]) > INLINE:
                behind = chunk[at : at + data]
                at += trailing(data)
            if kind == NAME:
                names[fields[9]] = behind.decode("utf-8", "replace")
                continue
            last = fields[5]
            yield _record(stream, fields, behind, names, began)
        if lost:
            yield {"kind": "lost", "t": last - began, "vcpu": None if stream == EVENTS else stream, "count": lost}


def _record(stream: int, fields: tuple[int, ...], behind: bytes, names: dict[int, str], began: int) -> Record:
    kind, flags, size, reason, count, t, run, handle, rip, address, value, _tsc = fields
    t -= began
    if kind == TEXT:
        try:
            found = json.loads(behind)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
            found = {"kind": "damaged"}
        return found | {"t": t}
    if kind == QUEUE:
        event = QUEUE_EVENTS[flags & 3]
        record = {"kind": "queue", "t": t, "device": names.get(run, "?"), "queue": address, "event": event}
        if event != "interrupt":
            record |= {"count": count, "depth": value}
        return record | ({"handle": handle} if handle else {})
    if kind == INTERRUPT:
        level = LEVELS[min(flags, 2)]
        return {"kind": "interrupt", "t": t, "device": names.get(run, "?"), "gsi": address, "level": level}
    if kind == OUTSIDE:
        record = {"kind": "outside", "t": t, "device": names.get(run, "?"), "name": names.get(address, "?")}
        if flags & DATA:
            record["data"] = behind.hex()
        if flags & NUMBER:
            record["value"] = DOUBLE.unpack(value.to_bytes(8, "little"))[0] if flags & FLOAT else value
        return record | {"handle": handle}
    record = {"kind": "exit", "t": t, "vcpu": stream, "reason": _reason(reason)}
    if rip:
        record["rip"] = rip
    record["run"] = run
    if not flags & OPEN:
        record["handle"] = handle
    record["by"] = "c" if flags & BY_C else "python"
    if flags & ACCESS:
        data = behind or value.to_bytes(8, "little")[: size * count]
        if flags & OPEN and not flags & WRITE:
            data = b""
        record |= {
            "space": "mmio" if flags & MMIO else "pio",
            "at": address,
            "size": size,
            "count": count,
            "write": bool(flags & WRITE),
            "data": data.hex(),
        }
    return record


_names: dict[int, str] = {}


def _reason(number: int) -> str:
    """The name of an exit reason, as the KVM API has it without its prefix."""
    if not _names:
        from pyvmm.kvm import exits, seldom

        for module in (seldom, exits):
            for found in vars(module).values():
                if isinstance(found, type) and issubclass(found, exits.Exit):
                    _names[found.reason] = found.name
        _names.pop(-1, None)
    return _names.get(number) or f"UNKNOWN_{number}"
