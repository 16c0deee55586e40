"""What the reasoning about a crash goes by, and what it arrives at.

Imports state, paging and disasm. `Evidence` is one vCPU's share of a report's inputs with the look-ups that several
heuristics need; `Reason` is one likely cause in words.
"""

from __future__ import annotations

from functools import cached_property

from pyvmm.debug.disasm import disassemble
from pyvmm.errors import MissingExtraError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.debug.state import VcpuState
    from pyvmm.kvm.exits import Exit
    from pyvmm.memory import GuestMemory
    from pyvmm.paging import Paging, Walk


class Reason:
    """A likely cause: `text` is one sentence, `detail` further lines that show what it rests on."""

    __slots__ = ("detail", "text")

    def __init__(self, text: str, detail: Sequence[str] = ()) -> None:
        self.text = text
        self.detail = tuple(detail)

    def __repr__(self) -> str:
        return f"Reason({self.text!r})"


class Evidence:
    """One vCPU's `state` (which is `whole`), the guest's `memory`, the vCPU's last exits and sampled RIPs.

    `samples` are values of RIP taken since the last exit, oldest first; empty where nobody took any. `armed` is what
    could wake the vCPU if it is halted (see `wakeups`), None where nobody has looked.
    """

    def __init__(
        self,
        state: VcpuState,
        memory: GuestMemory,
        history: Sequence[Exit],
        samples: Sequence[int] = (),
        armed: Sequence[str] | None = None,
    ) -> None:
        self.state = state
        self.memory = memory
        self.history = tuple(history)
        self.samples = tuple(samples)
        self.armed = armed

    @cached_property
    def paging(self) -> Paging:
        return self.state.paging

    @cached_property
    def fetch(self) -> Walk:
        """The page walk of RIP."""
        return self.walk(self.state.linear_rip)

    @cached_property
    def code(self) -> bytes:
        """Up to 16 bytes at RIP; fewer, or none, where memory ends."""
        return self.state.code(self.memory, 16)

    @cached_property
    def last_exit(self) -> Exit | None:
        return self.history[-1] if self.history else None

    def walk(self, gva: int) -> Walk:
        """Translate a linear address by this vCPU's page tables."""
        return self.paging.walk(self.memory, gva)

    def read(self, gva: int, length: int) -> bytes:
        """Up to `length` bytes at a linear address."""
        return self.paging.read(self.memory, gva, length)

    def in_ram(self, gpa: int) -> bool:
        """Whether there is RAM at a guest-physical address."""
        return self.memory.contains(gpa, 1)

    def instruction(self, code: bytes | None = None) -> str:
        """The instruction at RIP (or `code`) in brackets, led by a space; "" without capstone or where it is none."""
        try:
            found = disassemble(code or self.code, self.state.linear_rip, self.state.code_bits, limit=1)
        except MissingExtraError:
            return ""
        return f" (`{found[0].text}`)" if found else ""

    def ram(self) -> str:
        """Where RAM is, in words."""
        return " and ".join(f"{r.gpa:#x} to {r.gpa + r.length - 1:#x}" for r in self.memory.regions)


def show(walk: Walk) -> list[str]:
    """A walk, level by level, for the lines below a reason."""
    end = walk.problem or f"gpa {walk.gpa:#x}, page of {walk.page_size >> 10} KiB"
    return [f"walk of {walk.gva:#x}:", *(f"  {entry.describe()}" for entry in walk.entries), f"  -> {end}"]
