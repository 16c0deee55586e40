"""What a network device is connected to: a tap, passt, a switch that joins VMs, and a capture around any of them.

Imports errors alone; `Frames` is what every one of them is to the device. Addresses of stations are here too.
"""

from __future__ import annotations

import os

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Frames(Protocol):
        """Ethernet frames, without their check sequence, to and from somewhere. One thread at a time, never blocking.

        With `vnet_header` every frame begins with a virtio_net_hdr of 12 bytes (virtio 1.3, 5.1.6), so that checksums
        and segmentation can be left to the other side.
        """

        @property
        def vnet_header(self) -> bool: ...

        def fileno(self) -> int:
            """What to wait for with poll(2), input and output alike; -1 if there is nothing. May change."""

        def offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
            """What may be left to the guest in frames for it. Only with `vnet_header`."""

        def receive(self) -> memoryview | None:
            """The next frame, valid until the next call, or None if none has come.

            Raises BackendError once there will be no more, in either direction; the text says why.
            """

        def send(self, frame: memoryview) -> bool:
            """Send a frame. False if it does not fit yet: the same frame is then to be offered again until it does.

            What the other side does not want is dropped, True. Raises BackendError as `receive()` does.
            """

        def close(self) -> None:
            """Give everything back; a second call does nothing."""

    class Direct(Protocol):
        """What a back-end lends to C, which then does the work of `receive` and `send` for many frames at once.

        A back-end that lets C do so has it as its attribute `direct`, which may be None and may change. It goes on
        where C has stopped, as C goes on where it is.

        stream      each frame follows its length, on a socket; otherwise one read or write is one frame
        buffer      what was read; of it `start` to `end` has not been handed out
        sent        bytes sent of the frame that is to be offered again
        failure     errno of what went wrong in C, or 0: the next call raises what it would have raised
        """

        stream: bool
        buffer: bytearray
        start: int
        end: int
        sent: int
        failure: int

        def fileno(self) -> int: ...


MAC_LENGTH = 6
MAX_FRAME = 65589
"""Bytes: Ethernet header, IPv6 header and the largest payload of that (virtio 1.3, 5.1.6.3)."""
MIN_FRAME = 14
"""Bytes of an Ethernet header: a frame without one is none."""
_LOCAL_PREFIX = bytes((0x52, 0x54, 0x00))
"""Locally administered (IEEE 802, 8.4), and what people know virtual machines by."""


def random_mac() -> bytes:
    """An address for one station, 52:54:00 and three bytes at random."""
    return _LOCAL_PREFIX + os.urandom(3)


def parse_mac(text: str) -> bytes:
    """The 6 bytes of an address written as 52:54:00:12:34:56, or with dashes.

    Raises UsageError, also for the address of a group and the one of all zeros, which no station can have.
    """
    parts = text.replace("-", ":").split(":")
    digits = all(len(part) in (1, 2) and not set(part) - set("0123456789abcdefABCDEF") for part in parts)
    if len(parts) != MAC_LENGTH or not digits:
        raise UsageError(f"MAC address {text!r} (expected six bytes, as in 52:54:00:12:34:56)")
    mac = bytes(int(part, 16) for part in parts)
    if mac[0] & 1 or not any(mac):
        raise UsageError(f"MAC address {text!r} (expected that of a station: first byte even, not all zero)")
    return mac


def fail_as_c_did(direct: Direct) -> None:
    """Raises the OSError that C has met meanwhile, once."""
    failure, direct.failure = direct.failure, 0
    if failure:
        raise OSError(failure, os.strerror(failure))
