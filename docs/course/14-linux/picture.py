"""The ways of a write that the guest makes to a device's register."""

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
