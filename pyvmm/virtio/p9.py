"""The 9P transport: a directory of the host's as a file system of the guest's (virtio 1.3, 5: device type 9).

Imports device, chain, spec, state and errors. The standard gives the device its number and no more: what is here is
what linux/virtio_9p.h and Linux's driver (net/9p/trans_virtio.c) make of it. One queue; a chain is a message, in its
readable bytes, and room for the answer, its writable ones. Messages mean nothing to the device: a server answers them,
one after the other.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.errors import UsageError
from pyvmm.state import StateError
from pyvmm.virtio.chain import pieces
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.spec import ID_9P, P9_F_MOUNT_TAG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from typing_extensions import Buffer

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue

    class Server(Protocol):
        """What answers messages. One thread at a time."""

        report: Callable[[str], None] | None

        def serve(self, exchange: Exchange) -> int:
            """Answer one message; returns how many bytes were written, from the first on. Raises nothing."""

        @property
        def in_session(self) -> bool:
            """Whether there is a client."""

        def reset(self) -> None:
            """The client is gone, and what it had in hand with it."""

        def close(self) -> None:
            """A second call does nothing."""


QUEUE_SIZE = 128
"""As many buffers as Linux's driver puts into one chain (net/9p/trans_virtio.c, VIRTQUEUE_NUM)."""
MAX_TAG = 255
"""Bytes of a mount tag: more than anybody types."""
TELL_AFTER = 16
"""Messages after which a driver that keeps the queue filled is told of those that are answered."""
TURN = 2
"""How often the queue's size may be served, at most, before a pause or a reset has its turn."""
_TAG_LENGTH = Struct("<H")


class Exchange:
    """One chain as a server sees it: a message, and room for the answer."""

    __slots__ = ("_chain", "length", "room")

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.length = chain.readable_length
        self.room = chain.writable_length

    def read(self, offset: int, length: int) -> bytes:
        """A copy of up to `length` bytes of the message from `offset` on; fewer at its end."""
        return self._chain.read(offset, length)

    def given(self, offset: int, length: int) -> list[memoryview]:
        """Those bytes themselves, which the driver may change at any time; to be read only."""
        return pieces(self._chain.readable, offset, length)

    def space(self, offset: int, length: int) -> list[memoryview]:
        """The room itself, to be filled."""
        return pieces(self._chain.writable, offset, length)

    def write(self, data: Buffer, offset: int = 0) -> int:
        """Fill the room from `offset` on; returns how many bytes there was room for."""
        return self._chain.write(data, offset)


class Virtio9p(VirtioDevice):
    """A file system that a guest mounts by `tag`, 1 to 255 bytes; `server`, which the device owns, has its files.

    `report`, if given, is told of each kind of error that the host gives the guest, once. Raises UsageError for a tag
    that a guest could not name.
    """

    device_id = ID_9P
    STATE = {}
    queue_sizes = (QUEUE_SIZE,)

    def __init__(
        self, server: Server, tag: str, *, name: str = "", report: Callable[[str], None] | None = None
    ) -> None:
        encoded = tag.encode(errors="surrogateescape")
        if not 0 < len(encoded) <= MAX_TAG or any(byte <= 0x20 or byte == 0x7F for byte in encoded):
            raise UsageError(f"mount tag {tag!r} (expected 1 to {MAX_TAG} bytes without spaces)")
        super().__init__(name)
        self.server = server
        server.report = report
        self._config = _TAG_LENGTH.pack(len(encoded)) + encoded

    def device_features(self) -> int:
        return 1 << P9_F_MOUNT_TAG

    def config(self) -> bytes:
        return self._config

    def discard(self) -> None:
        self.server.reset()

    def save(self) -> dict[str, Any]:
        """What a client has in hand are files of the host's: there is nothing that could be saved of those."""
        if self.server.in_session:
            raise StateError(f"{self.name}: the guest has the share mounted, which cannot be saved yet (unmount it)")
        return super().save()

    def close(self) -> None:
        self.server.close()

    def serve(self, queue: Virtqueue) -> None:
        for number, chain in enumerate(queue.chains(TURN * queue.size), 1):
            # A chain without room for an answer comes back empty: its message has not been looked at.
            self.complete(queue, chain, self.server.serve(Exchange(chain)))
            if number % TELL_AFTER == 0:
                self.tell(queue)
