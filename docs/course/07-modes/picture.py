"""From real mode to 64-bit mode, and the parts of a descriptor."""

from pyvmm.course.draw import Drawing

MODES = (
    ("real mode", "CR0.PE = 0"),
    ("protected mode", "PE = 1, CS.D = 1"),
    ("compatibility mode", "LMA = 1, CS.L = 0"),
    ("64-bit mode", "LMA = 1, CS.L = 1"),
)
STEPS = ("GDT, CR0.PE, far jump", "tables, CR4.PAE, CR3, EFER.LME, CR0.PG", "far jump")


def draw():
    d = Drawing(
        "From real mode to 64-bit mode",
        "Real mode; a GDT, CR0.PE and a far jump lead to protected mode; page tables, CR4.PAE, CR3, EFER.LME and "
        "CR0.PG to compatibility mode; a far jump to 64-bit mode. The last two are long mode. "
        "Below, the fields of a descriptor.",
    )
    d.box(368, 14, 342, 112, "long mode: EFER.LMA = 1", top=True, dashed=True)
    before = None
    for x, (name, sub) in zip((10, 190, 376, 562), MODES, strict=True):
        box = d.box(x, 46, 140, 64, name, sub=sub, kind="guest")
        if before is not None:
            d.arrow(before, box)
        before = box
    for x, step in zip((170, 350, 538), STEPS, strict=True):
        d.label(x, 158, step, size=12, room=140)
    high = [("base", 31, 24), ("G", 23, 23), ("D", 22, 22), ("L", 21, 21), ("", 20, 20), ("limit", 19, 16)]
    high += [("P", 15, 15), ("DPL", 14, 13), ("S", 12, 12), ("type", 11, 8), ("base 23-16", 7, 0)]
    d.bits(10, 200, 700, high, name="a descriptor, upper 4 bytes")
    d.bits(10, 312, 700, [("base 15-0", 31, 16), ("limit 15-0", 15, 0)], name="lower 4 bytes")
    return d
