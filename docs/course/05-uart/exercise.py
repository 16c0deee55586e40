"""Lesson 5: complete a small UART. `pyvmm lesson check 5` replays accesses to it."""

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
    """Exercise `uart`: a UART without FIFOs that sends and receives.

    What is written to THR goes to the end of `self.sent`, at once: THRE and TEMT are always set. `receive` is called
    by the host's side. It holds one character: another one that comes before the guest has read the first takes its
    place, and the line status says OE (8.4, bit 1). Reading RBR gives the character and clears DR; reading LSR clears
    OE. DLL, DLM, LCR and SCR read back as written. With DLAB set, offsets 0 and 1 are DLL and DLM.
    """

    def __init__(self):
        super().__init__("uart")
        self.sent = b""
        self.character = 0
        self.lsr = THRE | TEMT
        self.dll = self.dlm = self.lcr = self.scr = 0

    def receive(self, character):
        """A character (0 to 255) has come in from the other end."""
        ...

    def read_rbr(self): ...

    def write_thr(self, value): ...

    def read_lsr(self): ...

    def read_lcr(self):
        return self.lcr

    def write_lcr(self, value):
        self.lcr = value  # and something else happens

    def read_dll(self): ...

    def write_dll(self, value): ...

    def read_dlm(self): ...

    def write_dlm(self, value): ...

    def read_scr(self):
        return self.scr

    def write_scr(self, value):
        self.scr = value
