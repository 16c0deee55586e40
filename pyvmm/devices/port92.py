"""Port 0x92, PS/2 system control port A: the A20 gate and a fast reset.

Imports registers and state. Follows the IBM PS/2 Model 50 and 60 Technical Reference, "System Control Port A".

The gate reads back as written, but address line 20 is always on: every guest pyvmm starts wants it so, and
KVM does not mask it.
"""

from __future__ import annotations

from operator import attrgetter

from pyvmm.registers import Field, Register, RegisterFile, RegisterMap
from pyvmm.state import Number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

FAST_RESET, A20 = 0x01, 0x02

REGISTERS = RegisterMap(
    1,
    Register(
        "PORTA",
        0,
        "IBM PS/2 Model 50 and 60 Technical Reference, System Control Port A",
        Field("FAST_RESET", FAST_RESET, "reset the processor"),
        Field("A20", A20, "address line 20 enabled"),
        reset=A20,
    ),
)


class Port92(RegisterFile, registers=REGISTERS):
    """System control port A. `reset_machine()` is called on a fast reset, under the device's lock."""

    __slots__ = ("_reset_machine", "_value")

    HOLDS = {"PORTA": "_value"}
    STATE = {"_value": Number(A20)}

    def __init__(self, reset_machine: Callable[[], None], name: str = "port92") -> None:
        super().__init__(name)
        self._reset_machine = reset_machine
        self.reset()

    def reset(self) -> None:
        """A20 on, as firmware leaves it."""
        self._value = REGISTERS["PORTA"].reset

    read_porta = attrgetter("_value")

    def write_porta(self, value: int) -> None:
        """Set the A20 gate; FAST_RESET resets the machine and does not stay."""
        self._value = value & A20
        if value & FAST_RESET:
            self._reset_machine()
