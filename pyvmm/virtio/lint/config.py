"""How a driver may read and write the configuration space of a device (2.5).

Imports configspace and spec. Sections are virtio 1.3's.
"""

from __future__ import annotations

from pyvmm.virtio.configspace import FIELDS
from pyvmm.virtio.spec import STATUS_FEATURES_OK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.virtio.configspace import Field
    from pyvmm.virtio.device import VirtioDevice

    Report = Callable[..., None]
    """report(rule, queue=, descriptor=, register=, detail=) keeps a finding of one device."""


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
