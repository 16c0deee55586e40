"""The eight ports of a UART, and which registers stand behind them."""

from pyvmm.course.draw import Drawing

PORTS = (
    ("+0", "RBR", "THR", "DLL"),
    ("+1", "IER", "IER", "DLM"),
    ("+2", "IIR", "FCR", ""),
    ("+3", "LCR", "LCR", ""),
    ("+4", "MCR", "MCR", ""),
    ("+5", "LSR", "", ""),
    ("+6", "MSR", "", ""),
    ("+7", "SCR", "SCR", ""),
)


def draw():
    d = Drawing(
        "The registers of a 16550A",
        "Eight ports. At offset 0 a read means RBR, a write THR, and while DLAB is set both mean DLL; at offset 1 IER, "
        "with DLAB DLM. At offset 2 a read means IIR, a write FCR. Below, the bits of LCR and LSR.",
    )
    for x, text in ((145, "read"), (285, "write"), (450, "with DLAB set")):
        d.label(x, 22, text, bold=True)
    y = 38
    for offset, read, write, dlab in PORTS:
        d.label(50, y + 15, offset, mono=True)
        for x, name in ((80, read), (220, write), (385, dlab)):
            used = name in ("THR", "DLL", "DLM", "LCR", "LSR", "SCR")
            if name:
                d.box(x, y, 130, 30, name, kind="vmm" if used else "plain", mono=True)
        y += 35
    d.label(530, 53, "LCR bit 7, DLAB,", anchor="start", bold=True)
    d.label(530, 88, "gives offsets 0 and 1 to the divisor", anchor="start", room=180)
    d.label(50, y + 10, "Green: in this lesson's model; RBR is the exercise's", anchor="start", soft=True, size=12)
    lcr = [("DLAB", 7, 7), ("BREAK", 6, 6), ("STICK", 5, 5), ("EPS", 4, 4), ("PEN", 3, 3), ("STB", 2, 2), ("WLS", 1, 0)]
    lsr = [("ERR", 7, 7), ("TEMT", 6, 6), ("THRE", 5, 5), ("BI", 4, 4), ("FE", 3, 3), ("PE", 2, 2), ("OE", 1, 1)]
    d.bits(50, y + 32, 600, lcr, name="LCR")
    d.bits(50, y + 126, 600, [*lsr, ("DR", 0, 0)], name="LSR")
    return d
