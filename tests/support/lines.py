"""An interrupt line that remembers what was done to it, for tests of devices."""

from __future__ import annotations

from pyvmm.events import IrqLine


class RecordingLine(IrqLine):
    """A level line without an interrupt controller: `level` is how it stands, `history` every change."""

    __slots__ = ("history",)

    def __init__(self) -> None:
        self.history: list[bool] = []
        super().__init__(self.history.append)

    @property
    def level(self) -> bool:
        return self.asserted
