"""The 16550A, register by register, against the PC16550D data sheet (sections in the tests' docstrings)."""

from __future__ import annotations

import pytest

from pyvmm.devices.serial import BACKLOG_LIMIT, FIFO_DEPTH, POLLS, Serial
from tests.support import RecordingLine

RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

ERBFI, ETBEI, ELSI, EDSSI = 1, 2, 4, 8
NONE, STATUS, THRE, DATA, LINE, TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
FIFOS = 0xC0
DR, OE, PE, FE, BI, IDLE, FIFO_ERROR = 0x01, 0x02, 0x04, 0x08, 0x10, 0x60, 0x80
OUT2, LOOP = 0x08, 0x10
DLAB, BREAK, WORD_8 = 0x80, 0x40, 0x03
TRIGGERS = {0x00: 1, 0x40: 4, 0x80: 8, 0xC0: 14}


class Rig:
    """A UART with its surroundings recorded. `io[reg]` reads a register, `io[reg] = value` writes it."""

    def __init__(self, waits: bool = False) -> None:
        self.line = RecordingLine()
        self.sent = bytearray()
        self.pieces: list[bytes] = []
        self.serial = Serial(self.line, self._output, waits=waits)

    def _output(self, data: bytes) -> None:
        assert self.serial.lock is not None
        self.sent += data
        self.pieces.append(data)

    def __getitem__(self, offset: int) -> int:
        return self.serial.read(offset, 1)

    def __setitem__(self, offset: int, value: int) -> None:
        self.serial.write(offset, 1, value)

    def receive(self, data: bytes) -> int:
        return self.serial.receive(data)

    def drain(self, limit: int = 10 * BACKLOG_LIMIT) -> bytes:
        """Read as a polling driver does."""
        data = bytearray()
        while self[LSR] & DR and len(data) < limit:
            data.append(self[RBR])
        return bytes(data)


@pytest.fixture
def io():
    return Rig()


# --- Reset --------------------------------------------------------------------------------------------------------


def test_reset_configuration(io):
    """Table I. MSR bits 7-4 are the inputs: a terminal that is there and ready."""
    assert [io[reg] for reg in (IER, IIR, LCR, MCR, LSR, MSR)] == [0, NONE, 0, 0, IDLE, 0xB0]
    assert io.line.history == []


def test_reset_undoes_everything_but_scratch_divisor_and_what_the_host_still_holds(io):
    io[LCR] = DLAB
    io[DLL], io[DLM] = 0x34, 0x12
    io[LCR] = WORD_8
    io[SCR] = 0x77
    io[FCR] = 0xC1
    io[IER] = 0x0F
    io[MCR] = OUT2
    io.receive(bytes(range(20)))
    assert io.line.level
    io.serial.reset()
    assert not io.line.level
    assert [io[reg] for reg in (IER, IIR, LCR, MCR, LSR, SCR)] == [0, NONE, 0, 0, IDLE | DR, 0x77]
    io.receive(b"!")
    assert io.drain() == bytes(range(14, 20)) + b"!"
    io[LCR] = DLAB
    assert (io[DLL], io[DLM]) == (0x34, 0x12)


def test_declared_reset_values_are_what_reads_give(io):
    for bank in (0, 1):
        io[LCR] = DLAB * bank
        for register in io.serial.registers:
            if "r" in register.access and register.bank in (bank, None) and register.name != "LCR":
                assert io[register.offset] == register.reset, register


# --- Plain registers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "kept"), [(IER, 0x0F), (LCR, 0xFF), (MCR, 0x1F), (SCR, 0xFF)], ids=["IER", "LCR", "MCR", "SCR"]
)
def test_what_reads_back(io, register, kept):
    """8.1, 8.7, 8.8, 8.10: bits that do not exist are always 0."""
    for value in (0x00, 0xFF, 0x55, 0xAA, 0x7F):
        io[register] = value
        if register != LCR:
            assert io[LCR] == 0
        assert io[register] == value & kept
        io[LCR] = 0


def test_divisor_latch(io):
    """8.3. It hides RBR, THR and IER, and nothing else."""
    io[IER] = ERBFI
    io[LCR] = DLAB | WORD_8
    io[DLL], io[DLM] = 0x0C, 0x01
    assert (io[DLL], io[DLM]) == (0x0C, 0x01)
    assert io[IIR] == NONE and io[SCR] == 0 and io[LSR] == IDLE
    io[LCR] = WORD_8
    assert io[IER] == ERBFI
    assert io.sent == b""
    io[LCR] = DLAB
    assert (io[DLL], io[DLM]) == (0x0C, 0x01)


def test_a_guest_that_divides_by_the_divisor_survives(io):
    io[LCR] = DLAB
    assert io[DLL] | io[DLM] << 8 == 1  # 115,200 baud


@pytest.mark.parametrize("register", [LSR, MSR])
def test_status_registers_are_read_only(io, register):
    before = io[register]
    io[register] = 0xFF ^ before
    assert io[register] == before
    assert io.line.history == []


# --- Transmitter --------------------------------------------------------------------------------------------------


def test_every_byte_value_goes_out_as_written(io):
    for value in range(256):
        io[THR] = value
        assert io[LSR] == IDLE
    assert io.sent == bytes(range(256))


@pytest.mark.parametrize("word_length", range(4))
def test_word_length_does_not_touch_what_goes_out_or_comes_in(io, word_length):
    io[LCR] = word_length
    io[THR] = 0xF5
    io.receive(b"\xf5")
    assert io.sent == b"\xf5"
    assert io[RBR] == 0xF5


def test_a_break_holds_the_line(io):
    """8.1, bit 6: only the output is held; the transmitter goes on."""
    io[MCR], io[IER] = OUT2, ETBEI
    io[THR] = ord("a")
    io[LCR] = WORD_8 | BREAK
    io[THR] = ord("b")
    assert io[LSR] == IDLE and io[IIR] == THRE
    io[LCR] = WORD_8
    io[THR] = ord("c")
    assert io.sent == b"ac"


def test_string_output_leaves_in_one_piece(io):
    io.serial.write_many(THR, 1, b"hello")
    assert io.pieces == [b"hello"]


@pytest.mark.parametrize("prepare", [(LCR, DLAB), (LCR, BREAK), (MCR, LOOP)], ids=["dlab", "break", "loop"])
def test_string_output_that_does_not_go_out(io, prepare):
    reference = Rig()
    for rig in (io, reference):
        rig[FCR] = 1
        rig[prepare[0]] = prepare[1]
    io.serial.write_many(THR, 1, b"\x01\x02\x03")
    for value in b"\x01\x02\x03":
        reference[THR] = value
    for rig in (io, reference):
        rig[LCR] = 0
    assert io.sent == reference.sent == b""
    assert io.drain() == reference.drain()


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("offset", range(8))
def test_string_output_is_the_same_as_single_writes(offset, size):
    one, many = Rig(), Rig()
    data = bytes(range(0x10, 0x10 + 4 * size))
    many.serial.write_many(offset, size, data)
    for start in range(0, len(data), size):
        one.serial.write(offset, size, int.from_bytes(data[start : start + size], "little"))
    assert many.sent == one.sent
    assert [many[LCR], many[MCR], many[SCR], many[LSR]] == [one[LCR], one[MCR], one[SCR], one[LSR]]


def test_string_output_with_interrupts(io):
    io[MCR], io[IER] = OUT2, ETBEI
    assert io[IIR] == THRE
    io.serial.write_many(THR, 1, b"hello")
    assert io.line.history == [True, False, True]
    assert io[IIR] == THRE


# --- Receiver -----------------------------------------------------------------------------------------------------


def test_16450_mode_holds_one_character(io):
    io.receive(b"ab")
    assert io[LSR] == IDLE | DR
    assert io[RBR] == ord("a")
    assert io[LSR] == IDLE | DR
    assert io[RBR] == ord("b")
    assert (io[LSR], io[RBR]) == (IDLE, 0)


def test_fifo_keeps_order_and_never_overruns_by_host_input(io):
    io[FCR] = 1
    data = bytes(range(256)) * 4
    assert io.receive(data) == len(data)
    assert io.drain() == data
    assert io[LSR] == IDLE


def test_input_is_bounded(io):
    """CVE-2020-27174: host input that grew without a bound."""
    flood = bytes(1 << 20)
    accepted = io.receive(flood)
    assert accepted == BACKLOG_LIMIT
    for _ in range(100):
        accepted += io.receive(flood)
    assert accepted <= BACKLOG_LIMIT + FIFO_DEPTH
    assert io.serial.input_room() == 0
    assert not io.serial.receive_break()
    assert len(io.drain()) == accepted
    assert io.receive(b"and on") == 6
    assert io.drain() == b"and on"


def test_nothing_is_received_from_nothing(io):
    assert io.receive(b"") == 0
    assert io[LSR] == IDLE


def test_room_is_announced_once_when_half_is_free(io):
    calls: list[int] = []
    io.serial.on_input_drained = lambda: calls.append(io.serial.input_room())
    io[FCR] = 1
    io.receive(bytes(BACKLOG_LIMIT - 1))
    io.drain()
    assert calls == []  # it was never full
    io.receive(bytes(BACKLOG_LIMIT))
    io.receive(bytes(BACKLOG_LIMIT))
    assert io.serial.input_room() == 0
    io.drain()
    assert len(calls) == 1
    assert calls[0] == BACKLOG_LIMIT // 2
    assert io.serial.input_room() == BACKLOG_LIMIT


def test_room_says_what_receive_accepts(io):
    for length in (1, 5, 1000, 5000):
        room = io.serial.input_room()
        assert io.receive(bytes(length)) == min(length, room)


@pytest.mark.parametrize("change", [0x03, 0x00], ids=["reset bit", "mode change"])
def test_clearing_the_fifo(io, change):
    """8.5, bits 0 and 1. What the host had not sent yet comes in afterwards."""
    io[FCR] = 0xC1
    io.receive(bytes(range(20)))
    io[FCR] = change
    assert io.drain() == bytes(range(14, 20))


def test_fcr_bits_count_only_with_the_enable_bit(io):
    """8.5, bit 0."""
    io.receive(b"ab")
    io[FCR] = 0xC2
    assert io[IIR] == NONE
    assert io.drain() == b"ab"


def test_a_cleared_fifo_has_no_data(io):
    io[FCR], io[IER], io[MCR] = 0xC1, ERBFI, OUT2
    io.receive(b"abc")
    io.serial.receive_break()
    assert io[LSR] == IDLE | DR | FIFO_ERROR
    io[FCR] = 0xC3
    assert io[LSR] == IDLE
    assert io[IIR] == FIFOS | NONE
    assert io.line.history == [True, False]


def test_what_comes_in_after_clearing_interrupts_again(io):
    io[FCR], io[IER], io[MCR] = 0x41, ERBFI, OUT2
    io.receive(b"abcdef")
    io[FCR] = 0x43
    assert io.line.history == [True, False, True]
    assert io.drain() == b"ef"


def test_trigger_can_change_without_losing_data(io):
    io[FCR] = 0x01
    io.receive(b"abcd")
    io[FCR] = 0x81
    assert io.drain() == b"abcd"


# --- Errors -------------------------------------------------------------------------------------------------------


def test_break_is_a_null_character_with_its_error(io):
    """8.4, bits 3, 4 and 7: shown when it is at the top of the FIFO, ended by reading LSR."""
    io[FCR] = 0xC1
    io.receive(b"a")
    assert io.serial.receive_break()
    io.receive(b"\xff")
    assert io.serial.receive_break()
    assert io[LSR] == IDLE | DR | FIFO_ERROR
    assert io[RBR] == ord("a")
    assert io[LSR] == IDLE | DR | BI | FE | FIFO_ERROR
    assert io[LSR] == IDLE | DR | FIFO_ERROR  # the second break
    assert (io[RBR], io[RBR]) == (0, 0xFF)
    assert io[LSR] == IDLE | DR | BI | FE | FIFO_ERROR
    assert io[LSR] == IDLE | DR
    assert io[RBR] == 0
    assert io[LSR] == IDLE


def test_break_in_16450_mode(io):
    """Bit 7 of LSR is 0 there."""
    io.serial.receive_break()
    assert io[LSR] == IDLE | DR | BI | FE
    assert io[LSR] == IDLE | DR
    assert io[RBR] == 0
    assert io[LSR] == IDLE


def test_error_outlasts_its_character_until_lsr_is_read(io):
    io[FCR] = 1
    io.serial.receive_break()
    assert io[RBR] == 0
    assert io[LSR] & BI
    assert io[LSR] == IDLE


def test_overrun_in_fifo_mode_loses_the_new_character(io):
    """8.4, bit 1. The only way to it is loopback: the host waits."""
    io[FCR], io[LCR], io[MCR] = 1, WORD_8, LOOP
    for value in range(FIFO_DEPTH):
        io[THR] = value
    assert io[LSR] == IDLE | DR
    io[IER] = ELSI
    assert io[IIR] == FIFOS | NONE
    io[THR] = 0x99
    assert io[IIR] == FIFOS | LINE
    assert io[LSR] == IDLE | DR | OE
    assert io[LSR] == IDLE | DR
    assert io[IIR] == FIFOS | NONE
    assert io.drain() == bytes(range(FIFO_DEPTH))


def test_overrun_in_16450_mode_loses_the_old_character(io):
    io[LCR], io[MCR] = WORD_8, LOOP
    io[THR], io[THR] = 1, 2
    io[THR] = 3
    assert io[LSR] == IDLE | DR | OE
    assert io.drain() == b"\x03"


# --- Interrupts ---------------------------------------------------------------------------------------------------


def test_priorities(io):
    """Table IV: line status, data, timeout, transmitter, modem status; each ended by its own remedy."""
    io[FCR] = 0x41  # trigger level 4
    io[MCR] = OUT2 | LOOP
    io[MCR] = OUT2  # DCD and others changed
    io[IER] = 0x0F
    io.receive(b"abc")
    assert io[IIR] == FIFOS | TIMEOUT
    io.receive(b"d")
    assert io[IIR] == FIFOS | DATA
    io.serial.receive_break()
    assert io[IIR] == FIFOS | DATA  # not at the top yet
    assert bytes(io[RBR] for _ in range(4)) == b"abcd"
    assert io[IIR] == FIFOS | LINE
    assert io[LSR] == IDLE | DR | BI | FE | FIFO_ERROR
    assert io[IIR] == FIFOS | TIMEOUT
    assert io[RBR] == 0
    assert io[IIR] == FIFOS | THRE
    assert io[IIR] == FIFOS | STATUS
    assert io.line.level
    assert io[MSR] & 0x0F
    assert io[IIR] == FIFOS | NONE
    assert not io.line.level


@pytest.mark.parametrize("enabled", range(16))
def test_only_what_is_enabled_is_pending(io, enabled):
    """8.7: every combination of enables, with every condition standing."""
    io[IER] = ETBEI
    io[MCR] = LOOP | OUT2
    io[MCR] = OUT2
    io.serial.receive_break()
    io[IER] = enabled
    expected = NONE
    for bit, identity in ((EDSSI, STATUS), (ETBEI, THRE), (ERBFI, DATA), (ELSI, LINE)):
        if enabled & bit:
            expected = identity
    assert io.line.level == bool(enabled)
    assert io[IIR] == expected
    io[IER] = 0
    assert io[IIR] == NONE
    assert not io.line.level


@pytest.mark.parametrize(("bits", "level"), TRIGGERS.items())
def test_trigger_levels(io, bits, level):
    """8.5 and 8.11: data at and above the level, a timeout below it."""
    io[FCR], io[IER], io[MCR] = bits | 1, ERBFI, OUT2
    for count in range(1, FIFO_DEPTH + 1):
        io.receive(b"x")
        assert io[IIR] == FIFOS | (DATA if count >= level else TIMEOUT)
    for left in reversed(range(FIFO_DEPTH)):
        io[RBR]
        assert io[IIR] == FIFOS | (DATA if left >= level else TIMEOUT if left else NONE)
    assert not io.line.level


def test_16450_mode_has_no_timeout_and_no_fifo_bits(io):
    io[IER] = ERBFI
    io.receive(b"x")
    assert io[IIR] == DATA


def test_line_falls_and_rises_at_each_received_data_interrupt(io):
    """8.11: reading below the trigger level ends one interrupt, what is left is the next."""
    io[FCR], io[IER], io[MCR] = 0x41, ERBFI, OUT2
    io.receive(b"abcde")
    assert io.line.history == [True]
    for left in (DATA, TIMEOUT, TIMEOUT, TIMEOUT):
        io.line.history.clear()
        io[RBR]
        assert io.line.history == [False, True]
        assert io[IIR] == FIFOS | left
    io[RBR]
    assert not io.line.level


def test_line_stays_up_while_more_than_the_trigger_level_is_left(io):
    """8.11, A. Only loopback fills the FIFO that far."""
    io[FCR], io[LCR], io[MCR] = 0x41, WORD_8, LOOP
    for value in range(6):
        io[THR] = value
    io[IER], io[MCR] = ERBFI, OUT2
    io[RBR], io[RBR]
    assert io.line.history == [True]
    io[RBR]
    assert io.line.history == [True, False, True]


def test_line_does_not_fall_while_another_interrupt_holds_it(io):
    io[IER], io[MCR] = ERBFI | ETBEI, OUT2
    io.receive(b"ab")
    io[RBR], io[RBR]
    assert io.line.history == [True]
    assert io[IIR] == THRE
    assert io.line.history == [True, False]


def test_thre_interrupt(io):
    """Table IV: by enabling it or by sending; ended by reading IIR or by writing THR."""
    io[MCR], io[IER] = OUT2, ETBEI
    assert io.line.history == [True]
    assert io[IIR] == THRE
    assert io.line.history == [True, False]
    assert io[IIR] == NONE
    io[THR] = 1
    assert io.line.history == [True, False, True]
    io[THR] = 2
    assert io.line.history == [True, False, True, False, True]
    assert io[IIR] == THRE
    io[IER] = ETBEI  # enabled already: no new one
    assert io[IIR] == NONE
    io[IER] = 0
    io[IER] = ETBEI
    assert io[IIR] == THRE


def test_thre_interrupt_is_not_ended_by_reading_iir_for_another(io):
    """Table IV: "if source of interrupt"."""
    io[IER] = ETBEI | ERBFI
    io.receive(b"x")
    assert io[IIR] == DATA
    io[RBR]
    assert io[IIR] == THRE


def test_line_status_interrupt(io):
    """Table IV: ended by reading LSR."""
    io[FCR], io[IER], io[MCR] = 0xC1, ELSI, OUT2
    io.serial.receive_break()
    io.receive(b"\xff")
    assert io.line.history == [True]
    assert io[IIR] == FIFOS | LINE
    assert io[LSR] == IDLE | DR | BI | FE | FIFO_ERROR
    assert io.line.history == [True, False]
    assert (io[LSR], io[IIR]) == (IDLE | DR, FIFOS | NONE)


def test_line_is_silent_while_interrupts_are_off(io):
    io[MCR] = OUT2
    io.receive(b"abc")
    io[THR] = 1
    io.serial.receive_break()
    io.drain()
    assert io.line.history == []


def test_out2_connects_the_line(io):
    """The PC/AT's wiring. IIR does not know of it."""
    io[IER] = ERBFI
    io.receive(b"x")
    assert io[IIR] == DATA and not io.line.level
    io[MCR] = OUT2
    assert io.line.level
    io[MCR] = OUT2 | LOOP  # loopback forces the pin inactive (8.8)
    assert not io.line.level and io[IIR] == DATA
    io[MCR] = OUT2
    io[MCR] = 0
    assert io.line.history == [True, False, True, False]


# --- Modem lines and loopback -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", range(16))
def test_loopback_connects_the_modem_lines(io, outputs):
    """8.8, bit 4, and 8.9: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD."""
    io[MCR] = LOOP | outputs
    dtr, rts, out1, out2 = (outputs >> bit & 1 for bit in range(4))
    assert io[MSR] & 0xF0 == rts << 4 | dtr << 5 | out1 << 6 | out2 << 7
    io[MCR] = outputs
    assert io[MSR] & 0xF0 == 0xB0


@pytest.mark.parametrize(
    ("before", "after", "delta"),
    [
        (0x00, 0x02, 0x01),
        (0x02, 0x00, 0x01),
        (0x00, 0x01, 0x02),
        (0x01, 0x00, 0x02),
        (0x00, 0x04, 0x00),
        (0x04, 0x00, 0x04),
        (0x00, 0x08, 0x08),
        (0x08, 0x00, 0x08),
        (0x0F, 0x00, 0x0F),
        (0x00, 0x0F, 0x0B),
        (0x05, 0x05, 0x00),
    ],
)
def test_modem_status_deltas(io, before, after, delta):
    """8.9, bits 0-3: what has changed since the last read; of the ring indicator only the end counts."""
    io[IER] = EDSSI
    io[MCR] = LOOP | before
    io[MSR]
    io[MCR] = LOOP | after
    assert io[IIR] == (STATUS if delta else NONE)
    assert io[MSR] & 0x0F == delta
    assert io[MSR] & 0x0F == 0
    assert io[IIR] == NONE


def test_deltas_gather_until_read(io):
    io[MCR] = LOOP
    io[MSR]
    io[MCR] = LOOP | 0x02
    io[MCR] = LOOP | 0x03
    assert io[MSR] == 0x33


def test_modem_status_interrupt(io):
    io[IER] = EDSSI
    io[MCR] = LOOP  # CTS, DSR and DCD fall
    io[MCR] = OUT2
    assert io.line.history == [True]
    assert io[IIR] == STATUS
    assert io.line.level  # reading IIR does not end it
    assert io[MSR] == 0xBB
    assert io.line.history == [True, False]


@pytest.mark.parametrize(("word_length", "mask"), [(0, 0x1F), (1, 0x3F), (2, 0x7F), (3, 0xFF)])
def test_loopback_data(io, word_length, mask):
    """8.8, bit 4: what is sent is received, in the word length of both ends, and nothing goes out."""
    io[LCR], io[MCR] = word_length, LOOP
    for value in (0x00, 0xAE, 0xFF):
        io[THR] = value
        assert io[LSR] == IDLE | DR
        assert io[RBR] == value & mask
    assert io.sent == b""


def test_loopback_ignores_the_break(io):
    """8.1, bit 6: the break acts on the output pin alone."""
    io[LCR], io[MCR] = WORD_8 | BREAK, LOOP
    io[THR] = 0x42
    assert io[RBR] == 0x42


def test_loopback_interrupts_show_in_iir(io):
    """8.8: receiver and transmitter interrupts are operational; a PC's line is not connected."""
    io[LCR], io[IER], io[MCR] = WORD_8, ERBFI | ETBEI, LOOP | OUT2
    assert io[IIR] == THRE
    io[THR] = 0x42
    assert io[IIR] == DATA
    assert io[RBR] == 0x42
    assert io[IIR] == THRE
    assert io.line.history == []


def test_host_input_waits_for_the_end_of_loopback(io):
    io[FCR], io[LCR], io[MCR] = 1, WORD_8, LOOP
    io.receive(b"host")
    io[THR] = 0x42
    assert io.drain() == b"\x42"
    io[MCR] = 0
    assert io.drain() == b"host"


def test_what_linux_asks_before_it_believes_in_a_16550a(io):
    """The probe of Linux's drivers/tty/serial/8250: scratch IER, loopback of modem lines, FIFO bits, FIFO size."""
    io[IER] = 0
    assert io[IER] & 0x0F == 0
    io[IER] = 0x0F
    assert io[IER] == 0x0F
    io[IER] = 0
    io[MCR] = LOOP | 0x0A
    assert io[MSR] & 0xF0 == 0x90
    io[MCR] = 0
    io[FCR] = 1
    assert io[IIR] & 0xC0 == 0xC0
    io[FCR] = 0x07
    io[LCR], io[MCR] = WORD_8, LOOP
    for value in range(256):
        io[THR] = value
    count = 0
    while io[LSR] & DR and count < 256:
        assert io[RBR] == count
        count += 1
    assert count == 16
    io[MCR] = 0
    io[IER] = ETBEI  # THRE reasserted each time that it is enabled
    assert io[LSR] & IDLE and io[IIR] == FIFOS | THRE
    io[IER] = 0
    io[IER] = ETBEI
    assert io[IIR] == FIFOS | THRE


# --- A far end that waits -----------------------------------------------------------------------------------------


def probe(io):
    """As Linux finds out what UART it has: with and without FIFO, in loopback, and clearing what came in."""
    io[IER] = 0
    io[IER] = 0x0F
    io[IER] = 0
    io[MCR] = LOOP | 0x0A
    io[MCR] = 0x03
    for control in (0x01, 0x00, 0x01, 0x07, 0x00):
        io[FCR] = control
        io[IIR], io[RBR]
    io[LSR], io[RBR], io[IIR], io[MSR]
    io[LSR], io[LSR]
    io[IER] = ETBEI
    io[IIR]
    io[IER] = 0
    io[LSR], io[RBR], io[IIR], io[MSR]


def console(io, text):
    """As Linux prints: interrupts off, and LSR after each character."""
    io[IER] = 0
    for character in text:
        io[LSR]
        io[THR] = character
    io[LSR]
    io[IER] = 0


def test_what_is_typed_ahead_outlives_a_probing_driver():
    io = Rig(waits=True)
    io.receive(b"echo hello\n")
    console(io, b"early")
    probe(io)
    console(io, b"and on")
    console(io, b"and on")
    assert not io[LSR] & DR
    io[MCR] = OUT2
    assert not io.line.level
    io[IER] = ERBFI
    assert io.line.level
    io[FCR] = 0x01
    io[FCR] = 0x81
    assert io.drain() == b"echo hello\n"


def test_an_interrupt_that_is_not_connected_is_no_attention():
    io = Rig(waits=True)
    io.receive(b"x")
    io[IER] = ERBFI
    assert io[IIR] == NONE
    io[MCR] = OUT2
    assert io[IIR] == DATA and io.line.level


def test_one_that_polls_gets_its_input():
    io = Rig(waits=True)
    io.receive(b"ab")
    for _ in range(POLLS - 1):
        assert not io[LSR] & DR
    assert io[LSR] & DR and io[RBR] == ord("a")
    assert io[LSR] & DR and io[RBR] == ord("b")
    io.receive(b"c")
    assert io[LSR] & DR and io[RBR] == ord("c")


def test_one_that_prints_before_it_polls_gets_its_input():
    io = Rig(waits=True)
    io.receive(b"ab")
    for character in b"What is your name? ":
        while not io[LSR] & IDLE:
            pass
        io[THR] = character
    for _ in range(POLLS):
        found = io[LSR] & DR
    assert found and io[RBR] == ord("a")


def test_what_comes_again_is_bounded_too():
    io = Rig(waits=True)
    assert io.receive(bytes(BACKLOG_LIMIT)) == BACKLOG_LIMIT
    io[FCR], io[MCR], io[IER] = 0xC1, OUT2, ERBFI
    assert io.receive(bytes(BACKLOG_LIMIT)) == 14
    io[MCR] = LOOP  # the host's end of the wire is off
    io[FCR] = 0x00
    assert io.serial.input_room() == 0
    assert io.receive(b"x") == 0 and not io.serial.receive_break()
    io[MCR] = 0
    io.drain()
    assert io.serial.input_room() == BACKLOG_LIMIT


def test_what_loops_back_does_not_come_again():
    io = Rig(waits=True)
    io[MCR], io[IER] = OUT2, ERBFI
    io[MCR] = LOOP
    io[THR] = ord("l")
    io[FCR] = 0x01
    io[MCR] = OUT2
    io.receive(b"x")
    assert io.drain() == b"x"


def test_a_reset_guest_is_waited_for_again():
    io = Rig(waits=True)
    io[MCR], io[IER] = OUT2, ERBFI
    io.serial.reset()
    io.receive(b"x")
    io[FCR] = 0x03
    io[FCR] = 0x00
    io[MCR], io[IER] = OUT2, ERBFI
    assert io[RBR] == ord("x")


# --- Every register with every width ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("offset", range(8))
@pytest.mark.parametrize("dlab", [0, DLAB])
@pytest.mark.parametrize("value", [0x0, 0xFFFFFFFFFFFFFFFF, 0x8899AABBCCDDEEFF])
def test_every_register_with_every_width(offset, size, dlab, value):
    """A wide access is its bytes at consecutive offsets, lowest first, and the UART still works after it."""
    wide, narrow = Rig(), Rig()
    for rig in (wide, narrow):
        rig.receive(b"input")
        rig[LCR] = dlab | WORD_8
    value &= (1 << 8 * size) - 1
    bytes_ = [narrow[at] if at < 8 else 0xFF for at in range(offset, offset + size)]
    assert wide.serial.read(offset, size) == int.from_bytes(bytes(bytes_), "little")
    wide.serial.write(offset, size, value)
    for at, byte in enumerate(value.to_bytes(size, "little"), offset):
        if at < 8:
            narrow[at] = byte
    assert wide.sent == narrow.sent
    for register in (LCR, MCR, LSR, MSR, SCR, IIR):
        assert wide[register] == narrow[register]
    wide[LCR], wide[MCR], wide[FCR] = WORD_8, OUT2, 0x07
    wide.sent.clear()
    wide[THR] = ord("!")
    wide.receive(b"?")
    assert wide.sent == b"!" and wide.drain().endswith(b"?")
