"""Lesson 10: clocks, solved."""

from struct import unpack_from

PIT_HZ = 1193182


def kvmclock(record, tsc):
    version, _, start, time, mul, shift = unpack_from("<IIQQIb", record)
    if version & 1:
        return None
    cycles = tsc - start
    cycles = cycles << shift if shift >= 0 else cycles >> -shift
    return time + (cycles * mul >> 32)


def counter(elapsed, reload):
    ticks = elapsed * PIT_HZ // 1_000_000_000
    return (reload - ticks % reload) & 0xFFFF


def calibrate(samples):
    # A vCPU that does not run can only make a round longer.
    return min(cycles // milliseconds for milliseconds, cycles in samples)
