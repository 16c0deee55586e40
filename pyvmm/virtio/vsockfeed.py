"""What the socket device has for its driver: which streams are to speak, and the buffers that they speak into.

Imports chain, spec, vsockheader and vsockstream. Streams take turns; an RST comes before anything else, so that the
ports of the stream that it ends are free for another one.
"""

from __future__ import annotations

from collections import deque

from pyvmm.virtio.chain import pieces
from pyvmm.virtio.spec import VSOCK_OP_RW
from pyvmm.virtio.vsockheader import HEADER_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue
    from pyvmm.virtio.vsockstream import Stream

BURST = 16
"""The driver's buffers that are filled with one read, at most."""
PIECES = 256
"""Pieces of buffers with which a read has enough: readv(2) takes 1,024, and a buffer may have 256 more."""


class Feed:
    """Fills the buffers of `queue`, the receive queue. `spoken(stream)` is called when a stream has had its turn.

    resets   headers of RST packets for the driver
    """

    def __init__(self, queue: Virtqueue, spoken: Callable[[Stream], None]) -> None:
        self.resets: dict[bytes, None] = {}
        self._queue = queue
        self._spoken = spoken
        self._streams: dict[Stream, None] = {}  # those that have something to say, in their order
        self._buffers: deque[Chain] = deque()  # taken from the queue, and not used yet

    def reset(self, header: bytes) -> None:
        """Send an RST. That of one stream is sent once, however often it was called for."""
        self.resets[header] = None

    def add(self, stream: Stream) -> None:
        """`stream` has something to say."""
        self._streams[stream] = None

    def remove(self, stream: Stream) -> None:
        """`stream` has nothing to say any more."""
        self._streams.pop(stream, None)

    def forget_driver(self) -> None:
        """The driver's buffers are its own again."""
        self._buffers.clear()

    def feed(self, budget: int) -> bool:
        """Say what there is to be said, as far as there are buffers; True if more than `budget` of them are needed."""
        queue = self._queue
        queue.suppress()
        while self.resets or self._streams:
            if budget <= 0:
                return True
            budget -= 1
            chain = self._take()
            if chain is None:
                if not queue.listen():
                    return False
                queue.suppress()
            elif self.resets:
                header = next(iter(self.resets))
                del self.resets[header]
                self._give(chain, header)
            else:
                stream = next(iter(self._streams))
                del self._streams[stream]
                op = stream.next_op()
                if op:
                    self._give(chain, stream.header(op))
                else:
                    self._buffers.appendleft(chain)
                    budget -= self._data(stream)
                self._spoken(stream)
        return False

    def _take(self) -> Chain | None:
        """A buffer that has room for a header, or None."""
        queue = self._queue
        if not queue.ready:
            self._buffers.clear()  # taken out of use: they are the driver's again
        for _ in range(queue.size):
            chain = self._buffers.popleft() if self._buffers else queue.pop()
            if chain is None or chain.writable_length >= HEADER_LENGTH:
                return chain
            queue.push(chain)
        return None

    def _give(self, chain: Chain, header: bytes, length: int = 0) -> None:
        """Give the driver a packet whose payload of `length` bytes is in place.

        No fault plan has a hand in it: packets that change places would be data that do.
        """
        chain.write(header)
        self._queue.push(chain, HEADER_LENGTH + length)

    def _data(self, stream: Stream) -> int:
        """Read from the host into a buffer, or more if there was much to read the last time; returns how many."""
        room = stream.room if stream.sending else 0
        chains: list[tuple[Chain, int]] = []
        views: list[memoryview] = []
        offered = 0
        for _ in range(stream.burst):
            if offered == room or len(views) >= PIECES or (chain := self._take()) is None:
                break
            length = min(chain.writable_length - HEADER_LENGTH, room - offered)
            if length:
                chains.append((chain, length))
                views += pieces(chain.writable, HEADER_LENGTH, length)
                offered += length
            else:
                self._queue.push(chain)  # a header alone fits: if it were kept, data would wait behind it for ever
        count = stream.fill(views) if offered else 0
        stream.burst = min(2 * stream.burst, BURST) if count == offered else 1
        sent = 0
        while count:
            chain, length = chains[sent]
            length = min(length, count)
            self._give(chain, stream.header(VSOCK_OP_RW, length), length)
            count -= length
            sent += 1
        self._buffers.extendleft(chain for chain, _ in reversed(chains[sent:]))
        return sent
