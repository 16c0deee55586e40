"""Declarations: decoding, printing, look-up and dispatch all follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.devices.acpipm import AcpiPm
from pyvmm.devices.debugcon import DebugCon
from pyvmm.devices.debugexit import DebugExit
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.port92 import Port92
from pyvmm.devices.pvpanic import PvPanic
from pyvmm.devices.resetcontrol import ResetControl
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.rtc_registers import CMOS
from pyvmm.devices.serial import Serial
from pyvmm.devices.serial_registers import REGISTERS as UART
from pyvmm.registers import Field, PortWindow, Register, RegisterFile, RegisterMap
from tests.support import RecordingLine

MAPS = {
    "serial": UART,
    "rtc ports": Rtc.registers,
    "cmos": CMOS,
    "i8042": I8042.registers,
    "port92": Port92.registers,
    "resetcontrol": ResetControl.registers,
    "debugexit": DebugExit(lambda value: None).registers,
    "debugcon": DebugCon.registers,
    "acpi-pm": AcpiPm.registers,
    "pvpanic": PvPanic.registers,
}

MODE = Register(
    "MODE",
    1,
    "Book 1.2",
    Field("ON", 0x01, "switched on"),
    Field("SPEED", 0x0C, "how fast", {0: "slow", 2: "fast"}),
    Field("ERROR", 0x80, "went wrong"),
)
LATCH = Register("LATCH", 0, "Book 1.1", bank=1)
SPLIT = RegisterMap(
    4,
    Register("STATUS", 0, "Book 1.1", access="r", bank=0),
    Register("COMMAND", 0, "Book 1.1", access="w", bank=0),
    LATCH,
    MODE,
)


class Box(RegisterFile, registers=SPLIT):
    """COMMAND 0xff selects bank 1, LATCH 0 selects bank 0."""

    __slots__ = ("calls", "mode")

    def __init__(self) -> None:
        super().__init__("box")
        self.calls: list[str] = []
        self.mode = 0

    def read_status(self) -> int:
        self.calls.append("status")
        return 0x5A

    def write_command(self, value: int) -> None:
        self.calls.append(f"command {value:#x}")
        self.select(1 if value == 0xFF else 0)

    def read_latch(self) -> int:
        return 0xA5

    def write_latch(self, value: int) -> None:
        self.calls.append(f"latch {value:#x}")
        self.select(1 if value else 0)

    def read_mode(self) -> int:
        return self.mode

    def write_mode(self, value: int) -> None:
        self.mode = value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0x00, "MODE 0x00: SPEED=slow"),
        (0x01, "MODE 0x01: ON SPEED=slow"),
        (0x88, "MODE 0x88: SPEED=fast ERROR"),
        (0x04, "MODE 0x04: SPEED=0x1"),
        (0x72, "MODE 0x72: SPEED=slow +0x72"),
    ],
)
def test_a_value_is_described_by_its_fields(value, text):
    assert MODE.describe(value) == text


def test_description_is_as_wide_as_the_register():
    assert Register("SCR", 7, "here").describe(0x5) == "SCR 0x05"
    assert Register("EXIT", 0, "here", width=4).describe(0x5) == "EXIT 0x00000005"


def test_field_values_are_shifted_down():
    assert [field.of(0x8D) for field in MODE.fields] == [1, 3, 1]


def test_real_registers_describe_themselves():
    assert UART["LSR"].describe(0x61) == "LSR 0x61: DR THRE TEMT"
    assert UART["IIR"].describe(0xCC) == "IIR 0xcc: ID=character-timeout FIFOS=on"
    assert UART["LCR"].describe(0x83) == "LCR 0x83: WLS=8 DLAB"
    assert UART["FCR"].describe(0xC7) == "FCR 0xc7: FIFO_ENABLE RCVR_RESET XMIT_RESET TRIGGER=14"
    assert CMOS["B"].describe(0x82) == "B 0x82: 24_HOURS SET"


def test_look_up_by_name_and_by_access():
    assert SPLIT["LATCH"] is LATCH
    assert SPLIT.at(0, is_write=False) is SPLIT["STATUS"]
    assert SPLIT.at(0, is_write=True) is SPLIT["COMMAND"]
    assert SPLIT.at(0, is_write=True, bank=1) is LATCH
    assert SPLIT.at(1, is_write=False, bank=1) is MODE
    assert SPLIT.at(2, is_write=False) is None
    assert list(SPLIT.banks()) == [0, 1]
    assert list(RegisterMap(4, MODE).banks()) == list(RegisterMap(4).banks()) == [0]
    with pytest.raises(KeyError):
        SPLIT["NOPE"]


@pytest.mark.parametrize(
    "registers",
    [
        (Register("A", 0, ""), Register("A", 1, "")),
        (Register("A", 0, ""), Register("B", 0, "", access="r")),
        (Register("A", 0, "", bank=1), Register("B", 0, "")),
        (Register("A", 4, ""),),
        (Register("A", 2, "", width=4),),
    ],
    ids=["same name", "same access", "same access in one bank", "beyond the end", "across the end"],
)
def test_contradictory_declarations_are_refused(registers):
    with pytest.raises(ValueError, match=r"two registers|answers the same|does not fit"):
        RegisterMap(4, *registers)


def test_a_declared_register_without_its_method_is_refused():
    with pytest.raises(AttributeError, match="write_latch"):

        class Half(RegisterFile, registers=RegisterMap(1, LATCH)):
            read_latch = Box.read_latch


def test_dispatch_follows_access_and_bank():
    box = Box()
    assert box.read(0, 1) == 0x5A
    box.write(0, 1, 0xFF)
    assert box.read(0, 1) == 0xA5
    assert box.register_at(0, is_write=False) is LATCH
    box.write(0, 1, 0)
    assert box.read(0, 1) == 0x5A
    assert box.register_at(0, is_write=False) is SPLIT["STATUS"]
    assert box.calls == ["status", "command 0xff", "latch 0x0", "status"]


def test_nothing_declared_reads_ones_and_ignores_writes():
    box = Box()
    box.write(2, 1, 0x12)
    assert (box.read(2, 1), box.read(3, 1)) == (0xFF, 0xFF)
    assert box.calls == []


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [(0, 2, 0x115A), (0, 4, 0xFFFF115A), (1, 2, 0xFF11), (0, 8, 0xFFFFFFFFFFFF115A), (3, 4, 2**32 - 1)],
)
def test_a_wide_read_is_bytes_at_consecutive_offsets(offset, size, value):
    box = Box()
    box.mode = 0x11
    assert box.read(offset, size) == value


def test_a_wide_write_is_bytes_at_consecutive_offsets():
    box = Box()
    box.write(0, 2, 0x2233)
    assert (box.calls, box.mode) == (["command 0x33"], 0x22)
    box.write(1, 8, 0x8877665544332299)  # runs over the end
    assert box.mode == 0x99


BANKED = RegisterMap(
    2,
    Register("SELECT", 0, "Book 2", access="w"),
    Register("PLAIN", 1, "Book 2", access="w", bank=0),
    Register("OTHER", 1, "Book 2", access="w", bank=1),
)


def test_a_wide_access_sees_the_bank_that_its_first_byte_selected():
    class Banked(RegisterFile, registers=BANKED):
        write_select = RegisterFile.select

        def write_plain(self, value: int) -> None:
            seen.append("plain")

        def write_other(self, value: int) -> None:
            seen.append("other")

    seen: list[str] = []
    device = Banked("banked")
    device.write(0, 2, 0x0001)
    device.write(0, 2, 0x0000)
    assert seen == ["other", "plain"]


def test_a_window_shares_lock_and_registers():
    box = Box()
    window = PortWindow(box, 1)
    assert (window.lock, window.name) == (box.lock, "box")
    window.write(0, 1, 0x42)
    assert (box.mode, window.read(0, 1)) == (0x42, 0x42)
    assert window.register_at(0, is_write=False) is MODE
    window = PortWindow(box, 0)
    window.write(1, 1, 0x43)
    assert (box.mode, window.read(1, 1)) == (0x43, 0x43)
    assert window.register_at(1, is_write=False) is MODE


@pytest.mark.parametrize("name", MAPS)
def test_declarations_are_complete(name):
    for register in MAPS[name]:
        assert register.spec, register
        assert register.access in ("r", "w", "rw"), register
        assert 0 <= register.reset < 256**register.width, register
        seen = 0
        for field in register.fields:
            assert field.name and field.meaning, (register, field.name)
            assert field.mask and field.mask & seen == 0, (register, field.name)
            assert field.mask >> field.shift & (field.mask >> field.shift) + 1 == 0, "the bits are neighbours"
            seen |= field.mask
        assert seen < 256**register.width


def test_reset_selects_bank_0():
    serial = Serial(RecordingLine(), lambda data: None)
    serial.write(3, 1, 0x80)
    assert serial.register_at(0, is_write=True) is UART["DLL"]
    serial.reset()
    assert serial.register_at(0, is_write=True) is UART["THR"]


def table_row(register: Register) -> str:
    """The register as a row of docs/devices.md."""
    offset = f"{register.offset:#x}" + (", DLAB = 1" if register.bank else "")
    fields = " ".join(field.name for field in reversed(register.fields)) or "-"
    return f"| {offset} | {register.name} | {register.access} | {fields} | {register.spec} |"


@pytest.mark.parametrize("name", MAPS)
def test_the_documentation_lists_every_register(name):
    lines = (Path(__file__).parents[2] / "docs" / "devices.md").read_text().splitlines()
    first = lines.index(table_row(MAPS[name].registers[0]))
    rows = [table_row(register) for register in MAPS[name]]
    assert lines[first : first + len(rows)] == rows
