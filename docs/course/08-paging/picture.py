"""Four levels of tables; and the two ways to put a VM's second translation behind them."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Four levels",
        "The address 0x00c0ffe0 in pieces: bits 47 to 39 choose the entry of the PML4, 38 to 30 of the PDPT, 29 to 21 "
        "of the page directory, 20 to 12 of the page table, 11 to 0 the byte in the page. CR3 says where the PML4 is.",
    )
    pieces = [("0", 47, 39), ("0", 38, 30), ("6", 29, 21), ("15", 20, 12), ("0xfe0", 11, 0)]
    d.label(10, 20, "0x00c0ffe0", anchor="start", bold=True)
    x = 110.0
    made = []
    for text, high, low in pieces:
        width = (high - low + 1) * 12.3
        d.label(x + width / 2, 48, f"{high}:{low}", size=11, mono=True, soft=True)
        made.append(d.box(x, 60, width, 34, text, mono=True))
        x += width
    d.label(10, 177, "CR3", anchor="start", bold=True)
    before = (45, 177)
    names = ("PML4", "PDPT", "page directory", "page table", "page")
    for piece, name in zip(made, names, strict=True):
        box = d.box(piece.center.x - 48, 150, 96, 54, name, kind="memory")
        d.arrow(piece, box)
        d.arrow(before, box)
        before = box
    return d


def twice():
    d = Drawing(
        "Two ways to translate twice",
        "With EPT or NPT the processor walks the guest's tables and, for each address in them, the hypervisor's. With "
        "shadow paging it walks one set of tables, from guest-virtual to host-physical, which the "
        "hypervisor keeps in step.",
    )
    d.label(360, 20, "EPT / NPT: the processor walks both", bold=True)
    virtual = d.box(10, 44, 150, 50, "guest-virtual", kind="guest")
    physical = d.box(285, 44, 150, 50, "guest-physical", kind="guest")
    host = d.box(560, 44, 150, 50, "host-physical", kind="host")
    d.arrow(virtual, physical, "guest's tables")
    d.arrow(physical, host, "EPT, by KVM")
    d.label(360, 140, "shadow paging: the processor walks one", bold=True)
    virtual = d.box(10, 170, 150, 50, "guest-virtual", kind="guest")
    host = d.box(560, 170, 150, 50, "host-physical", kind="host")
    d.arrow(virtual, host, "shadow tables, by KVM")
    tables = d.box(10, 280, 150, 50, "guest's tables", kind="guest", sub="write-protected")
    kvm = d.box(285, 280, 150, 50, "KVM", kind="kvm")
    slots = d.box(560, 280, 150, 50, "memory slots", kind="vmm")
    d.arrow(tables, kvm, "read")
    d.arrow(slots, kvm, "where")
    d.arrow(kvm, (360, 204), "writes the shadow")
    return d
