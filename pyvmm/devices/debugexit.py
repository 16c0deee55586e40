"""Debug exit: a port that ends the run with a value of the guest's choice.

Imports stateful, and registers for who asks for them. A convention of virtual machines (QEMU's isa-debug-exit device,
hw/misc/debugexit.c), which test kernels use. Not a register file: an access of 1, 2 or 4 bytes at offset 0 is one
value, never split.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.stateful import Stateful

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.registers import Register, RegisterMap


class DebugExit(Stateful):
    """The debug-exit port. `end(value)` is called with what the guest wrote, whole, under the device's lock.

    What the value means for the exit status is the VM's business. Reads give 0; offsets other than 0 do
    nothing.
    """

    __slots__ = ("_end", "lock", "name")

    STATE = {}

    def __init__(self, end: Callable[[int], None], name: str = "debugexit") -> None:
        self.name = name
        self.lock = Lock()
        self._end = end

    def reset(self) -> None:
        """Nothing: it has no state."""

    @property
    def registers(self) -> RegisterMap:
        """Its one register; for who explains an access."""
        from pyvmm.registers import Register, RegisterMap

        return RegisterMap(4, Register("EXIT", 0, "QEMU isa-debug-exit", width=4))

    def register_at(self, offset: int, is_write: bool) -> Register | None:
        """The register that such an access means, or None."""
        return self.registers.at(offset, is_write)

    def read(self, offset: int, size: int) -> int:
        """The bus's read. Always 0, as on QEMU."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write: end the run."""
        if offset == 0:
            self._end(value)
