"""gdb's `monitor`: commands in words about the VM, answered in lines of text.

Imports its neighbours and the views of debug. What changes how a connection works is here, what shows the VM there.
"""

from __future__ import annotations

from pyvmm.debug.gdb.description import ARCHITECTURES
from pyvmm.debug.gdb.registers import Refused
from pyvmm.debug.views import USAGE, VIEWS, look
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.gdb.memory import Memory

HELP = (
    *USAGE.splitlines(),
    "vcpu [N]            whose registers and page tables these are about, until the guest moves (default: who stopped)",
    "physical [on|off]   take addresses for guest-physical ones: in x, print, set and dump",
    "architecture [NAME] what the next connection is shown: auto, i8086, i386 or i386:x86-64",
    "help                this; addresses are numbers, registers or symbols, and perhaps +N",
)
LONGEST = 4096
"""Characters of a command."""


class Monitor:
    """The commands for `vm`. `bits` are those of the kernel's symbols, 32 or 64, or 0."""

    def __init__(self, vm: Any, bits: int = 0) -> None:
        self._own = bits
        self._chosen = 0
        self.vcpu: int | None = None
        """The vCPU that was chosen; None is the one that stopped."""
        self._vm = vm

    def bits(self, mode: int) -> int:
        """What a connection is shown where the processor's code has `mode` bits: 16, 32 or 64."""
        return self._chosen or max(mode, self._own)

    def run(self, command: str, index: int, memory: Memory) -> list[str]:
        """What `command` says, where vCPU `index` has stopped."""
        index = index if self.vcpu is None else self.vcpu
        words = command[:LONGEST].split()
        try:
            if not words or words[0] == "help":
                return list(HELP)
            if words[0] == "physical":
                return self._physical(words[1:], memory)
            if words[0] == "architecture":
                return self._architecture(words[1:])
            if words[0] == "vcpu":
                return self._choose(words[1:], index)
            if words[0] in VIEWS:
                physical = memory.physical and words[0] == "dump"
                return look(self._vm, words, vcpu=index, physical=physical)
        except (Refused, PyvmmError) as error:
            return [str(error)]
        return [f"there is no command {words[0]!r}: monitor help"]

    def _physical(self, words: list[str], memory: Memory) -> list[str]:
        if words not in ([], ["on"], ["off"]):
            raise Refused("expected: monitor physical on, or off")
        if words:
            memory.physical = words == ["on"]
        kind = "guest-physical" if memory.physical else "linear, through the page tables of the vCPU that is looked at"
        # gdb keeps what it has read until the guest moves or it writes.
        return [f"addresses are {kind}", *(["(gdb has a cache: maintenance flush dcache)"] if words else [])]

    def _choose(self, words: list[str], index: int) -> list[str]:
        if words:
            index = int(words[0]) if words[0].isascii() and words[0].isdigit() and len(words[0]) < 4 else -1
            if len(words) > 1 or not 0 <= index < len(self._vm.vcpus):
                raise Refused(f"expected: monitor vcpu, then 0 to {len(self._vm.vcpus) - 1}")
            self.vcpu = index
        return [f"vCPU {index}, which is gdb's thread {index + 1}"]

    def _architecture(self, words: list[str]) -> list[str]:
        names = {"auto": 0, **{name: bits for bits, name in ARCHITECTURES.items()}}
        if len(words) > 1 or any(word not in names for word in words):
            raise Refused(f"expected: monitor architecture, then one of {', '.join(names)}")
        if words:
            self._chosen = names[words[0]]
        shown = next(name for name, bits in names.items() if bits == self._chosen)
        return [f"the next connection is shown {shown}: disconnect, then target remote again"]
