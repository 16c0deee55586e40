"""The way of an interrupt, from a device's line to the handler; and a level in time."""

from itertools import pairwise

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "The way of an interrupt",
        "A device's line is set by KVM_IRQ_LINE or an irqfd. Inside KVM it leads by its GSI to the PICs and to the "
        "I/O APIC; these tell the local APIC of a vCPU a vector. The vector chooses a gate in the guest's IDT, the "
        "gate the handler.",
    )
    device = d.box(10, 80, 120, 60, "device", kind="vmm", sub="line 5 high")
    d.box(200, 14, 310, 236, "in the kernel: KVM", kind="kvm", top=True, dashed=True)
    pic = d.box(220, 50, 120, 48, "PICs", kind="kvm", sub="masked here")
    ioapic = d.box(220, 126, 120, 48, "I/O APIC", kind="kvm", sub="pin 5: 0x35, level")
    msi = d.box(220, 190, 120, 44, "MSI", kind="kvm", sub="a message")
    lapic = d.box(390, 110, 105, 80, "local APIC", kind="kvm", sub="IRR, ISR, priorities")
    idt = d.box(570, 66, 140, 48, "IDT, gate 0x35", kind="guest")
    handler = d.box(570, 186, 140, 48, "handler", kind="guest", sub="device, then EOI")
    d.arrow(device, pic, "GSI 5", room=60)
    d.arrow(device, ioapic)
    d.arrow((70, 212), msi, "irqfd")
    d.arrow(pic.right, lapic.at(0, 0.2), dashed=True)
    d.arrow(ioapic.right, lapic.left)
    d.arrow(msi.right, lapic.at(0, 0.8))
    d.arrow(lapic, idt, "vector", room=60)
    d.arrow(idt, handler, "jump")
    d.arrow(handler, (495, 175), "EOI", dashed=True, above=False)
    return d


def level():
    d = Drawing(
        "A level in time",
        "Three letters come at once: the line rises. Each interrupt takes one; after the end of the first and the "
        "second the line is still high, so the next follows. The third takes the last letter: the line "
        "falls before its end.",
    )

    def row(y, name, points):
        d.label(10, y + 10, name, anchor="start", bold=True)
        for before, after in pairwise(points):
            for part in ((before, (after[0], before[1])), ((after[0], before[1]), after)):
                if part[0] != part[1]:
                    d.line((part[0][0], y + 20 - 20 * part[0][1]), (part[1][0], y + 20 - 20 * part[1][1]))

    row(30, "line 5", [(110, 0), (150, 1), (590, 0), (700, 0)])
    row(80, "in service", [(110, 0), (190, 1), (300, 0), (340, 1), (450, 0), (490, 1), (620, 0), (700, 0)])
    for x, text in ((150, "post abc"), (245, "a"), (395, "b"), (560, "c")):
        d.label(x, 14, text, mono=True, size=12)
    for x in (300, 450, 620):
        d.arrow((x, 140), (x, 106), "EOI")
    return d
