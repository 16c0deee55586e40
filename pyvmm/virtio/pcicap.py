"""Virtio's capabilities in the configuration space of a PCI function (virtio 1.3, 4.1.4).

Imports spec and PCI's.
"""

from __future__ import annotations

from struct import pack

from pyvmm.pci.spec import CAP_ID_VNDR
from pyvmm.virtio.spec import (
    PCI_CAP_BAR,
    PCI_CAP_DATA,
    PCI_CAP_LENGTH,
    PCI_CAP_OFFSET,
    PCI_CAP_PCI_CFG,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.pci.config import Function


def structure(kind: int, bar: int, offset: int, length: int, more: bytes = b"") -> bytes:
    """A virtio structure capability (4.1.4), from its third byte on: where in `bar` it is, then `more` fields."""
    return pack("<BBBB2xII", PCI_CAP_DATA + len(more), kind, bar, 0, offset, length) + more


class ConfigAccess:
    """The window into the BARs within the configuration space (4.1.4.9): it works where no BAR is decoded."""

    __slots__ = ("_at", "_function")

    def __init__(self, function: Function) -> None:
        self._function = function
        writable = pack("<BBBB2xIII", 0, 0, 0xFF, 0, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
        self._at = function.add_capability(CAP_ID_VNDR, structure(PCI_CAP_PCI_CFG, 0, 0, 0, bytes(4)), writable, self)

    def reading(self, start: int, end: int) -> None:
        """Have what is in the BAR in the data, if that is to be read."""
        if end > PCI_CAP_DATA:
            self._access(is_write=False)

    def written(self, start: int, end: int) -> None:
        """Pass on what was written to the data."""
        if end > PCI_CAP_DATA:
            self._access(is_write=True)

    def _access(self, is_write: bool) -> None:
        space, data = self._function.space, self._at + PCI_CAP_DATA
        window = self._function.bars.get(space[self._at + PCI_CAP_BAR])
        offset, size = self._dword(PCI_CAP_OFFSET), self._dword(PCI_CAP_LENGTH)
        if window is None or size not in (1, 2, 4) or offset % size or offset + size > window.length:
            return
        if is_write:
            window.write(offset, size, int.from_bytes(space[data : data + size], "little"))
        else:
            space[data : data + size] = window.read(offset, size).to_bytes(size, "little")

    def _dword(self, offset: int) -> int:
        at = self._at + offset
        return int.from_bytes(self._function.space[at : at + 4], "little")
