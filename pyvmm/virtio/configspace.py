"""The configuration spaces of virtio devices, field by field (virtio 1.3, 2.5 and what SECTIONS names).

Imports spec. Who judges a driver, names an access or shows a device has the fields from here.
"""

from __future__ import annotations

from pyvmm.virtio.spec import (
    BALLOON_F_FREE_PAGE_HINT,
    BALLOON_F_PAGE_POISON,
    BLK_F_BLK_SIZE,
    BLK_F_CONFIG_WCE,
    BLK_F_DISCARD,
    BLK_F_GEOMETRY,
    BLK_F_MQ,
    BLK_F_SEG_MAX,
    BLK_F_SIZE_MAX,
    BLK_F_TOPOLOGY,
    BLK_F_WRITE_ZEROES,
    CONSOLE_F_EMERG_WRITE,
    CONSOLE_F_MULTIPORT,
    CONSOLE_F_SIZE,
    ID_9P,
    ID_BALLOON,
    ID_BLOCK,
    ID_CONSOLE,
    ID_NET,
    ID_VSOCK,
    NET_F_MAC,
    NET_F_MTU,
    NET_F_STATUS,
    P9_F_MOUNT_TAG,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

NET_F_MQ, BLK_F_SECURE_ERASE = 22, 16
"""5.1.3 and 5.2.3: what no device here offers."""
LENGTH = 256
"""Bytes in which all of them are, but for what a device of the user's own may have."""
REST = 1 << 16
"""Length of a field that takes all that is left."""


class Field:
    """A field: `width` bytes at `offset`, or `count` elements of that width.

    feature    the bit that must be offered for it to be there, or None
    writable   whether drivers may write it
    torn       whether what is read in several accesses may be of two times: the generation must be looked at (2.5.1)
    """

    __slots__ = ("count", "feature", "name", "offset", "torn", "width", "writable")

    def __init__(
        self,
        name: str,
        offset: int,
        width: int,
        feature: int | None = None,
        *,
        count: int = 1,
        writable: bool = False,
        torn: bool | None = None,
    ) -> None:
        self.name = name
        self.offset = offset
        self.width = width
        self.feature = feature
        self.count = count
        self.writable = writable
        self.torn = (width > 4 or count > 1) if torn is None else torn

    def fits(self, offset: int, size: int) -> bool:
        """Whether `size` bytes at `offset` are this field, an element or, of 64 bits, a half of it (4.2.2.2)."""
        return size == min(self.width, 4) and (offset - self.offset) % size == 0

    def elements(self) -> Iterator[tuple[str, int]]:
        """Name and offset of the field or, if it has several, of each element that is within LENGTH."""
        if self.count == 1:
            yield self.name, self.offset
            return
        for number in range(min(self.count, (LENGTH - self.offset) // self.width)):
            yield f"{self.name}[{number}]", self.offset + number * self.width


FIELDS: dict[int, Sequence[Field]] = {
    ID_BLOCK: (  # 5.2.4
        Field("capacity", 0, 8),
        Field("size_max", 8, 4, BLK_F_SIZE_MAX),
        Field("seg_max", 12, 4, BLK_F_SEG_MAX),
        Field("geometry.cylinders", 16, 2, BLK_F_GEOMETRY),
        Field("geometry.heads", 18, 1, BLK_F_GEOMETRY),
        Field("geometry.sectors", 19, 1, BLK_F_GEOMETRY),
        Field("blk_size", 20, 4, BLK_F_BLK_SIZE),
        Field("topology.physical_block_exp", 24, 1, BLK_F_TOPOLOGY),
        Field("topology.alignment_offset", 25, 1, BLK_F_TOPOLOGY),
        Field("topology.min_io_size", 26, 2, BLK_F_TOPOLOGY),
        Field("topology.opt_io_size", 28, 4, BLK_F_TOPOLOGY),
        Field("writeback", 32, 1, BLK_F_CONFIG_WCE, writable=True),
        Field("unused0", 33, 1),
        Field("num_queues", 34, 2, BLK_F_MQ),
        Field("max_discard_sectors", 36, 4, BLK_F_DISCARD),
        Field("max_discard_seg", 40, 4, BLK_F_DISCARD),
        Field("discard_sector_alignment", 44, 4, BLK_F_DISCARD),
        Field("max_write_zeroes_sectors", 48, 4, BLK_F_WRITE_ZEROES),
        Field("max_write_zeroes_seg", 52, 4, BLK_F_WRITE_ZEROES),
        Field("write_zeroes_may_unmap", 56, 1, BLK_F_WRITE_ZEROES),
        Field("unused1", 57, 1, count=3, torn=False),
        Field("max_secure_erase_sectors", 60, 4, BLK_F_SECURE_ERASE),
        Field("max_secure_erase_seg", 64, 4, BLK_F_SECURE_ERASE),
        Field("secure_erase_sector_alignment", 68, 4, BLK_F_SECURE_ERASE),
    ),
    ID_NET: (  # 5.1.4
        Field("mac", 0, 1, NET_F_MAC, count=6),
        Field("status", 6, 2, NET_F_STATUS),
        Field("max_virtqueue_pairs", 8, 2, NET_F_MQ),
        Field("mtu", 10, 2, NET_F_MTU),
    ),
    ID_CONSOLE: (  # 5.3.4
        Field("cols", 0, 2, CONSOLE_F_SIZE),
        Field("rows", 2, 2, CONSOLE_F_SIZE),
        Field("max_nr_ports", 4, 4, CONSOLE_F_MULTIPORT),
        Field("emerg_wr", 8, 4, CONSOLE_F_EMERG_WRITE, writable=True),
    ),
    ID_BALLOON: (  # 5.5.4
        Field("num_pages", 0, 4),
        Field("actual", 4, 4, writable=True),
        Field("free_page_hint_cmd_id", 8, 4, BALLOON_F_FREE_PAGE_HINT),
        Field("poison_val", 12, 4, BALLOON_F_PAGE_POISON, writable=True),
    ),
    # 5.10.4: the upper half is reserved and zero, so that no two halves can be of different times.
    ID_VSOCK: (Field("guest_cid", 0, 8, torn=False),),
    # linux/virtio_9p.h
    ID_9P: (Field("tag_len", 0, 2, P9_F_MOUNT_TAG), Field("tag", 2, 1, P9_F_MOUNT_TAG, count=REST)),
}
"""By device type. Devices that are not here are of the user's own, or have no configuration."""
SECTIONS = {
    ID_BLOCK: "5.2.4",
    ID_NET: "5.1.4",
    ID_CONSOLE: "5.3.4",
    ID_BALLOON: "5.5.4",
    ID_VSOCK: "5.10.4",
    ID_9P: "5, 9P transport",
}
"""Where each is specified; of the last one there is but a name."""
