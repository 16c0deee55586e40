"""Receive buffers of a network device: taken when needed, filled one after the other, given back together.

Imports spec. After virtio 1.3, 5.1.6.3 and 5.1.6.4.
"""

from __future__ import annotations

from pyvmm.virtio.spec import NET_HDR_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue

NUM_BUFFERS = 10
"""Offset of num_buffers in the header, 2 bytes (5.1.6)."""


class ReceiveBuffers:
    """The buffers that were taken from the receive queue and are not used yet.

    room    bytes that they hold together
    """

    __slots__ = ("_chains", "_gap", "room")

    def __init__(self) -> None:
        self._chains: list[Chain] = []
        self._gap = False  # whether one was given back that was taken after one of these
        self.room = 0

    def __len__(self) -> int:
        return len(self._chains)

    @property
    def first(self) -> int:
        """Bytes that the next one holds."""
        return self._chains[0].writable_length

    def take(self, queue: Virtqueue) -> bool:
        """Take one more; False if there is none, and the driver will then tell of the next. Raises QueueError.

        One that has no room for the header, which no driver should make available (5.1.6.3.1), is given back.
        """
        while (chain := queue.pop()) is None:
            if not queue.listen():
                return False
        if chain.writable_length < NET_HDR_LENGTH:
            queue.push(chain)
            self._gap = bool(self._chains)
            return True
        queue.suppress()
        self._chains.append(chain)
        self.room += chain.writable_length
        return True

    def untake(self, queue: Virtqueue) -> bool:
        """Leave them all to whoever takes them next; False, and nothing done, if they are not the last ones taken."""
        if self._gap and self._chains:
            return False
        queue.untake(self._chains)
        self._chains, self._gap, self.room = [], False, 0
        return True

    def fill(self, header: bytes, payload: memoryview) -> list[tuple[Chain, int]]:
        """Put `header` and `payload`, for which there is room, into buffers: those used, and the bytes in each.

        All but the last are full, and the header says how many they are (5.1.6.4.1).
        """
        if NET_HDR_LENGTH + len(payload) <= self.first:  # the usual case, in one go
            chain = self._chains.pop(0)
            self.room -= chain.writable_length
            return [(chain, chain.write(header[:NUM_BUFFERS] + b"\1\0" + payload))]
        used: list[tuple[Chain, int]] = []
        done, at = 0, NET_HDR_LENGTH
        for chain in self._chains:
            count = chain.write(payload[done : done + chain.writable_length - at], at)
            used.append((chain, at + count))
            done += count
            at = 0
            if done == len(payload):
                break
        used[0][0].write(header[:NUM_BUFFERS] + len(used).to_bytes(2, "little"))
        del self._chains[: len(used)]
        self.room -= sum(chain.writable_length for chain, _ in used)
        return used
