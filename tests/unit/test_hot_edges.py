"""What changes under a running guest: a network's cable, a disk's size. (The balloon has a file of its own.)"""

from __future__ import annotations

import errno
import os
import threading
import time
from struct import pack

import pytest

from pyvmm.backends.disk import open_disk
from pyvmm.errors import BackendError, UsageError
from pyvmm.virtio import spec
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.net import RECEIVE, TRANSMIT
from pyvmm.virtio.plane import DataPlane
from tests.support.memorydisk import CAPACITY, MemoryDisk
from tests.support.virtiodriver import Driver
from tests.unit.test_virtio_net import MAC, OTHER, Guest, Memory, frame, works

SECTOR = spec.SECTOR
CLUSTER = 4096
OK, IOERR = spec.BLK_S_OK, spec.BLK_S_IOERR


# --- A network's cable -----------------------------------------------------------------------------------------------


@pytest.fixture
def guest():
    made = Guest()
    made.bring_up()
    yield made
    made.close()


def link_status(guest):
    return guest.config(6, 2)


def test_the_driver_is_told_that_the_cable_is_out_and_in_again(guest):
    """virtio 1.3, 5.1.4"""
    assert guest.offered >> spec.NET_F_STATUS & 1 and link_status(guest) == spec.NET_S_LINK_UP
    for up in (False, True, False, True):
        generation = guest.get("ConfigGeneration")
        guest.net.set_link(up)
        assert guest.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE
        assert guest.get("ConfigGeneration") != generation
        assert (link_status(guest), guest.net.link) == (int(up), up)
    works(guest)


def test_the_same_again_is_no_change(guest):
    generation = guest.get("ConfigGeneration")
    guest.net.set_link(True)
    assert not guest.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE and guest.get("ConfigGeneration") == generation


def test_frames_are_dropped_both_ways_while_the_cable_is_out(guest):
    guest.post(1526, 1526)
    guest.net.set_link(False)
    guest.transmit(frame(OTHER, MAC))
    guest.arrive(frame(), frame())
    assert guest.backend.sent == [] and guest.backend.incoming == [], "nothing piles up outside"
    assert guest.net.counts["no link"] == 3
    guest.net.set_link(True)
    guest.arrive(frame(fill=b"\1"))
    assert [data for _, data in guest.received()] == [frame(fill=b"\1")], "the ones before are lost"
    works(guest)


def test_frames_are_dropped_too_without_a_buffer_for_them(guest):
    guest.net.set_link(False)
    guest.arrive(*[frame()] * 200)
    while guest.backend.incoming:
        guest.turn()
    assert guest.net.counts["no link"] == 200
    guest.net.set_link(True)
    works(guest)


def test_frames_are_dropped_too_without_a_queue_for_them(guest):
    """Found by the fuzzer: what came stayed readable, and the data plane looked after it over and over."""
    guest.net.set_link(False)
    guest.put("QueueSel", RECEIVE)
    guest.put("QueueReady", 0)
    guest.arrive(frame())
    assert guest.backend.incoming == [] and guest.net.counts["no link"] == 1
    guest.backend.gone = "it was killed"
    guest.turn()
    assert guest.net.sources() == ()


def test_buffers_that_come_while_the_cable_is_out_are_used_later(guest):
    guest.net.set_link(False)
    heads = guest.post(1526, 1526)
    assert guest.rings[RECEIVE].used() == []
    guest.net.set_link(True)
    guest.arrive(frame())
    assert [head for head, _ in guest.rings[RECEIVE].used()] == heads[:1]


def test_a_frame_that_waits_for_buffers_is_dropped_when_the_cable_goes(guest):
    guest.post(100)
    guest.arrive(frame(length=1000))
    assert guest.net.deadline() is not None
    guest.net.set_link(False)
    assert guest.net.deadline() is None and guest.net.counts["no link"] == 1
    guest.net.set_link(True)
    guest.post(1526)
    guest.arrive(frame())
    assert [data for _, data in guest.received()] == [frame()]


def test_a_frame_that_is_on_its_way_goes_on(guest):
    """A back-end may have sent a part of it."""
    guest.backend.room = 0
    head = guest.send(TRANSMIT, [bytes(12), frame(OTHER, MAC)])
    guest.net.set_link(False)
    guest.backend.room = 10
    guest.turn()
    assert guest.rings[TRANSMIT].used() == [(head, 0)] and guest.backend.sent == [frame(OTHER, MAC)]
    guest.transmit(frame(OTHER, MAC))
    assert len(guest.backend.sent) == 1


def test_a_network_that_has_gone_does_not_come_back_by_its_cable(guest):
    guest.backend.gone = "it was killed"
    guest.post(1526)
    guest.turn()
    assert not guest.net.link
    guest.net.set_link(False)
    guest.net.set_link(True)
    assert not guest.net.link and link_status(guest) == 0
    guest.turn()


def test_a_network_goes_while_its_cable_is_out(guest):
    guest.net.set_link(False)
    guest.backend.gone = "it was killed"
    guest.turn()
    guest.net.set_link(True)
    assert not guest.net.link


def test_the_cable_stays_out_over_a_reset():
    guest = Guest(Memory(vnet_header=True))
    guest.net.set_link(False)
    assert guest.interrupts == 0, "nobody is there to be told"
    guest.bring_up()
    assert link_status(guest) == 0 and guest.backend.taken == (True, True, True, True)
    guest.bring_up()
    assert link_status(guest) == 0
    guest.net.set_link(True)
    works(guest)
    guest.close()


def test_the_data_plane_learns_of_the_cable():
    """It sleeps, as the driver has given no buffers: nothing but the cable wakes it."""
    reading, writing = os.pipe()

    class Pipe(Memory):
        def fileno(self):
            return reading

        def receive(self):
            found = super().receive()
            if not self.incoming:
                os.set_blocking(reading, False)
                try:
                    os.read(reading, 100)
                except BlockingIOError:
                    pass
            return found

    backend = Pipe()
    guest = Guest(backend)
    plane = DataPlane(guest.net, guest.transport)
    plane.start()
    guest.bring_up()
    time.sleep(0.01)
    backend.incoming = [frame()] * 3
    os.write(writing, b"x")
    guest.net.set_link(False)
    end = time.monotonic() + 10
    while guest.net.counts["no link"] < 3:
        assert time.monotonic() < end
        time.sleep(0.001)
    plane.close()
    guest.close()
    os.close(reading)
    os.close(writing)


# --- A disk's size ---------------------------------------------------------------------------------------------------


def capacity(driver):
    return driver.config(0, 4) | driver.config(4, 4) << 32


def ask(driver, kind, sector, data=b"", room=0):
    """A request: (status, what was read)."""
    _, answer = driver.request(0, [pack("<IIQ", kind, 0, sector), data], [room, 1] if room else [1])
    return answer[-1], answer[:-1]


def write(driver, sector, data):
    return ask(driver, spec.BLK_T_OUT, sector, data)[0]


def read(driver, sector, count=1):
    return ask(driver, spec.BLK_T_IN, sector, room=count * SECTOR)


@pytest.fixture
def drivers():
    made = []

    def make(disk, **settings):
        made.append(Driver(VirtioBlock(disk, name="blk0", **settings)).bring_up())
        return made[-1]

    yield make
    for driver in made:
        driver.close()


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(b"".join(b"%-15d\n" % number * 32 for number in range(16)))
    return path


def sectors(number):
    """What `image` has in sector `number`."""
    return b"%-15d\n" % number * 32


def test_a_larger_disk_is_told_and_used(drivers):
    """virtio 1.3, 5.2.4 and 2.5.1"""
    driver = drivers(MemoryDisk())
    generation = driver.get("ConfigGeneration")
    assert read(driver, CAPACITY)[0] == IOERR
    assert driver.device.resize((CAPACITY + 8) * SECTOR) == (CAPACITY + 8) * SECTOR
    assert driver.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE and driver.get("ConfigGeneration") != generation
    assert capacity(driver) == CAPACITY + 8
    assert write(driver, CAPACITY + 7, b"x" * SECTOR) == OK
    assert read(driver, CAPACITY + 7) == (OK, b"x" * SECTOR)
    assert read(driver, CAPACITY + 8)[0] == IOERR and read(driver, CAPACITY + 7, 2)[0] == IOERR


def test_requests_beyond_the_end_of_a_smaller_disk_fail(drivers):
    driver = drivers(MemoryDisk())
    driver.device.resize(8 * SECTOR, shrink=True)
    assert capacity(driver) == 8 and driver.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE
    calls = len(driver.device.disk.calls)
    for kind, data in ((spec.BLK_T_OUT, bytes(SECTOR)), (spec.BLK_T_DISCARD, pack("<QII", 8, 1, 0))):
        assert ask(driver, kind, 8, data)[0] == IOERR
    assert read(driver, 7, 2)[0] == IOERR and len(driver.device.disk.calls) == calls
    assert read(driver, 7)[0] == OK


def test_a_disk_is_not_cut_off_by_accident(drivers):
    driver = drivers(MemoryDisk())
    with pytest.raises(UsageError, match=f"blk0: at 512 bytes the disk would lose its last {(CAPACITY - 1) * SECTOR}"):
        driver.device.resize(SECTOR)
    assert capacity(driver) == CAPACITY and not driver.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE


def test_the_same_size_is_no_change(drivers):
    driver = drivers(MemoryDisk())
    driver.device.resize(CAPACITY * SECTOR)
    assert not driver.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE


def test_what_the_host_cannot_do_changes_nothing(drivers):
    driver = drivers(MemoryDisk())
    driver.device.disk.fails["resize"] = errno.ENOSPC
    with pytest.raises(OSError):
        driver.device.resize(2 * CAPACITY * SECTOR)
    assert capacity(driver) == CAPACITY and read(driver, 0)[0] == OK


def test_it_waits_for_the_request_in_hand(drivers):
    driver = drivers(MemoryDisk())
    resized = threading.Thread(target=driver.device.resize, args=(2 * CAPACITY * SECTOR,))
    with driver.device.plane:
        resized.start()
        time.sleep(0.01)
        assert resized.is_alive() and capacity(driver) == CAPACITY, "and the registers do not wait for it"
    resized.join(10)
    assert capacity(driver) == 2 * CAPACITY


@pytest.mark.parametrize("cache", ["writeback", "none", "unsafe"])
def test_a_file_is_made_larger(drivers, image, cache):
    try:
        disk = open_disk(image, cache=cache)
    except BackendError as error:
        pytest.skip(str(error))
    driver = drivers(disk)
    assert driver.device.resize(1 << 20) == 1 << 20 == os.stat(image).st_size
    assert read(driver, 15) == (OK, sectors(15)) and read(driver, 2047) == (OK, bytes(SECTOR))
    assert write(driver, 2047, b"x" * SECTOR) == OK and read(driver, 2047) == (OK, b"x" * SECTOR)


def test_a_file_that_has_become_longer_is_seen_when_it_is_looked_at(drivers, image):
    driver = drivers(open_disk(image, readonly=True))
    os.truncate(image, 20 * SECTOR)
    assert capacity(driver) == 16 and read(driver, 16)[0] == IOERR
    assert driver.device.resize() == 20 * SECTOR
    assert capacity(driver) == 20 and read(driver, 19) == (OK, bytes(SECTOR))
    os.truncate(image, 10 * SECTOR + 100)
    assert driver.device.resize() == 11 * SECTOR, "the sector that is there in part counts"
    assert read(driver, 10) == (OK, sectors(10)[:100] + bytes(412)) and read(driver, 11)[0] == IOERR
    os.truncate(image, 0)
    with pytest.raises(BackendError, match="has become empty"):
        driver.device.resize()
    assert capacity(driver) == 11


@pytest.mark.parametrize("size", [0, -512, 1000, 1 << 63, 1 << 70])
@pytest.mark.parametrize("overlay", [False, True])
def test_sizes_that_no_disk_has(drivers, image, size, overlay):
    driver = drivers(open_disk(image, overlay=overlay))
    with pytest.raises(UsageError, match=f"a size of {size} bytes \\(expected a multiple of 512"):
        driver.device.resize(size, shrink=True)
    assert capacity(driver) == 16 and os.stat(image).st_size == 16 * SECTOR


def test_a_file_larger_than_the_file_system_takes(drivers, image):
    driver = drivers(open_disk(image))
    with pytest.raises(BackendError, match=r"image: cannot be resized: "):
        driver.device.resize((1 << 63) - SECTOR)
    assert capacity(driver) == 16 and read(driver, 15)[0] == OK


def test_a_read_only_disk_keeps_its_size(drivers, image):
    driver = drivers(open_disk(image, readonly=True))
    with pytest.raises(UsageError, match="is read-only, so it keeps its size"):
        driver.device.resize(1 << 20)


# --- With an overlay -------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    """Five clusters, of which the last is there in part: 36 sectors and a half."""
    path = tmp_path / "base"
    path.write_bytes(b"".join(sectors(number) for number in range(37))[:-256])
    return path


def content(disk):
    with memoryview(bytearray(disk.size)) as whole:
        disk.readv([whole], 0)
        return bytes(whole)


def test_an_overlay_grows_and_its_base_does_not(drivers, base):
    before = base.read_bytes()
    driver = drivers(open_disk(base, overlay=True))
    assert driver.device.resize(1 << 20) == 1 << 20
    assert content(driver.device.disk) == before + bytes((1 << 20) - len(before))
    for sector in (36, 37, 39, 40, 2047):
        assert write(driver, sector, sectors(sector)) == OK
    there = {*range(38), 39, 40, 2047}
    expected = [sectors(sector) if sector in there else bytes(SECTOR) for sector in range(2048)]
    assert content(driver.device.disk) == b"".join(expected)
    assert base.read_bytes() == before


def test_what_was_cut_off_does_not_come_back(base):
    """Neither what the guest wrote nor what the base has."""
    before = base.read_bytes()
    for size in (1, 7, 8, 9, 16, 20, 35, 36, 37):
        disk = open_disk(base, overlay=True)
        disk.writev([memoryview(b"w" * SECTOR)], 9 * SECTOR)
        expected = bytearray(before.ljust(37 * SECTOR, b"\0"))
        expected[9 * SECTOR : 10 * SECTOR] = b"w" * SECTOR
        disk.resize(size * SECTOR)
        assert content(disk) == expected[: size * SECTOR], size
        disk.resize(50 * SECTOR)
        assert content(disk) == expected[: size * SECTOR] + bytes((50 - size) * SECTOR), size
        disk.close()
    assert base.read_bytes() == before


def test_an_overlay_is_not_told_by_its_base(base):
    disk = open_disk(base, overlay=True)
    with pytest.raises(UsageError, match="does not follow the image"):
        disk.resize()
    disk.close()


def test_an_overlay_that_no_file_can_hold(base):
    disk = open_disk(base, overlay=True)
    with pytest.raises(BackendError, match="cannot be resized"):
        disk.resize((1 << 63) - SECTOR)
    assert disk.size == 37 * SECTOR and len(content(disk)) == 37 * SECTOR
    disk.close()


def test_resizing_while_the_guest_reads_and_writes(image):
    """From another thread, over and over: nothing is served beyond the end, nothing inside is lost."""
    driver = Driver(VirtioBlock(open_disk(image), name="blk0"))
    plane = DataPlane(driver.device, driver.transport)
    plane.start()
    driver.bring_up(without=[spec.F_RING_EVENT_IDX])
    stop = threading.Event()

    def resize():
        while not stop.is_set():
            for size in (32, 8):
                driver.device.resize(size * SECTOR, shrink=True)
                time.sleep(0.0003)

    thread = threading.Thread(target=resize)
    thread.start()
    ring, seen, end = driver.rings[0], set(), time.monotonic() + 20
    while len(seen) < 2 or ring.avail < 200:
        assert time.monotonic() < end
        before, sector = ring.used_index, 8 * (ring.avail & 1)
        head = ring.add(driver.heap, [pack("<IIQ", spec.BLK_T_IN, 0, sector)], [SECTOR, 1])
        driver.kick()
        while ring.used_index == before:
            assert time.monotonic() < end
            time.sleep(0.0001)
        ring.used()
        answer = ring.written(head)
        seen.add(answer[-1])
        assert sector or answer == sectors(0) + b"\0", "what is there in any case"
    stop.set()
    thread.join(10)
    plane.close()
    driver.close()
    assert seen == {OK, IOERR}
