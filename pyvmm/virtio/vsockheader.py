"""The header of every packet between a driver and the socket device (virtio 1.3, 5.10.6). Imports spec."""

from __future__ import annotations

from struct import Struct

from pyvmm.virtio.spec import VSOCK_ANY, VSOCK_HOST_CID, VSOCK_OP_RST, VSOCK_TYPE_STREAM

HEADER = Struct("<QQIIIHHIII")
"""src_cid, dst_cid, src_port, dst_port, len, type, op, flags, buf_alloc, fwd_cnt."""
HEADER_LENGTH = HEADER.size


class Header:
    """A header that the driver has sent, field by field; `data` has HEADER_LENGTH bytes."""

    __slots__ = ("buf_alloc", "dst_cid", "dst_port", "flags", "fwd_cnt", "length", "op", "src_cid", "src_port", "type")
    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    length: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int

    def __init__(self, data: bytes) -> None:
        (
            self.src_cid,
            self.dst_cid,
            self.src_port,
            self.dst_port,
            self.length,
            self.type,
            self.op,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ) = HEADER.unpack(data)

    def meant_for_host(self, guest_cid: int) -> bool:
        """Whether it comes from `guest_cid`, goes to the host, both with a port, and is of a stream (5.10.6.2)."""
        return (
            self.src_cid == guest_cid
            and self.dst_cid == VSOCK_HOST_CID
            and self.type == VSOCK_TYPE_STREAM
            and self.src_port != VSOCK_ANY
            and self.dst_port != VSOCK_ANY
        )

    def refusal(self) -> bytes:
        """The RST that answers it where there is no stream, and so no credit to tell of."""
        return HEADER.pack(
            self.dst_cid, self.src_cid, self.dst_port, self.src_port, 0, self.type, VSOCK_OP_RST, 0, 0, 0
        )
