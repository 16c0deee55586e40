"""Lesson 9: whether the exercises are right. Each check says what is wrong, or "" if nothing is."""

GATES = (
    ((0x10005C, 0x08), "5c0008 00008e1000 00000000 00000000"),
    ((0xFFFF_8000_1234_5678, 0x10), "78561000008e3412 0080ffff 00000000"),
    ((0x1000, 0x08, 3), "00100800038e0000 00000000 00000000"),
    ((0x1000, 0x33, 0, 3), "0010330000ee0000 00000000 00000000"),
)
PARTS = ((0, 2, "address, bits 15-0"), (2, 4, "selector"), (4, 5, "IST"), (5, 6, "present, privilege level and type"))
PARTS += ((6, 8, "address, bits 31-16"), (8, 12, "address, bits 63-32"), (12, 16, "reserved bytes"))


def check_gate(work):
    for arguments, text in GATES:
        expected = bytes.fromhex(text.replace(" ", ""))
        found = work.exercise.gate(*arguments)
        call = f"gate({', '.join(map(hex, arguments))})"
        if not isinstance(found, bytes) or len(found) != 16:
            return f"{call}: got {found!r}, expected 16 bytes"
        for start, end, what in PARTS:
            if found[start:end] != expected[start:end]:
                return f"{call}: {what}: got {found[start:end].hex(' ')}, expected {expected[start:end].hex(' ')}"
    return ""


# Steps: ("raise" or "lower", line), ("mask", bits), ("pending", line or None), ("take", vector), ("end", None).
EDGES = """
raise 4; pending 4; take 0x24; pending -; raise 4; pending -; lower 4; pending -; end; pending -
raise 4; pending 4; lower 4; pending 4; take 0x24; end; pending -
raise 5; raise 3; pending 3; take 0x23; pending -; raise 1; pending 1; take 0x21; pending -
end; pending -; end; pending 5; take 0x25; end; end; pending -
lower 3; mask 0x08; raise 3; pending -; mask 0x00; pending 3; take 0x23; end
lower 7; raise 7; take 0x27; lower 0; raise 0; pending 0; take 0x20; end; pending -; end; pending -
"""
LEVELS = """
raise 4; pending 4; take 0x34; pending -; end; pending 4; take 0x34; lower 4; end; pending -
raise 2; lower 2; pending -; raise 6; mask 0xff; pending -; lower 6; mask 0x00; pending -
raise 6; take 0x36; raise 2; pending 2; take 0x32; lower 2; end; pending -; lower 6; end; pending -
"""


def _replay(controller, text, kind):
    done = []
    for step in text.replace("\n", ";").split(";"):
        if not step.strip():
            continue
        what, _, argument = step.strip().partition(" ")
        found, expected = None, None
        if what in ("raise", "lower"):
            controller.set_line(int(argument), what == "raise")
        elif what == "mask":
            controller.mask = int(argument, 16)
        elif what == "end":
            controller.end_of_interrupt()
        elif what == "pending":
            found, expected = controller.pending(), None if argument == "-" else int(argument)
        else:
            found, expected = controller.acknowledge(), int(argument, 16)
        done.append(step.strip())
        if found != expected:
            if what == "pending":
                text = f"pending() is {found}, expected {expected}"
            else:
                shown = hex(found) if isinstance(found, int) else found
                text = f"acknowledge() gives {shown}, expected {expected:#x}"
            return f"{kind}, behind the steps {', '.join(done[-7:-1])}: {text}"
    return ""


def check_controller(work):
    Controller = work.exercise.Controller
    return _replay(Controller(0x20), EDGES, "edges") or _replay(Controller(0x30, level=True), LEVELS, "levels")
