"""What packets read and change of a VM that stands still: registers, memory, places to stop.

A base of `session.Session`. Imports its neighbours. Each handler is given what follows the packet's name, and raises
ValueError for what is malformed, Refused or PyvmmError for what cannot be.
"""

from __future__ import annotations

from pyvmm.debug.gdb.memory import Memory
from pyvmm.debug.gdb.packets import CHUNK
from pyvmm.debug.gdb.points import EXECUTE
from pyvmm.debug.gdb.registers import Refused, RegisterFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.debug.gdb.description import Description, Register
    from pyvmm.debug.gdb.target import Target
    from pyvmm.debug.state import VcpuState


class Access:
    """Handlers of one connection to `target`. `thread` is the vCPU that gdb chose, `stopped` the one that stopped."""

    description: Description

    def __init__(self, target: Target) -> None:
        self.target = target
        self.thread = self.stopped = 0
        self.memory = Memory(target)

    # --- Registers ---------------------------------------------------------------------------------------------------

    def _file(self) -> RegisterFile:
        return RegisterFile(self.target.vcpus[self.thread])

    def read_all(self, _: str) -> bytes:
        file = self._file()
        return b"".join(_hex(file.read(register), register.bits) for register in self.description.registers)

    def write_all(self, text: str) -> bytes:
        file, data, at = self._file(), bytes.fromhex(text), 0
        for register in self.description.registers:
            size = register.bits // 8
            file.write(register, data[at : at + size])
            at += size
        file.flush()
        self.target.forget()
        return b"OK"

    def read_one(self, text: str) -> bytes:
        register = self.description.registers[_natural(text)]
        return _hex(self._file().read(register), register.bits)

    def write_one(self, text: str) -> bytes:
        number, _, value = text.partition("=")
        self.write(self.description.registers[_natural(number)], bytes.fromhex(value))
        return b"OK"

    def write(self, register: Register, data: bytes) -> None:
        file = self._file()
        file.write(register, data)
        file.flush()
        self.target.forget()

    # --- Memory ------------------------------------------------------------------------------------------------------

    def read_memory(self, text: str) -> bytes:
        address, _, length = text.partition(",")
        try:
            return self.memory.read(self.thread, int(address, 16), min(int(length, 16), CHUNK)).hex().encode()
        except Refused:
            return b"E0e"  # words would be taken for data

    def write_memory(self, text: str) -> bytes:
        place, _, data = text.partition(":")
        address, _, length = place.partition(",")
        return self._store(int(address, 16), int(length, 16), bytes.fromhex(data))

    def write_binary(self, text: str) -> bytes:
        place, _, data = text.partition(":")
        address, _, length = place.partition(",")
        return self._store(int(address, 16), int(length, 16), data.encode("latin-1"))

    def _store(self, address: int, length: int, data: bytes) -> bytes:
        if len(data) != length:
            return b"E01"
        self.memory.write(self.thread, address, data)
        return b"OK"

    # --- Breakpoints -------------------------------------------------------------------------------------------------

    def insert(self, text: str) -> bytes:
        kind, address, length = _point(text)
        points = self.target.points
        try:
            points.insert(kind, address, length, self._mapping(kind, address))
        except Refused as error:
            points.notes.append(str(error))  # gdb does not show all that is refused here
            raise
        return b"OK"

    def _mapping(self, kind: int, gva: int) -> VcpuState:
        """The vCPU by whose page tables `gva` is meant: gdb does not say, and may just have looked at all of them."""
        target = self.target
        if kind != EXECUTE:
            for index in (self.stopped, self.thread, *range(len(target.vcpus))):
                state = target.state(index)
                if state.whole and state.paging.translate(target.memory, gva) is not None:
                    return state
        return target.state(self.stopped)

    def remove(self, text: str) -> bytes:
        self.target.points.remove(*_point(text))
        return b"OK"


def _point(text: str) -> tuple[int, int, int]:
    """Kind, address and length of a Z or z packet; conditions are the debugger's own. Raises ValueError."""
    kind, address, length = text.partition(";")[0].split(",")
    if kind not in ("0", "1", "2", "3", "4"):
        raise ValueError(kind)
    return int(kind), int(address, 16), int(length, 16)


def _natural(text: str) -> int:
    number = int(text, 16)
    if number < 0:
        raise ValueError(text)
    return number


def _hex(data: bytes | None, bits: int) -> bytes:
    return b"xx" * (bits // 8) if data is None else data.hex().encode()
