"""Putting a boot processor into the state in which its kernel expects it.

Imports nothing: it works on whatever has a vCPU's methods and on plain data with the attributes of `pyvmm.boot`'s
CpuState, which kvm/ does not import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from pyvmm._native import _kvm

    class CpuState(Protocol):
        """Registers by name, as far as a boot protocol has a say in them; see pyvmm.boot.x86.CpuState.

        General registers are integers, segment registers have the fields of struct kvm_segment.
        """

        gdt_base: int
        gdt_limit: int
        idt_base: int
        idt_limit: int
        cr0: int
        cr3: int
        cr4: int
        efer: int

    class Vcpu(Protocol):
        """What is asked of a vCPU."""

        def get_regs(self) -> _kvm.kvm_regs: ...

        def set_regs(self, state: _kvm.kvm_regs) -> None: ...

        def get_sregs(self) -> _kvm.kvm_sregs: ...

        def set_sregs(self, state: _kvm.kvm_sregs) -> None: ...


GENERAL = (
    *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rip", "rflags"),
)
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
SEGMENT_FIELDS = ("base", "limit", "selector", "type", "present", "dpl", "db", "s", "l", "g", "avl", "unusable")
CONTROL = ("cr0", "cr3", "cr4", "efer")


def apply_state(vcpu: Vcpu, state: CpuState) -> None:
    """Set the registers that `state` names; the others keep what they have after reset.

    Special registers first: KVM judges RFLAGS and RIP by the mode that they set. Raises KvmError.
    """
    sregs = vcpu.get_sregs()
    for name in SEGMENTS:
        to, segment = getattr(sregs, name), getattr(state, name)
        for field in SEGMENT_FIELDS:
            setattr(to, field, getattr(segment, field))
    sregs.gdt.base, sregs.gdt.limit = state.gdt_base, state.gdt_limit
    sregs.idt.base, sregs.idt.limit = state.idt_base, state.idt_limit
    for name in CONTROL:
        setattr(sregs, name, getattr(state, name))
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    for name in GENERAL:
        setattr(regs, name, getattr(state, name))
    vcpu.set_regs(regs)
