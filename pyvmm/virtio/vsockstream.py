"""One stream of the socket device: its credit both ways, what its ends have said, and what waits for the host.

Imports spec and vsockheader. virtio 1.3, 5.10.6.3 and 5.10.6.5. No queue is known here: the device asks a stream what
is to be told to the driver (`next_op`) and whether data may be (`room`), and carries both out.
"""

from __future__ import annotations

from pyvmm.virtio.spec import (
    VSOCK_HOST_CID,
    VSOCK_OP_CREDIT_REQUEST,
    VSOCK_OP_CREDIT_UPDATE,
    VSOCK_OP_REQUEST,
    VSOCK_OP_RESPONSE,
    VSOCK_OP_SHUTDOWN,
    VSOCK_SHUTDOWN_RECEIVE,
    VSOCK_SHUTDOWN_SEND,
    VSOCK_TYPE_STREAM,
)
from pyvmm.virtio.vsockheader import HEADER, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.virtio.vsockhost import HostStream


CALLING, CONNECTING, OPEN, LINGERING, GONE = "calling", "connecting", "open", "lingering", "gone"
"""A stream's states: the guest is asked; the host is; data flow; the guest is done, the host gets the rest; over."""

ENDED = VSOCK_SHUTDOWN_RECEIVE | VSOCK_SHUTDOWN_SEND
_COUNT = 0xFFFFFFFF  # counters are free-running, of 32 bits (5.10.6.3)
_ORDER = (
    VSOCK_OP_REQUEST,
    VSOCK_OP_RESPONSE,
    VSOCK_OP_CREDIT_UPDATE,
    VSOCK_OP_CREDIT_REQUEST,
    VSOCK_OP_SHUTDOWN,
)


class Stream:
    """A stream between `guest_port` of `guest_cid` and the host's `host_port`, with `window` bytes for what the guest
    sends.

    state       one of CALLING, CONNECTING, OPEN, LINGERING, GONE
    host        the host's end; None while CONNECTING
    backlog     bytes of the guest's that the host has not taken yet: never more than `window`
    readable    whether the host's end may have something to read, or its end
    guest_ended, host_ended    what each side will not do any more, as flags of SHUTDOWN
    host_told   what of `host_ended` the driver was told
    closing     for the device: it waits for the driver to confirm that both have ended
    tries       attempts to connect to the host
    burst       buffers of the driver's to fill with one read
    """

    __slots__ = (
        "_fwd_cnt",
        "_news",
        "_peer_alloc",
        "_peer_fwd",
        "_told_fwd",
        "_tx_cnt",
        "backlog",
        "burst",
        "closing",
        "guest_cid",
        "guest_ended",
        "guest_port",
        "host",
        "host_ended",
        "host_port",
        "host_told",
        "readable",
        "state",
        "tries",
        "window",
    )

    def __init__(self, guest_cid: int, guest_port: int, host_port: int, window: int, state: str) -> None:
        self.guest_cid = guest_cid
        self.guest_port = guest_port
        self.host_port = host_port
        self.window = window
        self.state = state
        self.host: HostStream | None = None
        self.backlog = bytearray()
        self.readable = False
        self.guest_ended = self.host_ended = self.host_told = 0
        self.closing = False
        self.tries = 0
        self.burst = 1
        self._peer_alloc = self._peer_fwd = self._tx_cnt = 0
        self._fwd_cnt = self._told_fwd = 0
        self._news = 0  # a bit for each operation that the driver is to be told

    # --- Towards the driver -------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Bytes that the peer has room for (5.10.6.3); none if its counters are nonsense."""
        return max(0, self._peer_alloc - ((self._tx_cnt - self._peer_fwd) & _COUNT))

    @property
    def sending(self) -> bool:
        """Whether there may be data for the guest."""
        return self.readable and self.state == OPEN and not self.guest_ended & VSOCK_SHUTDOWN_RECEIVE

    @property
    def starved(self) -> bool:
        """Whether there may be data for the guest that it has no room for."""
        return self.sending and not self.room

    @property
    def wants(self) -> bool:
        """Whether there is something to be done towards the driver."""
        return bool(self.next_op()) or (self.sending and self.room > 0)

    def tell(self, op: int) -> None:
        """Have the driver told by a packet with `op`, once its time has come."""
        self._news |= 1 << op

    def next_op(self) -> int:
        """The operation to be told next, or 0."""
        if self.state != OPEN and not (self.state == CALLING and self._news >> VSOCK_OP_REQUEST & 1):
            return 0
        for op in _ORDER:
            if self._news >> op & 1:
                return op
        return 0

    def header(self, op: int, length: int = 0) -> bytes:
        """The header of a packet for the driver, which is sent now: it tells of the credit, too."""
        self._news &= ~(1 << op | 1 << VSOCK_OP_CREDIT_UPDATE)
        self._tx_cnt = (self._tx_cnt + length) & _COUNT
        self._told_fwd = self._fwd_cnt
        if op == VSOCK_OP_SHUTDOWN:
            self.host_told = self.host_ended
        return HEADER.pack(
            VSOCK_HOST_CID,
            self.guest_cid,
            self.host_port,
            self.guest_port,
            length,
            VSOCK_TYPE_STREAM,
            op,
            self.host_ended if op == VSOCK_OP_SHUTDOWN else 0,
            self.window,
            self._fwd_cnt,
        )

    # --- From the driver ----------------------------------------------------------------------------------------------

    def hear(self, header: Header) -> None:
        """Take the peer's credit out of a packet of its."""
        self._peer_alloc = header.buf_alloc
        self._peer_fwd = header.fwd_cnt

    def take(self, payload: Sequence[memoryview], length: int) -> bool:
        """Data of the guest's, `length` bytes; what the host does not take at once waits. False: more than it may."""
        if self.state != OPEN or self.guest_ended & VSOCK_SHUTDOWN_SEND or length > self.window - len(self.backlog):
            return False
        assert self.host is not None
        done = length if self.host_ended & VSOCK_SHUTDOWN_RECEIVE else 0  # nobody reads it: it is as good as read
        if done < length and not self.backlog:
            try:
                done = self.host.write(payload)
            except BlockingIOError:
                pass
            except OSError:
                self.host_lost()
                done = length
        if done < length:
            if not self.backlog:
                self.host.notice_room(True)
            skip = done
            for piece in payload:
                self.backlog += piece[skip:]
                skip = max(0, skip - len(piece))
        self._forwarded(done)
        return True

    def _forwarded(self, count: int) -> None:
        """The host has `count` bytes more. The peer is told when it could be down to half the window."""
        self._fwd_cnt = (self._fwd_cnt + count) & _COUNT
        if (self._fwd_cnt - self._told_fwd) & _COUNT >= self.window // 2:
            self.tell(VSOCK_OP_CREDIT_UPDATE)

    def guest_end(self, flags: int) -> None:
        """The guest will not receive, or not send, any more: `flags` of SHUTDOWN, which are permanent (5.10.6.5)."""
        assert self.host is not None
        fresh = flags & ENDED & ~self.guest_ended
        self.guest_ended |= fresh
        try:
            if fresh & VSOCK_SHUTDOWN_RECEIVE:
                self.host.end_input()
            if fresh & VSOCK_SHUTDOWN_SEND and not self.backlog:
                self.host.end_output()
        except OSError:
            self.host_lost()

    # --- From the host ------------------------------------------------------------------------------------------------

    def fill(self, buffers: Sequence[memoryview]) -> int:
        """Fill `buffers`, of one byte at least, with data for the guest; returns how many, 0 if there are none."""
        assert self.host is not None
        try:
            count = self.host.read(buffers)
        except BlockingIOError:
            self.readable = False
            return 0
        except OSError:
            self.host_lost()
            count = 0
        if not count:
            self.readable = False
            self.host_ended |= VSOCK_SHUTDOWN_SEND
            self.tell(VSOCK_OP_SHUTDOWN)
        return count

    def drain(self) -> None:
        """Hand the host what waits for it, as far as it has room."""
        assert self.host is not None
        try:
            while self.backlog:
                done = self.host.write((self.backlog,))
                del self.backlog[:done]
                self._forwarded(done)
            self.host.notice_room(False)
            if self.guest_ended & VSOCK_SHUTDOWN_SEND:
                self.host.end_output()
        except BlockingIOError:
            pass
        except OSError:
            self.host_lost()

    def host_lost(self) -> None:
        """The host will not read any more."""
        self._forwarded(len(self.backlog))
        self.backlog.clear()
        if not self.host_ended & VSOCK_SHUTDOWN_RECEIVE:
            self.host_ended |= VSOCK_SHUTDOWN_RECEIVE
            self.tell(VSOCK_OP_SHUTDOWN)
