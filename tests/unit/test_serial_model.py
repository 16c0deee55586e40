"""The 16550A against a reference model of what a driver may see, and against drivers that live on interrupt edges."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyvmm.devices.serial import BACKLOG_LIMIT, Serial
from pyvmm.events import IrqLine
from tests.support import RecordingLine

RBR = THR = 0
IER, IIR, FCR, LCR, MCR, LSR, MSR = 1, 2, 2, 3, 4, 5, 6
BREAK = -1
"""A break in the model's queues."""


class Model:
    """What the data sheet promises, computed from scratch at every question; it knows no events, only states."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.fifo: list[int] = []
        self.sent = bytearray()
        self.fifo_mode = False
        self.trigger = 1
        self.ier = self.lcr = self.mcr = 0
        self.errors: set[str] = set()
        self.shown_in_fifo = False
        self.thre_pending = False
        self.lines, self.deltas = 0xB0, 0

    @property
    def loop(self) -> bool:
        return bool(self.mcr & 0x10)

    def put(self, character: int) -> None:
        """A character reaches the receiver."""
        if len(self.fifo) == (16 if self.fifo_mode else 1):
            self.errors.add("overrun")
            if self.fifo_mode:
                return
            self.fifo.clear()
        self.fifo.append(character)
        self.show()

    def show(self) -> None:
        if self.fifo and self.fifo[0] == BREAK:
            self.errors.add("break")
            self.shown_in_fifo = self.fifo_mode
            self.fifo[0] = 0

    def fill(self) -> None:
        while self.waiting and not self.loop and len(self.fifo) < self.trigger:
            self.put(self.waiting.pop(0))

    def take(self) -> int:
        if not self.fifo:
            return 0
        character = self.fifo.pop(0)
        self.show()
        if len(self.fifo) < self.trigger:
            self.fill()
        return character

    def pending(self) -> int:
        """IIR bits 3-0."""
        if self.ier & 4 and self.errors:
            return 0x06
        if self.ier & 1 and self.fifo:
            return 0x04 if len(self.fifo) >= self.trigger else 0x0C
        if self.ier & 2 and self.thre_pending:
            return 0x02
        if self.ier & 8 and self.deltas:
            return 0x00
        return 0x01

    def lsr(self) -> int:
        value = 0x60 | bool(self.fifo)
        value |= 0x02 if "overrun" in self.errors else 0
        value |= 0x18 if "break" in self.errors else 0
        value |= 0x80 if self.fifo_mode and (self.shown_in_fifo or BREAK in self.fifo) else 0
        return value


class SerialMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.model = Model()
        self.line = RecordingLine()
        self.sent = bytearray()
        self.serial = Serial(self.line, self.sent.extend)

    def read(self, offset: int) -> int:
        return self.serial.read(offset, 1)

    def write(self, offset: int, value: int) -> None:
        self.serial.write(offset, 1, value)

    @rule(data=st.one_of(st.binary(max_size=40), st.sampled_from([bytes(BACKLOG_LIMIT)])))
    def host_sends(self, data: bytes) -> None:
        room = BACKLOG_LIMIT - len(self.model.waiting)
        assert self.serial.receive(data) == min(len(data), room)
        self.model.waiting += data[:room]
        self.model.fill()

    @rule()
    def host_breaks(self) -> None:
        accepted = self.serial.receive_break()
        assert accepted == (len(self.model.waiting) < BACKLOG_LIMIT)
        if accepted:
            self.model.waiting.append(BREAK)
            self.model.fill()

    @precondition(lambda self: not self.model.lcr & 0x80)
    @rule()
    def read_data(self) -> None:
        assert self.read(RBR) == self.model.take()

    @precondition(lambda self: not self.model.lcr & 0x80)
    @rule(data=st.binary(min_size=1, max_size=20), string=st.booleans())
    def send(self, data: bytes, string: bool) -> None:
        if string:
            self.serial.write_many(THR, 1, data)
        model = self.model
        for value in data:
            if not string:
                self.write(THR, value)
            if model.loop:
                model.put(value & (0x1F, 0x3F, 0x7F, 0xFF)[model.lcr & 3])
            elif not model.lcr & 0x40:
                model.sent.append(value)
        model.thre_pending |= bool(model.ier & 2)

    @precondition(lambda self: not self.model.lcr & 0x80)
    @rule(value=st.integers(0, 255))
    def write_ier(self, value: int) -> None:
        self.write(IER, value)
        self.model.thre_pending |= bool(value & 2 and not self.model.ier & 2)
        self.model.ier = value & 0x0F

    @rule()
    def read_iir(self) -> None:
        expected = self.model.pending()
        assert self.read(IIR) == expected | (0xC0 if self.model.fifo_mode else 0)
        if expected == 0x02:
            self.model.thre_pending = False

    @rule(value=st.integers(0, 255))
    def write_fcr(self, value: int) -> None:
        self.write(FCR, value)
        model = self.model
        on = bool(value & 1)
        if on != model.fifo_mode or (on and value & 2):
            model.fifo.clear()
            model.shown_in_fifo = False
        model.fifo_mode = on
        model.trigger = (1, 4, 8, 14)[value >> 6] if on else 1
        model.fill()

    @rule(value=st.sampled_from([0x00, 0x01, 0x02, 0x03, 0x03, 0x03, 0x43, 0x83]))
    def write_lcr(self, value: int) -> None:
        self.write(LCR, value)
        self.model.lcr = value

    @rule(value=st.integers(0, 255))
    def write_mcr(self, value: int) -> None:
        self.write(MCR, value)
        model = self.model
        model.mcr = value & 0x1F
        old, lines = model.lines, 0xB0
        if model.loop:
            dtr, rts, out1, out2 = (value >> bit & 1 for bit in range(4))
            lines = rts << 4 | dtr << 5 | out1 << 6 | out2 << 7
        for bit in (4, 5, 7):
            model.deltas |= ((old ^ lines) >> bit & 1) << bit - 4
        model.deltas |= (old & ~lines) >> 6 << 2 & 4
        model.lines = lines
        model.fill()

    @rule()
    def read_lsr(self) -> None:
        assert self.read(LSR) == self.model.lsr()
        self.model.errors.clear()
        self.model.shown_in_fifo = False

    @rule()
    def read_msr(self) -> None:
        assert self.read(MSR) == self.model.lines | self.model.deltas
        self.model.deltas = 0

    @rule()
    def reset(self) -> None:
        waiting, sent = self.model.waiting, self.model.sent
        self.model = Model()
        self.model.waiting, self.model.sent = waiting, sent
        self.model.fill()
        self.serial.reset()

    @invariant()
    def line_follows_the_conditions(self) -> None:
        connected = self.model.mcr & 0x18 == 0x08
        assert self.line.level == (connected and self.model.pending() != 0x01)

    @invariant()
    def output_is_what_was_sent(self) -> None:
        assert self.sent == self.model.sent

    @invariant()
    def input_is_bounded(self) -> None:
        assert self.serial.input_room() == BACKLOG_LIMIT - len(self.model.waiting)


TestSerialMachine = SerialMachine.TestCase
TestSerialMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


# --- Drivers behind an edge-triggered interrupt controller --------------------------------------------------------


class EdgeController:
    """Remembers rising edges, as a PIC does with ISA interrupts."""

    def __init__(self) -> None:
        self.latched = False
        self.line = IrqLine(self._change)

    def _change(self, asserted: bool) -> None:
        self.latched |= asserted

    def take(self) -> bool:
        latched, self.latched = self.latched, False
        return latched


def edge_driven(fcr: int, ier: int) -> tuple[EdgeController, Serial, bytearray]:
    controller, sent = EdgeController(), bytearray()
    serial = Serial(controller.line, sent.extend)
    serial.write(FCR, 1, fcr)
    serial.write(MCR, 1, 0x0B)
    serial.write(IER, 1, ier)
    return controller, serial, sent


BURSTS = st.lists(st.binary(min_size=1, max_size=70), max_size=8)


@settings(max_examples=60, deadline=None)
@given(fcr=st.sampled_from([0x00, 0x01, 0x41, 0x81, 0xC1]), bursts=BURSTS, one=st.booleans())
def test_a_frugal_receiver_loses_nothing(fcr, bursts, one):
    """Per interrupt it reads one character, or as many as IIR grants: the trigger level for data, one for a timeout.

    It looks neither at LSR nor at IIR again. An edge that rose while it was at work may find nothing left: spurious
    is legal, lost is not.
    """
    controller, serial, _ = edge_driven(fcr, ier=0x01)
    at_trigger = 1 if one else {0x01: 1, 0x41: 4, 0x81: 8, 0xC1: 14}.get(fcr, 1)
    grant = {0xC4: at_trigger, 0xCC: 1, 0x04: 1, 0xC1: 0, 0x01: 0}
    got = bytearray()
    for burst in bursts:
        assert serial.receive(burst) == len(burst)
        while controller.take():
            got.extend(serial.read(RBR, 1) for _ in range(grant[serial.read(IIR, 1)]))
    assert got == b"".join(bursts)


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=100), burst=st.integers(1, 16), reads_iir=st.booleans())
def test_a_transmitter_on_interrupts_sends_all(data, burst, reads_iir):
    """It ends each THRE interrupt by reading IIR or just by writing on, and sends up to a FIFO full."""
    controller, serial, sent = edge_driven(0x01, ier=0x00)
    left = bytearray(data)
    serial.write(IER, 1, 0x02)
    while controller.take():
        if reads_iir:
            assert serial.read(IIR, 1) == 0xC2
        for value in left[:burst]:
            serial.write(THR, 1, value)
        del left[:burst]
    assert sent == data


@settings(max_examples=60, deadline=None)
@given(bursts=BURSTS, data=st.binary(max_size=100), fcr=st.sampled_from([0x00, 0x01, 0x41, 0x81, 0xC1]))
def test_a_full_driver_serves_all_causes(bursts, data, fcr):
    """One that loops until IIR says none, as Linux's does, with everything enabled and traffic both ways."""
    controller, serial, sent = edge_driven(fcr, ier=0x0D)
    got, left = bytearray(), bytearray(data)
    serial.write(IER, 1, 0x0F)
    for burst in [*bursts, b""]:
        serial.receive(burst)
        while controller.take():
            while (identity := serial.read(IIR, 1) & 0x0F) != 0x01:
                if identity == 0x02:
                    for value in left[:16]:
                        serial.write(THR, 1, value)
                    del left[:16]
                elif identity == 0x00:
                    serial.read(MSR, 1)
                else:
                    while serial.read(LSR, 1) & 1:
                        got.append(serial.read(RBR, 1))
    assert got == b"".join(bursts)
    assert sent == data
    assert not controller.line.asserted
