"""The reset control register of Intel's chipsets, at port 0xcf9, alone or in the midst of a PCI bridge's ports.

Imports registers and state. Follows the Intel I/O Controller Hub 10 (ICH10) data sheet, 13.7.5, "RST_CNT".
"""

from __future__ import annotations

from operator import attrgetter

from pyvmm.registers import Field, Register, RegisterFile, RegisterMap
from pyvmm.state import Number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.bus import BusDevice

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

    HOLDS = {"RST_CNT": "_value"}
    STATE = {"_value": Number(SYS_RST | FULL_RST)}

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


class AmongConfigPorts:
    """Ports 0xcf8 to 0xcff of a machine with PCI: a byte at 0xcf9 is the reset control register's, the rest `bridge`'s.

    They can share because the bridge's address register takes whole dwords only: any other access passes on to the bus
    behind it (PCI 3.0, 3.2.2.3.2).
    """

    __slots__ = ("_bridge", "_reset_control", "lock", "name")

    def __init__(self, bridge: BusDevice, reset_control: BusDevice) -> None:
        self._bridge = bridge
        self._reset_control = reset_control
        self.name = bridge.name
        self.lock = bridge.lock

    @property
    def models(self) -> tuple[BusDevice, ...]:
        """What is behind it."""
        return self._bridge, self._reset_control

    def read(self, offset: int, size: int) -> int:
        """The bus's read. The bus holds `lock`, the bridge's."""
        if (offset, size) == (1, 1):
            with self._reset_control.lock:
                return self._reset_control.read(0, 1)
        return self._bridge.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write. The bus holds `lock`, the bridge's."""
        if (offset, size) == (1, 1):
            with self._reset_control.lock:
                self._reset_control.write(0, 1, value)
        else:
            self._bridge.write(offset, size, value)
