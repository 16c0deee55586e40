"""Guest-physical memory with its slots and holes, and where an access goes."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Memory slots and holes",
        "Guest-physical memory: RAM from 0 to 3 GiB, a hole with devices and KVM's interrupt controllers up to "
        "4 GiB, RAM above. An access to RAM makes no exit; for one to the hole KVM decodes the instruction and leaves.",
    )
    d.label(200, 20, "guest-physical memory", bold=True)
    made = d.memory(
        130,
        40,
        150,
        [
            (0, 0xC000_0000, "slot 0: RAM"),
            (0xD000_0000, 0xD000_1000, "our console", "vmm"),
            (0xFEC0_0000, 0xFEE0_1000, "IOAPIC, LAPIC", "kvm"),
            (0x1_0000_0000, 0x1_4000_0000, "slot 1: RAM"),
        ],
        h=56,
    )
    d.label(560, 20, "what a load or store does", bold=True)
    boxes = {
        "slot 1: RAM": ("memory", "done by the processor", "no exit"),
        "IOAPIC, LAPIC": ("kvm", "done in the kernel", "an exit to KVM, none to us"),
        "our console": ("vmm", "KVM decodes the instruction", "KVM_EXIT_MMIO: address, size, data"),
        "slot 0: RAM": ("memory", "done by the processor", "no exit"),
    }
    for name, (kind, text, sub) in boxes.items():
        box = made[name]
        d.arrow(box, d.box(400, box.y + 2, 310, box.h - 4, text, sub=sub, kind=kind))
    return d
