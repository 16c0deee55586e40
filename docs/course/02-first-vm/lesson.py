"""Lesson 2: a VMM on nothing but KVM's own calls."""

import mmap

from pyvmm.images import guest
from pyvmm.kvm import Kvm
from pyvmm.kvm.exits import Pio

RAM = 1 << 20
ENTRY = 0x7C00
SERIAL, KEYBOARD = 0x3F8, 0x64


def load(memory):
    with open(guest("hello16").path(), "rb") as file:
        image = file.read()
    memory[ENTRY : ENTRY + len(image)] = image


def start_at(vcpu, gpa):
    sregs = vcpu.get_sregs()
    sregs.cs.selector = sregs.cs.base = 0
    vcpu.set_sregs(sregs)
    regs = vcpu.get_regs()
    regs.rip, regs.rflags = gpa, 2
    vcpu.set_regs(regs)


def run(vcpu):
    while True:
        exit = vcpu.run()
        if isinstance(exit, Pio) and exit.port == SERIAL:
            print(exit.data.decode(), end="")
        elif isinstance(exit, Pio) and exit.port == KEYBOARD:
            return
        else:
            raise RuntimeError(exit.describe())


def hello():
    memory = mmap.mmap(-1, RAM)
    load(memory)
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, memoryview(memory))
        vcpu = vm.create_vcpu(0)
        start_at(vcpu, ENTRY)
        run(vcpu)


def watch():
    memory = mmap.mmap(-1, RAM)
    load(memory)
    with Kvm() as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, memoryview(memory))
        vcpu = vm.create_vcpu(0)
        start_at(vcpu, ENTRY)
        exits = [vcpu.run()]
        regs = vcpu.get_regs()
        print(f"after the first exit: DX {regs.rdx & 0xFFFF:#x}, AL {regs.rax & 0xFF:#x}")
        while exits[-1].port != KEYBOARD:
            exits.append(vcpu.run())
        for exit in exits[:3] + exits[-2:]:
            print(exit.describe())
        print(f"{len(exits)} exits in all")
