"""Lesson 7: the modes of a processor, watched from outside."""

from pyvmm import VM
from pyvmm.images import guest

CR0 = {0: "PE", 31: "PG"}
CR4 = {5: "PAE"}
EFER = {8: "LME", 10: "LMA"}


def bits(value, names):
    """The names of the bits that are set in `value`, or a dash."""
    return " ".join(name for bit, name in names.items() if value >> bit & 1) or "-"


def watch():
    """At each letter that the guest prints: what makes up its mode."""
    vm = VM(guest("lesson07-modes").path(), timeout=30)

    def show(vcpu, exit):
        if exit.port == 0xE9:
            sregs = vcpu.get_sregs()
            registers = [(sregs.cr0, CR0), (sregs.cr4, CR4), (sregs.efer, EFER)]
            texts = [f"{bits(value, names):7}" for value, names in registers]
            cs, ds = sregs.cs, sregs.ds
            print(f"{exit.data.decode()}: cr0 {texts[0]} cr4 {texts[1]} efer {texts[2]} ", end=" ")
            print(f"cs {cs.selector:#06x} D={cs.db} L={cs.l} limit {cs.limit:#x}; ds limit {ds.limit:#x}")

    vm.on_exit("IO", show)
    with vm:
        vm.wait()


def entry():
    """What the VMM has set up for a 64-bit kernel before its first instruction."""
    with VM(guest("hello64").path(), paused=True) as vm:
        sregs = vm.vcpus[0].get_sregs()
        print(f"rip {vm.registers.rip:#x}, cr0 {sregs.cr0:#x}, cr4 {sregs.cr4:#x}, efer {sregs.efer:#x}")
        print(f"cr3 {sregs.cr3:#x}, cs {sregs.cs.selector:#x} D={sregs.cs.db} L={sregs.cs.l}, gdt {sregs.gdt.base:#x}")
        for at in range(0, sregs.gdt.limit + 1, 8):
            print(f"  gdt {at:#04x}: {vm.memory.read_u64(sregs.gdt.base + at):#018x}")
        print(f"  PML4 entry 0: {vm.memory.read_u64(sregs.cr3):#x}")
