"""The real-time clock and CMOS RAM, on an injected clock."""

from __future__ import annotations

import calendar
import datetime
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.devices.rtc import Rtc

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM, WEEKDAY, DAY, MONTH, YEAR = range(10)
A, B, C, D, CENTURY = 0x0A, 0x0B, 0x0C, 0x0D, 0x32
SET, PIE, AIE, UIE, BINARY, H24 = 0x80, 0x40, 0x20, 0x10, 0x04, 0x02
UIP = 0x80
IRQF, PF, AF, UF = 0x80, 0x40, 0x20, 0x10
ANY = 0xC0

# Saturday
NOON = calendar.timegm((2026, 11, 21, 12, 34, 56))


class Rig:
    """An RTC whose clock is `now`. `cmos[index]` and `cmos[index] = value` go through the ports."""

    def __init__(self, now: float = NOON, below_4g: int = 512 * MIB, above_4g: int = 0) -> None:
        self.now = now
        self.rtc = Rtc(below_4g, above_4g, lambda: self.now)

    def __getitem__(self, index: int) -> int:
        self.rtc.write(0, 1, index)
        return self.rtc.read(1, 1)

    def __setitem__(self, index: int, value: int) -> None:
        self.rtc.write(0, 1, index)
        self.rtc.write(1, 1, value)

    def word(self, index: int, width: int = 2) -> int:
        return sum(self[index + at] << 8 * at for at in range(width))

    def time(self) -> list[int]:
        return [self[index] for index in (CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS)]


@pytest.fixture
def cmos():
    return Rig()


# --- Time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (H24, [0x20, 0x26, 0x11, 0x21, 0x12, 0x34, 0x56]),
        (H24 | BINARY, [20, 26, 11, 21, 12, 34, 56]),
        (0, [0x20, 0x26, 0x11, 0x21, 0x92, 0x34, 0x56]),
        (BINARY, [20, 26, 11, 21, 0x80 | 12, 34, 56]),
    ],
    ids=["BCD 24", "binary 24", "BCD 12", "binary 12"],
)
def test_time_in_each_format(cmos, mode, expected):
    cmos[B] = mode
    assert cmos.time() == expected
    assert cmos[WEEKDAY] == 7


@pytest.mark.parametrize(
    ("hour", "bcd"), [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)], ids=str
)
def test_12_hour_format(cmos, hour, bcd):
    cmos[B] = 0
    cmos.now = calendar.timegm((2026, 11, 21, hour, 0, 0))
    assert cmos[HOURS] == bcd
    cmos[HOURS] = bcd
    cmos[B] = H24 | BINARY
    assert cmos[HOURS] == hour


def test_bcd_24_hours_after_power_on_and_the_real_clock():
    rtc = Rtc(MIB, 0)
    before = time.time()
    rtc.write(0, 1, YEAR)
    year = rtc.read(1, 1)
    assert year in {int(time.strftime("%y", time.gmtime(moment)), 16) for moment in (before, time.time())}
    rtc.write(0, 1, B)
    assert rtc.read(1, 1) == H24


def test_time_goes_on(cmos):
    assert cmos[SECONDS] == 0x56
    cmos.now += 3.999
    assert cmos[SECONDS] == 0x59
    cmos.now += 0.001
    assert (cmos[MINUTES], cmos[SECONDS]) == (0x35, 0x00)


@pytest.mark.parametrize("weekday", range(7))
def test_sunday_is_1(cmos, weekday):
    cmos.now = calendar.timegm((2026, 11, 22 + weekday, 0, 0, 0))
    assert cmos[WEEKDAY] == weekday + 1


@settings(max_examples=100, deadline=None)
@given(
    moment=st.datetimes(datetime.datetime(1970, 1, 1), datetime.datetime(9999, 12, 31)),
    mode=st.sampled_from([0, BINARY, H24, H24 | BINARY]),
    later=st.integers(0, 10**6),
)
def test_a_time_that_is_set_goes_on_from_there(moment, mode, later):
    """Written as Linux does it, under SET, in any format; read back at once and after a while."""
    cmos = Rig(NOON + 0.25)
    cmos[B] = mode | SET
    encode = int if mode & BINARY else lambda value: int(str(value), 16)
    hour = moment.hour if mode & H24 else moment.hour % 12 or 12
    pm = 0 if mode & H24 or moment.hour < 12 else 0x80
    fields = {
        CENTURY: encode(moment.year // 100),
        YEAR: encode(moment.year % 100),
        MONTH: encode(moment.month),
        DAY: encode(moment.day),
        HOURS: encode(hour) | pm,
        MINUTES: encode(moment.minute),
        SECONDS: encode(moment.second),
    }
    for index, value in fields.items():
        cmos[index] = value
    assert [cmos[index] for index in fields] == list(fields.values())
    cmos[B] = mode
    assert [cmos[index] for index in fields] == list(fields.values())
    cmos.now += later
    try:
        moment += datetime.timedelta(seconds=later)
    except OverflowError:
        return
    cmos[B] = H24 | BINARY
    assert cmos.time() == [
        moment.year // 100,
        moment.year % 100,
        moment.month,
        moment.day,
        moment.hour,
        moment.minute,
        moment.second,
    ]


def test_time_stands_still_under_set(cmos):
    cmos[B] = H24 | SET
    cmos.now += 100
    assert cmos.time() == [0x20, 0x26, 0x11, 0x21, 0x12, 0x34, 0x56]
    assert cmos[C] & UF == 0
    cmos[B] = H24
    assert cmos.time() == [0x20, 0x26, 0x11, 0x21, 0x12, 0x34, 0x56]
    cmos.now += 1
    assert cmos[SECONDS] == 0x57


def test_a_byte_of_the_running_time_can_be_set(cmos):
    cmos[HOURS] = 0x23
    assert cmos.time() == [0x20, 0x26, 0x11, 0x21, 0x23, 0x34, 0x56]
    cmos.now += 3600
    assert cmos.time() == [0x20, 0x26, 0x11, 0x22, 0x00, 0x34, 0x56]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ((0x26, 0x02, 0x31), [0x26, 0x03, 0x03]),
        ((0x26, 0x13, 0x01), [0x27, 0x01, 0x01]),
        ((0x26, 0x00, 0x10), [0x25, 0x12, 0x10]),
        ((0x26, 0x05, 0x00), [0x26, 0x04, 0x30]),
    ],
    ids=str,
)
def test_a_date_that_does_not_exist_is_carried_over(cmos, wrong, right):
    cmos[B] = H24 | SET
    cmos[YEAR], cmos[MONTH], cmos[DAY] = wrong
    assert (cmos[YEAR], cmos[MONTH], cmos[DAY]) == wrong
    cmos[B] = H24
    assert [cmos[YEAR], cmos[MONTH], cmos[DAY]] == right


@settings(max_examples=100, deadline=None)
@given(values=st.binary(min_size=8, max_size=8), modes=st.tuples(st.integers(0, 255), st.integers(0, 255)))
def test_any_garbage_can_be_set_as_time(values, modes):
    cmos = Rig()
    cmos[B] = modes[0] | SET
    indexes = (CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS)
    for index, value in zip(indexes, values, strict=True):
        cmos[index] = value
    assert bytes(cmos[index] for index in indexes) == values
    cmos[B] = modes[1] & ~SET
    for index in indexes:
        assert 0 <= cmos[index] <= 0xFF
    cmos[B] = SET | H24 | BINARY
    for index, value in zip(indexes, (20, 24, 2, 29, 5, 1, 2, 3), strict=True):
        cmos[index] = value
    cmos[B] = H24 | BINARY
    assert [cmos[index] for index in indexes] == [20, 24, 2, 29, 5, 1, 2, 3]


def test_uip_rises_before_each_second_and_falls_with_it(cmos):
    """Table 6: 244 µs of warning and 1,984 µs of update at 32,768 Hz."""
    for second in (0, 1):
        for fraction, uip in ((0.0, 0), (0.5, 0), (0.9977, 0), (0.9978, UIP), (0.9999, UIP)):
            cmos.now = NOON + second + fraction
            assert cmos[A] & UIP == uip, (second, fraction)
            assert cmos[SECONDS] == 0x56 + second  # readable all the time
    cmos[B] = H24 | SET
    assert cmos[A] & UIP == 0


# --- Flags --------------------------------------------------------------------------------------------------------


def test_update_flag_is_set_each_second_and_cleared_by_reading(cmos):
    cmos[A] = 0x20  # no periodic flag
    assert cmos[C] == 0
    cmos.now += 1
    assert cmos[C] == UF
    assert cmos[C] == 0
    cmos.now += 0.5
    assert cmos[C] == 0
    cmos.now += 0.5
    assert cmos[C] == UF


@pytest.mark.parametrize(("enable", "flag"), [(UIE, UF), (AIE, AF), (PIE, PF)])
def test_irqf_needs_the_enable(cmos, enable, flag):
    cmos[A] = 0x2F
    for index in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
        cmos[index] = ANY
    cmos[C]
    cmos.now += 1
    assert cmos[C] == UF | AF | PF
    cmos[B] = H24 | enable
    cmos.now += 1
    assert cmos[C] == IRQF | UF | AF | PF
    cmos[B] = H24


@pytest.mark.parametrize(
    ("rate", "period"),
    [(1, 2**7), (2, 2**8), *((rate, 2 ** (rate - 1)) for rate in range(3, 16))],
    ids=lambda value: str(value),
)
def test_periodic_rates(cmos, rate, period):
    """Table 5, at 32,768 Hz: 1 and 2 are the same as 8 and 9."""
    cmos[A] = 0x20 | rate
    cmos[C]
    tick = period / 32768
    cmos.now += tick / 2
    assert cmos[C] & PF == 0
    cmos.now += tick / 2
    assert cmos[C] & PF == PF
    assert cmos[C] & PF == 0


def test_rate_0_has_no_periodic_flag(cmos):
    cmos[A] = 0x20
    cmos[C]
    cmos.now += 100
    assert cmos[C] & PF == 0


@pytest.mark.parametrize(
    ("alarm", "after"),
    [
        ((0x12, 0x34, 0x59), 3),
        ((0x12, 0x35, 0x00), 4),
        ((0x00, 0x00, 0x00), 11 * 3600 + 25 * 60 + 4),
        ((0x12, 0x34, 0x56), 86400),
        ((0x12, 0x34, 0x55), 86399),
        ((ANY, ANY, ANY), 1),
        ((ANY, ANY, 0x00), 4),
        ((ANY, 0x30, 0x00), 55 * 60 + 4),
        ((0x13, ANY, ANY), 25 * 60 + 4),
        ((0xFF, 0xC5, 0x58), 2),
    ],
)
def test_alarm(cmos, alarm, after):
    cmos[HOURS_ALARM], cmos[MINUTES_ALARM], cmos[SECONDS_ALARM] = alarm
    cmos[C]
    cmos.now += after - 1
    assert cmos[C] & AF == 0
    cmos.now += 1
    assert cmos[C] & AF == AF
    assert cmos[C] & AF == 0


def test_alarm_follows_the_time_that_the_guest_has_set(cmos):
    cmos[HOURS], cmos[MINUTES], cmos[SECONDS] = 0x06, 0x59, 0x58
    cmos[HOURS_ALARM], cmos[MINUTES_ALARM], cmos[SECONDS_ALARM] = 0x07, 0x00, 0x00
    cmos[C]
    cmos.now += 1
    assert cmos[C] & AF == 0
    cmos.now += 1
    assert cmos[C] & AF


def test_alarm_found_in_a_long_gap(cmos):
    cmos[HOURS_ALARM], cmos[MINUTES_ALARM], cmos[SECONDS_ALARM] = 0x03, 0x04, 0x05
    cmos[C]
    cmos.now += 10**9
    assert cmos[C] & AF


@pytest.mark.parametrize("alarm", [(0x24, 0, 0), (0, 0x60, 0), (0, 0, 0x60), (ANY, ANY, 0x60), (ANY, 0x60, ANY)])
def test_an_alarm_that_never_comes_costs_nothing(cmos, alarm):
    """A guest reads register C in a loop: the search must not walk the day."""
    cmos[HOURS_ALARM], cmos[MINUTES_ALARM], cmos[SECONDS_ALARM] = alarm
    start = time.process_time()
    for _ in range(20):
        cmos.now += 10**6
        assert cmos[C] & AF == 0
    assert time.process_time() - start < 0.1


def test_alarm_in_12_hour_format(cmos):
    cmos[B] = 0
    cmos[HOURS_ALARM], cmos[MINUTES_ALARM], cmos[SECONDS_ALARM] = 0x81, 0x00, 0x00
    cmos[C]
    cmos.now = calendar.timegm((2026, 11, 21, 12, 59, 59))
    assert cmos[C] & AF == 0
    cmos.now += 1
    assert cmos[C] & AF


def test_flags_are_judged_by_the_settings_that_held(cmos):
    cmos[HOURS_ALARM], cmos[MINUTES_ALARM], cmos[SECONDS_ALARM] = 0x12, 0x35, 0x00
    cmos[C]
    cmos.now += 10
    cmos[SECONDS_ALARM] = 0x50
    assert cmos[C] & AF


def test_set_clears_uie(cmos):
    cmos[B] = H24 | UIE | SET
    assert cmos[B] == H24 | SET


def test_a_host_clock_set_back_sets_no_flag_and_stops_nothing(cmos):
    cmos[A] = 0x20
    cmos[C]
    cmos.now -= 1000
    assert cmos[C] == 0
    cmos.now += 1
    assert cmos[C] == UF


# --- Registers and RAM --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "value"), [(A, 0x26), (B, H24), (C, 0), (D, 0x80), (0x0E, 0), (0x0F, 0)])
def test_power_on_values(cmos, index, value):
    assert cmos[index] == value


def test_what_cannot_be_written(cmos):
    cmos[A] = 0xFF
    assert cmos[A] == 0x7F
    for index, value in ((C, 0), (D, 0x80)):
        cmos[index] = 0x5A
        assert cmos[index] == value


def test_reset_keeps_time_and_ram_and_turns_interrupts_off(cmos):
    cmos[HOURS] = 0x01
    cmos[0x0F], cmos[0x7F] = 0x0A, 0x55
    cmos[B] = PIE | AIE | UIE | 0x08 | BINARY
    cmos.now += 5
    cmos.rtc.reset()
    assert cmos.rtc.read(1, 1) == cmos[SECONDS]  # the index is back at 0
    assert cmos[C] == 0
    assert cmos[B] == BINARY
    assert (cmos[0x0F], cmos[0x7F], cmos[HOURS]) == (0x0A, 0x55, 1)


def test_all_other_bytes_are_ram(cmos):
    special = {*range(14), CENTURY}
    for index in set(range(128)) - special:
        cmos[index] = index ^ 0x5A
    assert all(cmos[index] == index ^ 0x5A for index in set(range(128)) - special)


def test_nmi_bit_does_not_select(cmos):
    cmos[0x80 | 0x40] = 0x77
    assert cmos[0x40] == 0x77


def test_index_port_cannot_be_read(cmos):
    cmos.rtc.write(0, 1, 0x40)
    assert cmos.rtc.read(0, 1) == 0xFF


def test_wide_accesses_are_two_ports(cmos):
    cmos.rtc.write(0, 2, 0x7740)
    assert cmos[0x40] == 0x77
    assert cmos.rtc.read(0, 2) == 0x77FF


def test_look_up_follows_the_index(cmos: Rig):
    def name(is_write: bool) -> str:
        register = cmos.rtc.register_at(1, is_write)
        assert register is not None
        return register.name

    cmos.rtc.write(0, 1, 0x8B)
    assert (name(False), name(True)) == ("B", "B")
    cmos.rtc.write(0, 1, 0x0C)
    assert (name(False), name(True)) == ("C", "DATA")
    cmos.rtc.write(0, 1, 0x77)
    assert name(False) == "DATA"


# --- Memory size --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("below", "above", "base", "extended", "above_16m", "above_4g"),
    [
        (1 * MIB, 0, 640, 0, 0, 0),
        (16 * MIB, 0, 640, 15 * 1024, 0, 0),
        (64 * MIB, 0, 640, 63 * 1024, 48 * 16, 0),
        (512 * MIB, 0, 640, 0xFFFF, 496 * 16, 0),
        (3 * GIB, 0, 640, 0xFFFF, (3 * 1024 - 16) * 16, 0),
        (3 * GIB, 5 * GIB, 640, 0xFFFF, (3 * 1024 - 16) * 16, 5 * 16384),
        (3 * GIB, 2 << 40, 640, 0xFFFF, (3 * 1024 - 16) * 16, 0xFFFFFF),
        (512 * KIB, 0, 512, 0, 0, 0),
    ],
)
def test_memory_size(below, above, base, extended, above_16m, above_4g):
    cmos = Rig(below_4g=below, above_4g=above)
    assert cmos.word(0x15) == base
    assert cmos.word(0x17) == cmos.word(0x30) == extended
    assert cmos.word(0x34) == above_16m
    assert cmos.word(0x5B, 3) == above_4g
    assert cmos[0x2E] << 8 | cmos[0x2F] == sum(cmos[index] for index in range(0x10, 0x2E))
