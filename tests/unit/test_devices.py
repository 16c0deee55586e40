"""What holds for every platform device: any access of any width is answered, and none raises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.bus import Bus
from pyvmm.devices.debugcon import DebugCon
from pyvmm.devices.debugexit import DebugExit
from pyvmm.devices.i8042 import I8042
from pyvmm.devices.port92 import Port92
from pyvmm.devices.resetcontrol import ResetControl
from pyvmm.devices.rtc import Rtc
from pyvmm.devices.serial import BACKLOG_LIMIT, Serial
from tests.support import RecordingLine

DEVICES: dict[str, Callable[[], Any]] = {
    "serial": lambda: Serial(RecordingLine(), lambda data: None),
    "rtc": lambda: Rtc(512 << 20, 0),
    "i8042": lambda: I8042(lambda: None, RecordingLine()),
    "port92": lambda: Port92(lambda: None),
    "resetcontrol": lambda: ResetControl(lambda: None),
    "debugexit": lambda: DebugExit(lambda value: None),
    "debugcon": lambda: DebugCon(lambda data: None),
}

ACCESSES = st.lists(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from([1, 1, 1, 2, 4, 8, 3, 5, 6, 7]),
        st.one_of(st.none(), st.integers(0, 255), st.integers(0, 2**64 - 1)),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", DEVICES)
@settings(max_examples=60, deadline=None)
@given(accesses=ACCESSES, data=st.binary(max_size=64))
def test_any_access_is_answered_within_its_width(name, accesses, data):
    device = DEVICES[name]()
    if name == "serial":
        device.receive(data)
    for offset, size, value in accesses:
        offset %= device.registers.length
        if value is None:
            answer = device.read(offset, size)
            assert type(answer) is int
            assert 0 <= answer < 256**size
        else:
            device.write(offset, size, value & 256**size - 1)
        assert not device.lock.locked()


@settings(max_examples=60, deadline=None)
@given(accesses=ACCESSES, data=st.binary(max_size=64))
def test_serial_works_again_after_any_accesses_and_a_reset(accesses, data):
    sent = bytearray()
    line = RecordingLine()
    serial = Serial(line, sent.extend)
    for offset, size, value in accesses:
        if value is None:
            serial.read(offset, size)
            serial.receive(data)
        else:
            serial.write(offset, size, value & 256**size - 1)
    serial.reset()
    assert not line.level
    while serial.read(5, 1) & 1:
        serial.read(0, 1)
    sent.clear()
    serial.write(0, 1, ord("!"))
    serial.receive(b"?")
    assert sent == b"!"
    assert serial.read(0, 1) == ord("?")


@pytest.mark.parametrize("name", DEVICES)
def test_every_register_at_every_offset_with_every_width(name):
    """Whole on the bus: what does not lie in the range is nobody's."""
    device = DEVICES[name]()
    bus = Bus("port", 1 << 16)
    length = device.registers.length
    bus.attach(0x100, length, device)
    for offset in range(length):
        for size in (1, 2, 4):
            assert 0 <= bus.read(0x100 + offset, size) < 256**size
            bus.write(0x100 + offset, size, 256**size - 1)
            bus.write(0x100 + offset, size, 0)
    outside = sum(offset + size > length for offset in range(length) for size in (1, 2, 4))
    assert (bus.unclaimed_reads, bus.unclaimed_writes) == (outside, 2 * outside)


@pytest.mark.parametrize("name", DEVICES)
def test_what_the_bus_needs(name):
    device = DEVICES[name]()
    assert device.name
    with device.lock:
        pass
    device.reset()
    assert not hasattr(device, "__dict__"), "slots only"


def test_the_lock_is_not_held_twice():
    """The host's calls take the lock; under it, as the bus calls, everything else must work."""
    serial = Serial(RecordingLine(), lambda data: None)
    with serial.lock:
        serial.read(5, 1)
        serial.write(0, 1, 1)
        serial.write_many(0, 1, b"abc")
        assert serial.input_room() == BACKLOG_LIMIT
