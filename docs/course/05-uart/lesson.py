"""Lesson 5: a UART that can only send, written from the data sheet (National Semiconductor, PC16550D, June 1995)."""

from pyvmm import VM
from pyvmm.images import guest
from pyvmm.registers import Field, Register, RegisterFile, RegisterMap

REGISTERS = RegisterMap(
    8,
    Register("THR", 0, "PC16550D table II", access="w", bank=0),
    Register("DLL", 0, "PC16550D 8.3", bank=1),
    Register("DLM", 1, "PC16550D 8.3", bank=1),
    Register("LCR", 3, "PC16550D 8.1", Field("WLS", 0x03, "word length", {3: "8"}), Field("DLAB", 0x80, "divisor")),
    Register("LSR", 5, "PC16550D 8.4", Field("THRE", 0x20, "THR empty"), Field("TEMT", 0x40, "all sent"), access="r"),
    Register("SCR", 7, "PC16550D 8.10"),
)


def keeps(name):
    """The reader and the writer of a register that does nothing but keep its value."""
    return (lambda self: self.kept[name]), (lambda self, value: self.kept.update({name: value}))


class SmallUart(RegisterFile, registers=REGISTERS):
    read_dll, write_dll = keeps("DLL")
    read_dlm, write_dlm = keeps("DLM")
    read_scr, write_scr = keeps("SCR")

    def __init__(self):
        super().__init__("uart")
        self.sent = b""
        self.kept = dict.fromkeys(("DLL", "DLM", "LCR", "SCR"), 0)

    def write_thr(self, value):
        self.sent += bytes([value])  # the wire is infinitely fast,

    def read_lsr(self):
        return 0x60  # so THRE and TEMT are always set

    def read_lcr(self):
        return self.kept["LCR"]

    def write_lcr(self, value):
        self.kept["LCR"] = value
        self.select(1 if value & 0x80 else 0)  # DLAB: who answers at offsets 0 and 1


def absent():
    with VM(guest("lesson05-uart").path(), timeout=30) as vm:
        vm.wait()
    print(vm.console.text, end="")


def drive():
    uart = SmallUart()
    vm = VM(guest("lesson05-uart").path(), timeout=30, paused=True)

    def show(vcpu, exit):
        if 0x2F8 <= exit.port < 0x300:
            register = uart.register_at(exit.port - 0x2F8, exit.is_write)
            print(f"{'out' if exit.is_write else 'in '} {register.describe(exit.data[0])}")

    vm.on_exit("IO", show)
    with vm:
        vm.machine.ports.attach(0x2F8, 8, uart)
        vm.resume()
        vm.wait()
    print(f"sent: {uart.sent!r}, divisor: {uart.kept['DLL'] | uart.kept['DLM'] << 8}")
