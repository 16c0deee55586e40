"""One request of a block device's driver: what it asks for, and whether it may (virtio 1.3, 5.2.6).

Imports chain, queue and spec. Everything that a driver says is judged here, before anything is done: what comes out
lies within the disk, in whole sectors, in buffers of the right direction.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.virtio.chain import pieces
from pyvmm.virtio.queue import QueueError
from pyvmm.virtio.spec import (
    BLK_ID_BYTES,
    BLK_S_IOERR,
    BLK_S_UNSUPP,
    BLK_T_DISCARD,
    BLK_T_FLUSH,
    BLK_T_GET_ID,
    BLK_T_IN,
    BLK_T_OUT,
    BLK_T_WRITE_ZEROES,
    BLK_WRITE_ZEROES_FLAG_UNMAP,
    SECTOR,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pyvmm.virtio.chain import Chain

HEADER = Struct("<IIQ")
"""struct virtio_blk_req (5.2.6) up to its data: type, reserved, sector."""
SEGMENT = Struct("<QII")
"""struct virtio_blk_discard_write_zeroes (5.2.6): sector, num_sectors, flags."""

DISCARD_SEGMENTS, DISCARD_SECTORS = 64, 1 << 21
ZEROES_SEGMENTS, ZEROES_SECTORS = 1, 1 << 17
"""How many segments one request may have, and how many sectors each of them: 1 GiB of discarding, which moves no data,
and 64 MiB of zeroes, which may have to be written."""
_LIMITS = {
    BLK_T_DISCARD: (DISCARD_SEGMENTS, DISCARD_SECTORS, 0),
    BLK_T_WRITE_ZEROES: (ZEROES_SEGMENTS, ZEROES_SECTORS, BLK_WRITE_ZEROES_FLAG_UNMAP),
}
"""Segments, sectors, and the flags that are known (5.2.6.2)."""


class Refused(Exception):
    """A request that is not carried out: the status that it gets, and how many bytes of data it has got."""

    def __init__(self, status: int, done: int = 0) -> None:
        super().__init__(status)
        self.status = status
        self.done = done


class Request:
    """One request, judged and ready to be executed.

    type      as the driver gave it
    sector    where it reads or writes, in units of 512 bytes; 0 for what has no place
    data      the guest's memory that it reads into or writes from
    length    bytes of `data`
    segments  of discard and write zeroes: (offset, length, unmap), in bytes
    """

    __slots__ = ("data", "length", "sector", "segments", "type")

    def __init__(
        self,
        type: int,
        sector: int = 0,
        data: Sequence[memoryview] = (),
        length: int = 0,
        segments: Sequence[tuple[int, int, bool]] = (),
    ) -> None:
        self.type = type
        self.sector = sector
        self.data = data
        self.length = length
        self.segments = segments


def parse(chain: Chain, types: Collection[int], capacity: int, readonly: bool) -> Request:
    """The request in `chain`, however it is cut into descriptors (2.7.4.1), for a disk of `capacity` sectors.

    Raises QueueError if it has no header to be judged by or no room for an answer, Refused with BLK_S_UNSUPP if its
    type is not among `types`, and with BLK_S_IOERR if it is malformed or asks for what the disk does not have.
    """
    room = chain.writable_length - 1
    given = chain.readable_length - HEADER.size
    if room < 0 or given < 0:
        raise QueueError(
            f"a block request of {chain.readable_length} readable and {chain.writable_length} writable bytes "
            f"(expected {HEADER.size} or more, and 1 or more)",
            rule="blk-header",
        )
    first = chain.readable[0]
    kind, _, sector = HEADER.unpack_from(first if len(first) >= HEADER.size else chain.read(0, HEADER.size))
    if kind not in types:
        raise Refused(BLK_S_UNSUPP)
    if kind == BLK_T_IN:
        _check(given == 0 and _holds(capacity, sector, room))
        return Request(kind, sector, pieces(chain.writable, 0, room), room)
    if kind == BLK_T_OUT:
        _check(room == 0 and not readonly and _holds(capacity, sector, given))
        return Request(kind, sector, pieces(chain.readable, HEADER.size, given), given)
    if kind == BLK_T_GET_ID:
        _check(given == 0 and room == BLK_ID_BYTES)
        return Request(kind, 0, pieces(chain.writable, 0, room), room)
    if kind == BLK_T_FLUSH:
        return Request(kind)  # with data too, which a driver only SHOULD NOT send (5.2.6.1)
    segments, sectors, flags = _LIMITS[kind]
    _check(room == 0 and 0 < given <= segments * SEGMENT.size and given % SEGMENT.size == 0)
    found = list(SEGMENT.iter_unpack(chain.read(HEADER.size, given)))
    if any(flag & ~flags for _, _, flag in found):
        raise Refused(BLK_S_UNSUPP)
    _check(all(count <= sectors and _holds(capacity, start, count * SECTOR) for start, count, _ in found))
    ranges = [(start * SECTOR, count * SECTOR, bool(flag)) for start, count, flag in found if count]
    return Request(kind, found[0][0], (), sum(length for _, length, _ in ranges), ranges)


def _holds(capacity: int, sector: int, length: int) -> bool:
    """Whether `length` bytes are whole sectors, and these from `sector` on within the disk."""
    return length % SECTOR == 0 and sector + length // SECTOR <= capacity


def _check(legal: bool) -> None:
    if not legal:
        raise Refused(BLK_S_IOERR)
