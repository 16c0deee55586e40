"""The block device (virtio 1.3, 5.2), driven against a disk in memory."""

import errno
from pathlib import Path
from struct import pack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import UsageError
from pyvmm.virtio import block_request, spec
from pyvmm.virtio.block import CONFIG, TELL_AFTER, TURN, VirtioBlock
from pyvmm.virtio.spec import (
    BLK_S_IOERR,
    BLK_S_OK,
    BLK_S_UNSUPP,
    BLK_T_DISCARD,
    BLK_T_FLUSH,
    BLK_T_GET_ID,
    BLK_T_IN,
    BLK_T_OUT,
    BLK_T_WRITE_ZEROES,
)
from tests.support.headers import macros
from tests.support.memorydisk import CAPACITY, MemoryDisk
from tests.support.virtiodriver import NEXT, RAM, WRITE, Driver

UNANSWERED = 0xA5


def header(kind, sector=0, reserved=0):
    return pack("<IIQ", kind, reserved, sector)


def segment(sector, count, flags=0):
    return pack("<QII", sector, count, flags)


class BlockDriver(Driver):
    """A driver of one disk. Every request returns (status, used length, data)."""

    def __init__(self, disk=None, **options):
        self.disk = disk or MemoryDisk()
        super().__init__(VirtioBlock(self.disk, **options))

    def ask(self, readable, writable, queue=0, **how):
        written, data = self.request(queue, readable, writable, **how)
        return data[-1], written, data[:-1]

    def read(self, sector, count=1, **how):
        return self.ask([header(BLK_T_IN, sector)], [512 * count, 1], **how)

    def write(self, sector, data, **how):
        return self.ask([header(BLK_T_OUT, sector), data], [1], **how)

    def flush(self, **how):
        return self.ask([header(BLK_T_FLUSH)], [1], **how)

    def segments(self, kind, *segments):
        return self.ask([header(kind), b"".join(segments)], [1])


@pytest.fixture(params=["python", "native"])
def datapath(request):
    """Who reads and writes where it may be either."""
    return request.param


seen_by_disk = pytest.mark.parametrize("datapath", ["python"], indirect=True)
"""For a test that looks at what the disk in memory is told to do, of which C tells it nothing."""


@pytest.fixture
def block(made):
    return made()


@pytest.fixture
def made(datapath):
    """Makes drivers and closes them."""
    drivers = []

    def make(disk=None, features=None, without=(), **options):
        driver = BlockDriver(disk, **options)
        drivers.append(driver)
        if datapath == "native" and len(getattr(driver.disk, "data", b"")) == driver.disk.size:
            driver.disk.straighten()
        return driver.bring_up(features, without)

    yield make
    for driver in drivers:
        driver.close()


def works(driver):
    """A good request gets its answer, on the device as it is."""
    assert not driver.needs_reset
    assert driver.read(3) == (BLK_S_OK, 513, driver.disk.sector(3))


def recovers(driver):
    """The device asks for a reset, and works after it."""
    assert driver.needs_reset
    driver.bring_up()
    works(driver)


def bits(*features):
    return sum(1 << feature for feature in (spec.F_VERSION_1, *features))


# --- Requests --------------------------------------------------------------------------------------------------------


def test_sectors_are_read_and_written(block):
    assert block.read(5, 3) == (BLK_S_OK, 3 * 512 + 1, block.disk.sector(5, 3))
    data = bytes(range(256)) * 6
    assert block.write(9, data) == (BLK_S_OK, 1, b"")
    assert block.disk.sector(9, 3) == data and block.disk.sector(12).startswith(b"12 ")
    assert block.read(9, 3) == (BLK_S_OK, 3 * 512 + 1, data)


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("cut", [1, 4, 15, 16, 17, 100, 511, 512, 513])
def test_a_request_may_be_cut_anywhere(made, cut, indirect):
    """virtio 1.3, 2.7.4.1: no assumption about framing; the status byte is the last writable one."""
    driver = made(queue_size=1024)
    driver.bring_up(size=1024)
    data = bytes(range(256)) * 2
    message = header(BLK_T_OUT, 7) + data
    parts = [message[at : at + cut] for at in range(0, len(message), cut)]
    assert driver.ask(parts, [1], indirect=indirect) == (BLK_S_OK, 1, b"")
    assert driver.disk.sector(7) == data
    message = header(BLK_T_IN, 7)
    parts = [message[at : at + cut] for at in range(0, len(message), cut)]
    room = [min(cut, 513 - at) for at in range(0, 513, cut)]
    assert driver.ask(parts, room, indirect=indirect) == (BLK_S_OK, 513, data)


def test_the_last_sector_and_the_whole_disk_can_be_read(block):
    assert block.read(CAPACITY - 1)[0] == BLK_S_OK
    assert block.read(0, CAPACITY) == (BLK_S_OK, 512 * CAPACITY + 1, bytes(block.disk.data))


def test_nothing_can_be_read_and_written_anywhere_on_the_disk(block):
    for sector, status in ((0, BLK_S_OK), (CAPACITY, BLK_S_OK), (CAPACITY + 1, BLK_S_IOERR)):
        assert block.ask([header(BLK_T_IN, sector)], [1])[0] == status
        assert block.ask([header(BLK_T_OUT, sector)], [1])[0] == status
    works(block)


@seen_by_disk
def test_a_flush_reaches_the_disk_once_and_in_its_place(block):
    block.write(0, bytes(512))
    assert block.flush() == (BLK_S_OK, 1, b"")
    block.write(1, bytes(512))
    assert [call[0] for call in block.disk.calls] == ["write", "flush", "write"]


def test_a_flush_with_a_sector_and_data_is_a_flush(block):
    """virtio 1.3, 5.2.6.1: a driver only SHOULD NOT send data with it."""
    assert block.ask([header(BLK_T_FLUSH, 77), b"data"], [512, 1])[:2] == (BLK_S_OK, 0)
    assert block.disk.calls == [("flush",)]


@pytest.mark.parametrize("serial", ["", "disk-1", "x" * 20])
def test_the_serial_is_padded_with_nul_and_not_ended_by_it(made, serial):
    """virtio 1.3, 5.2.6: a NUL-padded ASCII string up to 20 bytes long."""
    driver = made(serial=serial)
    assert driver.ask([header(BLK_T_GET_ID)], [20, 1]) == (BLK_S_OK, 21, serial.encode().ljust(20, b"\0"))
    assert driver.ask([header(BLK_T_GET_ID)], [7, 9, 5])[2] == serial.encode().ljust(20, b"\0")


def test_ranges_are_discarded_and_zeroed(block):
    assert block.segments(BLK_T_DISCARD, segment(8, 16), segment(64, 1)) == (BLK_S_OK, 1, b"")
    assert block.segments(BLK_T_WRITE_ZEROES, segment(2, 2)) == (BLK_S_OK, 1, b"")
    assert block.segments(BLK_T_WRITE_ZEROES, segment(4, 1, 1)) == (BLK_S_OK, 1, b"")
    assert block.disk.calls == [
        ("discard", 8 * 512, 16 * 512),
        ("discard", 64 * 512, 512),
        ("zero", 1024, 1024, False),
        ("zero", 2048, 512, True),
    ]


@pytest.mark.parametrize("flags", [0, 1])
def test_what_was_zeroed_reads_as_zeroes(block, flags):
    """virtio 1.3, 5.2.6.2: reads of the specified ranges MUST return zeroes, whether or not unmap was set."""
    assert block.segments(BLK_T_WRITE_ZEROES, segment(3, 2, flags))[0] == BLK_S_OK
    assert block.read(2, 4)[2] == block.disk.sector(2) + bytes(1024) + block.disk.sector(5)


def test_segments_of_no_sectors_do_nothing(block):
    assert block.segments(BLK_T_DISCARD, segment(0, 0), segment(CAPACITY, 0))[0] == BLK_S_OK
    assert block.segments(BLK_T_WRITE_ZEROES, segment(0, 0))[0] == BLK_S_OK
    assert block.disk.calls == []


def test_a_segment_is_no_longer_than_the_configuration_says(made):
    disk = MemoryDisk()
    disk.size = 1 << 40
    driver = made(disk)
    for kind, most in ((BLK_T_DISCARD, driver.config(36, 4)), (BLK_T_WRITE_ZEROES, driver.config(48, 4))):
        assert driver.segments(kind, segment(5, most + 1)) == (BLK_S_IOERR, 1, b"")
        assert not disk.calls
        assert driver.segments(kind, segment(5, most)) == (BLK_S_OK, 1, b"")
        assert disk.calls.pop()[1:3] == (5 * 512, most * 512)


def test_every_queue_serves(made):
    driver = made(queues=4)
    assert driver.config(34, 2) == 4
    for queue in range(4):
        assert driver.write(queue, bytes([queue]) * 512, queue=queue) == (BLK_S_OK, 1, b"")
    assert driver.read(0, 4, queue=3)[2] == b"".join(bytes([queue]) * 512 for queue in range(4))


@seen_by_disk
def test_a_batch_is_answered_in_one_go_and_told_of_in_between(block):
    """A driver that keeps the queue filled learns of what is done before the batch ends."""
    ring = block.rings[0]
    told = []
    block.device.notifications = type("Told", (), {"used_buffer": lambda self, queue: told.append(ring.used_index)})()
    block.bring_up(without=[spec.F_RING_EVENT_IDX], size=256)
    ring = block.rings[0]
    for number in range(40):
        ring.add(block.heap, [header(BLK_T_IN, number)], [512, 1])
    block.kick()
    assert told == [TELL_AFTER, 2 * TELL_AFTER, 40]
    assert all(written == 513 for _, written in ring.used())


@seen_by_disk
def test_a_queue_that_never_runs_empty_lets_others_have_their_turn(block):
    """The driver asks again as soon as it gets an answer: the plane is free now and then, and nothing is left over."""
    block.bring_up(size=16)
    ring, left, held, rung = block.rings[0], [100], [], []
    readv = block.disk.readv

    def ask():
        ring.used()
        ring.add(block.heap, [header(BLK_T_IN)], [512, 1])

    def readv_and_ask(views, offset):
        readv(views, offset)
        held.append(len(rung))
        if left[0]:
            left[0] -= 1
            ask()

    def serve(index):
        assert not block.device.plane.locked()
        rung.append(index)
        block.device.serve_unless_broken(index)

    block.disk.readv, block.device.ring = readv_and_ask, serve
    ask()
    block.kick()
    assert len(held) == 101 and [held.count(turn) for turn in (1, 2, 3, 4)] == [TURN * 16] * 3 + [101 - 3 * TURN * 16]
    block.disk.readv, block.device.ring = readv, block.device.serve_unless_broken
    ring.used()
    works(block)


def test_what_is_done_is_told_before_a_flush(block):
    block.bring_up(without=[spec.F_RING_EVENT_IDX])
    ring = block.rings[0]
    seen = []
    block.device.notifications = type("Told", (), {"used_buffer": lambda self, queue: seen.append(ring.used_index)})()
    block.disk.flush = lambda: seen.append("flush")
    ring.add(block.heap, [header(BLK_T_OUT), bytes(512)], [1])
    ring.add(block.heap, [header(BLK_T_FLUSH)], [1])
    block.kick()
    assert seen == [1, "flush", 2]


# --- Features and configuration space --------------------------------------------------------------------------------


@pytest.mark.needs("gcc")
def test_numbers_are_those_of_linux(tmp_path: Path) -> None:
    names = {f"VIRTIO_{name}": value for name, value in vars(spec).items() if name.startswith("BLK_")}
    assert macros(tmp_path, "linux/virtio_blk.h", list(names)) == names


@pytest.mark.needs("gcc")
def test_the_configuration_is_laid_out_as_linux_has_it(tmp_path: Path) -> None:
    """virtio 1.3, 5.2.4: each field alone, in the bytes where the header has it."""
    fields = [
        *("capacity", "size_max", "seg_max", "geometry.cylinders", "geometry.heads", "geometry.sectors", "blk_size"),
        *("physical_block_exp", "alignment_offset", "min_io_size", "opt_io_size", "wce", "num_queues"),
        *("max_discard_sectors", "max_discard_seg", "discard_sector_alignment"),
        *("max_write_zeroes_sectors", "max_write_zeroes_seg", "write_zeroes_may_unmap"),
    ]
    offsets = [f"offsetof(struct virtio_blk_config, {field})" for field in fields]
    sizes = [f"sizeof(((struct virtio_blk_config *)0)->{field})" for field in fields]
    values = macros(tmp_path, "linux/virtio_blk.h", offsets + sizes)
    for index, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
        packed = CONFIG.pack(*(0xFF if at == index else 0 for at in range(len(fields))))
        assert packed == bytes(values[offset]) + b"\xff" + bytes(len(packed) - values[offset] - 1), fields[index]
        wide = CONFIG.pack(*((1 << 8 * values[size]) - 1 if at == index else 0 for at in range(len(fields))))
        assert wide.strip(b"\0") == b"\xff" * values[size], fields[index]


def test_the_configuration_says_what_the_disk_is(made):
    driver = made(queue_size=64)
    driver.disk.may_unmap = False
    assert driver.config(0, 8) == CAPACITY and driver.config(12, 4) == 62
    assert driver.config(20, 4) == 512 and driver.config(24, 1) == 3 and driver.config(26, 2) == 8
    assert driver.config(32, 1) == 1 and driver.config(34, 2) == 1
    assert driver.config(36, 4) == block_request.DISCARD_SECTORS and driver.config(44, 4) == 8
    assert driver.config(52, 4) == block_request.ZEROES_SEGMENTS and driver.config(56, 1) == 0
    driver.disk.may_unmap = True
    assert driver.config(56, 1) == 1


def test_padding_is_zero(block):
    """virtio 1.3, 5.2.5.2: the device MUST initialize padding bytes unused0 and unused1 to 0."""
    assert block.config(33, 1) == 0 and [block.config(at, 1) for at in (57, 58, 59)] == [0, 0, 0]


@pytest.mark.parametrize("offset", [57, 60, 64, 96, 0x100, 0xE00, 0xEFF])
def test_there_is_nothing_behind_the_configuration(block, offset):
    """Offsets far out harm nobody (CVE-2021-45464 of another VMM)."""
    block.put_config(offset, 1, 0xFF)
    assert block.config(offset, 1) == 0
    works(block)


def test_only_writeback_can_be_written_in_the_configuration(block):
    before = block.device.config()
    for offset in range(60):
        for size in (1, 2, 4, 8):
            if offset % size == 0 and (offset, size) != (32, 1):
                block.put_config(offset, size, (1 << 8 * size) - 1)
    block.put_config(32, 1, 2)
    assert block.device.config() == before
    works(block)


def test_a_disk_of_4096_byte_blocks_says_so_and_takes_sectors(made):
    driver = made(MemoryDisk(block_size=4096))
    assert driver.config(20, 4) == 4096 and driver.config(24, 1) == 0 and driver.config(26, 2) == 1
    works(driver)


def test_what_is_offered(made):
    """virtio 1.3, 5.2.5.2: FLUSH MUST be offered with CONFIG_WCE, no ZONED; and 5.2.6.2: no LIFETIME."""
    offered = made().offered
    wanted = [
        spec.BLK_F_SEG_MAX,
        spec.BLK_F_BLK_SIZE,
        spec.BLK_F_FLUSH,
        spec.BLK_F_TOPOLOGY,
        spec.BLK_F_CONFIG_WCE,
        spec.BLK_F_DISCARD,
        spec.BLK_F_WRITE_ZEROES,
    ]
    assert [bit for bit in range(24) if offered >> bit & 1] == wanted
    assert made(queues=2).offered == offered | 1 << spec.BLK_F_MQ
    changing = 1 << spec.BLK_F_DISCARD | 1 << spec.BLK_F_WRITE_ZEROES
    assert made(MemoryDisk(readonly=True)).offered == offered & ~changing | 1 << spec.BLK_F_RO


def test_a_disk_that_is_not_safe_offers_no_flush(made):
    """virtio 1.3, 5.2.6.2, last note: not offering FLUSH is a requirement for who does not wish to be safe."""
    driver = made(MemoryDisk(durable=False))
    assert not driver.offered & (1 << spec.BLK_F_FLUSH | 1 << spec.BLK_F_CONFIG_WCE)
    assert driver.flush() == (BLK_S_UNSUPP, 1, b"")
    works(driver)


# --- Write-through and write-back ------------------------------------------------------------------------------------

FLUSH, WCE = spec.BLK_F_FLUSH, spec.BLK_F_CONFIG_WCE


@seen_by_disk
@pytest.mark.parametrize(
    ("features", "stable"), [((), True), ((FLUSH,), False), ((WCE,), True), ((FLUSH, WCE), False)], ids=str
)
def test_a_write_is_stable_when_the_driver_cannot_make_it_so(made, features, stable):
    """virtio 1.3, 5.2.6.2: stable writes MUST be committed before they are completed, cases 1 and 2."""
    driver = made(features=bits(*features, spec.BLK_F_WRITE_ZEROES))
    driver.write(0, bytes(512))
    driver.segments(BLK_T_WRITE_ZEROES, segment(0, 1))
    names = [call[0] for call in driver.disk.calls]
    assert names == (["write", "flush", "zero", "flush"] if stable else ["write", "zero"])


def test_writeback_begins_as_zero_without_flush(made):
    """virtio 1.3, 5.2.5.2: CONFIG_WCE without FLUSH: the device MUST initialize writeback to 0."""
    driver = made()
    for features, writeback in (((WCE,), 0), ((FLUSH, WCE), 1)):
        assert driver.negotiate(bits(*features))
        assert driver.config(32, 1) == writeback  # readable from FEATURES_OK on


@seen_by_disk
def test_the_driver_switches_the_cache(block):
    """virtio 1.3, 5.2.6.2, case 2; and 5.2.6.1."""
    block.put_config(32, 1, 0)
    assert block.config(32, 1) == 0
    block.write(0, bytes(512))
    block.put_config(32, 1, 1)
    assert block.config(32, 1) == 1
    block.write(1, bytes(512))
    assert [call[0] for call in block.disk.calls] == ["write", "flush", "write"]
    block.put_config(32, 1, 0)
    block.bring_up()
    assert block.config(32, 1) == 1  # a reset forgets


@seen_by_disk
def test_the_cache_is_not_switched_by_who_has_not_negotiated_it(made):
    driver = made(features=bits(FLUSH))
    driver.put_config(32, 1, 0)
    driver.write(0, bytes(512))
    assert [call[0] for call in driver.disk.calls] == ["write"]


def test_a_write_through_whose_flush_fails_has_failed(block):
    block.put_config(32, 1, 0)
    block.disk.fails["flush"] = errno.EIO
    assert block.write(0, bytes(512))[0] == BLK_S_IOERR
    works(block)


# --- Requests that are refused, each followed by a good one ----------------------------------------------------------

END = CAPACITY
REFUSED = {
    "read past the end": ([header(BLK_T_IN, END)], [512, 1]),
    "read across the end": ([header(BLK_T_IN, END - 1)], [1024, 1]),
    "read at the last sector of all": ([header(BLK_T_IN, (1 << 64) - 1)], [512, 1]),
    "read that wraps": ([header(BLK_T_IN, (1 << 64) - 1)], [1024, 1]),
    "read whose byte offset wraps": ([header(BLK_T_IN, 1 << 55)], [512, 1]),
    "read of half a sector": ([header(BLK_T_IN)], [256, 1]),
    "read of a byte more": ([header(BLK_T_IN)], [513, 1]),
    "read into what the driver wrote": ([header(BLK_T_IN), bytes(512)], [1]),
    "read with too long a header": ([header(BLK_T_IN) + b"\0"], [512, 1]),
    "write past the end": ([header(BLK_T_OUT, END), bytes(512)], [1]),
    "write across the end": ([header(BLK_T_OUT, END - 1), bytes(1024)], [1]),
    "write that wraps": ([header(BLK_T_OUT, (1 << 64) - 1), bytes(1024)], [1]),
    "write whose byte offset wraps": ([header(BLK_T_OUT, 1 << 55), bytes(512)], [1]),
    "write of half a sector": ([header(BLK_T_OUT), bytes(256)], [1]),
    "write of a byte more": ([header(BLK_T_OUT), bytes(513)], [1]),
    "write from what the device fills": ([header(BLK_T_OUT)], [512, 1]),
    "serial of 19 bytes": ([header(BLK_T_GET_ID)], [19, 1]),
    "serial of 21 bytes": ([header(BLK_T_GET_ID)], [21, 1]),
    "serial of 0 bytes": ([header(BLK_T_GET_ID)], [1]),
    "serial with data": ([header(BLK_T_GET_ID), b"data"], [20, 1]),
    "discard of nothing": ([header(BLK_T_DISCARD)], [1]),
    "discard of half a segment": ([header(BLK_T_DISCARD), bytes(8)], [1]),
    "discard of one and a half": ([header(BLK_T_DISCARD), segment(0, 1) + bytes(8)], [1]),
    "discard past the end": ([header(BLK_T_DISCARD), segment(0, 1) + segment(END, 1)], [1]),
    "discard across the end": ([header(BLK_T_DISCARD), segment(END - 1, 2)], [1]),
    "discard that wraps": ([header(BLK_T_DISCARD), segment((1 << 64) - 1, 2)], [1]),
    "discard of too many sectors": ([header(BLK_T_DISCARD), segment(0, 0xFFFFFFFF)], [1]),
    "discard of too many segments": ([header(BLK_T_DISCARD), segment(0, 1) * 65], [1]),
    "discard with room for data": ([header(BLK_T_DISCARD), segment(0, 1)], [16, 1]),
    "zeroes past the end": ([header(BLK_T_WRITE_ZEROES), segment(END, 1)], [1]),
    "zeroes across the end": ([header(BLK_T_WRITE_ZEROES), segment(0, END + 1)], [1]),
    "zeroes in too many segments": ([header(BLK_T_WRITE_ZEROES), segment(0, 1) * 2], [1]),
}
UNSUPPORTED = {
    **{f"type {kind:#x}": ([header(kind)], [1]) for kind in (2, 3, 5, 6, 7, 9, 12, 15, 0x80000000, 0xFFFFFFFF)},
    "unknown type with data": ([header(99), bytes(512)], [512, 1]),
    "barrier": ([header(BLK_T_OUT | 1 << 31), bytes(512)], [1]),
    "lifetime": ([header(10)], [6, 1]),
    "secure erase": ([header(14), segment(0, 1)], [1]),
    "discard with unmap": ([header(BLK_T_DISCARD), segment(0, 1, 1)], [1]),
    "discard with unknown flag": ([header(BLK_T_DISCARD), segment(0, 1) + segment(END, 1, 2)], [1]),
    "zeroes with unknown flag": ([header(BLK_T_WRITE_ZEROES), segment(0, 1, 3)], [1]),
    "zeroes with the last flag": ([header(BLK_T_WRITE_ZEROES), segment(END, 1, 1 << 31)], [1]),
}


def refused(driver, readable, writable, status):
    """The request gets `status`, no data is written, and the used length says no more than that (2.7.8.2)."""
    before = bytes(driver.disk.data)
    got, written, data = driver.ask(readable, writable)
    assert (got, written) == (status, 0 if data else 1)
    assert set(data) <= {UNANSWERED} and bytes(driver.disk.data) == before and not driver.disk.calls
    works(driver)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_disk_does_not_have_is_an_error(block, name):
    refused(block, *REFUSED[name], BLK_S_IOERR)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_the_device_does_not_know_is_unsupported(block, name):
    """virtio 1.3, 5.2.6.2: UNSUPP for unknown flags, for discard with unmap, and for zone requests (15 to 26)."""
    refused(block, *UNSUPPORTED[name], BLK_S_UNSUPP)


@pytest.mark.parametrize("kind", [15, 16, 18, 20, 22, 24, 26])
def test_zone_requests_are_unsupported(block, kind):
    """virtio 1.3, 5.2.6.2: without ZONED the device MUST reject them with UNSUPP."""
    refused(block, [header(kind)], [64, 1], BLK_S_UNSUPP)


@pytest.mark.parametrize("kind", [BLK_T_DISCARD, BLK_T_WRITE_ZEROES])
def test_what_was_not_negotiated_is_unsupported(made, kind):
    driver = made(without=[spec.BLK_F_DISCARD, spec.BLK_F_WRITE_ZEROES])
    refused(driver, [header(kind), segment(0, 1)], [1], BLK_S_UNSUPP)


def test_a_read_only_disk_is_not_written_to(made):
    """virtio 1.3, 5.2.6.2: with RO offered, a write gets IOERR and MUST NOT write any data."""
    driver = made(MemoryDisk(readonly=True))
    refused(driver, [header(BLK_T_OUT, 1), bytes(512)], [1], BLK_S_IOERR)
    driver.disk.calls.clear()
    for kind in (BLK_T_DISCARD, BLK_T_WRITE_ZEROES):
        refused(driver, [header(kind), segment(0, 1)], [1], BLK_S_UNSUPP)
        driver.disk.calls.clear()
    driver.bring_up(without=[spec.BLK_F_RO])
    refused(driver, [header(BLK_T_OUT, 1), bytes(512)], [1], BLK_S_IOERR)
    assert driver.flush()[0] == BLK_S_OK


# --- Requests that cannot be answered --------------------------------------------------------------------------------

UNANSWERABLE = {
    "no header": ([], [512, 1]),
    "half a header": ([header(BLK_T_IN)[:8]], [512, 1]),
    "header of 15 bytes": ([header(BLK_T_IN)[:15]], [512, 1]),
    "header of 15 bytes in 15": ([b"\0"] * 15, [1]),
    "no room for a status": ([header(BLK_T_OUT), bytes(512)], []),
    "header alone": ([header(BLK_T_IN)], []),
    "nothing": ([b""], [0]),
}


@pytest.mark.parametrize("name", UNANSWERABLE)
def test_what_cannot_be_answered_makes_the_device_ask_for_a_reset(block, name):
    ring = block.rings[0]
    block.send(0, *UNANSWERABLE[name])
    assert not ring.used() and not block.disk.calls and "block request" in block.device.error
    recovers(block)


def test_buffers_may_end_with_ram_and_not_behind_it(block):
    """Bounds at the end of a memory region (CVE-2019-18960 of another VMM)."""
    ring = block.rings[0]
    block.memory.write(RAM - 1024 - 16, header(BLK_T_IN, 4))
    buffers = [(RAM - 1024 - 16, 16, 0), (RAM - 513, 512, WRITE), (RAM - 1, 1, WRITE)]
    head = ring.add_buffers(buffers)
    block.kick()
    assert ring.used() == [(head, 513)] and ring.written(head) == block.disk.sector(4) + b"\0"
    ring.add_buffers([buffers[0], (RAM - 512, 513, WRITE), buffers[2]])
    block.kick()
    recovers(block)


@seen_by_disk
def test_a_full_queue_of_requests_is_all_that_is_ever_in_flight(block):
    """Unbounded requests in flight (CVE-2016-5403 of another VMM): a head in flight cannot come again."""
    block.bring_up(size=4)
    ring, queue = block.rings[0], block.device.queues[0]
    most = []
    readv = block.disk.readv
    block.disk.readv = lambda *a: (most.append(queue.in_flight), readv(*a))
    table = block.heap.table(3)
    for head in range(4):
        request = block.heap.take(16)
        block.memory.write(request, header(BLK_T_IN, head))
        entries = [
            (request, 16, NEXT, 1),
            (block.heap.take(512), 512, NEXT | WRITE, 2),
            (block.heap.take(1), 1, WRITE, 0),
        ]
        at = table + 48 * head
        block.memory.write(at, b"".join(pack("<QIHH", *entry) for entry in entries))
        ring.descriptor(head, at, 48, 4)
        ring.make_available(head)
    block.kick()
    assert len(ring.used()) == 4 and max(most) == 1
    ring.avail = ring.avail + 5 & 0xFFFF
    ring.publish()
    block.kick()
    block.disk.readv = readv
    recovers(block)


def test_a_huge_request_allocates_nothing(made):
    """A read of as much as a chain may have, all of it into the same few pages: refused by the disk's size."""
    driver = made(queue_size=1024)
    driver.bring_up(size=1024)
    ring = driver.rings[0]
    at = driver.heap.take(16)
    driver.memory.write(at, header(BLK_T_IN))
    head = ring.add_buffers([(at, 16, 0)] + [(0x80000, 0x70000, WRITE)] * 1000 + [(0x70000, 1, WRITE)])
    driver.kick()
    assert ring.used() == [(head, 0)] and driver.memory.read(0x70000, 1) == b"\1"
    works(driver)


# --- The host's errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EBADF])
def test_the_hosts_errors_reach_the_guest(block, number):
    requests = {
        "read": ([header(BLK_T_IN)], [512, 1], 0),
        "write": ([header(BLK_T_OUT), bytes(512)], [1], 1),
        "flush": ([header(BLK_T_FLUSH)], [1], 1),
        "discard": ([header(BLK_T_DISCARD), segment(0, 1)], [1], 1),
        "zero": ([header(BLK_T_WRITE_ZEROES), segment(0, 1)], [1], 1),
    }
    for name, (readable, writable, length) in requests.items():
        block.disk.fails = {name: number}
        assert block.ask(readable, writable)[:2] == (BLK_S_IOERR, length), name
        block.disk.fails = {}
        works(block)


def test_each_kind_of_the_hosts_errors_is_reported_once():
    told = []
    driver = BlockDriver(report=told.append).bring_up()
    driver.disk.fails = {"read": errno.EIO, "write": errno.ENOSPC}
    for _ in range(3):
        driver.read(0)
        driver.write(0, bytes(512))
    assert told == [
        "disk memory: Input/output error; the guest gets an I/O error",
        "disk memory: No space left on device; the guest gets an I/O error",
    ]
    driver.close()
    assert driver.disk.closed


# --- Faults on purpose -----------------------------------------------------------------------------------------------


class Plan:
    """Fails as it is told, and remembers what it was asked."""

    def __init__(self, kind=None, amount=0):
        self.fault = kind and type("Fault", (), {"kind": kind, "amount": amount})()
        self.asked = []

    def draw(self, *what):
        self.asked.append(what)
        return self.fault

    def complete(self, device, queue, chain, written):
        queue.push(chain, written)

    def discard(self, device):
        """A reset: nothing is held back here."""


def test_a_plan_is_asked_before_anything_is_done(block):
    block.device.faults = plan = Plan()
    works(block)
    block.write(9, bytes(1024))
    block.flush()
    block.ask([header(BLK_T_GET_ID)], [20, 1])
    block.segments(BLK_T_DISCARD, segment(6, 2), segment(8, 1))
    block.segments(BLK_T_WRITE_ZEROES, segment(7, 1))
    name = block.device.name
    assert plan.asked == [
        (name, 0, "read", 3, 512),
        (name, 0, "write", 9, 1024),
        (name, 0, "flush", None, 0),
        (name, 0, "get-id", None, 20),
        (name, 0, "discard", 6, 1536),
        (name, 0, "write-zeroes", 7, 512),
    ]


def test_an_error_on_purpose_is_not_executed(block):
    block.device.faults = Plan("error")
    for readable, writable, written in (
        ([header(BLK_T_OUT), bytes(512)], [1], 1),
        ([header(BLK_T_IN)], [512, 1], 0),
        ([header(BLK_T_FLUSH)], [1], 1),
    ):
        assert block.ask(readable, writable)[:2] == (BLK_S_IOERR, written)
    assert not block.disk.calls
    block.device.faults = None
    works(block)


def test_a_short_transfer_on_purpose_transfers_whole_sectors(block):
    block.device.faults = Plan("short", 1023)
    assert block.write(0, b"\xee" * 1536)[0] == BLK_S_IOERR
    assert block.disk.sector(0) == b"\xee" * 512 and block.disk.sector(1).startswith(b"1 ")
    status, written, data = block.read(4, 3)
    assert (status, written) == (BLK_S_IOERR, 512)
    assert data == block.disk.sector(4) + bytes([UNANSWERED]) * 1024
    block.disk.calls.clear()
    block.device.faults = Plan("short", 511)
    assert block.read(4)[:2] == (BLK_S_IOERR, 0) and block.write(4, bytes(512))[0] == BLK_S_IOERR
    assert not block.disk.calls
    block.device.faults = None
    works(block)


# --- Anything at all -------------------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(0, 30), st.sampled_from([CAPACITY - 1, CAPACITY, CAPACITY + 1]), st.integers(0, (1 << 64) - 1)
)
HEADERS = st.builds(
    lambda kind, reserved, sector: header(kind & 0xFFFFFFFF, sector, reserved & 0xFFFFFFFF), NUMBERS, NUMBERS, NUMBERS
)
SEGMENTS = st.builds(
    lambda sector, count, flags: segment(sector, count & 0xFFFFFFFF, flags), NUMBERS, NUMBERS, st.integers(0, 3)
)
LENGTHS = st.one_of(st.integers(0, 40), st.integers(0, 4).map(lambda sectors: 512 * sectors), st.integers(0, 3000))
MESSAGES = st.one_of(
    st.tuples(HEADERS, LENGTHS.map(bytes)).map(b"".join),
    st.tuples(HEADERS, st.lists(SEGMENTS, max_size=3).map(b"".join)).map(b"".join),
    st.binary(max_size=64),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(MESSAGES, st.integers(1, 700), st.lists(LENGTHS, max_size=4), st.booleans()), max_size=6))
def test_whatever_is_asked_is_answered_or_asks_for_a_reset(requests):
    """No exception, nothing outside the disk (which checks), no byte of the guest's that the used length denies."""
    driver = BlockDriver(queue_size=64).bring_up(size=64)
    for message, cut, rooms, indirect in requests:
        parts = [message[at : at + cut] for at in range(0, len(message), cut)][:50] or [b""]
        ring = driver.rings[0]
        head = driver.send(0, parts, rooms, indirect)
        used = ring.used()
        answerable = len(b"".join(parts)) >= 16 and sum(rooms) > 0
        assert driver.needs_reset == (not answerable)
        if driver.needs_reset:
            assert not used
            driver.bring_up(size=64)
            continue
        [(found, written)] = used
        answer = ring.written(head)
        assert found == head and answer[-1] in (BLK_S_OK, BLK_S_IOERR, BLK_S_UNSUPP)
        assert written in (0, len(answer)) and (answer[-1] != BLK_S_OK or written == len(answer) or message[0] == 4)
        if written == 0:
            assert set(answer[:-1]) <= {UNANSWERED}
    works(driver)
    driver.close()


# --- Reset and options -----------------------------------------------------------------------------------------------


def test_a_reset_while_requests_wait_leaves_them(block):
    ring = block.rings[0]
    block.device.ring = lambda index: None
    ring.add(block.heap, [header(BLK_T_OUT), b"\xee" * 512], [1])
    block.kick()
    block.put("Status", 0)
    del block.device.ring
    block.device.ring = block.device.serve_unless_broken
    block.device.serve_unless_broken(0)
    assert not ring.used() and not block.disk.calls
    block.bring_up()
    works(block)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"serial": "x" * 21}, "disk serial 'xxxxxxxxxxxxxxxxxxxxx': expected up to 20 ASCII characters"),
        ({"serial": "größe"}, "disk serial 'größe': expected up to 20 ASCII characters"),
        ({"queues": 0}, "a disk with 0 queues (expected 1 to 65535)"),
        ({"queue_size": 100}, "a disk queue of 100 entries (expected a power of two, 4 to 32768)"),
        ({"queue_size": 2}, "a disk queue of 2 entries (expected a power of two, 4 to 32768)"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(UsageError) as error:
        VirtioBlock(MemoryDisk(), **options)
    assert str(error.value) == message
