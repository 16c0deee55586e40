"""Lesson 9: a gate, and an interrupt controller. `pyvmm lesson check 9` looks at both."""


def gate(handler, selector, ist=0, ring=0):
    """Exercise `gate`: the 16 bytes of an interrupt gate of 64-bit mode (Intel SDM volume 3A, 6.14.1, figure 6-8).

    `handler` is its 64-bit address, `selector` that of the code segment, `ist` 0 to 7, `ring` the privilege level from
    which `int` may call it. The gate is present, its type is 0xe.
    """
    ...


class Controller:
    """Exercise `controller`: an interrupt controller with eight lines, as an 8259A in its plainest mode.

    Line n has the vector `base` + n; line 0 has the highest priority. A line whose bit in `mask` is set does not
    interrupt; its request waits. `level` False: a request begins with a rising edge and ends when it is acknowledged.
    `level` True: there is a request for as long as the line is high.
    """

    def __init__(self, base, level=False):
        self.base = base
        self.level = level
        self.mask = 0
        self.lines = self.requests = self.service = 0

    def set_line(self, line, high):
        """A device sets line number `line` to high (True) or low (False)."""
        ...

    def pending(self):
        """The number of the line that interrupts the processor now, or None.

        It has a request that is not masked, and a higher priority than every line in service.
        """
        ...

    def acknowledge(self):
        """The processor takes the interrupt: its line is in service from now on. Returns the vector.

        Called only while `pending()` is not None.
        """
        ...

    def end_of_interrupt(self):
        """The handler is done: the line of the highest priority in service is so no more. Nothing if there is none."""
        ...
