"""From a boot protocol's CpuState to KVM's register structures."""

from __future__ import annotations

import pytest

from pyvmm._native._kvm import ffi
from pyvmm.boot import x86
from pyvmm.kvm import setup


class RecordingVcpu:
    """Registers as after reset, and the order in which they were set."""

    def __init__(self):
        self.regs = ffi.new("struct kvm_regs *", {"rdx": 0x600, "rip": 0xFFF0, "rflags": 2})
        self.sregs = ffi.new("struct kvm_sregs *", {"apic_base": 0xFEE00900, "cr2": 5, "cr8": 6})
        self.order = []

    def get_regs(self):
        return self.regs

    def get_sregs(self):
        return self.sregs

    def set_regs(self, state):
        self.order.append("regs")

    def set_sregs(self, state):
        self.order.append("sregs")


def test_the_names_are_those_of_the_boot_state():
    assert set(setup.GENERAL) == set(x86.GENERAL_REGISTERS)
    assert set(setup.SEGMENTS) == set(x86.SEGMENT_REGISTERS)
    described = {"mode", *setup.GENERAL, *setup.SEGMENTS, *setup.CONTROL}
    described |= {"gdt_base", "gdt_limit", "idt_base", "idt_limit"}
    assert set(x86.CpuState.__slots__) == described


@pytest.fixture(params=["real", "protected", "long"])
def state(request):
    """A state as the loaders make them, whatever their builders are called."""
    from pyvmm.boot.segments import Segment

    def segment(selector):
        return Segment(selector, selector << 4, 0xFFFF, 3, dpl=1, db=1, g=0)

    made = x86.CpuState(
        request.param,
        segment(8),
        segment(16),
        segment(24),
        gdt=(0x500, 0x27),
        idt=(0x600, 0xFFF),
        cr0=0x80000011,
        cr3=0x9000,
        cr4=0x620,
        efer=0x500,
    )
    for number, name in enumerate(x86.GENERAL_REGISTERS):
        setattr(made, name, 0x100 + number)
    return made


def test_every_register_arrives(state):
    vcpu = RecordingVcpu()
    setup.apply_state(vcpu, state)
    assert vcpu.order == ["sregs", "regs"]
    for name in x86.GENERAL_REGISTERS:
        assert getattr(vcpu.regs, name) == getattr(state, name)
    for name in x86.SEGMENT_REGISTERS:
        for field in ("selector", "base", "limit", "type", "s", "dpl", "present", "avl", "l", "db", "g", "unusable"):
            assert getattr(getattr(vcpu.sregs, name), field) == getattr(getattr(state, name), field)
    assert (vcpu.sregs.gdt.base, vcpu.sregs.gdt.limit) == (0x500, 0x27)
    assert (vcpu.sregs.idt.base, vcpu.sregs.idt.limit) == (0x600, 0xFFF)
    for name in ("cr0", "cr3", "cr4", "efer"):
        assert getattr(vcpu.sregs, name) == getattr(state, name)


def test_what_no_protocol_names_is_left_alone(state):
    vcpu = RecordingVcpu()
    setup.apply_state(vcpu, state)
    assert (vcpu.sregs.apic_base, vcpu.sregs.cr2, vcpu.sregs.cr8) == (0xFEE00900, 5, 6)
