"""pvpanic: a port through which a kernel says that it has panicked.

Imports registers alone. Follows QEMU's specification of the device (docs/specs/pvpanic.rst): reads say which events are
known, writes say which have happened.
"""

from __future__ import annotations

from pyvmm.registers import Field, Register, RegisterFile, RegisterMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PANICKED, CRASH_LOADED = 0x01, 0x02

REGISTERS = RegisterMap(
    1,
    Register(
        "EVENT",
        0,
        "pvpanic, Bit Definition",
        Field("PANICKED", PANICKED, "the kernel has panicked; nothing more is to be expected"),
        Field("CRASH_LOADED", CRASH_LOADED, "the kernel has panicked, and a crash kernel takes over"),
    ),
)


class PvPanic(RegisterFile, registers=REGISTERS):
    """The port. `panicked()` is called, under the device's lock, when the kernel says it has panicked for good."""

    __slots__ = ("_panicked",)

    STATE = {}

    def __init__(self, panicked: Callable[[], None], name: str = "pvpanic") -> None:
        super().__init__(name)
        self._panicked = panicked

    def read_event(self) -> int:
        """The events that are understood."""
        return PANICKED | CRASH_LOADED

    def write_event(self, value: int) -> None:
        """An event. One for which a crash kernel stands by is the guest's own affair."""
        if value & PANICKED:
            self._panicked()
