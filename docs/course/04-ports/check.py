"""Lesson 4: whether the exercises are right. Each check says what is wrong, or "" if nothing is."""

from pyvmm.bus import PORTS, Bus
from pyvmm.kvm.exits import Pio


def check_stack(work):
    bus = Bus("port", PORTS)
    bus.attach(0x500, 2, work.exercise.Stack())

    def read(offset, size, expected, when):
        found = bus.read(0x500 + offset, size)
        if found is None:
            return f"read({offset}, {size}) {when} gives None: a read returns a number"
        return "" if found == expected else f"read({offset}, {size}) {when} gives {found!r}, expected {expected:#x}"

    wrong = read(1, 1, 0, "of a new device") or read(0, 1, 0, "of an empty stack")
    for value in (0x11, 0x22, 0x33):
        bus.write(0x500, 1, value)
    wrong = wrong or read(1, 1, 3, "after three pushes")
    for value in (0x33, 0x22):
        wrong = wrong or read(0, 1, value, "after pushes of 0x11, 0x22, 0x33 (what came last goes first)")
    wrong = wrong or read(1, 1, 1, "after three pushes and two pops")
    for value in range(0x40, 0x54):  # more than there is room for, on top of the one
        bus.write(0x500, 1, value)
    wrong = wrong or read(1, 1, 16, "after 20 pushes too many (a guest must not choose how much memory you need)")
    wrong = wrong or read(0, 1, 0x4E, "of a stack that took no push once it was full")
    bus.write(0x501, 1, 0x99)
    bus.write(0x500, 2, 0x7788)
    wrong = wrong or read(1, 1, 15, "after a write to offset 1 and one of two bytes, which do nothing")
    return wrong or read(0, 2, 0xFFFF, "(two bytes wide)") or read(1, 1, 15, "after a read of two bytes")


class Recorder:
    """In the place of a bus: keeps what it is asked, and answers reads with 0x40, 0x41, ..."""

    def __init__(self):
        self.seen = []
        self.reads = 0

    def read(self, port, size):
        self.seen.append(("read", hex(port), size))
        self.reads += 1
        return 0x3F + self.reads

    def write(self, port, size, value):
        self.seen.append(("write", hex(port), size, value))


def check_serve(work):
    cases = (
        (Pio(0x3F8, 1, 1, True, b"A"), [("write", "0x3f8", 1, 0x41)], None),
        (Pio(0x502, 2, 1, False), [("read", "0x502", 2)], b"\x40\x00"),
        (Pio(0x3F8, 1, 3, True, b"abc"), [("write", "0x3f8", 1, value) for value in b"abc"], None),
        (Pio(0x1F0, 2, 2, True, b"\x34\x12\x78\x56"), [("write", "0x1f0", 2, v) for v in (0x1234, 0x5678)], None),
        (Pio(0xCFC, 4, 2, False), [("read", "0xcfc", 4)] * 2, b"\x40\0\0\0\x41\0\0\0"),
        (Pio(0xE9, 1, 5, False), [("read", "0xe9", 1)] * 5, b"@ABCD"),
    )
    for exit, seen, answer in cases:
        bus = Recorder()
        what = f"{'out' if exit.is_write else 'in'} port {exit.port:#x}, size {exit.size}, count {exit.count}"
        found = work.exercise.serve(bus, exit)
        if not bus.seen:
            return f"{what}: serve() asked the bus for nothing"
        if bus.seen != seen:
            hint = ": a string instruction stays at its port" if len({each[1] for each in bus.seen}) > 1 else ""
            return f"{what}: the bus saw {bus.seen}, expected {seen}{hint}"
        if found != answer:
            return f"{what}: serve() returned {found!r}, expected {answer!r}"
    return ""
