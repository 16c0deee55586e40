"""Where a VMM stands, and how a trap goes."""

from pyvmm.course.draw import Drawing


def draw():
    d = Drawing(
        "Type 1, type 2, KVM and containers",
        "Four towers. Type 1: guests with their kernels on a hypervisor on the hardware. Type 2: a guest in a VMM, "
        "which is a program on a host kernel. KVM: a guest in a process whose other half, KVM, is part of Linux. "
        "Containers: programs directly on the one host kernel.",
    )

    def tower(x, name, layers):
        d.label(x + 78, 20, name, bold=True)
        y = 40
        for height, text, kind, sub in layers:
            d.box(x, y, 156, height, text, kind=kind, sub=sub)
            y += height + 6

    program, hardware = (44, "programs", "plain", ""), (44, "hardware", "hardware", "")
    kernel = (44, "guest kernel", "guest", "")
    tower(10, "type 1", [program, kernel, (94, "hypervisor", "kvm", "has the machine"), hardware])
    tower(190, "type 2", [program, kernel, (44, "VMM", "vmm", "a program"), (44, "host kernel", "host", ""), hardware])
    host = (44, "Linux with KVM", "kvm", "a kernel module")
    tower(370, "KVM", [program, kernel, (44, "pyvmm", "vmm", "a process"), host, hardware])
    tower(
        550,
        "containers",
        [(144, "programs", "plain", "each group sees its own"), (44, "host kernel", "host", "one for all"), hardware],
    )
    return d


def trap():
    d = Drawing(
        "Trap and emulate",
        "The guest runs on the processor. At CLI, which user mode may not execute, the processor traps to the VMM. "
        "The VMM clears the virtual interrupt flag, moves the guest's instruction pointer on and returns to the guest.",
    )
    d.sequence(
        20, 10, 680,
        [("guest", "guest"), ("processor", "hardware"), ("VMM", "vmm")],
        [
            (0, 1, "mov, add, jmp, ..."),
            (0, 0, "executed directly"),
            (0, 1, "CLI"),
            (1, 2, "trap: not in user mode"),
            (2, 2, "clears the virtual IF, moves IP on"),
            (2, 0, "goes on", "dashed"),
        ],
    )  # fmt: skip
    return d
