"""ACPI's fixed hardware and pvpanic."""

import random

import pytest

from pyvmm.devices.acpipm import TIMER_HZ, AcpiPm
from pyvmm.devices.pvpanic import PvPanic
from tests.support import RecordingLine

STS, EN, CNT, TMR, GPE = 0, 2, 4, 8, 12
POWER_BUTTON = 1 << 8


class Rig:
    def __init__(self):
        self.line = RecordingLine()
        self.now = 0.0
        self.off = 0
        self.pm = AcpiPm(self.line, self._off, (0, 5), clock=lambda: self.now)

    def _off(self):
        self.off += 1


def test_after_reset_it_is_in_acpi_mode_and_quiet():
    pm = Rig().pm
    assert pm.read(STS, 2) == 0
    assert pm.read(EN, 2) == 0
    assert pm.read(CNT, 2) == 1
    assert pm.read(STS, 4) == 0
    assert pm.read(TMR, 4) == 0


def test_the_power_button_raises_the_sci_until_it_is_acknowledged():
    rig = Rig()
    rig.pm.press_power_button()
    assert not rig.line.level, "not enabled yet"
    assert rig.pm.read(STS, 2) == POWER_BUTTON
    rig.pm.write(EN, 2, POWER_BUTTON)
    assert rig.line.level
    rig.pm.write(STS, 2, 0x0001)
    assert rig.line.level, "another bit's acknowledgement"
    rig.pm.write(STS, 2, POWER_BUTTON)
    assert not rig.line.level
    assert rig.pm.read(STS, 2) == 0


def test_a_general_purpose_event_raises_the_sci_until_it_is_acknowledged():
    rig = Rig()
    rig.pm.raise_event(3)
    assert (rig.pm.read(GPE, 1), rig.line.level) == (8, False)
    rig.pm.write(GPE + 1, 1, 8)
    assert rig.line.level and rig.pm.read(GPE, 2) == 0x0808
    rig.pm.write(GPE, 1, 7)
    assert rig.line.level
    rig.pm.write(GPE, 2, 0x0808)
    assert not rig.line.level and rig.pm.read(GPE, 2) == 0x0800
    rig.pm.raise_event(3)
    assert rig.line.level, "it is enabled already"
    again = Rig()
    again.pm.restore(rig.pm.save())
    assert again.line.level


def test_enable_bits_stay_as_linux_checks():
    pm = Rig().pm
    pm.write(EN, 2, 0xFFFF)
    assert pm.read(EN, 2) == 0x0521
    pm.write(EN, 2, 0)
    assert pm.read(EN, 2) == 0


def test_status_is_cleared_and_enabled_by_bytes_too():
    rig = Rig()
    rig.pm.press_power_button()
    rig.pm.write(EN + 1, 1, 1)
    assert rig.line.level
    rig.pm.write(STS, 1, 0xFF)
    assert rig.line.level
    rig.pm.write(STS + 1, 1, 1)
    assert not rig.line.level


@pytest.mark.parametrize("sleep_type", range(8))
def test_soft_off(sleep_type):
    rig = Rig()
    rig.pm.write(CNT, 2, sleep_type << 10)
    assert rig.off == 0, "SLP_TYP alone does nothing"
    rig.pm.write(CNT, 2, sleep_type << 10 | 1 << 13)
    assert rig.off == (sleep_type in (0, 5))
    assert rig.pm.read(CNT, 2) == sleep_type << 10 | 1, "SLP_EN reads 0, SCI_EN 1"


def test_soft_off_by_a_byte():
    rig = Rig()
    rig.pm.write(CNT + 1, 1, 0x20)
    assert rig.off == 1


def test_the_timer_counts_and_wraps():
    rig = Rig()
    rig.now = 1.0
    assert rig.pm.read(TMR, 4) == TIMER_HZ
    assert rig.pm.read(TMR + 1, 2) == TIMER_HZ >> 8 & 0xFFFF
    rig.now = (1 << 32) / TIMER_HZ + 2.0
    assert abs(rig.pm.read(TMR, 4) - 2 * TIMER_HZ) < 4


def test_timer_status_follows_the_highest_bit():
    rig = Rig()
    rig.now = (1 << 31) / TIMER_HZ + 0.1
    assert rig.pm.read(STS, 2) == 1
    rig.pm.write(STS, 2, 1)
    assert rig.pm.read(STS, 2) == 0
    rig.now = (1 << 32) / TIMER_HZ + 0.1
    assert rig.pm.read(STS, 2) == 1


def test_the_timer_is_read_only():
    rig = Rig()
    rig.pm.write(TMR, 4, 0x12345678)
    assert rig.pm.read(TMR, 4) == 0


def test_any_access_is_answered_within_its_width():
    rig, choose = Rig(), random.Random(3)
    for _ in range(2000):
        offset, size = choose.randrange(12), choose.choice([1, 2, 4])
        if choose.random() < 0.5:
            assert 0 <= rig.pm.read(offset, size) < 1 << 8 * size
        else:
            rig.pm.write(offset, size, choose.getrandbits(8 * size))
    assert rig.pm.read(CNT, 2) & 1


@pytest.mark.parametrize(("value", "panics"), [(0, 0), (1, 1), (2, 0), (3, 1), (0xFC, 0)])
def test_pvpanic(value, panics):
    seen = []
    device = PvPanic(lambda: seen.append(1))
    assert device.read(0, 1) == 3
    device.write(0, 1, value)
    assert len(seen) == panics
