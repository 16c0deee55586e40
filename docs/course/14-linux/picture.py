"""What a loader leaves in memory for Linux, and the ways of a write to a device's register."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "How far a write travels",
        "A write to a device's register leaves the guest and reaches KVM. An ioeventfd or a coalesced zone ends its "
        "way there: KVM signals or notes it and re-enters the guest. Otherwise KVM_RUN returns to the loop in C, which "
        "may post it and call KVM_RUN again. What is left goes on to Python: bus and device model.",
    )
    d.layers(
        110,
        20,
        240,
        [
            ("guest: OUT or MOV", "guest"),
            ("KVM", "kvm", "in the host's kernel"),
            ("loop in C", "vmm", "one system call away"),
            ("Python: bus and device", "vmm", "with the interpreter's lock"),
        ],
        h=56,
        gap=44,
    )
    d.arrow((200, 76), (200, 120), "exit", above=False)
    d.arrow((200, 176), (200, 220), "KVM_RUN returns", above=False)
    d.arrow((200, 276), (200, 320), "the loop returns", above=False)
    notes = (
        (148, "ioeventfd: signal, and back", "coalesced: note it, and back"),
        (248, "posted: kept, and back", "shadow: a read is answered"),
        (348, "whatever needs a decision", "status, set-up, errors"),
    )
    for y, first, second in notes:
        box = d.box(440, y - 28, 260, 56, first, sub=second, kind="note")
        d.arrow((350, y), box)
    return d


def memory():
    d = Drawing(
        "What a loader leaves in memory",
        "From low addresses to high: page tables, boot_params (the zero page) at 0x10000, the command line, the MP "
        "table at the end of low memory, the hole of devices and firmware with the ACPI tables, the kernel's segments "
        "from 16 MiB on, and the initrd at the end of RAM. A register points to boot_params, which points to the rest.",
    )
    ranges = [
        (0x1000, 0x7000, "page tables", "vmm"),
        (0x10000, 0x11000, "boot_params", "vmm"),
        (0x20000, 0x21000, "command line", "vmm"),
        (0x9FC00, 0xA0000, "MP table", "vmm"),
        (0xE0000, 0x100000, "ACPI tables", "vmm"),
        (0x1000000, 0x1E16000, "kernel", "guest"),
        (0x3E12000, 0x4000000, "initrd", "guest"),
    ]
    made = d.memory(250, 20, 220, ranges, h=34, digits=7)
    right, left = made["boot_params"], 250
    register = d.box(20, right.y, 110, 34, "a register", kind="hardware")
    d.arrow(register, (left, right.y + 17))
    for name, x in (("command line", 510), ("initrd", 560)):
        y = made[name].y + 17
        d.arrow((470, right.y + 17), (470, y), via=[(x, right.y + 17), (x, y)])
    d.label(580, right.y + 17, "addresses,", anchor="start", size=12)
    d.label(580, right.y + 33, "lengths, e820", anchor="start", size=12)
    return d
