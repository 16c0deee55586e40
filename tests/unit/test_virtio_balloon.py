"""The memory balloon: what the guest gives is the host's again, on every backing, and what a bad driver comes to."""

from __future__ import annotations

import mmap
import threading
import time
from struct import pack

import pytest

from pyvmm.errors import UsageError
from pyvmm.memory import GuestMemory
from pyvmm.virtio import balloon, spec
from pyvmm.virtio.balloon import DEFLATE, HINTS, INFLATE, PAGE, REPORTING, STATISTICS, TAGS, VirtioBalloon, runs
from pyvmm.virtio.plane import DataPlane
from tests.support.headers import macros
from tests.support.virtiodriver import NEXT, RAM, WRITE, Driver

PAGES = RAM // PAGE
FREE = range(128, 256)
"""Pages that the driver does not use for its rings and buffers."""
NUM_PAGES, ACTUAL = 0, 4
"""Offsets in the configuration space."""
MIB = 1 << 20


class Memory:
    """RAM that takes down what is given back; `fails` is raised instead."""

    def __init__(self, memory):
        self._memory = memory
        self.given = []
        self.fails = None

    def __getattr__(self, name):
        return getattr(self._memory, name)

    def discard(self, gpa, length):
        self.given.append((gpa, length))
        if self.fails is not None:
            raise self.fails
        return self._memory.discard(gpa, length)


def made(without=(), **settings):
    driver = Driver(VirtioBalloon(**settings))
    driver.device.memory = Memory(driver.memory)
    driver.memory.fill(FREE[0] * PAGE, len(FREE) * PAGE, 0x5A)
    return driver.bring_up(without=without)


@pytest.fixture
def driver():
    driver = made()
    driver.heap.end = FREE[0] * PAGE
    yield driver
    driver.close()


def pfns(*numbers):
    return pack(f"<{len(numbers)}I", *numbers)


def stat(tag, value):
    return pack("<HQ", tag, value)


def inflate(driver, *numbers):
    assert driver.request(INFLATE, [pfns(*numbers)]) == (0, b"")


def filled(driver):
    """The free pages that still have their content."""
    return [page for page in FREE if driver.memory.read(page * PAGE, PAGE) == b"\x5a" * PAGE]


def blank(driver):
    return [page for page in FREE if not any(driver.memory.read(page * PAGE, PAGE))]


def works(driver):
    """A good request is served."""
    driver.memory.fill(200 * PAGE, PAGE, 0x5A)
    inflate(driver, 200)
    assert 200 in blank(driver)


# --- The device ------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_linux(tmp_path):
    """linux/virtio_balloon.h"""
    features = ["MUST_TELL_HOST", "STATS_VQ", "DEFLATE_ON_OOM", "FREE_PAGE_HINT", "PAGE_POISON", "REPORTING"]
    tags = ["SWAP_IN", "SWAP_OUT", "MAJFLT", "MINFLT", "MEMFREE", "MEMTOT", "AVAIL", "CACHES"]
    tags += ["HTLB_PGALLOC", "HTLB_PGFAIL"]
    ours = {f"VIRTIO_BALLOON_F_{name}": getattr(spec, f"BALLOON_F_{name}") for name in features}
    ours |= {f"VIRTIO_BALLOON_S_{name}": getattr(spec, f"BALLOON_S_{name}") for name in tags}
    ours |= {"VIRTIO_BALLOON_PFN_SHIFT": spec.BALLOON_PFN_SHIFT}
    assert macros(tmp_path, "linux/virtio_balloon.h", list(ours)) == ours
    assert macros(tmp_path, "linux/virtio_ids.h", ["VIRTIO_ID_BALLOON"]) == {"VIRTIO_ID_BALLOON": spec.ID_BALLOON}
    size = "sizeof(struct virtio_balloon_stat)"
    assert macros(tmp_path, "linux/virtio_balloon.h", [size]) == {size: balloon.STATISTIC.size}


@pytest.mark.parametrize(
    ("settings", "bits", "queues"),
    [
        ({}, 1 << 1 | 1 << 2 | 1 << 5, 5),
        ({"deflate_on_oom": False}, 1 << 1 | 1 << 5, 5),
        ({"reporting": False}, 1 << 1 | 1 << 2, 3),
    ],
)
def test_features_and_their_queues(settings, bits, queues):
    """virtio 1.3, 5.5.2, 5.5.3"""
    device = VirtioBalloon(**settings)
    assert (device.device_id, device.device_features(), len(device.queues)) == (5, bits, queues)


def test_the_target_is_told_and_actual_is_the_drivers(driver):
    """virtio 1.3, 5.5.4: little-endian pages of 4 KiB."""
    device = driver.device
    assert (driver.config(NUM_PAGES, 4), driver.config(ACTUAL, 4)) == (0, 0)
    generation = driver.get("ConfigGeneration")
    device.set_target(33 * PAGE + 7)
    assert driver.acknowledge() == spec.INTERRUPT_CONFIG_CHANGE
    assert driver.get("ConfigGeneration") != generation
    assert driver.config(NUM_PAGES, 4) == 33 and device.target == 33 * PAGE
    driver.put_config(ACTUAL, 4, 20)
    assert driver.config(ACTUAL, 4) == 20 and device.actual == 20 * PAGE
    for at, byte in enumerate((0x03, 0x02, 0x01, 0x00)):  # as a driver over PCI may do it
        driver.put_config(ACTUAL + at, 1, byte)
    assert device.actual == 0x010203 * PAGE
    interrupts = driver.interrupts
    device.set_target(33 * PAGE)
    assert driver.interrupts == interrupts, "nothing has changed"


def test_only_actual_can_be_written(driver):
    device = driver.device
    device.set_target(5 * PAGE)
    driver.put_config(NUM_PAGES, 4, 99)
    driver.put_config(8, 4, 99)
    driver.put_config(NUM_PAGES, 8, 7 << 32 | 99)
    assert (driver.config(NUM_PAGES, 4), driver.config(ACTUAL, 4), driver.config(8, 4)) == (5, 7, 0)


def test_a_target_is_kept_over_a_reset_and_actual_is_not(driver):
    driver.device.set_target(5 * PAGE)
    driver.put_config(ACTUAL, 4, 5)
    driver.bring_up()
    assert (driver.config(NUM_PAGES, 4), driver.config(ACTUAL, 4)) == (5, 0)


def test_a_target_set_before_there_is_a_driver_is_there_when_it_comes():
    driver = Driver(VirtioBalloon(size=3 * PAGE))
    driver.device.set_target(4 * PAGE)
    assert driver.interrupts == 0
    driver.bring_up()
    assert driver.config(NUM_PAGES, 4) == 4
    driver.close()


@pytest.mark.parametrize("size", [-1, RAM + 1, 1 << 70])
def test_a_target_that_cannot_be(driver, size):
    with pytest.raises(UsageError, match=f"a balloon of {size} bytes"):
        driver.device.set_target(size)
    with pytest.raises(UsageError):
        VirtioBalloon(size=-1)
    with pytest.raises(UsageError, match="every 0 s"):
        VirtioBalloon(interval=0)
    assert driver.device.target == 0


# --- Inflating and deflating -----------------------------------------------------------------------------------------


def test_pages_in_the_balloon_are_given_back():
    """virtio 1.3, 5.5.6: the device MAY modify them, and does: they read as zeroes."""
    driver = made()
    inflate(driver, 130, 131, 140)
    assert blank(driver) == [130, 131, 140] and len(filled(driver)) == len(FREE) - 3
    assert driver.device.counts["inflated"] == 3
    driver.memory.fill(130 * PAGE, PAGE, 1)
    assert driver.request(DEFLATE, [pfns(130, 131)]) == (0, b"")
    assert driver.device.counts["deflated"] == 2
    assert driver.memory.read(130 * PAGE, PAGE) == b"\1" * PAGE, "deflating takes nothing away"
    driver.close()


def test_neighbours_are_given_back_in_one_go(driver):
    inflate(driver, *range(150, 140, -1), 160, 155, *range(151, 154), 160, 160)
    assert driver.device.memory.given == [(141 * PAGE, 13 * PAGE), (155 * PAGE, PAGE), (160 * PAGE, PAGE)]
    assert driver.device.counts["inflated"] == 15 and driver.device.counts["ignored"] == 2


def test_runs():
    assert list(runs([])) == []
    assert list(runs([0])) == [(0, PAGE)]
    assert list(runs([5, 3, 4, 9, 4])) == [(3 * PAGE, 3 * PAGE), (9 * PAGE, PAGE)]
    assert list(runs([0xFFFFFFFF])) == [(0xFFFFFFFF * PAGE, PAGE)]


def test_numbers_may_lie_in_any_descriptors(driver):
    """virtio 1.3, 2.7.4.1"""
    data = pfns(130, 131, 140)
    driver.request(INFLATE, [data[:3], data[3:5], data[5:]])
    assert blank(driver) == [130, 131, 140]


def test_pages_that_are_not_ram_are_ignored():
    """Beyond the end, in a hole, at the end of the address space; the others of the request are given back."""
    driver = Driver(VirtioBalloon())
    driver.memory.close()
    driver.memory = driver.device.memory = GuestMemory.allocate([(0, RAM), (2 * RAM, 4 * PAGE)])
    driver.heap.memory = driver.memory
    driver.memory.fill(2 * RAM, 4 * PAGE, 1)
    driver.bring_up()
    beyond = 2 * RAM // PAGE
    inflate(driver, PAGES, PAGES + 5, beyond - 1, beyond, beyond + 1, beyond + 4, beyond + 100, 0xFFFFFFFF)
    assert driver.memory.read(2 * RAM, 4 * PAGE) == bytes(2 * PAGE) + b"\1" * 2 * PAGE
    assert driver.device.counts == {"inflated": 2, "deflated": 0, "reported": 0, "ignored": 6, "refused": 0}
    driver.close()


def test_a_request_names_a_bounded_number_of_pages(driver, monkeypatch):
    """The same buffer, sixteen times over; what is beyond the bound is neither looked at nor given back."""
    monkeypatch.setattr(balloon, "MOST_PFNS", 1000)
    gpa = FREE[0] * PAGE
    driver.memory.write(gpa, pfns(*[130] * 999, 140, 150, *[131] * 23))
    ring = driver.rings[INFLATE]
    head = ring.add_buffers([(gpa, 4096, 0)] * 16)
    driver.kick(INFLATE)
    assert ring.used() == [(head, 0)]
    assert driver.device.memory.given == [(130 * PAGE, PAGE), (140 * PAGE, PAGE)]
    assert driver.device.counts["ignored"] == 16 * 1024 - 1000 + 998
    works(driver)


@pytest.mark.parametrize("data", [b"", b"\x82", b"\x82\0\0", b"\x82\0\0\0\x83\0"])
def test_half_a_number_is_no_page(driver, data):
    head = driver.rings[INFLATE].add(driver.heap, [data], [8])
    driver.kick(INFLATE)
    assert driver.rings[INFLATE].used() == [(head, 0)]
    assert blank(driver) == ([0x82] if len(data) >= 4 else [])
    works(driver)


def test_a_driver_may_put_its_own_rings_into_the_balloon(driver):
    """It harms itself; the device only sees an empty ring, or a broken one, and works after a reset."""
    driver.request(INFLATE, [pfns(*range(FREE[0]))])
    driver.kick(INFLATE)
    driver.bring_up()
    works(driver)


def test_a_bad_chain_breaks_the_device_until_reset(driver):
    for queue in (INFLATE, DEFLATE, STATISTICS, HINTS, REPORTING):
        driver.rings[queue].descriptor(0, FREE[0] * PAGE, PAGE, NEXT, 0)
        driver.rings[queue].make_available(0)
        driver.kick(queue)
        assert driver.needs_reset
        driver.bring_up()
        works(driver)


def test_others_have_their_turn_while_a_driver_keeps_inflating(driver, monkeypatch):
    """A flood of requests is served in turns, between which a reset or a pause comes in."""
    device, ring, rung = driver.device, driver.rings[INFLATE], []
    for _ in range(5):
        ring.add(driver.heap, [pfns(130)])
    monkeypatch.setattr(balloon, "TURN", 3)
    device.ring = rung.append
    device.serve_unless_broken(INFLATE)
    assert len(ring.used()) == 3 and rung == [INFLATE]
    device.serve_unless_broken(INFLATE)
    assert len(ring.used()) == 2 and rung == [INFLATE]


def test_a_host_that_refuses_is_told_once_and_the_guest_goes_on():
    told = []
    driver = made(report=told.append)
    driver.device.memory.fails = OSError(22, "Invalid argument")
    inflate(driver, 130, 131)
    inflate(driver, 132)
    assert told == ["the host does not take back what the guest gives: Invalid argument"]
    assert driver.device.counts["refused"] == 3 and driver.device.counts["inflated"] == 0
    driver.device.memory.fails = None
    works(driver)
    driver.close()


# --- The host's memory -----------------------------------------------------------------------------------------------


def resident(region):
    """Bytes of a region that the host has in memory for this process (proc(5), /proc/pid/smaps)."""
    import ctypes

    address = ctypes.addressof(ctypes.c_char.from_buffer(region.view))
    found = total = 0
    with open("/proc/self/smaps") as maps:
        for line in maps:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                start, end = (int(part, 16) for part in first.split("-"))
                found = start < address + region.length and address < end
            elif found and first == "Rss:":
                total += int(line.split()[1]) << 10
    return total


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_memory_that_is_given_back_costs_nothing(backing):
    memory = GuestMemory.allocate([(0, 16 * MIB)], backing)
    memory.fill(0, 16 * MIB, 1)
    [region] = memory.regions
    assert resident(region) >= 15 * MIB
    device = VirtioBalloon()
    device.memory = memory
    device._give_back("inflated", 3072, runs(range(1024, 4096)))
    assert device.counts["inflated"] == 3072
    assert resident(region) <= 5 * MIB
    assert memory.read(0, 4 * MIB) == b"\1" * 4 * MIB and not any(memory.read(4 * MIB, 12 * MIB))
    memory.write(8 * MIB, b"here again")
    assert memory.read(8 * MIB, 10) == b"here again"
    memory.close()


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_whole_pages_in_ram_are_given_back_and_nothing_else(backing):
    memory = GuestMemory.allocate([(0, 4 * PAGE), (8 * PAGE, 4 * PAGE)], backing)

    def given(gpa, length):
        for region in memory.regions:
            memory.fill(region.gpa, region.length, 1)
        size = memory.discard(gpa, length)
        blank = [page for page in (0, 1, 2, 3, 8, 9, 10, 11) if not any(memory.read(page * PAGE, PAGE))]
        assert size == len(blank) * PAGE
        assert all(memory.read(page * PAGE, PAGE) in (bytes(PAGE), b"\1" * PAGE) for page in (0, 3, 8, 11))
        return blank

    assert given(0, 4 * PAGE) == [0, 1, 2, 3]
    assert given(1, 3 * PAGE) == [1, 2]
    assert given(PAGE - 1, PAGE + 1) == [1]
    assert given(1, PAGE) == given(PAGE, PAGE - 1) == given(0, 0) == []
    assert given(3 * PAGE, 6 * PAGE) == [3, 8]
    assert given(4 * PAGE, 4 * PAGE) == given(12 * PAGE, 1 << 60) == given(1 << 62, 1 << 62) == []
    assert given(0, 1 << 64) == [0, 1, 2, 3, 8, 9, 10, 11]
    memory.close()


def test_much_is_given_back_in_portions(monkeypatch):
    """One system call holds the interpreter's lock for all of its pages."""
    memory = GuestMemory.allocate([(0, 16 * MIB)])
    [region] = memory.regions
    calls = []

    class Map:
        def madvise(self, advice, start, length):
            calls.append((advice, start, length))

    whole, region._map = region._map, Map()
    assert memory.discard(PAGE, 10 * MIB) == 10 * MIB
    assert [length for *_, length in calls] == [4 * MIB, 4 * MIB, 2 * MIB]
    assert calls[0][:2] == (mmap.MADV_DONTNEED, PAGE) and calls[2][1] == PAGE + 8 * MIB
    region._map = whole
    memory.close()


# --- Free page reporting ---------------------------------------------------------------------------------------------


def report(driver, queue, *buffers):
    head = driver.rings[queue].add_buffers([(gpa, length, WRITE) for gpa, length in buffers])
    driver.kick(queue)
    [(used, written)] = driver.rings[queue].used()
    assert (used, written) == (head, 0)


@pytest.mark.parametrize("queue", [HINTS, REPORTING])
def test_reported_pages_are_given_back(driver, queue):
    """virtio 1.3, 5.5.6.7, in queue 4; Linux counts queues that there are, and takes 3."""
    report(driver, queue, (130 * PAGE, 2 * PAGE), (140 * PAGE, PAGE))
    assert blank(driver) == [130, 131, 140] and driver.device.counts["reported"] == 3


def test_reports_need_their_feature():
    driver = made(without=[spec.BALLOON_F_REPORTING])
    for queue in (HINTS, REPORTING):
        driver.rings[queue].add_buffers([(130 * PAGE, PAGE, WRITE)])
        driver.kick(queue)
        assert driver.rings[queue].used() == []
    assert blank(driver) == [] and not driver.needs_reset
    works(driver)
    driver.close()


def test_parts_of_pages_that_are_reported_stay(driver):
    report(driver, REPORTING, (130 * PAGE + 1, 2 * PAGE), (150 * PAGE, PAGE - 1), (160 * PAGE - 1, 2))
    assert blank(driver) == [131]
    assert len(filled(driver)) == len(FREE) - 1


def test_a_report_of_all_memory_many_times_over(driver):
    """One huge range, sixteen times: the guest loses what it had, its rings too, and a reset helps it."""
    ring = driver.rings[REPORTING]
    ring.add_buffers([(FREE[0] * PAGE, len(FREE) * PAGE, WRITE)] * 16)
    driver.kick(REPORTING)
    assert blank(driver) == list(FREE) and not driver.needs_reset
    driver.memory.fill(FREE[0] * PAGE, len(FREE) * PAGE, 0x5A)
    driver.rings[HINTS].add_buffers([(0, RAM, WRITE)])
    driver.kick(HINTS)
    assert blank(driver) == list(FREE)
    driver.bring_up()
    works(driver)


@pytest.mark.parametrize(
    ("gpa", "length"),
    [(RAM, PAGE), (RAM - PAGE, 2 * PAGE), (0, RAM + 1), (0, 0xFFFFF000), (1 << 63, PAGE), ((1 << 64) - PAGE, 2 * PAGE)],
)
def test_a_report_of_what_is_not_ram_gives_nothing_back(driver, gpa, length):
    driver.rings[REPORTING].add_buffers([(130 * PAGE, PAGE, WRITE), (gpa, length, WRITE)])
    driver.kick(REPORTING)
    assert driver.needs_reset and driver.device.memory.given == []
    driver.bring_up()
    works(driver)


# --- Statistics ------------------------------------------------------------------------------------------------------


def tell(driver, *entries):
    """The driver makes a buffer of statistics available; returns its head."""
    return driver.send(STATISTICS, [b"".join(entries)])


def test_statistics_are_kept_and_their_buffer_too(driver):
    """virtio 1.3, 5.5.6.3"""
    assert driver.device.statistics == {}
    tell(driver, stat(4, 1000), stat(5, 1 << 40))
    assert driver.device.statistics == {"free": 1000, "total": 1 << 40}
    assert driver.rings[STATISTICS].used() == [], "it is given back when there is a question"


def test_tags_in_any_order(driver):
    """virtio 1.3, 5.5.6.3.2: the device MUST accept entries in any order without regard to tag values."""
    tell(driver, *(stat(tag, 100 + tag) for tag in (9, 0, 5, 1, 8, 2, 7, 3, 6, 4)))
    assert driver.device.statistics == {name: 100 + tag for tag, name in TAGS.items()}


def test_unknown_tags_are_ignored(driver):
    """virtio 1.3, 5.5.6.3.2: the device MUST ignore entries with tag values that it does not recognize."""
    tell(driver, stat(10, 1), stat(4, 2), stat(0xFFFF, 3), stat(15, 4), stat(5, 5))
    assert driver.device.statistics == {"free": 2, "total": 5}


def test_statistics_on_request(driver):
    first = tell(driver, stat(4, 1))
    assert not driver.device.request_statistics(), "the guest takes its time"
    assert driver.rings[STATISTICS].used() == [(first, 0)]
    assert driver.acknowledge() & spec.INTERRUPT_USED_BUFFER
    tell(driver, stat(4, 2))
    assert driver.device.statistics == {"free": 2}
    assert driver.rings[STATISTICS].used() == []


def test_two_that_ask_at_once_get_one_answer(driver):
    first = tell(driver, stat(4, 1))
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(driver.device.request_statistics(10))) for _ in range(2)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 10
    while driver.rings[STATISTICS].used_index == 0:
        assert time.monotonic() < end
        time.sleep(0.001)
    tell(driver, stat(4, 2))
    time.sleep(0.005)
    if driver.rings[STATISTICS].used_index == 2:  # the second thread was late and asked by itself
        tell(driver, stat(4, 2))
    for thread in threads:
        thread.join(10)
    assert answers == [True, True] and driver.rings[STATISTICS].used()[0] == (first, 0)


def test_statistics_cannot_be_had_from_a_driver_that_is_not_there():
    driver = Driver(VirtioBalloon())
    assert not driver.device.request_statistics(60)
    driver.close()
    driver = made(without=[spec.BALLOON_F_STATS_VQ])
    tell(driver, stat(4, 1))
    assert driver.device.statistics == {} and not driver.device.request_statistics()
    driver.close()


def test_statistics_at_an_interval(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(balloon, "time", type("Clock", (), {"monotonic": staticmethod(lambda: now[0])}))
    driver = made(interval=5)
    device = driver.device
    assert device.next_deadline() is None
    head = tell(driver, stat(4, 1))
    assert device.next_deadline() == 1005
    for due, used in ((1004, []), (1005, [(head, 0)])):
        now[0] = due
        with device.plane:
            device.guarded(lambda due=due: device.run_due(due))
        assert driver.rings[STATISTICS].used() == used
    assert device.next_deadline() is None, "the driver has the floor"
    tell(driver, stat(4, 2))
    assert device.statistics == {"free": 2} and device.next_deadline() == 1010
    driver.put("Status", 0)
    assert device.next_deadline() is None
    driver.close()


def test_a_flood_of_statistics_is_left_in_the_ring(driver):
    """virtio 1.3, 5.5.6.3.1: at most one buffer at all times; of a driver that gives more, one is looked at."""
    ring = driver.rings[STATISTICS]
    heads = [ring.add(driver.heap, [stat(4, number)]) for number in range(ring.size)]
    for _ in range(20):
        driver.kick(STATISTICS)
    assert driver.device.statistics == {"free": 0} and driver.device.queues[STATISTICS].in_flight == 1
    for number in range(1, 4):
        driver.device.request_statistics()
        assert ring.used() == [(heads[number - 1], 0)]
        assert driver.device.statistics == {"free": number}
    works(driver)


def test_a_buffer_of_statistics_is_looked_at_in_bounds(driver):
    gpa = FREE[0] * PAGE
    driver.memory.write(gpa, stat(4, 1) * balloon.MOST_STATISTICS + stat(4, 2) * 100)
    driver.rings[STATISTICS].add_buffers([(gpa, 64 * PAGE, 0)] * 16)
    driver.kick(STATISTICS)
    assert driver.device.statistics == {"free": 1}


@pytest.mark.parametrize("data", [b"", b"\4", stat(4, 1)[:9], stat(4, 1) + b"\5\0\1"])
def test_half_an_entry_is_none(driver, data):
    driver.rings[STATISTICS].add(driver.heap, [data], [16])
    driver.kick(STATISTICS)
    assert driver.device.statistics == ({"free": 1} if len(data) > 10 else {})
    driver.device.request_statistics()
    assert driver.rings[STATISTICS].used()[0][1] == 0


def test_a_buffer_is_not_given_back_to_the_next_driver(driver):
    tell(driver, stat(4, 1))
    driver.bring_up()
    driver.device.request_statistics()
    assert driver.rings[STATISTICS].used_index == 0
    tell(driver, stat(4, 2))
    assert driver.device.statistics == {"free": 2}


@pytest.mark.transport("mmio")  # the only one with a way to do that
def test_a_statistics_queue_that_is_taken_out_of_use(driver):
    tell(driver, stat(4, 1))
    driver.put("QueueSel", STATISTICS)
    driver.put("QueueReady", 0)
    driver.device.request_statistics()
    assert driver.rings[STATISTICS].used_index == 0 and not driver.needs_reset
    works(driver)


# --- With a data plane -----------------------------------------------------------------------------------------------


def test_a_guest_that_does_as_it_is_told():
    """Target, interrupt, inflate, actual; then statistics at an interval, from a thread of its own."""
    driver = Driver(VirtioBalloon(interval=0.005))
    plane = DataPlane(driver.device, driver.transport)
    told = threading.Event()
    driver.on_interrupt = told.set
    plane.start()
    driver.bring_up(without=[spec.F_RING_EVENT_IDX])
    tell(driver, stat(4, 0))
    driver.device.set_target(2 * PAGE)
    assert told.wait(10)
    head = driver.send(INFLATE, [pfns(200, 201)])
    end = time.monotonic() + 20
    seen = 0
    while seen < 3 or driver.device.counts["inflated"] < 2:
        assert time.monotonic() < end
        if driver.rings[STATISTICS].used():
            seen += 1
            tell(driver, stat(4, seen))
        time.sleep(0.001)
    assert driver.rings[INFLATE].used() == [(head, 0)]
    plane.close()
    driver.close()
