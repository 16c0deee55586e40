"""Where a completed instruction's memory operand is, and whether this processor may access it as it wants to.

Imports decodeinsn (types), paging, cpubits and the C helper. `Processor` is one vCPU as an instruction sees it. What
the processor would refuse is raised as `Fault`; what pyvmm has no exact answer to as `NotCompleted`, which leaves the
instruction alone. Follows the Intel SDM volume 3A: segments 3.4 and 5.3 to 5.5, access rights of pages 4.6, page faults
4.7, accessed and dirty flags 4.8; and volume 1: canonical addresses 3.3.7.1.
"""

from __future__ import annotations

from pyvmm import cpubits
from pyvmm.kvm.native import ffi, lib
from pyvmm.paging import ACCESSED, DIRTY, ERROR_PRESENT, ERROR_USER, ERROR_WRITE, PAGE, Paging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm._native import _kvm
    from pyvmm.kvm.decodeinsn import Instruction, Operand
    from pyvmm.kvm.entries import CpuidEntry
    from pyvmm.memory import GuestMemory
    from pyvmm.paging import Walk

    class Vcpu(Protocol):
        """What is asked of a vCPU that stands still."""

        def get_regs(self) -> _kvm.kvm_regs: ...

        def set_regs(self, state: _kvm.kvm_regs) -> None: ...

        def get_sregs(self) -> _kvm.kvm_sregs: ...

        def set_sregs(self, state: _kvm.kvm_sregs) -> None: ...

        def get_vcpu_events(self) -> _kvm.kvm_vcpu_events: ...

        def set_vcpu_events(self, state: _kvm.kvm_vcpu_events) -> None: ...

        def get_debugregs(self) -> _kvm.kvm_debugregs: ...

        def set_debugregs(self, state: _kvm.kvm_debugregs) -> None: ...

        def get_fpu(self) -> _kvm.kvm_fpu: ...

        def get_cpuid2(self) -> list[CpuidEntry]: ...

        def get_msrs(self, indices: tuple[int, ...]) -> dict[int, int]: ...


UD, NM, SS, GP, PF, MF = 6, 7, 12, 13, 14, 16
"""Vectors (SDM volume 3A, table 6-1)."""
MNEMONICS = {UD: "#UD", NM: "#NM", SS: "#SS", GP: "#GP", PF: "#PF", MF: "#MF"}


class Fault(Exception):
    """The instruction raises exception `vector`; #PF also sets CR2."""

    def __init__(self, vector: int, error_code: int | None = None, cr2: int | None = None) -> None:
        self.vector = vector
        self.error_code = error_code
        self.cr2 = cr2


class NotCompleted(Exception):
    """Here pyvmm cannot do what the processor would: the guest ends where it would end without it."""


class LostRace(Exception):
    """Another processor changed what was being looked at: the guest had best begin the instruction anew."""


class Processor:
    """A vCPU that stands still: its registers, and its view of `memory`."""

    __slots__ = ("bits", "cpl", "memory", "paging", "protected", "regs", "sregs", "vcpu")

    def __init__(self, vcpu: Vcpu, memory: GuestMemory) -> None:
        self.vcpu = vcpu
        self.memory = memory
        self.regs = vcpu.get_regs()
        self.sregs = sregs = vcpu.get_sregs()
        self.protected = bool(sregs.cr0 & cpubits.CR0_PE)
        if self.regs.rflags & cpubits.RFLAGS_VM and self.protected:
            raise NotCompleted("virtual-8086 mode")
        self.cpl = sregs.ss.dpl if self.protected else 0
        self.bits = 64 if sregs.efer & cpubits.EFER_LMA and sregs.cs.l else 32 if sregs.cs.db else 16
        self.paging = Paging(sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer)

    def code(self, length: int) -> bytes:
        """Up to `length` bytes at RIP."""
        rip = self.regs.rip if self.bits == 64 else (self.sregs.cs.base + self.regs.rip) & 0xFFFF_FFFF
        return self.paging.read(self.memory, rip, length)

    def linear(self, instruction: Instruction, operand: Operand, write: bool) -> int:
        """The linear address of the operand, its segment allowing the access. Raises Fault."""
        regs, sregs = self.regs, self.sregs
        if sregs.cr4 & (cpubits.PROTECTION_KEYS | cpubits.LINEAR_MASKING) or sregs.cr3 & cpubits.CR3_LAM:
            raise NotCompleted("protection keys or linear address masking")
        segment = getattr(sregs, operand.segment)
        offset = operand.displacement
        if operand.base == "rip":
            offset += regs.rip + instruction.length
        elif operand.base:
            offset += getattr(regs, operand.base)
        if operand.index:
            offset += getattr(regs, operand.index) * operand.scale
        offset &= (1 << operand.bits) - 1
        last = offset + instruction.size - 1
        outside = SS if operand.segment == "ss" else GP
        if self.bits == 64:
            base = segment.base if operand.segment in ("fs", "gs") else 0
            address = int(base + offset) & (1 << 64) - 1
            # Only where the sign bits are all the same is an address canonical.
            sign = 56 if sregs.cr4 & cpubits.CR4_LA57 else 47
            if any(end >> sign not in (0, (1 << 64 - sign) - 1) for end in (address, address + instruction.size - 1)):
                raise self._fault(outside)
            return address
        if self.protected:
            code, read_or_write = segment.type & 8, segment.type & 2
            allowed = read_or_write and not code if write else read_or_write or not code
            if segment.unusable or not allowed:
                raise self._fault(GP)
            if not code and segment.type & 4:  # expand-down: what the limit leaves out is what there is (5.3)
                highest = 0xFFFF_FFFF if segment.db else 0xFFFF
                if offset <= segment.limit or last > highest:
                    raise self._fault(outside)
                return int(segment.base + offset) & 0xFFFF_FFFF
        if last > segment.limit:
            raise self._fault(outside)
        return int(segment.base + offset) & 0xFFFF_FFFF

    def _fault(self, vector: int) -> Fault:
        return Fault(vector, 0 if self.protected else None)

    def read(self, gva: int, length: int) -> int:
        """`length` bytes of data at a linear address. Raises Fault, NotCompleted, LostRace."""
        self._check_alignment(gva, length)
        first = min(length, PAGE - gva % PAGE)
        data = self.memory.read(self._translate(gva, first, write=False), first)
        if first < length:
            data += self.memory.read(
                self._translate(self._next(gva, first), length - first, write=False), length - first
            )
        return int.from_bytes(data, "little")

    def compare_exchange(self, gva: int, length: int, expected: int, desired: int) -> tuple[bool, int]:
        """One locked compare-and-exchange: whether it stored `desired`, and what was there before.

        Raises Fault, NotCompleted (for one access to two cache lines, and so to two pages, too), LostRace.
        """
        self._check_alignment(gva, length)
        return compare_exchange(self.memory, self._translate(gva, length, write=True), length, expected, desired)

    def _next(self, gva: int, by: int) -> int:
        return (gva + by) & ((1 << 64) - 1 if self.bits == 64 else 0xFFFF_FFFF)

    def _check_alignment(self, gva: int, length: int) -> None:
        sregs, checked = self.sregs, self.regs.rflags & cpubits.RFLAGS_AC
        if self.cpl == 3 and checked and sregs.cr0 & cpubits.CR0_AM and gva % length:
            raise NotCompleted("alignment check")

    def _translate(self, gva: int, length: int, write: bool) -> int:
        """The gpa of `length` bytes of RAM within the page of `gva`."""
        walk = self.paging.walk(self.memory, gva)
        error = (ERROR_WRITE if write else 0) | (ERROR_USER if self.cpl == 3 else 0)
        if walk.gpa is None:
            if walk.fault is None:
                raise NotCompleted(walk.problem)
            raise Fault(PF, walk.fault | error, gva)
        if walk.entries and not self._allowed(walk, write):
            raise Fault(PF, ERROR_PRESENT | error, gva)
        if not self.memory.contains(walk.gpa, length):
            raise NotCompleted(f"there is no RAM at {walk.gpa:#x}")
        self._mark(walk, write)
        return walk.gpa

    def _allowed(self, walk: Walk, write: bool) -> bool:
        """Access rights of a data access (SDM volume 3A, 4.6.1)."""
        sregs = self.sregs
        if self.cpl == 3:
            return walk.user and (walk.writable or not write)
        if walk.user and sregs.cr4 & cpubits.CR4_SMAP and not self.regs.rflags & cpubits.RFLAGS_AC:
            return False
        return walk.writable or not write or not sregs.cr0 & cpubits.CR0_WP

    def _mark(self, walk: Walk, write: bool) -> None:
        """Set the accessed flag in every entry of the walk, and for a write the dirty flag in the last (4.8)."""
        last = walk.entries[-1] if walk.entries else None
        for entry in walk.entries:
            if self.paging.kind == "PAE" and entry.level == "PDPTE":
                continue  # has no flags (4.4.2)
            marked = entry.value | ACCESSED | (DIRTY if write and entry is last else 0)
            if marked == entry.value:
                continue
            # An entry of 32 bits is exchanged together with its neighbour. If another processor changes one of them
            # meanwhile, the walk may have been of a page that is no longer there.
            at, shift = entry.gpa & ~7, (entry.gpa & 4) * 8
            width = 32 if self.paging.kind == "32-bit" else 64
            others = self.memory.read_u64(at) & ~((1 << width) - 1 << shift)
            old, new = others | entry.value << shift, others | marked << shift
            if not compare_exchange(self.memory, at, 8, old, new)[0]:
                raise LostRace


def compare_exchange(memory: GuestMemory, gpa: int, length: int, expected: int, desired: int) -> tuple[bool, int]:
    """One locked instruction of the host on `length` bytes of guest RAM, 8 or 16: see kvm_helper.h.

    Returns whether it stored `desired`, and what was there before. Raises NotCompleted where the host cannot.
    """
    found = ffi.new("uint64_t[2]", _halves(expected))
    wanted = ffi.new("uint64_t[2]", _halves(desired))
    with memory.view(gpa, length) as view, ffi.from_buffer(view) as address:
        result = lib.pyvmm_cmpxchg(address, length, found, wanted)
    if result < 0:
        raise NotCompleted("the operand crosses a cache line")
    return bool(result), int(found[0]) | (int(found[1]) << 64 if length == 16 else 0)


def _halves(value: int) -> tuple[int, int]:
    return value & (1 << 64) - 1, value >> 64
