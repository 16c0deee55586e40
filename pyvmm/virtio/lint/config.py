"""The configuration spaces of virtio devices, field by field, and how a driver may read and write them (2.5).

Imports spec. Sections are virtio 1.3's.
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
    STATUS_FEATURES_OK,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.virtio.device import VirtioDevice

    Report = Callable[..., None]
    """report(rule, queue=, descriptor=, register=, detail=) keeps a finding of one device."""

NET_F_MQ = 22
"""5.1.3; a device with several pairs of queues, which there is none of here."""
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


FIELDS: dict[int, Sequence[Field]] = {
    ID_BLOCK: (  # 5.2.4
        Field("capacity", 0, 8),
        Field("size_max", 8, 4, BLK_F_SIZE_MAX),
        Field("seg_max", 12, 4, BLK_F_SEG_MAX),
        Field("cylinders", 16, 2, BLK_F_GEOMETRY),
        Field("heads", 18, 1, BLK_F_GEOMETRY),
        Field("sectors", 19, 1, BLK_F_GEOMETRY),
        Field("blk_size", 20, 4, BLK_F_BLK_SIZE),
        Field("physical_block_exp", 24, 1, BLK_F_TOPOLOGY),
        Field("alignment_offset", 25, 1, BLK_F_TOPOLOGY),
        Field("min_io_size", 26, 2, BLK_F_TOPOLOGY),
        Field("opt_io_size", 28, 4, BLK_F_TOPOLOGY),
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


class ConfigLint:
    """Judges the accesses of one device's configuration space. The device's `lock` is held around every call."""

    __slots__ = ("_device", "_fields", "_open", "_report", "_seen")

    def __init__(self, device: VirtioDevice, report: Report) -> None:
        self._device = device
        self._report = report
        self._fields = FIELDS.get(device.device_id, ())
        self.forget()

    def forget(self) -> None:
        """The device was reset."""
        self._seen = False  # whether the driver has read the generation
        self._open: set[str] = set()  # fields of several accesses that it has read since

    def assume(self) -> None:
        """The driver has done all that it should have."""
        self._seen = True

    def generation(self) -> None:
        """The driver has read ConfigGeneration."""
        self._seen = True
        self._open.clear()

    def settle(self) -> None:
        """The driver goes on with what it has read."""
        for name in sorted(self._open):
            self._report("config-torn", register=name)
        self._open.clear()

    def access(self, offset: int, size: int, write: bool) -> None:
        """The driver reads or writes `size` bytes at `offset`."""
        device = self._device
        length = len(device.config())
        if offset + size > length:
            self._report("config-outside", detail=f"{size} bytes at {offset:#x} of {length}")
            return
        field = self._at(offset)
        if write and not device.status & STATUS_FEATURES_OK and (field is None or field.name != "emerg_wr"):
            # 5.3.5: emerg_wr may be written at any time.
            self._report("config-early-write", register=field.name if field is not None else "")
        if field is None:
            return
        if field.feature is not None and not device.offered >> field.feature & 1:
            self._report("config-not-offered", register=field.name)
        if not field.fits(offset, size):
            self._report("config-width", register=field.name, detail=f"{size} bytes at {offset:#x}")
        if write and not field.writable:
            self._report("config-read-only", register=field.name)
        if field.name == "writeback" and not write and not device.status & STATUS_FEATURES_OK:
            self._report("blk-writeback-early", register=field.name)
        if field.torn and not write:
            if not self._seen:
                self._report("config-torn", register=field.name)
            self._open.add(field.name)

    def _at(self, offset: int) -> Field | None:
        for field in self._fields:
            if field.offset <= offset < field.offset + field.width * field.count:
                return field
        return None
