"""The header before every frame of a network device, judged in both directions (virtio 1.3, 5.1.6).

Imports spec. Where a back-end understands the header (a tap does), a frame may be one that still lacks its checksum or
is to be cut into segments. Only what was negotiated passes, and every field is in bounds then.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.virtio.spec import (
    NET_F_CSUM,
    NET_F_GUEST_CSUM,
    NET_F_GUEST_ECN,
    NET_F_GUEST_TSO4,
    NET_F_GUEST_TSO6,
    NET_F_HOST_ECN,
    NET_F_HOST_TSO4,
    NET_F_HOST_TSO6,
    NET_HDR_F_DATA_VALID,
    NET_HDR_F_NEEDS_CSUM,
    NET_HDR_F_UDP_TUNNEL_CSUM,
    NET_HDR_GSO_ECN,
    NET_HDR_GSO_NONE,
    NET_HDR_GSO_TCPV4,
    NET_HDR_GSO_TCPV6,
    NET_HDR_LENGTH,
)

HEADER = Struct("<BBHHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""
assert HEADER.size == NET_HDR_LENGTH
PLAIN = bytes(NET_HDR_LENGTH)
"""That of a whole frame with its checksum in it."""

_TO_HOST = (NET_F_CSUM, {NET_HDR_GSO_TCPV4: NET_F_HOST_TSO4, NET_HDR_GSO_TCPV6: NET_F_HOST_TSO6}, NET_F_HOST_ECN)
_TO_GUEST = (
    NET_F_GUEST_CSUM,
    {NET_HDR_GSO_TCPV4: NET_F_GUEST_TSO4, NET_HDR_GSO_TCPV6: NET_F_GUEST_TSO6},
    NET_F_GUEST_ECN,
)
"""Features that stand for each way of leaving work to the other side: the checksum, segments by type, ECN."""


def transmitted(header: bytes, length: int, features: int) -> bytes | None:
    """The header that the host gets for `header`, which a driver put before a frame of `length` bytes.

    None if it asks for what was not negotiated or cannot be: the frame is to be dropped. Flags that mean nothing here
    are ignored, and the device does not rely on a checksum that the driver calls valid (5.1.6.2.2).
    """
    if header[:2] == b"\0\0":
        return PLAIN  # csum_start and csum_offset mean nothing now
    if header[0] & NET_HDR_F_UDP_TUNNEL_CSUM:
        return None  # without a tunnel, and none was negotiated
    return _judged(header, length, features, NET_HDR_F_NEEDS_CSUM, _TO_HOST)


def received(header: bytes, length: int, features: int) -> bytes | None:
    """The header that the driver gets, without num_buffers, for `header` from the host; None to drop the frame.

    A host may have frames waiting from before the driver said what it takes (5.1.6.4.1).
    """
    if len(header) < NET_HDR_LENGTH:
        return None
    if header[:2] == b"\0\0":
        return PLAIN
    known = NET_HDR_F_NEEDS_CSUM
    if features >> NET_F_GUEST_CSUM & 1:
        known |= NET_HDR_F_DATA_VALID
    return _judged(header, length, features, known, _TO_GUEST)


def _judged(
    header: bytes, length: int, features: int, known: int, needed: tuple[int, dict[int, int], int]
) -> bytes | None:
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, _ = HEADER.unpack(header)
    checksum, segments, ecn = needed
    flags &= known
    if flags & NET_HDR_F_NEEDS_CSUM:
        if not features >> checksum & 1 or csum_start + csum_offset + 2 > length:
            return None
    else:
        csum_start = csum_offset = 0
    kind = gso_type & ~NET_HDR_GSO_ECN
    if kind == NET_HDR_GSO_NONE:
        return HEADER.pack(flags, NET_HDR_GSO_NONE, 0, 0, csum_start, csum_offset, 0)
    feature = segments.get(kind)
    if feature is None or not features >> feature & 1 or not gso_size or not flags & NET_HDR_F_NEEDS_CSUM:
        return None
    if gso_type & NET_HDR_GSO_ECN and not features >> ecn & 1:
        return None
    return HEADER.pack(flags, gso_type, min(hdr_len, length), gso_size, csum_start, csum_offset, 0)
