"""The block device's data plane in C, held to the one in Python: the same answers, the same disk, the same memory."""

from __future__ import annotations

import errno
import os
import random
from collections import Counter
from itertools import pairwise
from struct import pack

import pytest

from pyvmm.attach import VirtioDevices
from pyvmm.backends.direct import DirectDisk
from pyvmm.backends.raw import RawDisk
from pyvmm.config import VmConfig
from pyvmm.errors import UsageError
from pyvmm.hardware import Disk, Net
from pyvmm.slots import slots
from pyvmm.virtio import native, spec
from pyvmm.virtio.block import TURN, VirtioBlock
from pyvmm.virtio.blockplane import AGAIN, BlockPlane
from pyvmm.virtio.native import lib, native_queue
from pyvmm.virtio.spec import (
    BLK_F_CONFIG_WCE,
    BLK_F_FLUSH,
    BLK_S_IOERR,
    BLK_S_OK,
    BLK_T_DISCARD,
    BLK_T_FLUSH,
    BLK_T_GET_ID,
    BLK_T_IN,
    BLK_T_OUT,
    BLK_T_WRITE_ZEROES,
    SECTOR,
)
from tests.support.virtiodriver import WRITE, Driver

pytestmark = pytest.mark.transport("mmio")

SECTORS = 64
TAIL = 100
"""Bytes that the image has behind its last whole sector."""


def image(sectors=SECTORS, tail=TAIL):
    fd = os.memfd_create("disk")
    os.pwrite(fd, (b"".join((b"%-15d\n" % number) * 32 for number in range(sectors + 1)))[: sectors * SECTOR + tail], 0)
    return fd


def contents(fd):
    return os.pread(fd, os.fstat(fd).st_size, 0)


class Counted(BlockPlane):
    """Counts what C did, and why it came back."""

    def __init__(self):
        super().__init__()
        self.done = 0
        self.reasons = Counter()

    def serve(self, queue, limit):
        reason, done = super().serve(queue, limit)
        self.done += done
        self.reasons[reason] += 1
        return reason, done


class BlockDriver(Driver):
    """A driver of a disk in a memfd, served by C or by Python."""

    def __init__(self, native, fd=None, disk=None, **options):
        self.fd = image() if fd is None else fd
        device = VirtioBlock(disk or RawDisk(self.fd, "memfd"), **options)
        device.native = native
        self.plane = device._plane = Counted()
        super().__init__(device)

    def ask(self, readable, writable, queue=0, **how):
        written, data = self.request(queue, readable, writable, **how)
        return data[-1], written, data[:-1]

    def read(self, sector, count=1, **how):
        return self.ask([pack("<IIQ", BLK_T_IN, 0, sector)], [SECTOR * count, 1], **how)

    def write(self, sector, data, **how):
        return self.ask([pack("<IIQ", BLK_T_OUT, 0, sector), data], [1], **how)


@pytest.fixture
def made():
    """Makes drivers and closes them."""
    drivers = []

    def make(*arguments, without=(), size=None, **options):
        drivers.append(BlockDriver(*arguments, **options))
        return drivers[-1].bring_up(without=without, size=size)

    yield make
    for driver in drivers:
        driver.close()


# --- What goes which way ---------------------------------------------------------------------------------------------


def test_plain_reads_and_writes_never_reach_python(made, monkeypatch):
    driver = made(True)
    monkeypatch.delattr(VirtioBlock, "_serve_chain")
    assert driver.write(5, b"x" * 1024) == (BLK_S_OK, 1, b"")
    assert driver.read(5, 2) == (BLK_S_OK, 1025, b"x" * 1024)
    assert contents(driver.fd)[5 * SECTOR :].startswith(b"x" * 1024 + b"7  ")
    assert driver.plane.done == 2


@pytest.mark.parametrize(
    ("readable", "writable"),
    [
        pytest.param([pack("<IIQ", BLK_T_FLUSH, 0, 0)], [1], id="flush"),
        pytest.param([pack("<IIQ", BLK_T_GET_ID, 0, 0)], [20, 1], id="get-id"),
        pytest.param(
            [pack("<IIQ", BLK_T_IN, 0, SECTORS)], [SECTOR, 1], id="the last sector, of which the file has some"
        ),
        pytest.param(
            [pack("<IIQ", BLK_T_OUT, 0, SECTORS), bytes(SECTOR)], [1], id="a write that makes the file longer"
        ),
        pytest.param([pack("<IIQ", BLK_T_IN, 0, SECTORS + 1)], [SECTOR, 1], id="behind the end"),
        pytest.param([pack("<IIQ", BLK_T_IN, 0, 1 << 63)], [SECTOR, 1], id="far behind the end"),
        pytest.param([pack("<IIQ", BLK_T_IN, 0, 3)], [SECTOR - 1, 1], id="no whole sector"),
        pytest.param([pack("<IIQ", BLK_T_IN, 0, 3), b"more"], [SECTOR, 1], id="a read with data"),
        pytest.param([pack("<IIQ", BLK_T_OUT, 0, 3), bytes(SECTOR)], [2], id="a write with room"),
        pytest.param([bytes(15), b"\x01"], [SECTOR, 1], id="a header whose last byte is elsewhere"),
        pytest.param(
            [pack("<IIQ", BLK_T_IN, 0, 3)[:7], pack("<IIQ", BLK_T_IN, 0, 3)[7:]], [SECTOR, 1], id="a cut header"
        ),
        pytest.param([pack("<IIQ", 77, 0, 3)], [SECTOR, 1], id="an unknown type"),
    ],
)
def test_what_is_not_plain_is_left_to_python(made, readable, writable):
    native, python = made(True), made(False)
    assert native.ask(readable, writable) == python.ask(readable, writable)
    assert native.plane.done == python.plane.done == 0
    assert contents(native.fd) == contents(python.fd)
    assert native.read(3) == python.read(3) and native.plane.done == 1


def test_without_a_volatile_cache_each_write_is_followed_by_a_flush(made, monkeypatch):
    """virtio 1.3, 5.2.6.2: from the next request on after the driver has changed the mode."""
    flushed = []
    monkeypatch.setattr(RawDisk, "flush", lambda disk: flushed.append(1))
    driver = made(True)
    assert driver.write(0, bytes(SECTOR))[0] == BLK_S_OK and (driver.plane.done, len(flushed)) == (1, 0)
    driver.put_config(32, 1, 0)
    assert driver.write(0, bytes(SECTOR))[0] == BLK_S_OK and (driver.plane.done, len(flushed)) == (1, 1)
    assert driver.read(0)[0] == BLK_S_OK and driver.plane.done == 2
    driver.put_config(32, 1, 1)
    assert driver.write(0, bytes(SECTOR))[0] == BLK_S_OK and (driver.plane.done, len(flushed)) == (3, 1)
    driver.bring_up(without=[BLK_F_FLUSH, BLK_F_CONFIG_WCE])
    assert driver.write(0, bytes(SECTOR))[0] == BLK_S_OK and (driver.plane.done, len(flushed)) == (3, 2)


def test_a_disk_for_which_a_flush_means_nothing_is_written_to_without_one(made):
    driver = made(True, disk=RawDisk(fd := image(), "memfd", durable=False), fd=fd)
    assert driver.write(5, b"x" * SECTOR) == (BLK_S_OK, 1, b"") and driver.plane.done == 1
    assert contents(fd)[5 * SECTOR : 6 * SECTOR] == b"x" * SECTOR


def test_where_nothing_was_compiled_python_does_it(monkeypatch):
    monkeypatch.setattr(native, "PROBLEM", "it was not built")
    driver = Driver(VirtioBlock(RawDisk(image(), "memfd"))).bring_up()
    assert driver.device._plane is None
    assert driver.request(0, [pack("<IIQ", BLK_T_IN, 0, 1)], [SECTOR, 1])[0] == SECTOR + 1
    driver.close()


def test_a_disk_that_is_read_only_is_not_written_to(made):
    driver = made(True, disk=RawDisk(image(), "memfd", readonly=True))
    assert driver.write(0, bytes(SECTOR)) == (BLK_S_IOERR, 1, b"")
    assert driver.read(0)[2].startswith(b"0  ") and driver.plane.done == 1


def test_a_disk_that_has_grown_is_served_to_its_new_end(made):
    driver = made(True)
    assert driver.read(SECTORS + 5)[0] == BLK_S_IOERR
    driver.device.resize(SECTOR * SECTORS * 2)
    assert driver.read(SECTORS + 5) == (BLK_S_OK, SECTOR + 1, bytes(SECTOR)) and driver.plane.done == 1
    driver.device.resize(SECTOR * 8, shrink=True)
    assert driver.read(8)[0] == BLK_S_IOERR and driver.plane.done == 1


def test_with_faults_on_purpose_every_request_is_python_s(made):
    from pyvmm.virtio.faults import FaultPlan

    driver = made(True)
    driver.device.faults = FaultPlan(["blk0:error,op=write"], 0)
    assert driver.read(0)[0] == BLK_S_OK and driver.plane.done == 0


def test_a_chain_of_more_buffers_than_c_has_room_for_is_python_s(made):
    driver = made(True, fd=image(8192), queue_size=2048)
    driver.bring_up(size=2048)
    data = os.urandom(3 * SECTOR)
    assert (
        driver.ask([pack("<IIQ", BLK_T_OUT, 0, 1), *(data[at : at + 1] for at in range(len(data)))], [1])[0] == BLK_S_OK
    )
    assert driver.plane.done == 0
    assert driver.ask([pack("<IIQ", BLK_T_IN, 0, 1)], [2] * (3 * SECTOR // 2) + [1])[2] == data
    assert driver.plane.done == 1


# --- What the host does ----------------------------------------------------------------------------------------------


def test_a_file_that_has_become_shorter_is_an_error_and_no_zeroes(made):
    said = []
    driver = made(True, report=said.append)
    os.ftruncate(driver.fd, 10 * SECTOR + 7)
    assert driver.read(9)[0] == BLK_S_OK
    assert driver.read(20) == (BLK_S_IOERR, 0, b"\xa5" * SECTOR)
    assert driver.read(9, 3)[0] == BLK_S_IOERR
    assert said == ["disk memfd: the file has become shorter; the guest gets an I/O error"]


def test_an_error_of_the_host_s_is_one_of_the_guest_s_and_told_once(made):
    fd = image()
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    said = []
    driver = made(True, fd=fd, disk=RawDisk(reader, "memfd"), report=said.append)
    assert driver.write(0, bytes(SECTOR)) == (BLK_S_IOERR, 1, b"")
    assert driver.write(0, bytes(SECTOR)) == (BLK_S_IOERR, 1, b"")
    assert said == [f"disk memfd: {os.strerror(errno.EBADF)}; the guest gets an I/O error"]
    assert driver.read(0)[0] == BLK_S_OK


def test_a_request_that_fails_among_others_fails_alone(made):
    """A batch: those before it are done by C, the one by Python, and those behind it by C again."""
    driver = made(True)
    ring = driver.rings[0]
    os.ftruncate(driver.fd, 10 * SECTOR)
    heads = [ring.add(driver.heap, [pack("<IIQ", BLK_T_IN, 0, sector)], [SECTOR, 1]) for sector in (1, 2, 20, 3)]
    driver.kick()
    assert ring.used() == [(heads[0], 513), (heads[1], 513), (heads[2], 0), (heads[3], 513)]
    assert [ring.written(head)[-1] for head in heads] == [BLK_S_OK, BLK_S_OK, BLK_S_IOERR, BLK_S_OK]
    assert driver.plane.done == 3


def test_without_the_page_cache_what_is_aligned_goes_straight_to_the_disk(made, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(contents(image(SECTORS, 0)))
    cached = os.open(path, os.O_RDWR)
    try:
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    driver = made(True, fd=cached, disk=DirectDisk(direct, cached, str(path)))
    gpa = 0x80000
    for at, by_c in ((gpa, 1), (gpa + 8, 0)):
        before = driver.plane.done
        header = driver.heap.take(16)
        driver.memory.write(header, pack("<IIQ", BLK_T_IN, 0, 8))
        status = driver.heap.take(1, b"\xa5")
        driver.rings[0].add_buffers([(header, 16, 0), (at, 4096, WRITE), (status, 1, WRITE)])
        driver.kick()
        assert driver.memory.read_u8(status) == BLK_S_OK
        assert driver.memory.read(at, 4096) == path.read_bytes()[4096:8192]
        assert driver.plane.done - before == by_c


# --- Turns -----------------------------------------------------------------------------------------------------------


def test_a_turn_ends_and_says_that_there_is_more(made):
    driver = made(True, size=16)
    rung = []
    driver.device.ring = rung.append
    ring = driver.rings[0]
    native_queue(driver.device.queues[0])
    for number in range(4):
        ring.add(driver.heap, [pack("<IIQ", BLK_T_IN, 0, number)], [SECTOR, 1])
    queue = driver.device.queues[0]
    with driver.device.plane:
        _, done = driver.device._plane.serve(queue, 3)
    assert done == 3 and ring.used_index == 3 and TURN * 16 > 4
    driver.device.serve_unless_broken(0)
    assert ring.used_index == 4 and not queue.unfinished and not rung


def test_a_driver_that_keeps_the_queue_filled_is_told_now_and_then(made):
    driver = made(True, without=[spec.F_RING_EVENT_IDX], size=256)
    ring, told = driver.rings[0], []
    driver.device.notifications = type("Told", (), {"used_buffer": lambda self, queue: told.append(ring.used_index)})()
    for number in range(80):
        ring.add(driver.heap, [pack("<IIQ", BLK_T_IN, 0, number % SECTORS)], [SECTOR, 1])
    driver.kick()
    assert told == [lib.PYVMM_BLOCK_BATCH, 80] and driver.plane.done == 80


def test_it_waits_for_more_only_where_that_is_worth_while(made):
    """Longer and longer for a driver that is busy, within bounds; hardly at all for one that seldom asks."""
    driver = made(True)
    c = driver.plane._c
    c.patience = 1 << 30
    c.window = 1000  # so that the waits themselves take no time here
    driver.read(0)
    driver.read(0)
    assert c.window >= 2000
    c.patience = c.window = 3000
    driver.read(0)
    assert c.window == 3000
    c.patience, c.window = 1, 1 << 20
    c.empty_since = 1
    for _ in range(12):
        driver.read(0)
    assert c.window == 1


def test_an_index_that_goes_to_and_fro_keeps_nobody_for_ever(made, monkeypatch):
    """Each time C looks there is something, and each time it takes it there is nothing."""
    driver = made(True, size=16)
    rung = []
    driver.device.ring = rung.append
    monkeypatch.setattr(driver.plane, "serve", lambda queue, limit: (AGAIN, 0))
    driver.device.serve_unless_broken(0)
    assert driver.device.queues[0].unfinished and rung == [0]


def test_a_reset_lets_go_of_the_guest_s_memory(made):
    driver = made(True, queues=2)
    assert driver.read(0)[0] == BLK_S_OK and driver.read(0, queue=1)[0] == BLK_S_OK
    queue = driver.device.queues[0]
    assert queue.native is not None
    with pytest.raises(BufferError):
        driver.memory.close()
    driver.put("Status", 0)
    assert queue.native is None
    driver.memory.close()  # nothing borrows it any more


# --- The same as in Python -------------------------------------------------------------------------------------------


def request(rng):
    """(readable, writable, indirect) of one request: mostly a good one."""
    kind = rng.choice(
        (BLK_T_IN,) * 5 + (BLK_T_OUT,) * 5 + (BLK_T_FLUSH, BLK_T_GET_ID, BLK_T_DISCARD, BLK_T_WRITE_ZEROES)
    )
    count = rng.choice((1, 1, 2, 8, 16))
    sector = (
        rng.randrange(SECTORS + 2 - count) if rng.random() < 0.95 else rng.choice((SECTORS, 1 << 55, (1 << 64) - 1))
    )
    data, room = b"", 0
    if kind == BLK_T_IN:
        room = SECTOR * count
    elif kind == BLK_T_OUT:
        data = rng.randbytes(SECTOR * count)
    elif kind == BLK_T_GET_ID:
        room = 20
    elif kind != BLK_T_FLUSH:
        data = pack("<QII", sector, count, 0)
    if rng.random() < 0.1:
        kind = rng.choice((kind, 2, 0xFFFFFFFF))
        data, room = rng.choice(((data[:-1], room), (data, room + 1), (data + b"x", room), (b"", 0)))
    readable, writable = pack("<IIQ", kind, rng.randrange(1 << 32), sector) + data, room + 1
    if rng.random() < 0.01:
        readable, writable = rng.choice(((readable[:15], writable), (readable, 0), (b"", writable)))
    return cut(rng, readable), [len(part) for part in cut(rng, bytes(writable))], rng.random() < 0.3


def cut(rng, data):
    """The bytes in some pieces; mostly header and rest, or rest and status."""
    places = [16, len(data) - 1] if rng.random() < 0.8 else [rng.randrange(len(data) + 1) for _ in range(3)]
    edges = sorted({0, len(data), *(at for at in places if 0 < at < len(data))})
    return [data[start:end] for start, end in pairwise(edges)]


def play(seed, totals):
    rng = random.Random(seed)
    size = rng.choice((16, 32))
    without = rng.sample((spec.F_RING_EVENT_IDX, spec.F_RING_INDIRECT_DESC, BLK_F_CONFIG_WCE), rng.randrange(3))
    sides = [BlockDriver(native, serial="a disk") for native in (True, False)]
    try:
        for side in sides:
            side.bring_up(without=without, size=size)
        for _ in range(30):
            batch = [request(rng) for _ in range(rng.choice((1, 1, 2, 4)))]
            if spec.F_RING_INDIRECT_DESC in without:
                batch = [(*parts, False) for *parts, _ in batch]
            writeback, hostile = rng.choice((0, 1)), rng.random() < 0.01
            flags = rng.choice((0, 1))
            for side in sides:
                if spec.F_RING_EVENT_IDX in without:
                    side.rings[0].set_flags(flags)
                if BLK_F_CONFIG_WCE not in without:
                    side.put_config(32, 1, writeback)
                heads = []
                for readable, writable, indirect in batch:
                    if len(side.rings[0].free) > len(readable) + len(writable) + 1:
                        heads.append(side.rings[0].add(side.heap, readable, writable, indirect))
                if hostile:
                    side.rings[0].make_available(size)
                side.kick()
            assert sides[0].rings[0].used() == sides[1].rings[0].used()
            assert sides[0].needs_reset == sides[1].needs_reset and sides[0].device.error == sides[1].device.error
            assert sides[0].memory.read(0, sides[0].memory.size) == sides[1].memory.read(0, sides[1].memory.size)
            assert contents(sides[0].fd) == contents(sides[1].fd)
            if sides[0].needs_reset:
                totals["broken"] += 1
                for side in sides:
                    side.bring_up(without=without, size=size)
        totals["by C"] += sides[0].plane.done
        totals["by Python"] += sum(sides[0].plane.reasons.values())
        assert sides[1].plane.done == 0
    finally:
        for side in sides:
            side.close()


def test_random_requests_are_answered_as_by_python():
    totals = Counter()
    for seed in range(120):
        play(seed, totals)
    assert totals["by C"] > 500 and totals["by Python"] > 500 and totals["broken"] > 10, totals


# --- Who chooses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_vm", "of_disk", "native"),
    [("native", None, True), ("python", None, False), ("native", "python", False), ("python", "native", True)],
)
def test_a_disk_s_own_data_path_counts_before_the_vm_s(tmp_path, of_vm, of_disk, native):
    path = tmp_path / "image"
    path.write_bytes(bytes(SECTOR))
    config = VmConfig("kernel", disks=[Disk(path, datapath=of_disk)], datapath=of_vm)
    devices = VirtioDevices(config, slots(config, "mmio"), None, lambda: False)
    devices.open()
    assert [device.native for device in devices.devices] == [native]
    devices.close()


@pytest.mark.parametrize("make", [VmConfig, Disk, Net])
def test_an_unknown_data_path_is_refused(make):
    with pytest.raises(UsageError, match=r"^unknown data path 'c' \(expected native, python\)$"):
        make("user", datapath="c")
