"""The serial port: a 16550A UART with a byte stream at its far end.

Imports registers, state, events and its declarations. Follows National Semiconductor's PC16550D data sheet (June
1995), whose sections the comments name, and the PC/AT's wiring: OUT2 connects the interrupt line.

The wire is infinitely fast. A character written is out at once, so THRE and TEMT are always set. The host sends
like a peer under automatic flow control: while the receive FIFO is below its trigger level; the rest waits in a
bounded backlog, so the host causes no overrun. A character timeout (8.11) is indicated as soon as the FIFO holds
anything below the trigger level.

A far end that waits sends nothing before the guest first attends to its input: has the interrupt for it connected, or
polls, which is to read LSR POLLS times while there is input, and in between neither send, nor set IER, nor seek a
character in vain. And until the guest has taken a first character, it sends again what a change of the FIFO's mode
cleared. So what is typed ahead, or comes through a pipe, outlives a driver that probes the UART and sets it up step by
step.

Where a real UART would deassert its interrupt for the time that a character takes, the line falls and rises again, so
that a driver behind an edge-triggered interrupt controller sees each interrupt. With the FIFO never filled beyond its
trigger level, that holds for each character read: a driver that takes one per interrupt gets them all, one that takes
more may meet an interrupt that has nothing left to say.

Word length, parity, stop bits and divisor read back as written. They do not touch the byte stream: it has no
bits per second, and after reset, when the UART is set to 5 bits, many small guests print without ever setting
LCR. In loopback, where both ends are the UART's own, a character is cut to the word length. While LCR holds
the line in a break (8.1), characters written are lost, as on a wire.
"""

from __future__ import annotations

from collections import deque
from operator import attrgetter

from pyvmm.devices import serial_registers as uart
from pyvmm.registers import RegisterFile
from pyvmm.state import FLAG, U8, Number, queue_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.events import IrqLine
    from pyvmm.hot import Group

THR = uart.REGISTERS["THR"]
LSR = uart.REGISTERS["LSR"]
FIFO_DEPTH = 16
POLLS = 8
"""More than a driver needs that only looks whether there is a UART: Linux's reads LSR twice in a row."""
BACKLOG_LIMIT = 4096
"""Characters from the host that may wait for the guest. CVE-2020-27174 was the lack of a bound."""

# A character in the receive path has its line errors above its 8 bits.
BREAK = (uart.LSR_BI | uart.LSR_FE) << 8
"""A break as received: one null character without a stop bit (8.4)."""

_BYTES = tuple(bytes((value,)) for value in range(256))
_HOST_LINES = uart.MSR_CTS | uart.MSR_DSR | uart.MSR_DCD
"""Modem lines as the far end holds them: a terminal that is always there and always ready."""


class Serial(RegisterFile, registers=uart.REGISTERS):
    """A 16550A.

    irq      the interrupt line, a level
    output   takes what the guest sends, byte for byte. Called under the device's lock: it must not block.
    waits    whether the far end waits, after each reset, for the guest to attend to its input

    `on_input_drained`, if set, is called once each time the backlog, having been full, is half empty again:
    the host may send on. Called under the device's lock, so it may signal, not call back.
    """

    __slots__ = (
        "_attended",
        "_backlog",
        "_congested",
        "_connected",
        "_depth",
        "_dll",
        "_dlm",
        "_fifo",
        "_ier",
        "_irq",
        "_lcr",
        "_lsr",
        "_mcr",
        "_msr",
        "_on_wire",
        "_output",
        "_polls",
        "_raised",
        "_repeats",
        "_scr",
        "_shown",
        "_trigger",
        "_waits",
        "on_input_drained",
    )

    STATE = {
        **dict.fromkeys(("_dll", "_dlm", "_lcr", "_lsr", "_msr", "_scr"), U8),
        "_backlog": queue_of(Number(BREAK), BACKLOG_LIMIT),
        "_fifo": queue_of(Number(BREAK | 0xFF), FIFO_DEPTH),
        "_depth": Number(FIFO_DEPTH, 1),
        "_trigger": Number(FIFO_DEPTH, 1),
        "_ier": Number(uart.IER_BITS),
        "_raised": Number(uart.IER_BITS),
        "_mcr": Number(uart.MCR_BITS),
        "_polls": Number(POLLS),
        **dict.fromkeys(("_attended", "_congested", "_connected", "_on_wire", "_repeats"), FLAG),
    }
    HOLDS = {
        "IIR": "_pending",
        **{name: f"_{name.lower()}" for name in ("DLL", "DLM", "IER", "LCR", "MCR", "LSR", "MSR", "SCR")},
    }

    def __init__(
        self,
        irq: IrqLine,
        output: Callable[[bytes], None],
        name: str = "serial",
        waits: bool = False,
        group: Group | None = None,
    ) -> None:
        super().__init__(name, group)
        self._shown = -1
        """What `_show` has said last."""
        self._waits = waits
        self.on_input_drained: Callable[[], None] | None = None
        self._irq = irq
        self._output = output
        self._backlog: deque[int] = deque()
        self._congested = False
        self._fifo: deque[int] = deque()
        # Not touched by a reset (table I). 115,200 baud as firmware would leave it: some guests divide by it.
        self._dll = uart.REGISTERS["DLL"].reset
        self._dlm = uart.REGISTERS["DLM"].reset
        self._scr = 0
        self.reset()

    def reset(self) -> None:
        """Master reset (table I). The backlog stays, and comes in: it had not reached the UART yet."""
        self._send_posted()
        self._fifo.clear()
        self._depth = 1
        """Characters that the receiver holds: FIFO_DEPTH, or 1 in 16450 mode."""
        self._trigger = 1
        self._ier = 0
        self._lcr = 0
        self._mcr = 0
        self._lsr = uart.LSR_THRE | uart.LSR_TEMT
        self._msr = _HOST_LINES
        self._raised = 0
        """Which interrupt conditions stand, enabled or not, each at its bit of IER."""
        self._connected = False
        """Whether the interrupt line is connected: OUT2, whose pin loopback forces inactive (8.8)."""
        self._attended = not self._waits
        """Whether the far end sends."""
        self._polls = 0
        """How often LSR was read since the guest last did what no polling does."""
        self._repeats = False
        """Whether the far end sends again what is cleared: all in the FIFO is its, and none was taken before."""
        self._on_wire = True
        """Whether what is sent reaches the far end: neither loopback nor break."""
        self.select(0)
        self._feed()
        self._settle()

    def restored(self) -> None:
        """See to the bank and to the interrupt line."""
        self.select(uart.DIVISOR_LATCH if self._lcr & uart.LCR_DLAB else 0)
        self._settle()

    # --- The host's end -------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> int:
        """Take input from the host: how many bytes of `data`, from its start, it accepted. Takes the lock."""
        with self.lock:
            accepted = data[: self.input_room()]
            self._backlog.extend(accepted)
            self._take_in()
            return len(accepted)

    def receive_break(self) -> bool:
        """Take a break condition from the host; False if there is no room. Takes the lock."""
        with self.lock:
            if not self.input_room():
                return False
            self._backlog.append(BREAK)
            self._take_in()
            return True

    def input_room(self) -> int:
        """How many bytes `receive` would accept now. From any thread, without the lock."""
        return max(0, BACKLOG_LIMIT - len(self._backlog))

    @property
    def listening(self) -> bool:
        """Whether the guest would be interrupted by input. From any thread, without the lock."""
        return self._connected and bool(self._ier & uart.IER_ERBFI)

    def _take_in(self) -> None:
        if not self.input_room():
            self._congested = True
        self._feed()
        self._settle()

    def _feed(self) -> None:
        """Let the host's characters arrive, up to the trigger level."""
        backlog = self._backlog
        if not self._attended:
            if not self.listening:
                return
            self._attended = self._repeats = True
        if self._mcr & uart.MCR_LOOP:  # The receiver's input is disconnected (8.8, bit 4)
            return
        while backlog and len(self._fifo) < self._trigger:
            self._arrive(backlog.popleft())
        if self._congested and len(backlog) <= BACKLOG_LIMIT // 2:
            self._congested = False
            if self.on_input_drained is not None:
                self.on_input_drained()

    # --- Receiver and transmitter ---------------------------------------------------------------------------

    def _arrive(self, character: int) -> None:
        """A character is complete in the receiver's shift register."""
        fifo = self._fifo
        if len(fifo) == self._depth:
            self._lsr |= uart.LSR_OE
            self._raised |= uart.IER_ELSI
            if self._depth > 1:
                return  # In FIFO mode the new character is lost, else the old one (8.4, bit 1)
            fifo.clear()
        fifo.append(character)
        if character > 0xFF and self._depth > 1:
            self._lsr |= uart.LSR_FIFO_ERROR
        if len(fifo) == 1:
            self._lsr |= uart.LSR_DR
            self._raised |= uart.IER_ERBFI
            self._reveal()

    def _reveal(self) -> None:
        """Errors are shown when their character is at the top of the FIFO (8.4, bits 2-4)."""
        errors = self._fifo[0] >> 8
        if errors:
            self._lsr |= errors
            self._raised |= uart.IER_ELSI

    def _clear_receiver(self) -> None:
        if self._repeats:
            self._backlog.extendleft(reversed(self._fifo))
        self._fifo.clear()
        self._lsr &= ~(uart.LSR_DR | uart.LSR_FIFO_ERROR)
        self._raised &= ~uart.IER_ERBFI
        self._settle()

    def _sent(self) -> None:
        """The THRE interrupt ended with writing THR (table IV), and stands again: the character is out."""
        self._raised &= ~uart.IER_ETBEI
        self._settle()
        self._raised |= uart.IER_ETBEI
        self._settle()

    def _send_posted(self) -> None:
        """Before a change after which a character written means something else: send those that were written."""
        self.window.on_write(THR.offset, 0)
        self._shown = -1

    def _show(self) -> None:
        """Say what the run loop in C may do alone now: send what nobody waits for, show a status that says no error."""
        lsr = self._lsr
        posts = self._on_wire and not self.bank and not self._ier & uart.IER_ETBEI
        # While polls count, and where reading the status changes it, Python sees each reading.
        shadows = (self._attended or not self._backlog) and not lsr & (uart.LSR_ERRORS | uart.LSR_FIFO_ERROR)
        shown = lsr | shadows << 8 | posts << 9
        if shown == self._shown:
            return
        self._shown = shown
        if shadows:
            self.window.change(0xFF, lsr)
        self.window.on_read(LSR.offset, LSR.action if shadows else 0)
        self.window.on_write(THR.offset, THR.action if posts else 0)

    def _settle(self) -> None:
        """Give the interrupt line the level that follows from the conditions."""
        self._show()  # first: whoever is interrupted looks
        self._irq.set(self._connected and self._raised & self._ier != 0)

    # --- Registers ------------------------------------------------------------------------------------------

    def read_rbr(self) -> int:
        """The oldest character received; 0 if there is none."""
        fifo = self._fifo
        if not fifo:
            self._polls = 0
            return 0
        character = fifo.popleft()
        self._repeats = False
        if fifo:
            self._reveal()
        else:
            self._lsr &= ~uart.LSR_DR
        if len(fifo) < self._trigger:
            # The received data interrupt ends below the trigger level, a timeout with any read (8.11); what
            # is left, or comes in now, is a new one.
            self._raised &= ~uart.IER_ERBFI
            self._settle()
            self._feed()
            if fifo:
                self._raised |= uart.IER_ERBFI
        self._settle()
        return character & 0xFF

    def write_thr(self, value: int) -> None:
        """Send a character."""
        self._polls = 0
        if self._on_wire:
            self._output(_BYTES[value])
        elif self._mcr & uart.MCR_LOOP:
            # No need to settle: loopback disconnects the interrupt line.
            self._repeats = False
            self._arrive(value & (0x20 << (self._lcr & uart.LCR_WLS)) - 1)
            self._show()
        if self._ier & uart.IER_ETBEI:
            self._sent()

    def write_many(self, offset: int, size: int, data: bytes) -> None:
        """String output: `data` as elements of `size` bytes, all written at `offset`. The bus holds `lock`.

        The same as a write for each, but characters that go out leave in one piece.
        """
        if (offset, size, self.bank) == (THR.offset, 1, THR.bank) and self._on_wire:
            self._polls = 0
            self._output(data)
            if self._ier & uart.IER_ETBEI:
                self._sent()
            return
        super().write_many(offset, size, data)

    def write_ier(self, value: int) -> None:
        """Enable interrupts. The transmitter is empty, so enabling its interrupt causes one (8.4, bit 5)."""
        value &= uart.IER_BITS
        if value & uart.IER_ETBEI:
            self._send_posted()
        if value & ~self._ier & uart.IER_ETBEI:
            self._raised |= uart.IER_ETBEI
        self._ier = value
        if not self._attended:
            self._polls = 0
            self._feed()
        self._settle()

    def read_iir(self) -> int:
        """The pending interrupt of highest priority (table IV). A THRE interrupt ends with being read."""
        iir = self._pending
        if iir & ~uart.IIR_FIFOS_ENABLED == uart.IIR_THRE:
            self._raised &= ~uart.IER_ETBEI
            self._settle()
        return iir

    @property
    def _pending(self) -> int:
        """IIR as it stands."""
        pending = self._raised & self._ier
        fifos = uart.IIR_FIFOS_ENABLED if self._depth > 1 else 0
        if pending & uart.IER_ELSI:
            return fifos | uart.IIR_LINE_STATUS
        if pending & uart.IER_ERBFI:
            return fifos | (uart.IIR_DATA if len(self._fifo) >= self._trigger else uart.IIR_TIMEOUT)
        if pending & uart.IER_ETBEI:
            return fifos | uart.IIR_THRE
        return fifos | (uart.IIR_MODEM_STATUS if pending & uart.IER_EDSSI else uart.IIR_NONE)

    def write_fcr(self, value: int) -> None:
        """FIFO mode or not, and what follows. Other bits count only with FIFO_ENABLE (8.5)."""
        depth = FIFO_DEPTH if value & uart.FCR_ENABLE else 1
        changed = depth != self._depth
        self._depth = depth
        self._trigger = uart.TRIGGER_LEVELS[(value & uart.FCR_TRIGGER) >> 6] if depth > 1 else 1
        if changed or (depth > 1 and value & uart.FCR_CLEAR_RCVR):
            self._clear_receiver()
        self._feed()
        self._settle()

    def write_lcr(self, value: int) -> None:
        """Line format, break, and whether offsets 0 and 1 are the divisor latch."""
        if value & (uart.LCR_DLAB | uart.LCR_BREAK):
            self._send_posted()
        self._lcr = value
        self.select(uart.DIVISOR_LATCH if value & uart.LCR_DLAB else 0)
        self._on_wire = not (value & uart.LCR_BREAK or self._mcr & uart.MCR_LOOP)
        self._show()

    def write_mcr(self, value: int) -> None:
        """Modem control outputs and loopback, which feeds them back as modem status inputs (8.8, bit 4)."""
        loop = value & uart.MCR_LOOP
        if loop:
            self._send_posted()
        self._mcr = value & uart.MCR_BITS
        self._connected = bool(value & uart.MCR_OUT2) and not loop
        self._on_wire = not (loop or self._lcr & uart.LCR_BREAK)
        lines = _HOST_LINES
        if loop:
            lines = (
                (uart.MSR_CTS if value & uart.MCR_RTS else 0)
                | (uart.MSR_DSR if value & uart.MCR_DTR else 0)
                | (uart.MSR_RI if value & uart.MCR_OUT1 else 0)
                | (uart.MSR_DCD if value & uart.MCR_OUT2 else 0)
            )
        # A delta stands four bits below its line; the ring indicator's counts only the line's end (8.9).
        deltas = (lines ^ self._msr) >> 4 & ~uart.MSR_TERI
        if self._msr & ~lines & uart.MSR_RI:
            deltas |= uart.MSR_TERI
        self._msr = lines | (self._msr & uart.MSR_DELTAS) | (deltas & uart.MSR_DELTAS)
        if self._msr & uart.MSR_DELTAS:
            self._raised |= uart.IER_EDSSI
        self._feed()
        self._settle()

    def read_lsr(self) -> int:
        """Line status. The errors shown end with being read."""
        if not self._attended and self._backlog:
            self._polls += 1
            if self._polls == POLLS:
                self._attended = self._repeats = True
                self._feed()
                self._show()
        lsr = self._lsr
        if lsr & (uart.LSR_ERRORS | uart.LSR_FIFO_ERROR):
            fifo = self._fifo
            if fifo:
                fifo[0] &= 0xFF
            self._lsr &= ~(uart.LSR_ERRORS | uart.LSR_FIFO_ERROR)
            if any(character > 0xFF for character in fifo):  # below the top, so never in 16450 mode
                self._lsr |= uart.LSR_FIFO_ERROR
            self._raised &= ~uart.IER_ELSI
            self._settle()
        return lsr

    def read_msr(self) -> int:
        """Modem status. The changes shown end with being read."""
        msr = self._msr
        if msr & uart.MSR_DELTAS:
            self._msr &= ~uart.MSR_DELTAS
            self._raised &= ~uart.IER_EDSSI
            self._settle()
        return msr

    # What reads as it was written, and does nothing else or has done it.
    read_ier = attrgetter("_ier")
    read_lcr = attrgetter("_lcr")
    read_mcr = attrgetter("_mcr")
    read_scr = attrgetter("_scr")
    read_dll = attrgetter("_dll")
    read_dlm = attrgetter("_dlm")

    def write_scr(self, value: int) -> None:
        """Scratchpad."""
        self._scr = value

    def write_dll(self, value: int) -> None:
        """Divisor latch, low byte."""
        self._dll = value

    def write_dlm(self, value: int) -> None:
        """Divisor latch, high byte."""
        self._dlm = value
