"""All streams of the socket device, and what bounds them. Imports vsockstream and spec."""

from __future__ import annotations

from pyvmm.virtio.spec import VSOCK_ANY
from pyvmm.virtio.vsockstream import GONE, LINGERING, Stream

MAX_STREAMS = 1024
"""Streams at a time, with those that linger; whoever wants more is refused."""
WINDOW, SMALL_WINDOW, GENEROUS = 256 << 10, 32 << 10, 32 << 20
"""Bytes that the guest may send ahead in one stream: WINDOW until GENEROUS are promised, then SMALL_WINDOW, so that all
streams together hold 60 MiB at most."""
FIRST_HOST_PORT = 1 << 30
"""The host's own ports, for its calls, are this and above, as with other VMMs."""


class StreamTable:
    """The streams of the guest with context ID `cid`: those that have ports, and those that linger without."""

    def __init__(self, cid: int) -> None:
        self._cid = cid
        self._streams: dict[tuple[int, int], Stream] = {}  # by the guest's and the host's port
        self._lingering: dict[Stream, None] = {}
        self._promised = 0  # bytes of windows
        self._next_port = FIRST_HOST_PORT

    def find(self, guest_port: int, host_port: int) -> Stream | None:
        """The stream between these ports, or None."""
        return self._streams.get((guest_port, host_port))

    def every(self) -> list[Stream]:
        """All of them."""
        return [*self._streams.values(), *self._lingering]

    def free_port(self, guest_port: int) -> int:
        """A port of the host's for a call to `guest_port`: each in its turn, so that none is used again soon."""
        while True:
            port = self._next_port
            self._next_port = port + 1 if port + 1 < VSOCK_ANY else FIRST_HOST_PORT
            if (guest_port, port) not in self._streams:
                return port

    def add(self, guest_port: int, host_port: int, state: str) -> Stream | None:
        """A new stream, or None: there are too many."""
        if len(self._streams) + len(self._lingering) >= MAX_STREAMS:
            return None
        window = WINDOW if self._promised + WINDOW <= GENEROUS else SMALL_WINDOW
        stream = Stream(self._cid, guest_port, host_port, window, state)
        self._streams[guest_port, host_port] = stream
        self._promised += window
        return stream

    def linger(self, stream: Stream) -> None:
        """`stream` has no ports any more."""
        del self._streams[stream.guest_port, stream.host_port]
        self._lingering[stream] = None
        stream.state = LINGERING

    def remove(self, stream: Stream) -> None:
        """`stream` is GONE."""
        if stream.state == LINGERING:
            del self._lingering[stream]
        else:
            del self._streams[stream.guest_port, stream.host_port]
        self._promised -= stream.window
        stream.state = GONE
