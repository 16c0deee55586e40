"""The way of one `in` instruction, out of the guest and back."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "The way of an in instruction",
        "The guest executes in; the processor exits to KVM, KVM_RUN returns to pyvmm with KVM_EXIT_IO, the bus finds "
        "the device, the device answers, and the next KVM_RUN writes the answer to AX.",
    )
    actors = [("guest", "guest"), ("KVM", "kvm"), ("run loop", "vmm"), ("bus", "vmm"), ("device", "vmm")]
    d.sequence(
        10,
        10,
        700,
        actors,
        [
            (0, 1, "inw %dx, %ax"),
            (1, 2, "IO in, port 0x502, size 2"),
            (2, 3, "read(0x502, 2)"),
            (3, 4, "read(2, 2)"),
            (4, 3, "42", "dashed"),
            (3, 2, "42", "dashed"),
            (2, 1, "2a 00, KVM_RUN", "dashed"),
            (1, 0, "AX = 42", "dashed"),
        ],
        step=44,
    )
    return d
