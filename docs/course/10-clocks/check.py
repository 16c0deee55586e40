"""Judges the exercises of lesson 10; needs no KVM."""

from struct import pack


def record(version=2, tsc=1_000_000, time=5_000_000_000, mul=1 << 31, shift=0):
    return pack("<IIQQIbBH", version, 0, tsc, time, mul, shift, 0, 0)


def check_kvmclock(work):
    kvmclock = work.exercise.kvmclock
    plain = kvmclock(record(), 1_000_000)
    if plain is None:
        return "nothing comes back for a record whose version is even"
    if plain != 5_000_000_000:
        return f"at the record's own TSC value it is {plain}, not the record's time, 5,000,000,000"
    later = kvmclock(record(), 3_000_000)
    if later != 5_001_000_000:
        return f"2,000,000 cycles later, at half a nanosecond each (mul 0x80000000), it is {later}, not 5,001,000,000"
    left = kvmclock(record(shift=2), 1_000_100)
    if left != 5_000_000_200:
        return f"100 cycles with a shift of 2 are 400, times a half 200 ns: not {left - 5_000_000_000}"
    right = kvmclock(record(shift=-1), 1_000_101)
    if right != 5_000_000_025:
        return f"101 cycles with a shift of -1 are 50, times a half 25 ns: not {right - 5_000_000_000}"
    far = kvmclock(record(mul=0x62A4_1B3C, shift=0), 1_000_000 + (1 << 60) + 12347)
    if far != 5_000_000_000 + (((1 << 60) + 12347) * 0x62A4_1B3C >> 32):
        return "after 2**60 cycles it is wrong: are there floating-point numbers in it, which have 53 bits?"
    if kvmclock(record(version=3), 2_000_000) is not None:
        return "the version is odd, so KVM is changing the record: there should be None"
    return ""


def check_counter(work):
    counter = work.exercise.counter
    cases = [
        (0, 11932, 11932, "right after loading it is the reload value"),
        (838, 11932, 11932, "838 ns are not yet a tick, which takes 838.1"),
        (839, 11932, 11931, "after 839 ns it has lost one"),
        (9_999_000, 11932, 2, "9.999 ms are 11,930 ticks, which leaves 2"),
        (10_000_000, 11932, 1, "10 ms are 11,931 ticks, which leaves 1: mode 2 does not count to 0"),
        (10_000_500, 11932, 11932, "after the reload value's ticks it begins again"),
        (
            3_600_000_000_000,
            11932,
            11932 - 3600 * 1193182 % 11932,
            "after an hour, 4,295,455,200 ticks, it is wrong",
        ),
        (0, 65536, 0, "65,536 does not fit into 16 bits, and reads as 0"),
        (1_000, 65536, 65535, "one tick after 65,536 it is 65,535"),
        (5_000, 1, 1, "with the reload value 1 it is always 1"),
    ]
    for elapsed, reload, expected, why in cases:
        found = counter(elapsed, reload)
        if found != expected:
            return f"counter({elapsed}, {reload}) is {found}, not {expected}: {why}"
    return ""


def check_calibrate(work):
    calibrate = work.exercise.calibrate
    quiet = calibrate([(10, 26_000_000)])
    if quiet != 2_600_000:
        return f"26,000,000 cycles in 10 ms are 2,600,000 kHz, not {quiet}"
    found = calibrate([(10, 35_671_480), (10, 26_083_564), (10, 148_555_430), (10, 26_063_570)])
    if found != 2_606_357:
        return f"of rounds with 35, 26.08, 148 and 26.06 million cycles in 10 ms you make {found} kHz: who was stopped?"
    mixed = calibrate([(50, 131_000_000), (10, 27_000_000), (20, 52_200_000)])
    if mixed != 2_610_000:
        return f"rounds differ in length: 52.2 million cycles in 20 ms were the least disturbed, not {mixed} kHz"
    return ""
