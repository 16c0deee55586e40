"""Lesson 5, solved."""

from pyvmm.registers import Field, Register, RegisterFile, RegisterMap

DR, OE, THRE, TEMT = 0x01, 0x02, 0x20, 0x40
DLAB = 0x80

REGISTERS = RegisterMap(
    8,
    Register("RBR", 0, "PC16550D table II", access="r", bank=0),
    Register("THR", 0, "PC16550D table II", access="w", bank=0),
    Register("DLL", 0, "PC16550D 8.3", bank=1),
    Register("DLM", 1, "PC16550D 8.3", bank=1),
    Register("LCR", 3, "PC16550D 8.1", Field("WLS", 0x03, "word length"), Field("DLAB", DLAB, "divisor latch access")),
    Register("LSR", 5, "PC16550D 8.4", Field("DR", DR, ""), Field("OE", OE, ""), Field("THRE", THRE, ""),
             Field("TEMT", TEMT, ""), access="r"),
    Register("SCR", 7, "PC16550D 8.10"),
)  # fmt: skip


class Uart(RegisterFile, registers=REGISTERS):
    """A UART without FIFOs that sends and receives."""

    def __init__(self):
        super().__init__("uart")
        self.sent = b""
        self.character = 0
        self.lsr = THRE | TEMT
        self.dll = self.dlm = self.lcr = self.scr = 0

    def receive(self, character):
        """A character (0 to 255) has come in from the other end."""
        if self.lsr & DR:
            self.lsr |= OE
        self.character = character
        self.lsr |= DR

    def read_rbr(self):
        self.lsr &= ~DR
        return self.character

    def write_thr(self, value):
        self.sent += bytes([value])

    def read_lsr(self):
        value = self.lsr
        self.lsr &= ~OE
        return value

    def read_lcr(self):
        return self.lcr

    def write_lcr(self, value):
        self.lcr = value
        self.select(1 if value & DLAB else 0)

    def read_dll(self):
        return self.dll

    def write_dll(self, value):
        self.dll = value

    def read_dlm(self):
        return self.dlm

    def write_dlm(self, value):
        self.dlm = value

    def read_scr(self):
        return self.scr

    def write_scr(self, value):
        self.scr = value
