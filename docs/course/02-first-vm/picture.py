"""Three file descriptors and a piece of memory."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "What a VM is made of",
        "In the VMM's process are three kinds of file descriptor, each made by the one before: system (/dev/kvm), "
        "VM and vCPU. Memory of the process appears in the guest as its RAM, through a slot of the VM. KVM_RUN on "
        "the vCPU enters the guest; an exit comes back.",
    )
    d.box(10, 10, 700, 210, "your process", kind="vmm", top=True)
    system = d.box(30, 60, 130, 56, "system", sub="/dev/kvm")
    vm = d.box(290, 60, 130, 56, "VM", sub="one machine")
    vcpu = d.box(550, 60, 130, 56, "vCPU", sub="one processor")
    d.arrow(system, vm, "KVM_CREATE_VM", room=110)
    d.arrow(vm, vcpu, "KVM_CREATE_VCPU", room=120)
    memory = d.box(290, 156, 130, 48, "memory", sub="mmap", kind="memory")
    d.line(vm, memory, "slot", dashed=True)
    d.box(10, 290, 700, 100, "the guest", kind="guest", top=True)
    ram = d.box(290, 328, 130, 48, "RAM", sub="the same pages", kind="memory")
    d.box(550, 328, 130, 48, "processor", sub="until it exits", kind="hardware")
    d.arrow(memory, ram, "KVM_SET_USER_MEMORY_REGION", both=True, above=False, at=0.42)
    d.arrow((595, 116), (595, 328), "KVM_RUN", above=False, at=0.63)
    d.arrow((635, 328), (635, 116), "exit", at=0.37)
    return d
