"""The host bridge: how a guest's processor reaches the configuration space of the functions on bus 0.

Imports config, spec and state. Configuration mechanism #1 (PCI Local Bus Specification 3.0, 3.2.2.3.2): an address
register at port 0xCF8 and a window of four ports at 0xCFC. A function that is not there reads as all ones, as a master
abort does (6.1), and writes to it vanish.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.pci.config import Function
from pyvmm.pci.spec import (
    CLASS_BRIDGE_HOST,
    CONFIG_ADDRESS,
    CONFIG_ADDRESS_BITS,
    CONFIG_DATA,
    CONFIG_ENABLE,
    CONFIG_PORTS,
    DEVICES,
)
from pyvmm.state import Number, Stateful

VENDOR, DEVICE, REVISION = 0x8086, 0x1237, 2
"""Intel 440FX (82441FX data sheet, 3.2), which every kernel knows. Nothing else of it is here."""


class HostBridge(Stateful):
    """Bus 0, as a bus device of CONFIG_PORTS ports. They end where a dword does, so that no access goes beyond it.

    It passes on to functions what comes to it, as the bus does: `lock` is its own, and a function's is taken while it
    is held, never the other way round.

    functions   by their device number; 0 is the bridge's own
    """

    __slots__ = ("_address", "functions", "length", "lock", "name")

    STATE = {"_address": Number(CONFIG_ADDRESS_BITS)}

    def __init__(self, name: str = "pci") -> None:
        self.name = name
        self.lock = Lock()
        self.length = CONFIG_PORTS
        self.functions = {0: Function(name, VENDOR, DEVICE, CLASS_BRIDGE_HOST, REVISION)}
        self._address = 0

    def plug(self, device: int, function: Function) -> None:
        """Make `function` device number `device` of the bus. Raises ValueError for a number out of range or taken."""
        if not 0 < device < DEVICES or device in self.functions:
            raise ValueError(f"{function.name}: no device {device} on the PCI bus (expected a free one, 1 to 31)")
        self.functions[device] = function

    def read(self, offset: int, size: int) -> int:
        """The bus's read. The bus holds `lock`."""
        if offset == CONFIG_ADDRESS and size == 4:
            return self._address
        function = self._chosen(offset)
        if function is None:
            return (1 << 8 * size) - 1
        with function.lock:
            return function.read(self._address & 0xFC | offset & 3, size)

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write. The bus holds `lock`."""
        if offset == CONFIG_ADDRESS and size == 4:
            self._address = value & CONFIG_ADDRESS_BITS
            return
        function = self._chosen(offset)
        if function is not None:
            with function.lock:
                function.write(self._address & 0xFC | offset & 3, size, value)

    def _chosen(self, offset: int) -> Function | None:
        """The function that an access to the data ports means, or None: any other access is no configuration access."""
        address = self._address
        if offset < CONFIG_DATA or not address & CONFIG_ENABLE or address & 0xFF0700:
            return None
        return self.functions.get(address >> 11 & 31)
