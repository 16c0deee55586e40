"""The bus: who answers, what is unclaimed, what may not be attached."""

import sys
import threading
import time
from bisect import bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import bus as bus_module
from pyvmm.bus import Bus, Later
from pyvmm.errors import BusConflictError
from pyvmm.machine import Machine


class Recorder:
    """Answers with its number, and remembers what it was asked while its lock was held."""

    def __init__(self, name="recorder", value=0):
        self.name = name
        self.lock = threading.Lock()
        self.value = value
        self.seen = []

    def read(self, offset, size):
        assert self.lock.locked()
        self.seen.append(("read", offset, size))
        return self.value & ((1 << size * 8) - 1)

    def write(self, offset, size, value):
        assert self.lock.locked()
        self.seen.append(("write", offset, size, value))


def test_an_access_reaches_its_device_by_offset():
    bus, device = Bus("port", 1 << 16), Recorder(value=0x12345678)
    bus.attach(0x3F8, 8, device)
    assert bus.read(0x3F9, 2) == 0x5678
    bus.write(0x3FF, 1, 0x41)
    assert device.seen == [("read", 1, 2), ("write", 7, 1, 0x41)]
    assert (bus.unclaimed_reads, bus.unclaimed_writes) == (0, 0)


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_unclaimed_reads_give_all_ones(size):
    bus = Bus("MMIO", 1 << 52)
    assert bus.read(0xD0000000, size) == (1 << size * 8) - 1
    bus.write(0xD0000000, size, 0)
    assert (bus.unclaimed_reads, bus.unclaimed_writes) == (1, 1)


@pytest.mark.parametrize(("address", "size"), [(0xFF, 2), (0x10F, 2), (0x10D, 4), (0x110, 1)])
def test_an_access_partly_outside_is_unclaimed(address, size):
    bus, device = Bus("port", 1 << 16), Recorder()
    bus.attach(0x100, 16, device)
    for _ in range(2):  # the second time from the cache
        assert bus.read(address, size) == (1 << size * 8) - 1
        bus.write(address, size, 0)
    assert device.seen == []


def test_overlap_is_refused_and_names_both():
    bus = Bus("port", 1 << 16)
    bus.attach(0x100, 16, Recorder("first"))
    for base, length in ((0x100, 16), (0xF8, 9), (0x10F, 1), (0x0, 0x1000), (0x104, 4)):
        with pytest.raises(BusConflictError, match="second at .* overlaps first at 0x100-0x10f on the port bus"):
            bus.attach(base, length, Recorder("second"))
    bus.attach(0xF0, 16, Recorder("below"))
    bus.attach(0x110, 16, Recorder("above"))


@pytest.mark.parametrize(("base", "length"), [(0x10000, 1), (0xFFFF, 2), (-1, 2), (4, 0), (4, -4)])
def test_a_range_must_fit_the_bus(base, length):
    with pytest.raises(BusConflictError, match="does not fit the port bus"):
        Bus("port", 1 << 16).attach(base, length, Recorder())


def test_detached_is_unclaimed():
    bus, device = Bus("port", 1 << 16), Recorder()
    bus.attach(0x80, 1, device)
    bus.read(0x80, 1)
    bus.detach(0x80)
    assert bus.read(0x80, 1) == 0xFF
    with pytest.raises(KeyError):
        bus.detach(0x80)


def test_string_io_repeats_on_the_same_port():
    bus, device = Bus("port", 1 << 16), Recorder(value=0xABCD)
    bus.attach(0x100, 16, device)
    bus.write_string(0x104, 2, b"abcdef")
    assert bus.read_string(0x104, 2, 3) == b"\xcd\xab" * 3
    assert (
        device.seen
        == [("write", 4, 2, int.from_bytes(pair, "little")) for pair in (b"ab", b"cd", b"ef")] + [("read", 4, 2)] * 3
    )


def test_string_output_is_one_call_where_the_device_can():
    class Taker(Recorder):
        def write_many(self, offset, size, data):
            assert self.lock.locked()
            self.seen.append(("many", offset, size, data))

    bus, device = Bus("port", 1 << 16), Taker()
    bus.attach(0x100, 16, device)
    bus.write_string(0x104, 2, b"abcdef")
    bus.write_string(0x10F, 2, b"abcdef")
    assert device.seen == [("many", 4, 2, b"abcdef")]
    assert bus.unclaimed_writes == 3


def test_a_guest_cannot_grow_the_cache_without_bound():
    bus = Bus("MMIO", 1 << 52)
    bus.attach(0, 1 << 30, Recorder())
    for address in range(10000):
        bus.read(address, 1)
    assert len(bus._near) <= 4096


@pytest.mark.parametrize("new", [None, 0x4000])
def test_a_range_that_moves_during_a_search_is_not_found_where_it_was(monkeypatch, new):
    """Not in that search's cache either: the next access must see the table as it is then."""
    bus, device, moves = Bus("MMIO", 1 << 16), Recorder(value=7), []
    bus.attach(0x1000, 0x100, device)
    bus.attach(0x2000, 0x100, Recorder(value=8))

    def search(bases, address):
        at = bisect_right(bases, address)
        if not moves:
            moves.append(address)
            bus.detach(0x1000)
            if new is not None:
                bus.attach(new, 0x100, device)
        return at

    monkeypatch.setattr(bus_module, "bisect_right", search)
    assert bus.read(0x1010, 1) == 7, "it was there when the search began"
    assert bus.read(0x1010, 1) == 0xFF and bus.read(0x2010, 1) == 8
    assert bus.read(0x4010, 1) == (0xFF if new is None else 7)


def test_what_stays_is_found_while_ranges_come_and_go():
    bus, ended = Bus("MMIO", 1 << 16), threading.Event()
    for number in range(8):
        bus.attach(0x1000 * (2 * number + 1), 0x1000, Recorder(value=number))
    wrong = []

    def look(number):
        while not ended.is_set():
            value = bus.read(0x1000 * (2 * number + 1) + 8 * number, 1)
            other = bus.read(0x2004, 1)
            if value != number or other not in (0x55, 0xFF):
                wrong.append((number, value, other))

    threads = [threading.Thread(target=look, args=(number,)) for number in (0, 7)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for _ in range(300):
            for number in range(8):
                bus.attach(0x2000 * number, 0x1000, Recorder(value=0x55))
            for number in range(8):
                bus.detach(0x2000 * number)
        ended.set()
        for thread in threads:
            thread.join()
    finally:
        ended.set()
        sys.setswitchinterval(interval)
    assert wrong == []
    assert len(list(bus.ranges())) == 8


@given(
    ranges=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=20),
    accesses=st.lists(st.tuples(st.integers(0, 350), st.sampled_from([1, 2, 4, 8])), max_size=50),
)
def test_dispatch_agrees_with_a_plain_search(ranges, accesses):
    bus = Bus("MMIO", 512)
    attached = []
    for number, (base, length) in enumerate(ranges):
        clash = any(base < end and start < base + length for start, end, _ in attached)
        device = Recorder(value=number)
        if clash:
            with pytest.raises(BusConflictError):
                bus.attach(base, length, device)
        else:
            bus.attach(base, length, device)
            attached.append((base, base + length, device))
    for address, size in accesses:
        owner = [device for start, end, device in attached if start <= address and address + size <= end]
        expected = owner[0].value if owner else (1 << size * 8) - 1
        assert bus.read(address, size) == expected
    assert [base for base, _, _ in bus.ranges()] == sorted(start for start, _, _ in attached)


# --- Devices that are made when somebody asks for them ----------------------------------------------------------------


@pytest.mark.parametrize("access", ["read", "write", "string", "look", "overlap"])
def test_a_device_is_made_for_the_first_that_asks(access):
    made, bus = [], Bus("port", 1 << 16)

    def make():
        made.append(Recorder("late", 0x5A))
        return made[-1]

    late = Later("late", make)
    bus.attach(0x60, 1, late)
    bus.attach(0x61, 1, Recorder("other"))
    if access == "overlap":
        with pytest.raises(BusConflictError, match="overlaps late at 0x60-0x60"):
            bus.attach(0x60, 1, Recorder("second"))
        assert made == [], "a name is all that this takes"
        return
    assert made == []
    for _ in range(2):
        if access == "read":
            assert bus.read(0x60, 1) == 0x5A
        elif access == "write":
            bus.write(0x60, 1, 0x41)
        elif access == "string":
            bus.write_string(0x60, 1, b"A")
        else:
            assert [device.name for _, _, device in bus.ranges()] == ["late", "other"]
    assert len(made) == 1 and late.get() is made[0]
    assert access == "look" or len(made[0].seen) == 2
    found = bus.find(0x60, 1)
    assert found is not None and found[2] is made[0], "it stands there itself from now on"


def test_a_device_that_is_made_is_attached_as_it_is():
    bus, device = Bus("port", 1 << 16), Recorder("late", 7)
    late = Later("late", lambda: device)
    assert late.get() is device
    bus.attach(0x60, 1, late)
    assert next(bus.ranges()) == (0x60, 1, device)
    bus.detach(0x60)
    assert bus.read(0x60, 1) == 0xFF


def test_two_processors_make_one_device():
    made, bus, ready = [], Bus("port", 1 << 16), threading.Barrier(8)

    def make():
        made.append(Recorder("late", 1))
        time.sleep(0.01)
        return made[-1]

    bus.attach(0x60, 1, Later("late", make))
    threads = [threading.Thread(target=lambda: (ready.wait(), bus.read(0x60, 1))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(made[0].seen) == 8


def test_a_device_detached_before_it_is_made_stays_away():
    bus = Bus("port", 1 << 16)
    late = Later("late", Recorder)
    bus.attach(0x60, 1, late)
    bus.detach(0x60)
    late.get()
    assert list(bus.ranges()) == []


def test_the_devices_of_a_machine_are_called_what_they_are():
    machine = Machine([(0, 1 << 20)], lambda *_: None, lambda _: None, lambda _: None)
    bus = machine.ports
    named = [device.name for _, _, device in bus._table[1]]
    assert [device.name for _, _, device in bus.ranges()] == named
