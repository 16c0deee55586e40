"""Two modes and what is between them, and the exit qualification of IN and OUT."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Root and non-root mode",
        "Left, root mode: pyvmm in ring 3 and KVM in ring 0. Right, non-root mode: the guest's programs in ring 3 and "
        "its kernel in ring 0. A VM entry leads from KVM to the guest, a VM exit back. Both are governed by the VMCS "
        "or VMCB, which holds the guest's state, what shall exit, and why it exited.",
    )
    d.box(10, 10, 240, 190, "root mode", kind="host", top=True)
    pyvmm = d.box(60, 48, 170, 50, "pyvmm", sub="ring 3", kind="vmm")
    kvm = d.box(60, 138, 170, 50, "KVM", sub="ring 0", kind="kvm")
    d.box(470, 10, 240, 190, "non-root mode", kind="plain", top=True)
    programs = d.box(490, 48, 170, 50, "guest's programs", sub="ring 3", kind="guest")
    kernel = d.box(490, 138, 170, 50, "guest's kernel", sub="ring 0", kind="guest")
    d.arrow(pyvmm, kvm, "KVM_RUN", both=True)
    d.arrow(programs, kernel, "system call", both=True)
    d.arrow((230, 152), (490, 152), "VM entry: VMLAUNCH, VMRESUME, VMRUN", room=190, kind="guest")
    d.arrow((490, 174), (230, 174), "VM exit", above=False, kind="alarm")
    d.box(230, 240, 260, 60, "VMCS or VMCB", sub="guest's state, what exits, why it did", kind="memory")
    d.line((360, 240), (360, 196), dashed=True)
    return d


def qualification():
    d = Drawing(
        "Exit qualification of an I/O instruction, bits 31 to 0",
        "Bits 31 to 16: the port. Bit 6: the port was an immediate operand rather than DX. Bit 5: REP. Bit 4: a string "
        "instruction. Bit 3: IN rather than OUT. Bits 2 to 0: the number of bytes minus one.",
    )
    fields = [
        ("port", 31, 16),
        ("", 15, 7),
        ("IMM", 6, 6),
        ("REP", 5, 5),
        ("STR", 4, 4),
        ("IN", 3, 3),
        ("size-1", 2, 0),
    ]
    d.bits(10, 10, 700, fields)
    return d
