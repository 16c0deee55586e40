"""What a vCPU that stands still looks like, copied out of it once so that it can be read at leisure.

Imports paging, boot and KVM's constants. A getter that fails leaves its part out and its error in
`VcpuState.unread`: a report on a half-broken VM says what it could not see. Modes follow the Intel SDM volume 3A:
2.2 and 3.2 to 3.4.
"""

from __future__ import annotations

from pyvmm.boot.segments import Segment
from pyvmm.boot.x86 import GENERAL_REGISTERS, SEGMENT_REGISTERS
from pyvmm.cpubits import CR0_PE, EFER_LMA, RFLAGS_VM
from pyvmm.kvm.constants import (
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
)
from pyvmm.paging import Paging

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from pyvmm.memory import GuestMemory

    class Inspectable(Protocol):
        """What a vCPU offers to whoever looks at it; `pyvmm.kvm.VcpuFd` has it."""

        @property
        def index(self) -> int: ...

        def get_regs(self) -> Any: ...

        def get_sregs(self) -> Any: ...

        def get_vcpu_events(self) -> Any: ...

        def get_mp_state(self) -> int: ...


MP_STATES = {
    KVM_MP_STATE_RUNNABLE: "runnable",
    KVM_MP_STATE_UNINITIALIZED: "waiting for INIT",
    KVM_MP_STATE_INIT_RECEIVED: "waiting for SIPI",
    KVM_MP_STATE_HALTED: "halted",
    KVM_MP_STATE_SIPI_RECEIVED: "SIPI received",
}

CONTROL_REGISTERS = ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")


class Table:
    """A descriptor table register: linear `base`, `limit` in bytes less one."""

    __slots__ = ("base", "limit")

    def __init__(self, base: int, limit: int) -> None:
        self.base = base
        self.limit = limit


class VcpuState:
    """One vCPU's state; a part that could not be read is None or empty, and `unread` says why, by part.

    regs       general registers, RIP and RFLAGS by name
    control    CR0, CR2, CR3, CR4, CR8, EFER and the APIC base by name
    segments   the segment registers by name, as `boot.x86.Segment`
    gdt, idt   the descriptor tables
    exception  the vector of an exception under delivery, with its error code, or None
    mp_state   KVM_MP_STATE_*, or None
    """

    __slots__ = ("control", "exception", "gdt", "idt", "index", "mp_state", "regs", "segments", "unread")

    def __init__(self, index: int) -> None:
        self.index = index
        self.regs: dict[str, int] | None = None
        self.control: dict[str, int] | None = None
        self.segments: dict[str, Segment] = {}
        self.gdt = Table(0, 0)
        self.idt = Table(0, 0)
        self.exception: tuple[int, int | None] | None = None
        self.mp_state: int | None = None
        self.unread: dict[str, str] = {}

    @property
    def whole(self) -> bool:
        """Whether registers and system registers could both be read: what most reasoning needs."""
        return self.regs is not None and self.control is not None

    # Everything below asks for a state that is `whole`.

    def reg(self, name: str) -> int:
        """A general or control register's value."""
        assert self.regs is not None and self.control is not None
        return self.regs[name] if name in self.regs else self.control[name]

    @property
    def mode(self) -> str:
        """ "real", "virtual-8086", "protected" or "long"."""
        if not self.reg("cr0") & CR0_PE:
            return "real"
        if self.reg("efer") & EFER_LMA:
            return "long"
        return "virtual-8086" if self.reg("rflags") & RFLAGS_VM else "protected"

    @property
    def code_bits(self) -> int:
        """The default operand size of the code at RIP: 16, 32 or 64."""
        cs = self.segments["cs"]
        if self.mode == "long" and cs.l:
            return 64
        return 32 if cs.db and self.mode in ("protected", "long") else 16

    @property
    def stack_bits(self) -> int:
        """How much of RSP the processor uses: 16, 32 or 64 bits."""
        if self.code_bits == 64:
            return 64
        return 32 if self.segments["ss"].db else 16

    @property
    def cpl(self) -> int:
        """The current privilege level: SS's in protected and long mode (SDM volume 3C, 25.4.1)."""
        if self.mode in ("real", "virtual-8086"):
            return 0 if self.mode == "real" else 3
        return self.segments["ss"].dpl

    @property
    def paging(self) -> Paging:
        """How this vCPU translates linear addresses."""
        assert self.control is not None
        return Paging(*(self.control[name] for name in ("cr0", "cr3", "cr4", "efer")))

    def describe_mode(self) -> str:
        """Mode, code size, paging and privilege in a phrase."""
        mode = self.mode
        if mode == "long":
            kind = "64-bit code" if self.code_bits == 64 else f"compatibility, {self.code_bits}-bit code"
            mode = f"long mode ({kind})"
        elif mode == "protected":
            mode = f"protected mode ({self.code_bits}-bit code)"
        else:
            mode = f"{mode} mode"
        paging = "no paging" if self.paging.kind == "none" else f"{self.paging.kind} paging"
        return f"{mode}, {paging}, CPL {self.cpl}"

    def linear(self, segment: str, offset: int) -> int:
        """The linear address of `offset` in a segment register (SDM volume 3A, 3.4 and 3.4.4)."""
        if self.code_bits == 64:
            base = self.segments[segment].base if segment in ("fs", "gs") else 0
            return (base + offset) & 0xFFFF_FFFF_FFFF_FFFF
        return (self.segments[segment].base + offset) & 0xFFFF_FFFF

    @property
    def linear_rip(self) -> int:
        """Where the processor fetches its next instruction."""
        return self.linear("cs", self.reg("rip"))

    @property
    def linear_rsp(self) -> int:
        """The top of the stack."""
        return self.linear("ss", self.reg("rsp") & (1 << self.stack_bits) - 1)

    def code(self, memory: GuestMemory, length: int) -> bytes:
        """Up to `length` bytes from RIP on, as far as mapped."""
        return self.paging.read(memory, self.linear_rip, length)


def capture(vcpu: Inspectable) -> VcpuState:
    """Copy the state of a vCPU that is not running. Never raises: see `VcpuState.unread`."""
    state = VcpuState(vcpu.index)

    def part(name: str, copy: Callable[[], None]) -> None:
        try:
            copy()
        except Exception as error:  # whatever is broken about this vCPU, the rest of it is still worth reading
            state.unread[name] = f"{type(error).__name__}: {error}"

    def registers() -> None:
        regs = vcpu.get_regs()
        state.regs = {name: int(getattr(regs, name)) for name in GENERAL_REGISTERS}

    def system_registers() -> None:
        sregs = vcpu.get_sregs()
        segments = {name: _segment(getattr(sregs, name)) for name in SEGMENT_REGISTERS}
        state.gdt = Table(int(sregs.gdt.base), int(sregs.gdt.limit))
        state.idt = Table(int(sregs.idt.base), int(sregs.idt.limit))
        state.segments = segments
        state.control = {name: int(getattr(sregs, name)) for name in CONTROL_REGISTERS}

    def events() -> None:
        exception = vcpu.get_vcpu_events().exception
        if exception.injected or exception.pending:
            state.exception = (
                int(exception.nr),
                int(exception.error_code) if exception.has_error_code else None,
            )

    def mp_state() -> None:
        state.mp_state = int(vcpu.get_mp_state())

    part("registers", registers)
    part("system registers", system_registers)
    part("events", events)
    part("MP state", mp_state)
    return state


def _segment(raw: Any) -> Segment:
    fields = {name: int(getattr(raw, name)) for name in Segment.__slots__}
    return Segment(**fields)
