"""Debug console: a port that prints what is written to it.

Imports registers and hot. A convention of virtual machines, not of hardware: Bochs's port 0xe9 ("port e9 hack"
in its documentation), and port 0x402 of SeaBIOS and OVMF. Both firmwares first read the port, and use it if
they get 0xe9 (SeaBIOS: src/hw/serialio.c, qemu_debug_preinit; OVMF: OvmfPkg/Library/PlatformDebugLibIoPort),
so that is what a read gives.
"""

from __future__ import annotations

from pyvmm.hot import POST
from pyvmm.registers import Register, RegisterFile, RegisterMap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.hot import Group

READBACK = 0xE9

REGISTERS = RegisterMap(1, Register("CHARACTER", 0, "Bochs, port e9 hack", reset=READBACK, action=POST))

_BYTES = tuple(bytes((value,)) for value in range(256))


class DebugCon(RegisterFile, registers=REGISTERS):
    """A debug console. `output` takes what the guest writes, under the device's lock: it must not block."""

    __slots__ = ("_output",)

    STATE = {}

    def __init__(self, output: Callable[[bytes], None], name: str = "debugcon", group: Group | None = None) -> None:
        super().__init__(name, group)
        self._output = output
        self.window.on_write(0, REGISTERS["CHARACTER"].action)

    def reset(self) -> None:
        """Nothing: it has no state."""

    def read_character(self) -> int:
        """The value that says that the console is there."""
        return READBACK

    def write_character(self, value: int) -> None:
        """Print a character."""
        self._output(_BYTES[value])

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """String output: `data` as elements of `size` bytes, all written at `offset`."""
        if size == 1:
            self._output(data)
        else:
            super().write_many(offset, size, data)
