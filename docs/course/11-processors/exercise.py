"""Lesson 11: many CPUs. Complete the two functions; `pyvmm lesson check 11` tells what is still wrong."""

from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.exits import Hlt, Rdmsr, Wrmsr


def cpuid_of(entries, vcpu, vcpus):
    """What CPUID shall answer on CPU number `vcpu` of `vcpus`, a new list made from what KVM supports.

    `entries` is a list of CpuidEntry (attributes function, index, flags, eax, ebx, ecx, edx); neither the list nor what
    is in it may be changed. All entries are copied as they are, but leaf 1:
        ECX bit 31        set: there is a hypervisor
        ECX bit 3         clear: no MONITOR
        EBX bits 31:24    the APIC ID, which is `vcpu`
        EBX bits 23:16    the number of logical processors, `vcpus`
    """
    ...


def serve(vcpu):
    """Run `vcpu` until it halts; returns the value that the MSR LIMIT had then.

    Exits come from vcpu.run(). The guest has two registers of user space's:
        LIMIT     0x4b564dfe    8 bytes, 0 at first; bits 63:32 must be 0, or the write is refused
        COUNTER   0x4b564dff    read-only: how often it has been read before; a write is refused
    Every other MSR is refused. vcpu.answer(exit, data) answers a Rdmsr with 8 bytes, vcpu.refuse(exit) makes a Rdmsr or
    Wrmsr a #GP in the guest; a Wrmsr that is not refused succeeds. A Hlt ends it. There are no other exits.
    """
    ...
