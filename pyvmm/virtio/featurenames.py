"""Feature bits by their names in the standard (virtio 1.3, 6 and each device's "Feature bits"), for reading aloud.

Imports spec, whose constants are the one home of the numbers.
"""

from __future__ import annotations

from pyvmm.virtio import spec

_PREFIXES = {
    spec.ID_NET: "NET_F_",
    spec.ID_BLOCK: "BLK_F_",
    spec.ID_CONSOLE: "CONSOLE_F_",
    spec.ID_BALLOON: "BALLOON_F_",
    spec.ID_9P: "P9_F_",
    spec.ID_VSOCK: "VSOCK_F_",
}


def _named(prefix: str) -> dict[int, str]:
    return {bit: name.removeprefix(prefix) for name, bit in vars(spec).items() if name.startswith(prefix)}


_SHARED = _named("F_")
_OWN = {device: _named(prefix) for device, prefix in _PREFIXES.items()}


def feature_names(device_id: int, features: int) -> list[str]:
    """The names of the bits that are set in `features` of a device of this type, lowest first.

    They are the standard's without VIRTIO_F_ or VIRTIO_BLK_F_; a bit without a name is "bit 63".
    """
    own = _OWN.get(device_id, {})
    return [
        own.get(bit) or _SHARED.get(bit) or f"bit {bit}" for bit in range(features.bit_length()) if features >> bit & 1
    ]
