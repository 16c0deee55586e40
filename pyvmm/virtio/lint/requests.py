"""What a driver asks of a device in a chain, judged by the kind of device (virtio 1.3, 5).

Imports the device models, with their own judges, and spec. With the device's `plane` held; chains are well-formed.
"""

from __future__ import annotations

from pyvmm.virtio.balloon import PFN, STATISTICS
from pyvmm.virtio.block_request import HEADER, Refused, parse
from pyvmm.virtio.console import CONTROL, CONTROL_TRANSMIT
from pyvmm.virtio.net import ETHERNET, VLAN_TAG
from pyvmm.virtio.netheader import HEADER as NET_HEADER
from pyvmm.virtio.netheader import transmitted
from pyvmm.virtio.spec import (
    BLK_F_DISCARD,
    BLK_F_RO,
    BLK_F_WRITE_ZEROES,
    BLK_S_UNSUPP,
    BLK_T_DISCARD,
    BLK_T_FLUSH,
    BLK_T_GET_ID,
    BLK_T_IN,
    BLK_T_OUT,
    BLK_T_WRITE_ZEROES,
    CONSOLE_DEVICE_READY,
    CONSOLE_PORT_OPEN,
    CONSOLE_PORT_READY,
    ID_BALLOON,
    ID_BLOCK,
    ID_CONSOLE,
    ID_NET,
    ID_RNG,
    ID_VSOCK,
    NET_F_CSUM,
    NET_F_GUEST_TSO4,
    NET_F_GUEST_TSO6,
    NET_F_GUEST_UFO,
    NET_F_MRG_RXBUF,
    NET_F_MTU,
    NET_HDR_F_DATA_VALID,
    NET_HDR_F_NEEDS_CSUM,
    NET_HDR_LENGTH,
    SECTOR,
    VSOCK_OP_RW,
)
from pyvmm.virtio.vsockheader import HEADER_LENGTH, Header

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.queue import Virtqueue

    Found = Callable[..., None]
    """found(rule, detail="") keeps a finding of this chain."""

RSC_INFO = 4
"""VIRTIO_NET_HDR_F_RSC_INFO (5.1.6): like DATA_VALID, a device's."""
DRIVER_EVENTS = (CONSOLE_DEVICE_READY, CONSOLE_PORT_READY, CONSOLE_PORT_OPEN)
"""5.3.6.2: what a driver may say in such a message."""
LARGE_BUFFER, BUFFER = 65562, 1526
"""5.1.6.3.1: bytes that a receive buffer should have, with and without segments that were put together."""


def _block(found: Found, device: VirtioDevice, chain: Chain) -> None:
    if chain.readable_length < HEADER.size or chain.writable_length < 1:
        return  # the device asks for a reset, and says why
    kind, _, sector = HEADER.unpack(chain.read(0, HEADER.size))
    given, room = chain.readable_length - HEADER.size, chain.writable_length - 1
    types = _TYPES | {kind for kind, feature in _OPTIONAL.items() if device.features >> feature & 1}
    capacity = int.from_bytes(device.config()[:8], "little")
    readonly = bool(device.offered >> BLK_F_RO & 1)
    if kind == BLK_T_FLUSH:
        if sector:
            found("blk-flush-sector", f"sector {sector}")
        if given or room:
            found("blk-flush-data", f"{given or room} bytes")
    elif sector and kind in types and kind not in (BLK_T_IN, BLK_T_OUT):
        found("blk-sector", f"sector {sector} of type {kind}")
    try:
        parse(chain, types, capacity, readonly)
    except Refused as refused:
        detail = f"type {kind}, sector {sector} of {capacity}, {given} bytes of data readable and {room} writable"
        found(_why(refused, kind, types, given, room, readonly), detail)


_TYPES = {BLK_T_IN, BLK_T_OUT, BLK_T_FLUSH, BLK_T_GET_ID}
_OPTIONAL = {BLK_T_DISCARD: BLK_F_DISCARD, BLK_T_WRITE_ZEROES: BLK_F_WRITE_ZEROES}
_FROM_DEVICE = (BLK_T_IN, BLK_T_GET_ID)


def _why(refused: Refused, kind: int, types: Collection[int], given: int, room: int, readonly: bool) -> str:
    """Which rule a request broke that the device model has refused."""
    if refused.status == BLK_S_UNSUPP:
        return "blk-flags" if kind in types else "blk-type"
    if given if kind in _FROM_DEVICE else room:
        return "blk-direction"
    if kind == BLK_T_GET_ID:
        return "blk-id-length"
    if kind == BLK_T_OUT and readonly:
        return "blk-read-only"
    if kind in (BLK_T_IN, BLK_T_OUT):
        return "blk-length" if (given or room) % SECTOR else "blk-capacity"
    return "blk-segments"


def _net_receive(found: Found, device: VirtioDevice, chain: Chain) -> None:
    features, room = device.features, chain.writable_length
    if chain.readable_length:
        found("net-direction", f"{chain.readable_length} bytes readable")
    large = any(features >> bit & 1 for bit in (NET_F_GUEST_TSO4, NET_F_GUEST_TSO6, NET_F_GUEST_UFO))
    if features >> NET_F_MRG_RXBUF & 1:
        if room < NET_HDR_LENGTH:
            found("net-receive-header", f"{room} bytes")
    elif room < (LARGE_BUFFER if large else BUFFER):
        found("net-receive-small", f"{room} bytes")


def _net_transmit(found: Found, device: VirtioDevice, chain: Chain) -> None:
    if chain.writable_length:
        found("net-direction", f"{chain.writable_length} bytes writable")
    length = chain.readable_length - NET_HDR_LENGTH
    if length < 0:
        found("net-short", f"{chain.readable_length} bytes")
        return
    header = chain.read(0, NET_HDR_LENGTH)
    flags, gso, _, _, _, _, buffers = NET_HEADER.unpack(header)
    checksums = device.features >> NET_F_CSUM & 1
    if flags & (NET_HDR_F_DATA_VALID | RSC_INFO if checksums else ~NET_HDR_F_NEEDS_CSUM):
        found("net-flags", f"{flags:#x}")
    if buffers:
        found("net-num-buffers", f"{buffers}")
    if transmitted(header, length, device.features) is None:
        found("net-header", f"flags {flags:#x}, gso_type {gso:#x}, for {length} bytes")
    mtu = int.from_bytes(device.config()[10:12], "little")
    if device.features >> NET_F_MTU & 1 and not gso and length > mtu + ETHERNET + VLAN_TAG:
        found("net-mtu", f"{length} bytes, of {mtu} and the header")


def _directed(found: Found, rule: str, chain: Chain, *, readable: bool) -> None:
    """Whether all of `chain` is readable, or writable."""
    wrong = chain.writable_length if readable else chain.readable_length
    if wrong:
        found(rule, f"{wrong} bytes {'writable' if readable else 'readable'}")


def _console_control(found: Found, chain: Chain) -> None:
    data = chain.read(0, CONTROL.size)
    if len(data) < CONTROL.size:
        found("console-control", f"{len(data)} bytes")
        return
    _, event, _ = CONTROL.unpack(data)
    if event not in DRIVER_EVENTS:
        found("console-event", f"event {event}")


def _balloon(found: Found, queue: Virtqueue, chain: Chain) -> None:
    if queue.index > STATISTICS:
        return  # hints have buffers of both kinds, and reports are writable (5.5.6.5, 5.5.6.7)
    _directed(found, "balloon-direction", chain, readable=True)
    if queue.index < STATISTICS and chain.readable_length % PFN:
        found("balloon-numbers", f"{chain.readable_length} bytes")


def _vsock(found: Found, device: VirtioDevice, queue: Virtqueue, chain: Chain) -> None:
    _directed(found, "vsock-direction", chain, readable=queue.index == 1)
    if queue.index != 1:
        return
    data, cid = chain.read(0, HEADER_LENGTH), int.from_bytes(device.config(), "little")
    if len(data) < HEADER_LENGTH:
        found("vsock-header", f"{len(data)} bytes")
        return
    header, room = Header(data), chain.readable_length - HEADER_LENGTH
    if header.src_cid != cid:
        found("vsock-cid", f"{header.src_cid}, not {cid}")
    if header.op == VSOCK_OP_RW and header.length > room:
        found("vsock-length", f"{header.length} bytes, of which there are {room}")


def judge(found: Found, device: VirtioDevice, queue: Virtqueue, chain: Chain) -> None:
    """Tell `found` what is wrong with the request, message or buffer in `chain`, as its kind of device goes."""
    kind, index = device.device_id, queue.index
    if kind == ID_BLOCK:
        _block(found, device, chain)
    elif kind == ID_NET and index < 2:
        (_net_transmit if index else _net_receive)(found, device, chain)
    elif kind == ID_CONSOLE:
        _directed(found, "console-direction", chain, readable=bool(index & 1))
        if index == CONTROL_TRANSMIT:
            _console_control(found, chain)
    elif kind == ID_RNG:
        _directed(found, "rng-readable", chain, readable=False)
    elif kind == ID_BALLOON:
        _balloon(found, queue, chain)
    elif kind == ID_VSOCK:
        _vsock(found, device, queue, chain)
