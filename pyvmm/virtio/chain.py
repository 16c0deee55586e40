"""A descriptor chain that the device has taken: its buffers, and how a device reads and fills them.

Imports nothing. The buffers are the guest's memory itself; the driver may change them at any time, so what is judged is
copied first (`read`). How a driver has cut its buffers into descriptors means nothing (virtio 1.3, 2.7.4.1): every
method here sees the readable bytes as one run and the writable bytes as another.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Buffer


class Chain:
    """One chain.

    head       the descriptor by which the driver knows it
    readable   what the driver has written, piece by piece; never to be written to (2.7.5.1)
    writable   what the device fills, piece by piece, after the readable ones
    gpas       where in guest memory each of these begins: a balloon is given pages, and not what is in them
    readable_length, writable_length   bytes in each
    generation  which use of the queue it was taken from
    """

    __slots__ = (
        "_given_back",
        "generation",
        "gpas",
        "head",
        "readable",
        "readable_length",
        "writable",
        "writable_length",
    )

    def __init__(
        self,
        head: int,
        readable: list[memoryview],
        writable: list[memoryview],
        generation: int = 0,
        gpas: Sequence[int] = (),
    ) -> None:
        self.head = head
        self.generation = generation
        self.gpas = gpas
        self.readable = readable
        self.writable = writable
        self.readable_length = sum(map(len, readable))
        self.writable_length = sum(map(len, writable))
        self._given_back = False

    def give_back(self) -> bool:
        """Let go of the guest's memory; False if that has been done before."""
        first, self._given_back = not self._given_back, True
        self.readable, self.writable = [], []
        return first

    def read(self, offset: int, length: int) -> bytes:
        """A copy of up to `length` readable bytes from `offset` on; shorter where they end."""
        return b"".join(pieces(self.readable, offset, length))

    def write(self, data: Buffer, offset: int = 0) -> int:
        """Fill writable bytes from `offset` on with `data`; returns how many bytes there was room for."""
        with memoryview(data).cast("B") as source:
            done = 0
            for piece in pieces(self.writable, offset, len(source)):
                piece[:] = source[done : done + len(piece)]
                done += len(piece)
            return done


def pieces(buffers: Sequence[memoryview], offset: int, length: int) -> list[memoryview]:
    """The parts of `buffers`, seen as one run of bytes, that make up `length` bytes from `offset`; fewer at the end."""
    found: list[memoryview] = []
    for buffer in buffers:
        if length <= 0:
            break
        size = len(buffer)
        if offset >= size:
            offset -= size
            continue
        piece = buffer[offset : offset + length]
        found.append(piece)
        length -= len(piece)
        offset = 0
    return found
