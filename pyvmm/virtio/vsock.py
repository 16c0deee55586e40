"""The socket device: streams between programs in the guest and programs on the host (virtio 1.3, 5.10).

Imports device, chain, timers, spec, and vsockfeed, vsockheader, vsockstream and vsocktable, which are its parts. Linux
calls it AF_VSOCK (vsock(7)). Only stream sockets are offered.

No packet for the driver is queued: what it is to be told follows from the state of each stream, so that it is bounded,
however rarely the driver provides buffers. Only an RST may outlive its stream; while many of those wait, the transmit
queue does, too (5.10.6.1). Data for the guest are read into the driver's own buffers, when it has some and room for the
stream; data of the guest that the host does not take at once wait in the stream's window, whose size the driver knows.
"""

from __future__ import annotations

import select
import time

from pyvmm.errors import UsageError
from pyvmm.virtio.chain import pieces
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.spec import (
    ID_VSOCK,
    VSOCK_ANY,
    VSOCK_EVENT_TRANSPORT_RESET,
    VSOCK_F_NO_IMPLIED_STREAM,
    VSOCK_F_STREAM,
    VSOCK_HOST_CID,
    VSOCK_OP_CREDIT_REQUEST,
    VSOCK_OP_CREDIT_UPDATE,
    VSOCK_OP_REQUEST,
    VSOCK_OP_RESPONSE,
    VSOCK_OP_RST,
    VSOCK_OP_RW,
    VSOCK_OP_SHUTDOWN,
)
from pyvmm.virtio.timers import Timers
from pyvmm.virtio.vsockfeed import Feed
from pyvmm.virtio.vsockheader import HEADER_LENGTH, Header
from pyvmm.virtio.vsockstream import CALLING, CONNECTING, ENDED, GONE, LINGERING, OPEN, Stream
from pyvmm.virtio.vsocktable import MAX_STREAMS, StreamTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue
    from pyvmm.virtio.vsockhost import HostStream, Sockets


RX, TX, EVENT = 0, 1, 2
"""5.10.2: the queues."""
QUEUE_SIZE, EVENT_QUEUE_SIZE = 256, 16
DEFAULT_CID = 3
MAX_RESETS = 1024
"""RST packets that wait for buffers before the driver's packets have to wait, too."""
BUDGET = 256
"""Packets that are handled before other queues have their turn."""
RETRY, TRIES = 0.01, 200
"""Seconds until a host whose queue of connections is full is asked again, and how often: 2 s, as Linux waits."""
PATIENCE = 8.0
"""Seconds that the driver has to answer REQUEST, and SHUTDOWN of both directions with RST: Linux's own limit for it."""
ASK_AGAIN = 2.0
"""Seconds after which a peer that has no room for data is asked for its credit again."""
LINGER = 60.0
"""Seconds without progress after which what a host does not read of a closed stream is thrown away."""


class VirtioVsock(VirtioDevice):
    """A socket device for the guest with context ID `cid`, connected to `sockets`. `report(text)` is told, once, that
    streams are refused because there are too many.

    Raises UsageError for a CID that is reserved (5.10.4).
    """

    device_id = ID_VSOCK
    STATE = {}
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE, EVENT_QUEUE_SIZE)

    def __init__(
        self, sockets: Sockets, *, cid: int = DEFAULT_CID, name: str = "", report: Callable[[str], None] | None = None
    ) -> None:
        if not VSOCK_HOST_CID < cid < VSOCK_ANY:
            raise UsageError(f"context ID {cid} (expected {VSOCK_HOST_CID + 1} to {VSOCK_ANY - 1})")
        super().__init__(name)
        self.cid = cid
        self._sockets = sockets
        self._report = report
        self._streams = StreamTable(cid)
        self._out = Feed(self.queues[RX], self._consider)
        self._timers = Timers()
        self._reset_event = False
        self._more = False  # a turn is over, and there may be more to do
        self._due: float | None = None
        sockets.on_call = self._call

    # --- The device ---------------------------------------------------------------------------------------------------

    def device_features(self) -> int:
        """5.10.3: streams, and the promise to say so."""
        return 1 << VSOCK_F_STREAM | 1 << VSOCK_F_NO_IMPLIED_STREAM

    def features_valid(self, features: int) -> bool:
        """5.10.3: streams are implied unless the driver says that they are not, and there is nothing else."""
        return bool(features >> VSOCK_F_STREAM & 1) or not features >> VSOCK_F_NO_IMPLIED_STREAM & 1

    def config(self) -> bytes:
        """5.10.4."""
        return self.cid.to_bytes(8, "little")

    def discard(self) -> None:
        self._drop_all()
        self._out.forget_driver()
        self._reset_event = self._more = False
        self._due = None

    def restored(self) -> None:
        """What its streams led to has stayed where the snapshot was made."""
        self._reset_event = self.live

    def close(self) -> None:
        """Hang up everywhere and listen no more."""
        self._drop_all()
        self._sockets.close()

    def transport_reset(self) -> None:
        """Tell the driver that communication was interrupted (5.10.6.7): all streams end, listeners stay, and the CID
        is read again. From any thread, with neither `lock` nor `plane` held.
        """
        with self.plane:
            self._drop_all()
            self._reset_event = self.live
        try:
            self.ring(EVENT)
        except (OSError, ValueError):
            pass  # the data plane has ended

    # --- Being served -------------------------------------------------------------------------------------------------

    def sources(self) -> Sequence[tuple[int, int]]:
        return ((self._sockets.fileno(), select.POLLIN),)

    def ready(self, fd: int, events: int) -> None:
        for host, seen in self._sockets.poll():
            stream: Stream = host.owner
            stream.readable |= bool(seen & ~select.POLLOUT)
            if seen & (select.POLLERR | select.POLLHUP):
                stream.host_lost()
            elif seen & select.POLLOUT and stream.backlog:
                stream.drain()
                if stream.state == LINGERING:
                    self._timers.set(stream, time.monotonic(), LINGER)
            self._consider(stream)
        self._go_on()

    def serve(self, queue: Virtqueue) -> None:
        if queue.index == EVENT:
            self._announce(queue)
            return
        if queue.index == TX:
            self._obey(queue)
        self._go_on()

    def deadline(self) -> float | None:
        return self._due  # which only changes with `plane` held: this is asked without

    def tick(self, now: float) -> None:
        self._sockets.tick(now)
        for stream in self._timers.expired(now):
            assert isinstance(stream, Stream)
            self._expired(stream, now)
        if self._more:
            self._more = False
            self._obey(self.queues[TX])
        self._go_on()

    def _go_on(self) -> None:
        """Tell the driver what it is to know; then see when there is more to do."""
        unfed = self._out.feed(BUDGET)
        if unfed or (self._more and len(self._out.resets) < MAX_RESETS):
            self._due = 0.0
        else:
            dues = [due for due in (self._timers.next(), self._sockets.deadline()) if due is not None]
            self._due = min(dues, default=None)

    def _announce(self, queue: Virtqueue) -> None:
        """Send the event that is due, if the driver has provided a buffer for it."""
        for _ in range(2 * queue.size):
            chain = queue.pop() if self._reset_event else None
            if chain is not None:
                event = VSOCK_EVENT_TRANSPORT_RESET.to_bytes(4, "little")
                fits = chain.writable_length >= len(event)
                self._reset_event = not fits
                self.complete(queue, chain, chain.write(event) if fits else 0)
            elif not self._reset_event or not queue.listen():
                break

    # --- From the driver ----------------------------------------------------------------------------------------------

    def _obey(self, queue: Virtqueue) -> None:
        """Take packets of the driver's, unless too much waits to be told to it (5.10.6.1)."""
        left = BUDGET
        queue.suppress()
        while queue.ready and len(self._out.resets) < MAX_RESETS:
            chain = queue.pop()
            if chain is not None:
                self._packet(chain)
                self.complete(queue, chain)
                left -= 1
                if not left:
                    break
            elif queue.listen():
                queue.suppress()
            else:
                return
        self._more = queue.ready  # there was no end to it

    def _packet(self, chain: Chain) -> None:
        data = chain.read(0, HEADER_LENGTH)
        if len(data) < HEADER_LENGTH:
            return  # it is not even known who is to be told
        header = Header(data)
        stream = self._streams.find(header.src_port, header.dst_port)
        if not header.meant_for_host(self.cid) or (stream is None and header.op != VSOCK_OP_REQUEST):
            if header.op != VSOCK_OP_RST:
                self._out.reset(header.refusal())
        elif stream is None:
            self._connect(header)
        else:
            stream.hear(header)
            if self._answer(stream, header, chain):
                self._consider(stream)
            else:
                self._abort(stream)

    def _answer(self, stream: Stream, header: Header, chain: Chain) -> bool:
        """Do what a packet for `stream` says; False if that is against the rules."""
        op = header.op
        if op == VSOCK_OP_RW:
            length = header.length
            if length > chain.readable_length - HEADER_LENGTH:
                return False
            return stream.take(pieces(chain.readable, HEADER_LENGTH, length), length)
        if op == VSOCK_OP_RST:
            self._drop(stream)
        elif op == VSOCK_OP_CREDIT_REQUEST:
            stream.tell(VSOCK_OP_CREDIT_UPDATE)
        elif op == VSOCK_OP_RESPONSE:
            return self._accepted(stream)
        elif op == VSOCK_OP_SHUTDOWN and stream.state == OPEN:
            stream.guest_end(header.flags)
            if stream.guest_ended == ENDED:
                self._linger(stream)
        else:
            return op == VSOCK_OP_CREDIT_UPDATE
        return True

    def _connect(self, header: Header) -> None:
        """The guest wants to be connected to the host."""
        stream = self._new(header.src_port, header.dst_port, CONNECTING)
        if stream is None:
            self._out.reset(header.refusal())
            return
        stream.hear(header)
        self._try(stream, time.monotonic())

    def _try(self, stream: Stream, now: float) -> None:
        """Connect `stream` to the host, now or later, or refuse it."""
        try:
            host = self._sockets.connect(stream.host_port)
        except OSError as error:
            stream.tries += 1
            if isinstance(error, BlockingIOError) and stream.tries < TRIES:
                self._timers.set(stream, now, RETRY)
            else:
                self._abort(stream)
            return
        host.owner, stream.host = stream, host
        stream.state = OPEN
        stream.tell(VSOCK_OP_RESPONSE)
        self._consider(stream)

    def _accepted(self, stream: Stream) -> bool:
        """The guest has accepted a call of the host's."""
        if stream.state != CALLING:
            return False
        assert stream.host is not None
        self._timers.drop(stream)
        stream.state = OPEN
        try:
            stream.host.accept(stream.host_port)
        except OSError:
            stream.host_lost()  # what it has said before may still be of use to the guest
        return True

    # --- Streams ------------------------------------------------------------------------------------------------------

    def _call(self, port: int, host: HostStream) -> None:
        """The host wants to be connected to the guest's `port`."""
        stream = self._new(port, self._streams.free_port(port), CALLING)
        if stream is None:
            host.close()
            return
        host.owner, stream.host = stream, host
        stream.readable = True  # its line has been read, and nobody knows what came with it
        stream.tell(VSOCK_OP_REQUEST)
        self._timers.set(stream, time.monotonic(), PATIENCE)
        self._consider(stream)

    def _new(self, guest_port: int, host_port: int, state: str) -> Stream | None:
        """A new stream, or None: there are too many."""
        stream = self._streams.add(guest_port, host_port, state)
        if stream is None and self._report is not None:
            self._report(f"{MAX_STREAMS} streams are all that there can be: others are refused")
            self._report = None
        return stream

    def _consider(self, stream: Stream) -> None:
        """Something about `stream` has changed."""
        if stream.state in (LINGERING, GONE):
            if stream.state == LINGERING and not stream.backlog:
                self._drop(stream)
            return
        if stream.starved and stream not in self._timers:
            stream.tell(VSOCK_OP_CREDIT_REQUEST)
            self._timers.set(stream, time.monotonic(), ASK_AGAIN)
        if stream.host_told == ENDED and not stream.closing:
            stream.closing = True
            self._timers.set(stream, time.monotonic(), PATIENCE)
        if stream.wants and stream.host is not None:
            self._out.add(stream)

    def _expired(self, stream: Stream, now: float) -> None:
        """What `stream` has waited for did not happen."""
        if stream.state == CONNECTING:
            self._try(stream, now)
        elif stream.state == LINGERING:
            self._drop(stream)
        elif stream.state == CALLING or stream.closing:
            self._abort(stream)
        else:
            self._consider(stream)

    def _linger(self, stream: Stream) -> None:
        """The guest has closed `stream`: nothing more comes, its ports are free, the host gets what it has not yet."""
        self._out.reset(stream.header(VSOCK_OP_RST))
        self._out.remove(stream)
        self._streams.linger(stream)
        self._timers.set(stream, time.monotonic(), LINGER)

    def _abort(self, stream: Stream) -> None:
        """End `stream` and say so."""
        self._out.reset(stream.header(VSOCK_OP_RST))
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        """End `stream`; the driver knows."""
        self._streams.remove(stream)
        self._out.remove(stream)
        self._timers.drop(stream)
        if stream.host is not None:
            stream.host.close()

    def _drop_all(self) -> None:
        for stream in self._streams.every():
            self._drop(stream)
        self._out.resets.clear()
