"""Where the state of a VM is."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Where the state of a VM is",
        "The source VM's state is in three places: vCPUs and interrupt controllers in KVM, device models in the VMM's "
        "process, and guest memory. All are copied to the destination: memory first and while the guest runs, the rest "
        "in the pause. Outside of the VM are disk image and network, which are not copied.",
    )
    d.box(10, 10, 300, 300, "source", kind="vmm", top=True)
    d.box(410, 10, 300, 300, "destination", kind="vmm", top=True)
    rows = (
        ("guest memory", "most of it", "memory", "while it runs"),
        ("vCPUs, controllers, clock", "in KVM", "kvm", "in the pause"),
        ("device models", "registers, FIFOs", "plain", "in the pause"),
    )
    for n, (name, sub, kind, when) in enumerate(rows):
        y = 56 + n * 84
        left = d.box(30, y, 260, 64, name, sub=sub, kind=kind)
        right = d.box(430, y, 260, 64, name, kind=kind)
        d.arrow(left, right, when, room=120)
    disk = d.box(150, 350, 180, 50, "disk image", kind="host", dashed=True)
    net = d.box(390, 350, 180, 50, "network, time of day", kind="host", dashed=True)
    d.label(360, 424, "outside of the VM: noted, or lost", size=12, soft=True)
    assert disk and net
    return d
