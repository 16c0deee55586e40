"""The network device: Ethernet frames between a driver and whatever its back-end is (virtio 1.3, 5.1).

Imports device, its own parts (netbuffers, netfeatures, netfilter, netheader, netplane), spec, state and errors. A
frame from the driver is copied once, then judged and sent. One from outside is read only when there is a receive buffer
for it: while the driver gives none, frames wait outside, where whoever sends them is slowed down. Where the back-end
lets it, C moves plain frames, and what is here sees the others.
"""

from __future__ import annotations

import select
import time
from struct import Struct

from pyvmm.errors import BackendError, UsageError
from pyvmm.state import FLAG, Bytes
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.native import PROBLEM
from pyvmm.virtio.netbuffers import ReceiveBuffers
from pyvmm.virtio.netfeatures import guest_offloads, offered, valid
from pyvmm.virtio.netfilter import ADDRESS, COMMAND_LIMIT, MAC, ReceiveFilter
from pyvmm.virtio.netheader import PLAIN, received, transmitted
from pyvmm.virtio.netplane import FULL, MORE, NO_CHAIN, NO_FRAME, TELL, NetPlane
from pyvmm.virtio.spec import (
    ID_NET,
    NET_CTRL_ERR,
    NET_CTRL_OK,
    NET_F_MRG_RXBUF,
    NET_F_MTU,
    NET_HDR_LENGTH,
    NET_S_LINK_UP,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from pyvmm.backends.net import Direct, Frames
    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue

RECEIVE, TRANSMIT, CONTROL = 0, 1, 2
"""5.1.2: the queues, for one pair of them."""
CONTROL_QUEUE_SIZE = 64
CONFIG = Struct("<6sHHH")
"""struct virtio_net_config (5.1.4): mac, status, max_virtqueue_pairs, mtu."""
ETHERNET = 14
"""Bytes of a frame's header: destination, source, type."""
VLAN_TYPE, VLAN_TAG = b"\x81\x00", 4
"""IEEE 802.1Q, 9.6: a tagged frame has this type, and a header longer by so many bytes."""
MAX_FRAME = 65589
"""Bytes of the longest frame (5.1.6.3)."""
MIN_MTU, MAX_MTU = 68, 65535
"""5.1.4.1."""
BUDGET = 64
"""Frames that are moved one way before other sources have their turn."""
PATIENCE = 1.0
"""Seconds that a frame waits for more receive buffers when those that are there are not enough for it."""


class VirtioNet(VirtioDevice):
    """A network interface on `backend`, which the device owns from now on.

    `mac` is its address, 6 bytes; `mtu` the largest packet in bytes that the driver is told of, 68 to 65535, or None;
    without `spoof` nothing leaves that has another source address. `report(text)` is told when the network has gone.

    counts   frames moved, and those dropped by reason (DROPS)

    Raises UsageError.
    """

    device_id = ID_NET
    STATE = {"_mac": ADDRESS, "_former": Bytes(limit=MAC, container=bytes), "_unplugged": FLAG}

    DROPS = ("short", "oversize", "header", "spoofed", "filtered", "no room", "no link", "fault")
    """Why a frame is dropped. "no room": in the receive buffers; "header": it asks for what cannot be."""

    def __init__(
        self,
        backend: Frames,
        *,
        name: str = "",
        mac: bytes,
        mtu: int | None = None,
        spoof: bool = True,
        queue_size: int = 256,
        report: Callable[[str], None] | None = None,
    ) -> None:
        if len(mac) != MAC or mac[0] & 1 or not any(mac):
            raise UsageError(f"MAC address {mac.hex(':')!r} (expected 6 bytes of a station, not of a group)")
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise UsageError(f"MTU of {mtu} (expected {MIN_MTU} to {MAX_MTU})")
        self.queue_sizes = (queue_size, queue_size, CONTROL_QUEUE_SIZE)
        super().__init__(name)
        self.counts = dict.fromkeys(("received", "transmitted", *self.DROPS), 0)
        self._backend = backend
        self._header = NET_HDR_LENGTH if backend.vnet_header else 0  # bytes of it in the back-end's frames
        self._mac = mac
        self._former = b""  # an address that the driver may still take for the device's
        self._mtu = mtu
        self._spoof = spoof
        self._report = report
        self._filter = ReceiveFilter(mac)
        self._gone = False  # the back-end
        self._unplugged = False
        self._unsent: tuple[Chain | None, memoryview] | None = None  # what the back-end had no room for
        has_direct = not PROBLEM and getattr(backend, "direct", None) is not None
        self._plane = NetPlane(header=bool(self._header)) if has_direct else None
        self._idle: Callable[[], None] | None = getattr(backend, "idle", None)
        self._forget_driver()

    def _forget_driver(self) -> None:
        self._filter = ReceiveFilter(self._mac)
        self._buffers = ReceiveBuffers()
        self._untaken = False  # C has left at least one in the queue
        self._held: memoryview | None = None  # a received frame that does not fit into those, and until when
        self._held_until = 0.0
        self._more = False  # a turn is over, and there may be more to move
        if self._unsent is not None:
            # A part may be on its way: the rest must follow, even if the driver is another one by then.
            self._unsent = None, self._unsent[1]

    # --- Features and configuration -----------------------------------------------------------------------------------

    def device_features(self) -> int:
        """Segmentation and checksums are for a back-end that can do them (5.1.3)."""
        return offered(offloads=bool(self._header), mtu=self._mtu is not None, change_mac=self._spoof)

    def features_valid(self, features: int) -> bool:
        """5.1.3.1: what each feature requires."""
        return valid(features)

    def config(self) -> bytes:
        """5.1.4. All of it is read-only."""
        return CONFIG.pack(self._filter.mac, NET_S_LINK_UP if self.link else 0, 1, self._mtu or 0)

    @property
    def link(self) -> bool:
        """The link status that the driver sees: the back-end is there, and nobody has pulled the cable."""
        return not self._gone and not self._unplugged

    def set_link(self, up: bool) -> None:
        """Plug the cable in or pull it; while it is out, frames are dropped both ways. Any thread but the device's."""
        with self.plane:
            before = self.link
            self._unplugged = not up
            changed = self.link != before
            if changed and self._held is not None:
                self._held = None
                self.counts["no link"] += 1
        with self.lock:
            if changed:
                self.config_changed()
            if self.live:
                self.ring(RECEIVE)  # what the data plane waits for is another thing now

    @property
    def mac(self) -> bytes:
        """The device's address, 6 bytes; the driver may have chosen another one."""
        return self._mac

    def readdress(self, mac: bytes) -> None:
        """Be the station `mac` from now on, 6 bytes: a clone of a VM in a network where the other one is.

        Drivers look at the address when they are bound to the device (5.1.5): until the next reset the one before
        is the device's as well. Nothing is being served.
        """
        self._former = self._former or self._mac
        if self._filter.mac == self._mac:
            self._filter.mac = mac
        self._mac = mac
        self.config_changed()

    def activate(self) -> None:
        """Have the back-end leave to the driver what it takes."""
        self._set_offloads(self.features)

    def _set_offloads(self, features: int) -> None:
        if self._header and not self._gone:
            try:
                self._backend.offloads(*guest_offloads(features))
            except BackendError as error:
                self._lose(error)

    def discard(self) -> None:
        """5.1.6.5.2.1: the filter too is as at first."""
        self._former = b""
        self._forget_driver()
        self._set_offloads(0)

    def save(self) -> dict[str, Any]:
        return {**super().save(), "filter": self._filter.save()}

    def restore(self, state: Any) -> None:
        of_filter = state.pop("filter", None) if type(state) is dict else None
        self._filter.restore(of_filter)
        super().restore(state)

    def close(self) -> None:
        """Close the back-end."""
        self._backend.close()

    # --- Being served -------------------------------------------------------------------------------------------------

    def serve(self, queue: Virtqueue) -> None:
        """The driver has given receive buffers, frames or commands."""
        (self._receive, self._transmit, self._control)[queue.index](queue)

    def sources(self) -> Sequence[tuple[int, int]]:
        """The back-end, for input only while there is a buffer for it, for output only while a frame waits."""
        events = select.POLLOUT if self._unsent is not None else 0
        if self._unplugged or ((self._buffers or self._untaken) and self._held is None):
            events |= select.POLLIN
        fd = self._backend.fileno() if events and not self._gone else -1
        return ((fd, events),) if fd >= 0 else ()

    def ready(self, fd: int, events: int) -> None:
        """The back-end can take or has given something, or has gone."""
        if self._unsent is not None and events & ~select.POLLIN:
            self._transmit(self.queues[TRANSMIT])
        if events & ~select.POLLOUT:
            self._receive(self.queues[RECEIVE])

    def deadline(self) -> float | None:
        """At once while there is more to move; else when a frame has waited too long for buffers."""
        if self._more:
            return 0.0
        return None if self._held is None else self._held_until

    def tick(self, now: float) -> None:
        """Go on after a turn; give up a frame that has waited too long."""
        self._more = False
        if self._held is not None and self._held_until <= now:
            self._held = None
            self.counts["no room"] += 1
        for queue in self.queues:
            self.serve(queue)

    def _lose(self, error: BackendError) -> None:
        """The back-end has gone: the link is down for good (5.1.4). What the driver sends is dropped."""
        self._gone = True
        self._held = None
        unsent, self._unsent = self._unsent, None
        if unsent is not None and unsent[0] is not None:
            self.counts["no link"] += 1
            self.complete(self.queues[TRANSMIT], unsent[0])
        if self._report is not None:
            self._report(f"the network has gone: {error}")
        self.config_changed()

    # --- Transmission (5.1.6.2) ---------------------------------------------------------------------------------------

    def _transmit(self, queue: Virtqueue) -> None:
        if self._unsent is not None and not self._send(queue, *self._unsent):
            return
        left = BUDGET
        while left and (direct := self._direct(queue)) is not None:
            left -= 1
            end = self._transmit_natively(queue, direct)
            if end == NO_CHAIN or (end == FULL and not direct.failure):
                return
            if end == MORE:
                left = 0
            elif end == FULL:
                assert self._unsent is not None
                if not self._send(queue, *self._unsent):  # which finds out what is wrong
                    return
            elif (chain := queue.pop()) is not None and not self._transmit_one(queue, chain):
                return
        for chain in queue.chains() if left else ():
            if not self._transmit_one(queue, chain):
                return
            left -= 1
            if not left:
                break
        if not left:
            self._more = True

    def _transmit_one(self, queue: Virtqueue, chain: Chain) -> bool:
        """Send the frame in `chain`, or drop it; False if the back-end is full."""
        judged = self._frame(queue, chain)
        if not isinstance(judged, str):
            return self._send(queue, chain, judged)
        self.counts[judged] += 1
        self.complete(queue, chain)
        return True

    def _send(self, queue: Virtqueue, chain: Chain | None, frame: memoryview) -> bool:
        """Send `frame` and give `chain` back; False if the back-end is full and both wait for it."""
        try:
            if not self._backend.send(frame):
                self._unsent = chain, frame
                return False
        except BackendError as error:
            self._unsent = chain, frame
            self._lose(error)
            return True
        self._unsent = None
        self.counts["transmitted"] += 1
        if chain is not None:
            self.complete(queue, chain)
        return True

    def _frame(self, queue: Virtqueue, chain: Chain) -> memoryview | str:
        """A copy of the frame in `chain`, as the back-end takes it, or why it is dropped."""
        length = chain.readable_length - NET_HDR_LENGTH
        if not ETHERNET <= length <= MAX_FRAME:
            return "short" if length < ETHERNET else "oversize"
        data = chain.read(0, NET_HDR_LENGTH + length)
        frame = memoryview(data)[NET_HDR_LENGTH:]
        if self.faults is not None and not (frame := self._faulty(queue, "transmit", frame)):
            return "fault"
        header = transmitted(data[:NET_HDR_LENGTH], len(frame), self.features)
        if header is None:
            return "header"
        if not self._spoof and frame[MAC : 2 * MAC] not in (self._mac, self._former):
            return "spoofed"
        if not self.link:
            return "no link"
        return memoryview(header + frame) if self._header else frame

    def _faulty(self, queue: Virtqueue, op: str, frame: memoryview) -> memoryview:
        """`frame` as the fault plan wants it: "error" loses all of it, "short" its end."""
        fault = self.faults.draw(self.name, queue.index, op, None, len(frame))
        if fault is None:
            return frame
        return frame[: fault.amount if fault.kind == "short" and fault.amount >= ETHERNET else 0]

    # --- By C ---------------------------------------------------------------------------------------------------------

    def _direct(self, queue: Virtqueue) -> Direct | None:
        """What C may read and write now; None where every frame has to be seen by the Python path."""
        if self._plane is None or not self.native or self.faults is not None or not self.link or not queue.ready:
            return None
        direct: Direct | None = self._backend.direct  # type: ignore[attr-defined]
        if direct is not None:
            self._plane.settle(
                self._filter,
                self._mac,
                check=not self._spoof,
                mergeable=bool(self.features >> NET_F_MRG_RXBUF & 1),
                longest=MAX_FRAME if self._mtu is None or not self.features >> NET_F_MTU & 1 else self._mtu + ETHERNET,
            )
        return direct

    def _transmit_natively(self, queue: Virtqueue, direct: Direct) -> int:
        assert self._plane is not None
        end = self._plane.transmit(queue, direct)
        self.counts["transmitted"] += self._plane.moved
        if end == FULL:
            self._unsent = self._plane.in_hand(queue)
        return end

    def _receive_natively(self, queue: Virtqueue, direct: Direct, told: bool) -> int:
        assert self._plane is not None
        end = self._plane.receive(queue, direct, told=told)
        self.counts["received"] += self._plane.moved
        self._untaken = end == NO_FRAME
        if self._untaken and self._idle is not None:
            self._idle()
        return end

    # --- Reception (5.1.6.4) ------------------------------------------------------------------------------------------

    def _receive(self, queue: Virtqueue) -> None:
        self._untaken = False
        if not queue.ready:
            self._buffers, self._held = ReceiveBuffers(), None
        told = False
        for _ in range(BUDGET):
            direct = self._direct(queue) if self._held is None else None
            if direct is not None and self._buffers.untake(queue):
                end = self._receive_natively(queue, direct, told)
                if end in (NO_CHAIN, NO_FRAME):
                    return
                told = True
                if end == TELL:
                    self.tell(queue)
                    continue
                if end == MORE:
                    break
            if not self._receive_one(queue):
                return
        self._more = True

    def _receive_one(self, queue: Virtqueue) -> bool:
        """Give the driver a frame, or drop it; False if there is none, or nowhere to put it."""
        if self._gone or not (self._unplugged or self._buffers or self._buffers.take(queue)):
            return False
        if not self._unplugged and not self._buffers:
            return True
        try:
            frame = self._held or self._backend.receive()
        except BackendError as error:
            self._lose(error)
            return False
        return frame is not None and self._deliver(queue, frame)

    def _deliver(self, queue: Virtqueue, frame: memoryview) -> bool:
        """Give the driver `frame`, or drop it; False if it is held until there are more buffers."""
        payload = frame[self._header :]
        header = received(bytes(frame[: self._header]), len(payload), self.features) if self._header else PLAIN
        if len(payload) < ETHERNET:
            reason = "short"
        elif header is None:
            reason = "header"
        elif self._too_long(payload, header):
            reason = "oversize"
        elif self._unplugged:
            reason = "no link"
        elif payload[:MAC] != self._former and not self._filter.accepts(bytes(payload[:MAC])):
            reason = "filtered"
        else:
            return self._put(queue, header, payload, frame)
        self._held = None
        self.counts[reason] += 1
        return True

    def _too_long(self, payload: memoryview, header: bytes) -> bool:
        """5.1.4.1: a frame above the MTU that was negotiated is not for the driver, unless it is one of segments."""
        if len(payload) > MAX_FRAME:
            return True
        if not self.features >> NET_F_MTU & 1 or header[1]:
            return False
        assert self._mtu is not None
        tag = VLAN_TAG if payload[12:14] == VLAN_TYPE else 0
        return len(payload) > self._mtu + ETHERNET + tag

    def _put(self, queue: Virtqueue, header: bytes, payload: memoryview, frame: memoryview) -> bool:
        """Put a frame into buffers, as many as it takes if they are mergeable, or just into the first (5.1.6.3.2)."""
        buffers, length = self._buffers, NET_HDR_LENGTH + len(payload)
        fits = length <= buffers.first
        if not fits and self.features >> NET_F_MRG_RXBUF & 1:
            for _ in range(queue.size):
                if buffers.room >= length:
                    break
                if not buffers.take(queue) and len(buffers) < queue.size:
                    if self._held is None:
                        self._held, self._held_until = frame, time.monotonic() + PATIENCE
                    return False
            fits = buffers.room >= length
        self._held = None
        if not fits:
            self.counts["no room"] += 1
        else:
            self._fill(queue, header, payload)
        return True

    def _fill(self, queue: Virtqueue, header: bytes, payload: memoryview) -> None:
        if self.faults is not None:
            payload = self._faulty(queue, "receive", payload)
            judged = received(header, len(payload), self.features)
            if not payload or judged is None:
                self.faults.withdraw(self.name, queue.index)
                self.counts["fault"] += 1
                return
            header = judged
        self.counts["received"] += 1
        used = self._buffers.fill(header, payload)
        if len(used) == 1:
            self.complete(queue, *used[0])
            return
        if self.faults is not None:
            self.faults.withdraw(self.name, queue.index)  # one completion of several chains cannot be put off in part
        for number, (chain, written) in enumerate(used, 1):
            queue.push(chain, written, more=number < len(used))

    # --- Control (5.1.6.5) --------------------------------------------------------------------------------------------

    def _control(self, queue: Virtqueue) -> None:
        left = BUDGET
        for chain in queue.chains():
            if chain.writable_length:
                done = self._command(chain.read(0, COMMAND_LIMIT + 1))
                self.complete(queue, chain, chain.write(bytes([NET_CTRL_OK if done else NET_CTRL_ERR])))
            else:
                self.complete(queue, chain)  # no byte for the answer: not a command
            left -= 1
            if not left:
                self._more = True
                return

    def _command(self, command: bytes) -> bool:
        mac = self._filter.mac
        done = self._filter.command(command, self.features)
        if self._filter.mac != mac:
            self.config_generation = (self.config_generation + 1) & 0xFFFFFFFF  # 2.5.1; the driver need not be told
        return done
