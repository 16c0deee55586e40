"""The keyboard controller without a keyboard, and the other ways to reset a PC."""

from __future__ import annotations

import threading

import pytest

from pyvmm.devices.i8042 import I8042
from pyvmm.devices.port92 import Port92
from pyvmm.devices.resetcontrol import ResetControl
from pyvmm.machine import Machine
from tests.support import RecordingLine

OBF, IBF, SYS, COMMAND, UNLOCKED, AUX, TIMEOUT = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40


class Rig:
    def __init__(self) -> None:
        self.resets = 0
        self.line = RecordingLine()
        self.device = I8042(self._reset, self.line)

    def _reset(self) -> None:
        self.resets += 1

    def command(self, value: int, *data: int) -> None:
        self.device.command_port.write(0, 1, value)
        for byte in data:
            self.data(byte)

    def data(self, value: int) -> None:
        self.device.data_port.write(0, 1, value)

    @property
    def status(self) -> int:
        return self.device.command_port.read(0, 1)

    def answer(self) -> int | None:
        """As a driver waits for it, but not for long."""
        return self.device.data_port.read(0, 1) if self.status & OBF else None

    def ask(self, command: int, *data: int) -> int | None:
        self.command(command, *data)
        return self.answer()


@pytest.fixture
def kbc():
    return Rig()


def test_status_after_reset(kbc):
    """A driver that flushes what is left finds nothing, and a probe does not find a floating bus."""
    assert kbc.status == SYS | UNLOCKED
    assert kbc.answer() is None


@pytest.mark.parametrize(
    ("command", "answer"),
    [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0xFF), (0xC0, 0x80), (0xE0, 0x03), (0x20, 0x65), (0xD0, 0xC3)],
    ids=hex,
)
def test_commands_that_answer(kbc, command, answer):
    assert kbc.ask(command) == answer
    assert kbc.status & (OBF | AUX | TIMEOUT) == 0


@pytest.mark.parametrize("command", [0x00, 0x10, 0x40, 0x80, 0xA7, 0xA8, 0xAD, 0xAE, 0xDD, 0xEF], ids=hex)
def test_commands_that_do_not(kbc, command):
    assert kbc.ask(command) is None
    assert kbc.resets == 0
    assert kbc.ask(0xAA) == 0x55


def test_input_buffer_is_never_full(kbc):
    for command in range(0xF0):
        kbc.command(command)
        assert kbc.status & IBF == 0
        kbc.data(command | 1)
        assert kbc.status & IBF == 0


def test_status_tells_commands_from_data(kbc):
    kbc.command(0xAE)
    assert kbc.status & COMMAND
    kbc.data(0xED)
    assert kbc.status & COMMAND == 0


def test_reading_an_empty_buffer_gives_the_last_byte(kbc):
    assert kbc.device.data_port.read(0, 1) == 0
    kbc.ask(0xAA)
    assert kbc.device.data_port.read(0, 1) == 0x55


def test_command_byte(kbc):
    kbc.command(0x60, 0x41)
    assert kbc.status & (SYS | OBF) == 0
    assert kbc.ask(0x20) == 0x41 | 0x20
    kbc.command(0x60, 0x04)
    assert kbc.status & SYS
    kbc.command(0xAD)
    assert kbc.ask(0x20) == 0x34
    kbc.command(0xAE)
    assert kbc.ask(0x20) == 0x24


def test_self_test_sets_the_system_flag(kbc):
    kbc.command(0x60, 0x00)
    assert kbc.status & SYS == 0
    kbc.ask(0xAA)
    assert kbc.status & SYS


@pytest.mark.parametrize("index", range(1, 32))
def test_controller_ram(kbc, index):
    kbc.command(0x60 | index, 0x5A)
    assert kbc.ask(0x20 | index) == 0x5A
    assert kbc.ask(0x20) == 0x65


def test_a_new_command_cancels_the_one_that_waits_for_data(kbc):
    kbc.command(0xD1)
    kbc.command(0xAA)
    assert kbc.answer() == 0x55
    kbc.data(0x00)  # not for the output port: no reset
    assert kbc.resets == 0


def test_the_keyboard_does_not_answer(kbc):
    """Each byte for it gets 0xfe and the time-out bit, at once, so that a probe is over quickly."""
    kbc.command(0xAD)
    for byte in (0xFF, 0xF2, 0xED, 0x00):
        kbc.data(byte)
        assert kbc.status & (OBF | TIMEOUT | AUX) == OBF | TIMEOUT
        assert kbc.answer() == 0xFE
        assert kbc.status & (OBF | TIMEOUT) == 0
    assert kbc.ask(0x20) == 0x65  # sending to the keyboard enabled it


def test_there_is_no_second_port(kbc):
    kbc.command(0xA8)
    assert kbc.ask(0x20, *()) == 0x65
    kbc.command(0xD4, 0xF2)
    assert kbc.status & (OBF | TIMEOUT | AUX) == OBF | TIMEOUT | AUX
    assert kbc.answer() == 0xFE


def test_output_buffer_can_be_written(kbc):
    kbc.command(0xD2, 0x1C)
    assert kbc.status & (OBF | AUX) == OBF
    assert kbc.answer() == 0x1C
    kbc.command(0xD3, 0x5A)
    assert kbc.status & (OBF | AUX) == OBF | AUX
    assert kbc.answer() == 0x5A


def test_a_flood_of_answers_keeps_the_last(kbc):
    for _ in range(1000):
        kbc.command(0xAB)
        kbc.data(0xFF)
    kbc.command(0xAA)
    assert kbc.status & (OBF | TIMEOUT) == OBF
    assert kbc.answer() == 0x55
    assert kbc.answer() is None


def test_output_port(kbc):
    kbc.command(0xD1, 0xDD)
    assert kbc.ask(0xD0) == 0xC1
    kbc.command(0xD1, 0xDF)
    assert kbc.ask(0xD0) == 0xC3
    kbc.command(0xD2, 0x00)
    kbc.command(0xD0)
    assert kbc.answer() == 0xC3 | 0x10  # there was a byte to read
    assert kbc.resets == 0
    kbc.command(0xD1, 0xDE)
    assert kbc.resets == 1


@pytest.mark.parametrize("command", range(0xF0, 0x100), ids=hex)
def test_pulsing_the_reset_line(kbc, command):
    kbc.command(command)
    assert kbc.resets == (0 if command & 1 else 1)


def test_the_way_linux_reboots(kbc):
    for _ in range(10):
        if kbc.status & IBF == 0:
            kbc.command(0xFE)
    assert kbc.resets == 10


def test_interrupt_follows_the_output_buffer(kbc):
    kbc.command(0xAA)
    assert kbc.line.history == [True]
    kbc.answer()
    assert kbc.line.history == [True, False]
    kbc.command(0x60, 0x64)
    kbc.command(0xAA)
    assert kbc.line.history == [True, False]
    kbc.command(0x60, 0x65)  # allowed while the byte still waits
    assert kbc.line.level
    kbc.device.reset()
    assert not kbc.line.level
    kbc.command(0xD3, 0x5A)  # the auxiliary device's interrupt would be another
    assert not kbc.line.level


def test_reset(kbc):
    kbc.command(0x60, 0x00)
    kbc.command(0xD1, 0xDD)
    kbc.command(0xD1)
    kbc.device.reset()
    assert kbc.status == SYS | UNLOCKED
    kbc.data(0x00)
    assert kbc.answer() == 0xFE
    assert kbc.resets == 0
    assert (kbc.ask(0xD0), kbc.ask(0x20)) == (0xC3, 0x65)


def test_works_without_an_interrupt_line():
    device = I8042(lambda: None)
    device.command_port.write(0, 1, 0xAA)
    assert device.data_port.read(0, 1) == 0x55


def test_both_ports_share_a_lock(kbc):
    assert kbc.device.data_port.lock is kbc.device.command_port.lock is kbc.device.lock


# --- Port 0x92 and 0xcf9 ------------------------------------------------------------------------------------------


@pytest.fixture
def resets() -> list[str]:
    return []


def test_port_92_gate_and_reset(resets):
    port = Port92(lambda: resets.append("reset"))
    assert port.read(0, 1) == 0x02
    port.write(0, 1, 0x00)
    assert port.read(0, 1) == 0x00
    port.write(0, 1, 0xFE)
    assert (port.read(0, 1), resets) == (0x02, [])
    port.write(0, 1, 0x01)
    assert (port.read(0, 1), resets) == (0x00, ["reset"])
    port.reset()
    assert port.read(0, 1) == 0x02


@pytest.mark.parametrize("value", range(16), ids=hex)
def test_reset_control(resets, value):
    port = ResetControl(lambda: resets.append("reset"))
    port.write(0, 1, value | 0xF0)
    assert resets == (["reset"] if value & 0x04 else [])
    assert port.read(0, 1) == value & 0x0A
    port.reset()
    assert port.read(0, 1) == 0


def test_reset_control_as_linux_does_it(resets):
    port = ResetControl(lambda: resets.append("reset"))
    value = port.read(0, 1) & ~0x0E
    port.write(0, 1, value | 0x02)
    assert resets == []
    port.write(0, 1, value | 0x06)
    assert resets == ["reset"]


class ConfigPorts:
    """Stands in for a host bridge: remembers what comes to it."""

    def __init__(self):
        self.name, self.lock, self.seen = "bridge", threading.Lock(), []

    def read(self, offset, size):
        assert self.lock.locked()
        self.seen.append((offset, size))
        return 0

    def write(self, offset, size, value):
        assert self.lock.locked()
        self.seen.append((offset, size, value))


def pc():
    """A machine and the ways in which its guest has ended the run."""
    ends = []
    return Machine([(0, 1 << 20)], lambda *_: None, lambda _: None, lambda outcome: ends.append(outcome.detail)), ends


def test_reset_control_lives_among_the_ports_of_a_pci_host_bridge():
    """PCI 3.0, 3.2.2.3.2: what is no dword at 0xcf8 is no configuration address, so 0xcf9 can be a port of its own."""
    machine, ends = pc()
    bridge = ConfigPorts()
    machine.add_pci(bridge)
    ports = machine.ports
    ports.write(0xCF9, 1, 0x02)
    assert ports.read(0xCF9, 1) == 0x02 and bridge.seen == []
    for port, size in ((0xCF8, 4), (0xCF8, 1), (0xCF9, 2), (0xCFB, 1), (0xCFC, 4), (0xCFD, 1), (0xCFE, 2), (0xCFF, 1)):
        ports.read(port, size)
        ports.write(port, size, 0x06)
        assert bridge.seen == [(port - 0xCF8, size), (port - 0xCF8, size, 0x06)]
        bridge.seen.clear()
    assert ends == [] and ports.read(0xCF9, 1) == 0x02
    ports.write(0xCF9, 1, 0x06)
    assert ends == ["the guest reset the machine through port 0xcf9"]
    assert ports.read(0xCFC, 8) == 2**64 - 1, "nothing answers an access that goes beyond the ports"


def test_a_machine_without_pci_has_nothing_at_its_ports():
    machine, _ = pc()
    assert machine.ports.read(0xCF8, 4) == machine.ports.read(0xCFC, 4) == 0xFFFFFFFF
    assert machine.ports.unclaimed_reads == 2
    assert machine.ports.read(0xCF9, 1) == 0
