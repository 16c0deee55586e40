"""The debug-exit port and the debug consoles."""

from __future__ import annotations

import pytest

from pyvmm.devices.debugcon import DebugCon
from pyvmm.devices.debugexit import DebugExit


@pytest.mark.parametrize(("size", "value"), [(1, 0x00), (1, 0xFF), (2, 0xABCD), (4, 0x89ABCDEF), (8, 2**64 - 1)])
def test_exit_value_is_passed_on_whole(size, value):
    values: list[int] = []
    DebugExit(values.append).write(0, size, value)
    assert values == [value]


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_other_offsets_do_not_exit(offset):
    values: list[int] = []
    device = DebugExit(values.append)
    device.write(offset, 1, 0x42)
    assert values == []
    device.write(0, 1, 0x42)
    assert values == [0x42]


def test_exit_port_reads_0():
    device = DebugExit(lambda value: None)
    assert [device.read(offset, size) for offset in range(4) for size in (1, 2, 4)] == [0] * 12
    device.reset()


def test_exit_register_can_be_looked_up():
    device = DebugExit(lambda value: None)
    register = device.register_at(0, is_write=True)
    assert register is not None
    assert register.describe(0x10) == "EXIT 0x00000010"
    assert device.register_at(1, is_write=True) is None


def test_console_prints_every_byte_and_says_that_it_is_there():
    out = bytearray()
    console = DebugCon(out.extend, "firmware")
    for value in range(256):
        console.write(0, 1, value)
        assert console.read(0, 1) == 0xE9
    assert out == bytes(range(256))
    assert console.name == "firmware"
    console.reset()


def test_console_string_output_leaves_in_one_piece():
    pieces: list[bytes] = []
    console = DebugCon(pieces.append)
    console.write_many(0, 1, b"hello")
    assert pieces == [b"hello"]


@pytest.mark.parametrize("size", [2, 4])
def test_console_string_output_of_wide_elements_is_their_first_bytes(size):
    """The port is one byte wide: the rest of an element goes to the ports behind it."""
    out = bytearray()
    console = DebugCon(out.extend)
    console.write_many(0, size, b"ABCDEFGH")
    assert out == b"ABCDEFGH"[::size]
