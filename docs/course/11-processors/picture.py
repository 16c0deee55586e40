"""How a second CPU comes to life."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Starting a second CPU",
        "Two threads of the VMM call KVM_RUN. The first runs the guest; the second blocks, since its vCPU waits for "
        "INIT. The first CPU sends INIT and SIPI through its local APIC, which is in KVM; KVM resets the second vCPU "
        "and starts it in real mode at page 8. The VMM sees nothing of that.",
    )
    d.sequence(
        10,
        10,
        700,
        [("thread of vCPU 0", "vmm"), ("KVM: local APICs", "kvm"), ("thread of vCPU 1", "vmm")],
        [
            (0, 1, "KVM_RUN: the guest boots"),
            (2, 1, "KVM_RUN"),
            (1, 1, "vCPU 1 waits for INIT: the call blocks"),
            (0, 1, "guest writes INIT to the interrupt command register"),
            (1, 1, "vCPU 1 is reset and waits for SIPI"),
            (0, 1, "guest writes SIPI, vector 8"),
            (1, 2, "vCPU 1 runs in real mode from 0x8000", "dashed"),
        ],
        step=36,
    )
    return d
