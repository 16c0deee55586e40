"""Sizes, times, addresses, and what a configuration refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import layout
from pyvmm.config import VmConfig, format_size, parse_address, parse_duration, parse_size
from pyvmm.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("1G", 1 << 30),
        ("64K", 64 << 10),
        ("128", 128 << 20),
        ("2t", 2 << 40),
        ("4GiB", 4 << 30),
    ]
    + [(" 8mb ", 8 << 20)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "0x10", "12Q", "1 2", "١٢", "M5", "1GG", "9" * 5000])
def test_no_sizes(text):
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@given(st.integers(1, 1 << 20).map(lambda pages: pages * 4096))
def test_a_size_survives_being_written(size):
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("7", 7), ("0.25", 0.25)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-3s", "0", "0ms", "1e3", "nan", "inf", "3 days", "1.2.3"])
def test_no_durations(text):
    with pytest.raises(UsageError):
        parse_duration(text)


def test_addresses():
    assert parse_address("0x7c00") == 0x7C00
    assert parse_address("4096") == 4096
    for text in ("", "-1", "7c00", "0x"):
        with pytest.raises(UsageError, match="is not an address"):
            parse_address(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mem": 0}, "memory of"),
        ({"mem": "1K"}, "memory of 1K"),
        ({"mem": (1 << 20) + 1}, "multiple of 4096"),
        ({"mem": "9T"}, "memory of 9T: expected 1M to 8T"),
        ({"cpus": 0}, "0 CPUs"),
        ({"cpus": 256}, "256 CPUs"),
        ({"kernel_format": "zip"}, "kernel format 'zip'"),
        ({"flat_mode": "unreal"}, "flat mode 'unreal'"),
        ({"load_addr": -1}, "load address -1"),
        ({"timeout": 0}, "time limit"),
        ({"timeout": 1e10}, "time limit of 1e[+]10 s: expected more than 0, at most 1e[+]09"),
        ({"timeout": "9" * 400}, "time limit of inf"),
        ({"timeout": float("nan")}, "time limit of nan"),
        ({"timeout": "soon"}, "'soon' is not a duration"),
    ],
)
def test_a_bad_field_is_named(settings, message):
    with pytest.raises(UsageError, match=message):
        VmConfig("kernel.bin", **settings)


def test_strings_are_as_on_the_command_line():
    config = VmConfig("kernel.bin", mem="1G", timeout="500ms")
    assert (config.mem, config.timeout) == (1 << 30, 0.5)


def test_the_most_memory_fits_the_slots_that_it_is_put_into():
    assert max(length for _, length in layout.ram_ranges(layout.MAX_RAM)) <= ((1 << 31) - 1) * layout.PAGE
    assert VmConfig("kernel.bin", mem="8T").mem == layout.MAX_RAM
