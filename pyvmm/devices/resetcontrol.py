"""The reset control register of Intel's chipsets, at port 0xcf9.

Imports registers alone. Follows the Intel I/O Controller Hub 10 (ICH10) data sheet, 13.7.5, "RST_CNT".
"""

from __future__ import annotations

from operator import attrgetter

from pyvmm.registers import Field, Register, RegisterFile, RegisterMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SYS_RST, RST_CPU, FULL_RST = 0x02, 0x04, 0x08

REGISTERS = RegisterMap(
    1,
    Register(
        "RST_CNT",
        0,
        "Intel ICH10 13.7.5",
        Field("SYS_RST", SYS_RST, "RST_CPU means a hard reset, not just of the processor"),
        Field("RST_CPU", RST_CPU, "reset now"),
        Field("FULL_RST", FULL_RST, "RST_CPU cycles the power too"),
    ),
)


class ResetControl(RegisterFile, registers=REGISTERS):
    """The reset control register. `reset_machine()` is called under the device's lock.

    Hardware resets when RST_CPU goes from 0 to 1. Here it never stays 1, so every write that sets it resets.
    Soft, hard or with the power: for a VM it is one reset.
    """

    __slots__ = ("_reset_machine", "_value")

    def __init__(self, reset_machine: Callable[[], None], name: str = "resetcontrol") -> None:
        super().__init__(name)
        self._reset_machine = reset_machine
        self.reset()

    def reset(self) -> None:
        """All bits clear."""
        self._value = 0

    read_rst_cnt = attrgetter("_value")

    def write_rst_cnt(self, value: int) -> None:
        """Choose the kind of reset; reset if RST_CPU is set."""
        self._value = value & (SYS_RST | FULL_RST)
        if value & RST_CPU:
            self._reset_machine()
