"""Lesson 4: write a device, and serve an exit. `pyvmm lesson check 4` looks at both."""

from pyvmm import PortDevice


class Stack(PortDevice):
    """Exercise `stack`: a device of two ports that keeps up to 16 bytes.

    Writing a byte to offset 0 pushes it; reading a byte there pops the byte pushed last. Reading a byte at offset 1
    gives how many there are. When 16 are there, a push has no effect; when there is none, a pop reads 0. Writes to
    offset 1, and accesses wider than a byte, do nothing; such a read gives all ones of its width.
    """

    length = 2

    def __init__(self):
        self.bytes = []

    def read(self, offset, size): ...

    def write(self, offset, size, value): ...


def serve(bus, exit):
    """Exercise `serve`: do what a port exit of KVM asks for, with `bus.read(port, size)` and `bus.write(port, size,
    value)` alone.

    `exit` is a `pyvmm.kvm.exits.Pio`: `port`, `size` (1, 2 or 4), `count`, `is_write` and, of a write, `data`: size *
    count bytes, little-endian. With a count above 1 it is a string instruction: `count` accesses, in order, all to
    the same port. Returns None for a write; for a read the size * count bytes that the guest gets.
    """
    ...
