"""Guest memory as gdb reads and writes it: by linear addresses through a vCPU's page tables, or by physical ones.

Imports paging. RAM alone: what is a device's is not touched, for reading a register may change it. A write goes
through pages that the guest may not write to.
"""

from __future__ import annotations

from pyvmm.debug.gdb.registers import Refused
from pyvmm.paging import PAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm.debug.gdb.target import Target


class Memory:
    """The memory of `target`'s VM. With `physical`, addresses are guest-physical ones."""

    def __init__(self, target: Target) -> None:
        self.physical = False
        self._target = target

    def read(self, index: int, address: int, length: int) -> bytes:
        """Up to `length` bytes, as seen by vCPU `index`: as many as there are in one piece. Raises Refused for none."""
        data = bytearray()
        try:
            for gpa, size in self._pieces(index, address, length):
                data += self._target.memory.read(gpa, size)
        except Refused:
            if not data and length:
                raise
        return bytes(data)

    def write(self, index: int, address: int, data: bytes) -> None:
        """All of `data` or, with Refused, nothing."""
        pieces = list(self._pieces(index, address, len(data)))
        at = 0
        for gpa, size in pieces:
            self._target.memory.write(gpa, data[at : at + size])
            at += size
        self._target.forget()

    def _pieces(self, index: int, address: int, length: int) -> Iterator[tuple[int, int]]:
        """(gpa, bytes) page by page. Raises Refused where there is no RAM."""
        memory = self._target.memory
        end = address + length
        while address < end:
            size = min(end - address, PAGE - address % PAGE)
            gpa: int | None = address
            problem = "no RAM"
            if not self.physical:
                state = self._target.state(index)
                if not state.whole:
                    raise Refused("this vCPU's registers cannot be read")
                walk = state.paging.walk(memory, address)
                gpa, problem = walk.gpa, walk.problem or problem
            if gpa is None or not memory.contains(gpa, size):
                raise Refused(f"cannot access {address:#x}: {problem}")
            yield gpa, size
            address += size
