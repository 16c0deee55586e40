"""Which features a network device offers, and which of them go together (virtio 1.3, 5.1.3).

Imports spec.
"""

from __future__ import annotations

from pyvmm.virtio.spec import (
    NET_F_CSUM,
    NET_F_CTRL_MAC_ADDR,
    NET_F_CTRL_RX,
    NET_F_CTRL_RX_EXTRA,
    NET_F_CTRL_VQ,
    NET_F_GUEST_CSUM,
    NET_F_GUEST_ECN,
    NET_F_GUEST_TSO4,
    NET_F_GUEST_TSO6,
    NET_F_HOST_ECN,
    NET_F_HOST_TSO4,
    NET_F_HOST_TSO6,
    NET_F_MAC,
    NET_F_MRG_RXBUF,
    NET_F_MTU,
    NET_F_STATUS,
)

_HOST_OFFLOADS = 1 << NET_F_CSUM | 1 << NET_F_HOST_TSO4 | 1 << NET_F_HOST_TSO6 | 1 << NET_F_HOST_ECN
_GUEST_OFFLOADS = 1 << NET_F_GUEST_CSUM | 1 << NET_F_GUEST_TSO4 | 1 << NET_F_GUEST_TSO6 | 1 << NET_F_GUEST_ECN
_REQUIRES = {
    NET_F_GUEST_TSO4: 1 << NET_F_GUEST_CSUM,
    NET_F_GUEST_TSO6: 1 << NET_F_GUEST_CSUM,
    NET_F_GUEST_ECN: 1 << NET_F_GUEST_TSO4 | 1 << NET_F_GUEST_TSO6,
    NET_F_HOST_TSO4: 1 << NET_F_CSUM,
    NET_F_HOST_TSO6: 1 << NET_F_CSUM,
    NET_F_HOST_ECN: 1 << NET_F_HOST_TSO4 | 1 << NET_F_HOST_TSO6,
    NET_F_CTRL_RX: 1 << NET_F_CTRL_VQ,
    NET_F_CTRL_RX_EXTRA: 1 << NET_F_CTRL_VQ,
    NET_F_CTRL_MAC_ADDR: 1 << NET_F_CTRL_VQ,
}
"""5.1.3.1: a feature, and those of which it requires one. That of CTRL_RX_EXTRA goes without saying there."""


def offered(*, offloads: bool, mtu: bool, change_mac: bool) -> int:
    """Features as bits: with checksums and segmentation, a maximum MTU, an address that the driver may change."""
    bits = 1 << NET_F_MAC | 1 << NET_F_STATUS | 1 << NET_F_MRG_RXBUF
    bits |= 1 << NET_F_CTRL_VQ | 1 << NET_F_CTRL_RX | 1 << NET_F_CTRL_RX_EXTRA
    if mtu:
        bits |= 1 << NET_F_MTU
    if change_mac:
        bits |= 1 << NET_F_CTRL_MAC_ADDR
    if offloads:
        bits |= _HOST_OFFLOADS | _GUEST_OFFLOADS
    return bits


def valid(features: int) -> bool:
    """Whether everything that `features` require is among them."""
    return all(features & needs for bit, needs in _REQUIRES.items() if features >> bit & 1)


def guest_offloads(features: int) -> tuple[bool, bool, bool, bool]:
    """What the driver takes: frames without checksum, TCP segments over IPv4, over IPv6, with ECN."""
    bits = (NET_F_GUEST_CSUM, NET_F_GUEST_TSO4, NET_F_GUEST_TSO6, NET_F_GUEST_ECN)
    checksum, tso4, tso6, ecn = (bool(features >> bit & 1) for bit in bits)
    return checksum, tso4, tso6, ecn
