"""Many CPUs, what they say of themselves, and an MSR that only user space knows."""

import mmap

from pyvmm import VM
from pyvmm.images import guest
from pyvmm.kvm import Kvm
from pyvmm.kvm.constants import (
    KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN,
)
from pyvmm.kvm.exits import Hlt, Pio, Rdmsr, Wrmsr

REFUSED = KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN
STATES = {0: "runnable", 1: "waits for INIT", 2: "waits for SIPI", 3: "halted", 4: "has got SIPI"}


def start():
    """Four CPUs before the first instruction and after the last."""
    with VM(guest("smp").path(), cpus=4, append="4", mem="16M", timeout=30, paused=True) as vm:
        print("before:", [STATES[vcpu.get_mp_state()] for vcpu in vm.vcpus])
        vm.resume()
        vm.wait()
        print(vm.console.text, end="")
        print("after: ", [STATES[vcpu.get_mp_state()] for vcpu in vm.vcpus])


def identity():
    """The same guest, told two different things."""
    for cpu in ("host", "host,-hypervisor"):
        with VM(guest("cpuid").path(), cpu=cpu, mem="8M", timeout=30) as vm:
            vm.wait()
            print(f"--cpu {cpu}: {vm.console.text.splitlines()[-1]}")


def ask_msr(answering):
    """Run lesson11-msr on bare KVM, with MSR exits or without."""
    with mmap.mmap(-1, 1 << 20) as memory, Kvm() as kvm, kvm.create_vm() as vm:
        if answering:
            vm.enable_cap(KVM_CAP_X86_USER_SPACE_MSR, REFUSED)
        vm.set_tss_addr(0xFFFBD000)
        with open(guest("lesson11-msr").path(), "rb") as file:
            memory[0x7C00:0x8000] = file.read().ljust(0x400, b"\0")
        vm.set_user_memory_region(0, 0, memoryview(memory))
        vcpu = vm.create_vcpu(0)
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.base = sregs.cs.selector = 0
        regs.rip, regs.rsp = 0x7C00, 0x7000
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        serve(vcpu)


def serve(vcpu):
    values, text = {}, ""
    while not isinstance(exit := vcpu.run(), Hlt):
        if isinstance(exit, Rdmsr):
            vcpu.answer(exit, values.get(exit.index, 41).to_bytes(8, "little"))
        if isinstance(exit, Wrmsr):
            values[exit.index] = exit.value
        if isinstance(exit, Pio) and exit.port == 0x3F8:
            text += exit.data.decode()
        else:
            print(" ", exit.describe())
    print("  the guest says:", text, end="")


def msr():
    for answering in (False, True):
        print("with MSR exits:" if answering else "without MSR exits:")
        ask_msr(answering)
