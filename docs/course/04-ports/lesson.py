"""Lesson 4: ports. What a guest's in and out look like from outside, and a device that answers them."""

from itertools import groupby

from pyvmm import VM, BusConflictError, PortDevice
from pyvmm.bus import PORTS, Bus
from pyvmm.images import guest


class Multiplier(PortDevice):
    """Two factors, a byte each, at offsets 0 and 1; their product, two bytes wide, at offset 2."""

    length = 4

    def __init__(self):
        self.factors = [0, 0]

    def read(self, offset, size):
        if offset == 2 and size == 2:
            return self.factors[0] * self.factors[1]
        return (1 << 8 * size) - 1  # there is nothing else to read: all ones

    def write(self, offset, size, value):
        if offset < 2 and size == 1:
            self.factors[offset] = value


def run(vm):
    """Run the guest, then print its port exits; those of a string, one or many, in one line."""
    exits = []
    vm.on_exit("IO", lambda vcpu, exit: exits.append(exit))
    with vm:
        outcome = vm.wait()
    for _, group in groupby(exits, lambda exit: (exit.port, exit.is_write)):
        first, *others = group
        if others or first.count > 1:
            text = b"".join(exit.data for exit in [first, *others])
            print(f"IO out port {first.port:#x} size {first.size}, {len(text)} times: {text!r}")
        else:
            print(first.describe())
    print(f"unclaimed accesses: {vm.stats.unclaimed}; the guest leaves with status {outcome.status}")


def watch():
    run(VM(guest("lesson04-ports").path(), timeout=30))


def answer():
    vm = VM(guest("lesson04-ports").path(), timeout=30)
    vm.attach(Multiplier(), port=0x500)
    run(vm)


def bus():
    ports = Bus("port", PORTS)
    ports.attach(0x500, 4, Multiplier())
    ports.write(0x500, 1, 6)
    ports.write(0x501, 1, 7)
    print(f"0x502, two bytes: {ports.read(0x502, 2)}")
    print(f"0x503, two bytes: {ports.read(0x503, 2):#x} (half of it is beyond the device)")
    print(f"0x510, one byte: {ports.read(0x510, 1):#x}; unclaimed reads: {ports.unclaimed_reads}")
    try:
        ports.attach(0x502, 1, Multiplier())
    except BusConflictError as error:
        print(f"refused: {error}")
