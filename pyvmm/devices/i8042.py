"""The keyboard controller (i8042) without a keyboard: what is left is probing, the A20 gate, and reset.

Imports registers, state and events. Follows the IBM PS/2 Hardware Interface Technical Reference, "Keyboard and
Auxiliary Device Controller" (the PS/2 form of the Intel 8042: status bits 5 and 6 differ from the PC/AT's).

Nothing is plugged in, and every probe gets an answer at once: a byte for the keyboard gets what the
controller says when nobody clocks it out, 0xfe with the time-out bit. There is no second port: its disable
bit in the command byte stays 1 whatever is written, and its interface test says 0xff, no device. The output
buffer is one byte, as in the chip; a new answer replaces one that was not read.
"""

from __future__ import annotations

from pyvmm.registers import Field, PortWindow, Register, RegisterFile, RegisterMap
from pyvmm.state import U8, Bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.events import IrqLine

DATA, COMMAND = 0, 4
"""Offsets of the two ports; the three between them belong to others."""

STATUS_OBF, STATUS_SYS, STATUS_COMMAND, STATUS_UNLOCKED = 0x01, 0x04, 0x08, 0x10
STATUS_AUX_OBF, STATUS_TIMEOUT = 0x20, 0x40

REGISTERS = RegisterMap(
    5,
    Register("DATA", DATA, "IBM PS/2 Technical Reference, Keyboard and Auxiliary Device Controller"),
    Register(
        "STATUS",
        COMMAND,
        "IBM PS/2 Technical Reference, controller status register",
        Field("OBF", STATUS_OBF, "output buffer full: a byte to read"),
        Field("IBF", 0x02, "input buffer full: never, bytes are taken at once"),
        Field("SYS", STATUS_SYS, "system flag: the self-test has been passed"),
        Field("COMMAND", STATUS_COMMAND, "the last write was a command, not data"),
        Field("UNLOCKED", STATUS_UNLOCKED, "keyboard not locked"),
        Field("AUX_OBF", STATUS_AUX_OBF, "the byte to read is from the auxiliary device"),
        Field("TIMEOUT", STATUS_TIMEOUT, "time-out"),
        Field("PARITY", 0x80, "parity error: never"),
        access="r",
        reset=STATUS_SYS | STATUS_UNLOCKED,
    ),
    Register("COMMAND", COMMAND, "IBM PS/2 Technical Reference, controller commands", access="w"),
)

# The command byte (controller RAM, byte 0).
KEYBOARD_INTERRUPT, SYSTEM_FLAG, KEYBOARD_OFF, AUX_OFF, TRANSLATE = 0x01, 0x04, 0x10, 0x20, 0x40
RAM_BYTES = 32

# The output port: lines that the controller drives.
OUT_NO_RESET, OUT_A20, OUT_OBF, OUT_LINES_IDLE = 0x01, 0x02, 0x10, 0xC0

RESEND = 0xFE
"""What the controller answers in the place of a device that did not take its byte."""

_ANSWERS = {
    0xA9: 0xFF,  # auxiliary interface test: no auxiliary device
    0xAB: 0x00,  # keyboard interface test: nothing is wrong with the lines
    0xC0: 0x80,  # input port: keyboard not inhibited
    0xE0: 0x03,  # test inputs: clock and data idle, that is high
}
_SELF_TEST, _KEYBOARD_OFF, _KEYBOARD_ON = 0xAA, 0xAD, 0xAE
_READ_OUTPUT_PORT, _WRITE_OUTPUT_PORT = 0xD0, 0xD1
_TO_KEYBOARD_BUFFER, _TO_AUX_BUFFER, _TO_AUX_DEVICE = 0xD2, 0xD3, 0xD4
_READ_RAM, _WRITE_RAM, _PULSE = 0x20, 0x60, 0xF0
_TAKE_DATA = (_WRITE_OUTPUT_PORT, _TO_KEYBOARD_BUFFER, _TO_AUX_BUFFER, _TO_AUX_DEVICE)


class I8042(RegisterFile, registers=REGISTERS):
    """A keyboard controller: `data_port` and `command_port` are its bus devices, for ports 0x60 and 0x64.

    reset_machine   called when the guest pulls the processor's reset line, under the device's lock
    irq             interrupt line 1, a level: there is something to read
    """

    __slots__ = (
        "_a20",
        "_awaiting",
        "_irq",
        "_output",
        "_ram",
        "_reset_machine",
        "_status",
        "command_port",
        "data_port",
    )

    HOLDS = {"DATA": "_output", "STATUS": "_status"}
    STATE = {**dict.fromkeys(("_a20", "_awaiting", "_output", "_status"), U8), "_ram": Bytes(RAM_BYTES)}

    def __init__(self, reset_machine: Callable[[], None], irq: IrqLine | None = None, name: str = "i8042") -> None:
        super().__init__(name)
        self._reset_machine = reset_machine
        self._irq = irq
        self.data_port = PortWindow(self, DATA)
        self.command_port = PortWindow(self, COMMAND)
        self.reset()

    def reset(self) -> None:
        """As firmware leaves it: self-test passed, A20 on."""
        self._status = REGISTERS["STATUS"].reset
        self._output = 0
        self._ram = bytearray(RAM_BYTES)
        self._ram[0] = KEYBOARD_INTERRUPT | SYSTEM_FLAG | AUX_OFF | TRANSLATE
        self._a20 = OUT_A20
        self._awaiting = 0
        """The command that waits for its data byte, or 0."""
        self._settle()

    def restored(self) -> None:
        """See to the interrupt line."""
        self._settle()

    def _answer(self, value: int, flags: int = 0) -> None:
        self._output = value
        self._status = self._status & ~(STATUS_AUX_OBF | STATUS_TIMEOUT) | STATUS_OBF | flags
        self._settle()

    def _settle(self) -> None:
        if self._irq is not None:
            full = self._status & (STATUS_OBF | STATUS_AUX_OBF) == STATUS_OBF
            self._irq.set(full and self._ram[0] & KEYBOARD_INTERRUPT != 0)

    def read_data(self) -> int:
        """The output buffer, which is then empty; when it is, the byte that it held last."""
        self._status &= ~(STATUS_OBF | STATUS_AUX_OBF | STATUS_TIMEOUT)
        self._settle()
        return self._output

    def read_status(self) -> int:
        """The status register."""
        return self._status

    def write_data(self, value: int) -> None:
        """The data byte of the command that waits for one, else a byte for the keyboard that is not there."""
        self._status &= ~STATUS_COMMAND
        command, self._awaiting = self._awaiting, 0
        if command == 0:
            self._ram[0] &= ~KEYBOARD_OFF  # Sending to the keyboard switches it on
            self._answer(RESEND, STATUS_TIMEOUT)
        elif command == _WRITE_OUTPUT_PORT:
            self._a20 = value & OUT_A20
            if not value & OUT_NO_RESET:
                self._reset_machine()
        elif command == _TO_KEYBOARD_BUFFER:
            self._answer(value)
        elif command == _TO_AUX_BUFFER:
            self._answer(value, STATUS_AUX_OBF)
        elif command == _TO_AUX_DEVICE:
            self._answer(RESEND, STATUS_AUX_OBF | STATUS_TIMEOUT)
        else:
            self._write_ram(command - _WRITE_RAM, value)

    def _write_ram(self, index: int, value: int) -> None:
        self._ram[index] = value
        if index == 0:
            self._ram[0] |= AUX_OFF
            self._status = self._status & ~STATUS_SYS | (STATUS_SYS if value & SYSTEM_FLAG else 0)
            self._settle()

    def write_command(self, value: int) -> None:
        """A controller command. One that is not known does nothing."""
        self._status |= STATUS_COMMAND
        self._awaiting = 0
        if value >= _PULSE:
            if not value & OUT_NO_RESET:  # Bits 0-3 name the lines to leave alone
                self._reset_machine()
        elif _WRITE_RAM <= value < _WRITE_RAM + RAM_BYTES or value in _TAKE_DATA:
            self._awaiting = value
        elif _READ_RAM <= value < _READ_RAM + RAM_BYTES:
            self._answer(self._ram[value - _READ_RAM])
        elif value in _ANSWERS:
            self._answer(_ANSWERS[value])
        elif value == _SELF_TEST:
            self._status |= STATUS_SYS
            self._answer(0x55)
        elif value == _KEYBOARD_OFF:
            self._ram[0] |= KEYBOARD_OFF
        elif value == _KEYBOARD_ON:
            self._ram[0] &= ~KEYBOARD_OFF
        elif value == _READ_OUTPUT_PORT:
            full = OUT_OBF if self._status & STATUS_OBF else 0
            self._answer(OUT_LINES_IDLE | full | self._a20 | OUT_NO_RESET)
