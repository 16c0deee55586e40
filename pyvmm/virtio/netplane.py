"""A network device's frames moved by C, many with one call; what is not plain is left to the Python path.

Imports native, netfilter and spec. `net.c` says what plain is. Which frames the driver wants and which may leave is
decided by the device: C is told by the device's settings as they are at each call.
"""

from __future__ import annotations

from pyvmm.virtio.native import constant, ffi, lib, native_queue
from pyvmm.virtio.spec import NET_HDR_LENGTH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.backends.net import Direct
    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.netfilter import ReceiveFilter
    from pyvmm.virtio.queue import Virtqueue

STAGE = 256 << 10
"""Bytes of frames that go to the back-end with one system call at most."""
TURN = 1024
"""Frames that one call moves before it is others' turn."""

NO_CHAIN, NO_FRAME = constant("PYVMM_NET_NO_CHAIN"), constant("PYVMM_NET_NO_FRAME")
FULL, MORE = constant("PYVMM_NET_FULL"), constant("PYVMM_NET_MORE")
PYTHON, TELL = constant("PYVMM_NET_PYTHON"), constant("PYVMM_NET_TELL")
"""How a call ends (net.h)."""


class NetPlane:
    """C's side of one device.

    moved    frames that the last call has sent or received
    """

    def __init__(self, *, header: bool) -> None:
        """`header`: whether the back-end's frames begin with virtio_net_hdr."""
        self._net = ffi.new("struct pyvmm_net *")
        self._frames = ffi.new("struct pyvmm_frames *")
        self._frames.header = NET_HDR_LENGTH if header else 0
        self._stage = bytearray(STAGE)
        self._lent: tuple[Any, ...] = ()
        self._direct: Direct | None = None
        self._addresses: tuple[bytes, bytes] = b"", b""
        self._net.stage = self._lend(self._stage)
        self._net.stage_size = STAGE

    def _lend(self, buffer: bytearray) -> Any:
        lent = ffi.from_buffer("uint8_t[]", buffer, True)
        self._lent = (*self._lent[:1], lent)  # the stage, and the buffer of the back-end as it is now
        return lent

    @property
    def moved(self) -> int:
        return int(self._net.moved)

    def settle(self, receive: ReceiveFilter, source: bytes, *, check: bool, mergeable: bool, longest: int) -> None:
        """Say what is plain: the receive filter; the address that frames must come from, if `check`; whether buffers
        are mergeable, and how many bytes a received frame may have."""
        net = self._net
        if receive.promiscuous:
            net.wanted = 1
        else:
            net.wanted = (0 if receive.no_unicast else 2) | (0 if receive.no_broadcast else 4)
        net.check_source, net.mergeable, net.longest = check, mergeable, longest
        if self._addresses != (receive.mac, source):
            self._addresses = receive.mac, source
            ffi.memmove(net.station, receive.mac, len(receive.mac))
            ffi.memmove(net.source, source, len(source))

    def transmit(self, queue: Virtqueue, direct: Direct) -> int:
        """Send what is available; how it ended."""
        return self._call(lib.pyvmm_net_transmit, queue, direct)

    def receive(self, queue: Virtqueue, direct: Direct, *, told: bool) -> int:
        """Fill buffers with what has come; how it ended. `told`: whether the driver has been told of some already."""
        self._net.told = told
        return self._call(lib.pyvmm_net_receive, queue, direct)

    def _call(self, function: Any, queue: Virtqueue, direct: Direct) -> int:
        frames = self._frames
        if direct is not self._direct:
            self._direct = direct
            frames.stream, frames.buffer, frames.size = direct.stream, self._lend(direct.buffer), len(direct.buffer)
        frames.fd, frames.failure = direct.fileno(), 0
        frames.start, frames.end, frames.sent = direct.start, direct.end, 0
        native = native_queue(queue)
        end = function(self._net, native.enter(), frames, TURN)
        native.leave()
        direct.start, direct.end, direct.failure = frames.start, frames.end, frames.failure
        if end == FULL:
            direct.sent = frames.sent
        return int(end)

    def in_hand(self, queue: Virtqueue) -> tuple[Chain, memoryview]:
        """After FULL: the chain that waits, and its frame as the back-end takes it."""
        net = self._net
        frame = bytes(self._stage[net.frame : net.frame + net.length])
        return queue.taken(net.head), memoryview(frame)
