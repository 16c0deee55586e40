"""Exercises of lesson 2. Replace each `...` by your code; `pyvmm lesson check 2 .` says how far you are."""

from pyvmm.kvm.exits import Hlt, Pio  # what serve() will need

# The machine code of a guest that prints the digits 0 to 9 on the serial port, 0x3f8, and then halts.
# It is loaded at 0x7c00 and starts there, in real mode. One byte is written as \xNN.
DIGITS = b""


def linear(segment: int, offset: int) -> int:
    """The 20-bit linear address of segment:offset in real mode.

    The segment register counts in units of 16 bytes. `offset` may be larger than 16 bits; only its lowest 16 count.
    The result is cut to 20 bits, as on the 8086, whose bus had twenty address lines.
    """
    ...


def serve(vcpu) -> bytes:
    """Run `vcpu` until it halts; return what it wrote to port 0x3f8.

    A read of port 0x3fd is answered with the byte 0x60 (a serial port that is ready), a read of any other port with
    all ones, as many bytes as the guest asked for. Writes to other ports are ignored. An exit that is neither Pio nor
    Hlt raises RuntimeError.
    """
    ...
