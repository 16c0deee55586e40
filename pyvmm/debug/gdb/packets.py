"""Frames of the gdb remote serial protocol: `$payload#checksum`, acknowledgements and the interrupt byte.

Imports nothing. Follows the manual of gdb, appendix "GDB Remote Serial Protocol": "Overview" and "Interrupts". Whatever
a client sends is bounded: a payload that is too long is thrown away as it comes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PACKET_SIZE = 16 << 10
"""Bytes of a payload at most, as `qSupported` says: both ways."""
CHUNK = (PACKET_SIZE - 16) // 2
"""Bytes of data in one packet, where each takes two digits."""
INTERRUPT, PACKET, BAD, ACK, NAK = "interrupt", "packet", "bad", "ack", "nak"
"""What `Framer.feed` finds. BAD is a wrong checksum or too long."""

_START, _END, _ESCAPE, _RUN = b"$#}*"
_FLIP = 0x20


def encode(payload: bytes) -> bytes:
    """The frame of `payload`, in which what has a meaning in frames is escaped."""
    body = bytearray()
    for byte in payload:
        if byte in (_START, _END, _ESCAPE, _RUN):
            body += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            body.append(byte)
    return b"$%b#%02x" % (bytes(body), sum(body) & 0xFF)


def _decode(body: bytes) -> bytes:
    if _ESCAPE not in body:
        return body
    found = bytearray()
    flip = 0
    for byte in body:
        if byte == _ESCAPE and not flip:
            flip = _FLIP
        else:
            found.append(byte ^ flip)
            flip = 0
    return bytes(found)


class Framer:
    """What a client sends, in pieces of any size."""

    __slots__ = ("_body", "_inside", "_sum", "_too_long")

    def __init__(self) -> None:
        self._body = bytearray()
        self._inside = self._too_long = False
        self._sum: bytearray | None = None

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """What is complete with `data`: one of the kinds above and, for PACKET, its payload."""
        for byte in data:
            if self._sum is not None:
                self._sum.append(byte)
                if len(self._sum) == 2:
                    yield self._finish(bytes(self._sum))
            elif not self._inside:
                if byte == _START:
                    self._begin()
                elif byte in b"\x03+-":
                    yield {3: INTERRUPT, 43: ACK, 45: NAK}[byte], b""
            elif byte == _END:
                self._sum = bytearray()
            elif byte == _START:  # the one before was cut off
                self._begin()
            elif len(self._body) < 2 * PACKET_SIZE:
                self._body.append(byte)
            else:
                self._too_long = True

    def _begin(self) -> None:
        self._body.clear()
        self._inside, self._too_long = True, False

    def _finish(self, digits: bytes) -> tuple[str, bytes]:
        self._inside, self._sum = False, None
        try:
            good = int(digits, 16) == sum(self._body) & 0xFF and b"%02x" % int(digits, 16) == digits.lower()
        except ValueError:
            good = False
        if not good or self._too_long:
            return BAD, b""
        return PACKET, _decode(bytes(self._body))
