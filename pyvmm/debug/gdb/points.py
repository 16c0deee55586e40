"""Where the guest shall stop: planted instructions, hardware breakpoints, watchpoints, and what this host can do of it.

Imports registers. A byte is planted at a guest-physical address, and only while a
vCPU runs: `Control` says when the first one sets off and when the last one stands still, so that nobody who looks
at a VM that stands still (gdb, a snapshot, a report) ever sees one.

Debug registers: Intel SDM volume 3B, 18.2.
"""

from __future__ import annotations

from pyvmm.debug.gdb.registers import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.debug.state import VcpuState
    from pyvmm.kvm.host import DebugAbilities
    from pyvmm.memory import GuestMemory
    from pyvmm.paging import Paging

HARDWARE = 4
"""Debug registers for addresses."""
MOST_PLANTED = 1024
MOST_WATCHED = 16
LONGEST_WATCHED = 4096
"""Bytes of a watchpoint that is served by comparing."""
SOFTWARE, EXECUTE, WRITE, READ, ACCESS = range(5)
"""The kinds of the packets Z0 to Z4."""
_READ_WRITE = {EXECUTE: 0b00, WRITE: 0b01, ACCESS: 0b11}
_LENGTHS = {1: 0b00, 2: 0b01, 4: 0b11, 8: 0b10}
DR7_FIXED = 1 << 10 | 1 << 9
"""Bit 10 is always 1; bit 9, GE, asks for exact data breakpoints."""


class Planted:
    """The one-byte instruction `trap` at `gpa`, asked for at linear address `gva`; while vCPUs run it hides `byte`."""

    __slots__ = ("byte", "gpa", "gva", "there", "trap")

    def __init__(self, gva: int, gpa: int, trap: int) -> None:
        self.gva = gva
        self.gpa = gpa
        self.trap = trap
        self.byte = 0
        self.there = False


class Watched:
    """A watchpoint that is served by comparing `length` bytes at `gva` after each step; `seen` is what was there."""

    __slots__ = ("gva", "length", "seen")

    def __init__(self, gva: int, length: int) -> None:
        self.gva = gva
        self.length = length
        self.seen: bytes | None = None


class Points:
    """All places of one VM. Changed while every vCPU stands still. `can` is what the host's KVM is able to do."""

    def __init__(self, memory: GuestMemory, can: DebugAbilities) -> None:
        self.planted: dict[int, Planted] = {}
        self.hardware: list[tuple[int, int, int]] = []
        self.watched: list[Watched] = []
        self.notes: list[str] = []
        self._memory = memory
        self._can = can

    # --- Asking for one ----------------------------------------------------------------------------------------------

    def insert(self, kind: int, gva: int, length: int, state: VcpuState) -> None:
        """Stop there from now on; of a kind that is there already nothing changes. Raises Refused.

        `state` is that of the vCPU by whose page tables `gva` is meant.
        """
        if kind == SOFTWARE:
            self._plant(gva, state)
        elif kind == EXECUTE:
            self._execute(gva, state)
        elif self._can.watch and kind in (WRITE, ACCESS):
            if length not in _LENGTHS or gva % length:
                raise Refused(f"a processor watches 1, 2, 4 or 8 aligned bytes, not {length} at {gva:#x}")
            self._take(kind, gva, length)
        elif kind == WRITE:
            self._compare(gva, length, state)
        elif self._can.watch:
            raise Refused("x86 has no watchpoint for reads alone: use awatch")
        else:
            raise Refused("this host's KVM has no watchpoints, and comparing does not find reads: use watch")

    def remove(self, kind: int, gva: int, length: int) -> None:
        """Stop there no more; nothing happens if there was none."""
        if kind == SOFTWARE:
            self.planted = {gpa: one for gpa, one in self.planted.items() if one.gva != gva}
        self.hardware = [one for one in self.hardware if one[:2] != (kind, gva) or one[2] not in (length, 1)]
        if kind == WRITE:
            self.watched = [one for one in self.watched if (one.gva, one.length) != (gva, length)]

    def clear(self) -> None:
        """Stop nowhere. Every vCPU stands still, so nothing is planted."""
        self.planted, self.hardware, self.watched = {}, [], []

    def _plant(self, gva: int, state: VcpuState) -> None:
        walk = state.paging.walk(self._memory, gva)
        if walk.gpa is None:
            raise Refused(f"nothing is mapped at {gva:#x} now ({walk.problem}): hbreak needs no memory")
        if not self._memory.contains(walk.gpa, 1):
            raise Refused(f"{gva:#x} is no RAM: hbreak needs none")
        if 3 not in self._can.planted and self._for_programs(gva, state):
            raise Refused(f"{gva:#x} is a program's: a breakpoint in ring 3 reaches the guest on this host, not gdb")
        if walk.gpa in self.planted:
            return
        if len(self.planted) >= MOST_PLANTED:
            raise Refused(f"there are {MOST_PLANTED} breakpoints already")
        real = state.mode in ("real", "virtual-8086")
        self.planted[walk.gpa] = Planted(gva, walk.gpa, self._can.real_trap if real else self._can.trap)

    def _execute(self, gva: int, state: VcpuState) -> None:
        if 0 not in self._can.hardware:
            raise Refused("this host's KVM has no hardware breakpoints: use break")
        if 3 not in self._can.hardware:
            if self._for_programs(gva, state):
                raise Refused(f"{gva:#x} is a program's: hardware breakpoints do not fire in ring 3 on this host")
            if state.paging.kind != "none" and state.paging.translate(self._memory, gva) is None and not gva >> 63:
                self.notes.append(f"the breakpoint at {gva:#x} works in ring 0 alone on this host")
        self._take(EXECUTE, gva, 1)

    def _take(self, kind: int, gva: int, length: int) -> None:
        if (kind, gva, length) in self.hardware:
            return
        if len(self.hardware) >= HARDWARE:
            raise Refused(f"the processor has {HARDWARE} debug registers, and all are taken")
        self.hardware.append((kind, gva, length))

    def _compare(self, gva: int, length: int, state: VcpuState) -> None:
        if 0 not in self._can.step:
            raise Refused("this host's KVM has neither watchpoints nor single steps")
        if not 0 < length <= LONGEST_WATCHED or len(self.watched) >= MOST_WATCHED:
            raise Refused(f"at most {MOST_WATCHED} watchpoints of {LONGEST_WATCHED} bytes")
        watched = Watched(gva, length)
        watched.seen = self.value(watched, state.paging)
        if watched.seen is None:
            raise Refused(f"nothing is mapped at {gva:#x} now")
        if all((one.gva, one.length) != (gva, length) for one in self.watched):
            self.watched.append(watched)
            self.notes.append(
                "this host's KVM has no watchpoints: the guest goes on in single steps, slowly, and each is looked at"
            )

    def _for_programs(self, gva: int, state: VcpuState) -> bool:
        """Whether it is ring 3 that would run what is at `gva`, as far as its page or the vCPU tells."""
        if state.paging.kind == "none":
            return state.cpl == 3
        walk = state.paging.walk(self._memory, gva)
        return walk.gpa is not None and walk.user

    # --- While vCPUs run ---------------------------------------------------------------------------------------------

    def plant(self) -> None:
        """Put them into memory. The guest may have changed what is there since."""
        for one in self.planted.values():
            one.byte = self._memory.read_u8(one.gpa)
            one.there = True
            self._memory.write_u8(one.gpa, one.trap)

    def withdraw(self) -> None:
        """Take them out again, but where the guest has written meanwhile."""
        for one in self.planted.values():
            if one.there:
                one.there = False
                if self._memory.read_u8(one.gpa) == one.trap:
                    self._memory.write_u8(one.gpa, one.byte)

    def at(self, gva: int, state: VcpuState) -> Planted | None:
        """What is planted where the processor is at linear address `gva`."""
        gpa = state.paging.translate(self._memory, gva)
        return None if gpa is None else self.planted.get(gpa)

    def debug_registers(self) -> list[int]:
        """DR0 to DR7 for KVM_GUESTDBG_USE_HW_BP."""
        registers = [0] * 8
        registers[7] = DR7_FIXED
        for at, (kind, gva, length) in enumerate(self.hardware):
            registers[at] = gva
            registers[7] |= 1 << 2 * at + 1 | _READ_WRITE[kind] << 16 + 4 * at | _LENGTHS[length] << 18 + 4 * at
        return registers

    def value(self, watched: Watched, paging: Paging) -> bytes | None:
        """What is there now; None where it is not all mapped."""
        data = paging.read(self._memory, watched.gva, watched.length)
        return data if len(data) == watched.length else None

    def changed(self, paging: Paging) -> Watched | None:
        """The first watched place that has changed since it was last looked at; what is not mapped has not."""
        found = None
        for watched in self.watched:
            now = self.value(watched, paging)
            if now is not None and now != watched.seen:
                watched.seen = now
                found = found or watched
        return found
