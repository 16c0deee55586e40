"""Lesson 3: which exits reach user space, and which end in KVM."""

import mmap

from pyvmm.images import guest
from pyvmm.kvm import Kvm
from pyvmm.kvm.exits import Hlt

ENTRY = 0x7C00
COUNTERS = ("exits", "io_exits", "mmio_exits", "halt_exits", "insn_emulation")


def start(kvm, memory):
    """A VM of one vCPU with the guest in its megabyte of RAM."""
    with open(guest("lesson03-exits").path(), "rb") as file:
        image = file.read()
    memory[ENTRY : ENTRY + len(image)] = image
    vm = kvm.create_vm()
    vm.set_user_memory_region(0, 0, memoryview(memory))
    vcpu = vm.create_vcpu(0)
    sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
    sregs.cs.selector = sregs.cs.base = 0
    regs.rip, regs.rflags = ENTRY, 2
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)
    return vm, vcpu


def user_space():
    memory = mmap.mmap(-1, 1 << 20)
    with Kvm() as kvm:
        vm, vcpu = start(kvm, memory)
        with vm:
            exit = None
            while not isinstance(exit, Hlt):
                exit = vcpu.run()
                print(f"reason {exit.reason}: {exit.describe()}")


def kernel():
    memory = mmap.mmap(-1, 1 << 20)
    with Kvm() as kvm:
        vm, vcpu = start(kvm, memory)
        with vm:
            counters = vcpu.stats_fd()
            before = counters.read()
            while not isinstance(vcpu.run(), Hlt):
                pass
            after = counters.read()
            for name in COUNTERS:
                print(f"{name:15} {after.get(name, 0) - before.get(name, 0):3}")
