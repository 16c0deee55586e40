"""Power cuts: what a disk may hold afterwards, and whether a journal that flushes survives it."""

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from pyvmm.backends.disk import open_disk
from pyvmm.testing.writelog import Write, WriteLog
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.spec import BLK_S_IOERR, BLK_S_OK, BLK_T_DISCARD, BLK_T_FLUSH, BLK_T_OUT, BLK_T_WRITE_ZEROES
from tests.support import crashfs
from tests.support.crashfs import BLOCK, Journal, block, changed, fsck, journal_blocks, make
from tests.support.memorydisk import MemoryDisk
from tests.support.virtiodriver import Driver

pytestmark = pytest.mark.transport("mmio")


class LoggedDriver(Driver):
    """A driver of a disk that logs: writes and flushes, in units of BLOCK, none of which may fail."""

    def __init__(self, disk):
        self.log = WriteLog(disk)
        super().__init__(VirtioBlock(self.log))
        self.bring_up()

    def ask(self, kind, sector=0, data=b""):
        header = kind.to_bytes(8, "little") + sector.to_bytes(8, "little")
        _, status = self.request(0, [header, *([data] if data else [])], [1])
        assert status[-1] == BLK_S_OK

    def write(self, number, data):
        self.ask(BLK_T_OUT, number * BLOCK // 512, data)

    def flush(self):
        self.ask(BLK_T_FLUSH)


# --- The log itself --------------------------------------------------------------------------------------------------


def logged(*steps):
    """A log of 8 sectors, each as its number says, with `steps`: (sector, byte), or None for a flush."""
    log = WriteLog(MemoryDisk(8))
    for step in steps:
        if step is None:
            log.flush()
        else:
            log.writev([memoryview(bytes([step[1]]) * 512)], step[0] * 512)
    return log


def test_what_changes_the_disk_is_logged_in_the_order_of_the_requests():
    driver = LoggedDriver(MemoryDisk(64))
    driver.write(2, b"a" * BLOCK)
    driver.flush()
    driver.ask(BLK_T_WRITE_ZEROES, 0, (8).to_bytes(8, "little") + (2).to_bytes(8, "little"))
    driver.ask(BLK_T_DISCARD, 0, (9).to_bytes(8, "little") + (1).to_bytes(8, "little"))
    assert driver.log.log == [Write(2048, b"a" * 1024), None, Write(4096, bytes(1024)), Write(4608, bytes(512))]
    assert driver.log.at(4) == bytes(driver.log.disk.data) and driver.log.at(0) == driver.log.before
    driver.close()


def test_a_flush_that_fails_is_not_in_the_log():
    log = WriteLog(MemoryDisk(8))
    log.disk.fails["flush"] = 5
    with pytest.raises(OSError):
        log.flush()
    assert log.log == []


def test_what_was_flushed_is_in_every_image_and_what_was_not_may_be():
    log = logged((0, 1), (1, 1), None, (1, 2), (2, 2), (3, 2))
    assert [log.stable(after) for after in range(7)] == [0, 0, 0, 3, 3, 3, 3]
    found = set()
    for image in log.images(300):
        sectors = [image.data[512 * number] for number in range(4)]
        old = [log.before[512 * number] for number in range(4)]
        if image.after >= 3:
            assert sectors[0] == 1 and sectors[1] in (1, 2)
            found.add(tuple(sectors[1:]))
        assert all(sector in (was, 1, 2) for sector, was in zip(sectors, old, strict=True))
        assert image.data[4 * 512 :] == log.before[4 * 512 :]
    before = [log.before[512 * number] for number in (2, 3)]
    assert found == {(a, b, c) for a in (1, 2) for b in (before[0], 2) for c in (before[1], 2)}


def test_every_prefix_comes_and_no_image_twice():
    log = logged((0, 1), (1, 1), None, (1, 2), (1, 2))
    images = [(log.stable(image.after), image.data) for image in log.images(50)]
    assert images[:5] == [(log.stable(after), log.at(after)) for after in (0, 1, 2, 3, 4)]
    assert len(images) == len(set(images)) and len({data for _, data in images}) < len(images)
    assert [image.after for image in log.images(0, prefixes=2)] == [0, 2, 4]


def test_a_large_write_may_be_torn_between_sectors():
    log = WriteLog(MemoryDisk(8))
    log.writev([memoryview(b"n" * 4096)], 0)
    torn = [image.data for image in log.images(20) if 0 < image.data.count(b"n" * 512) < 8]
    assert torn and all(image.count(b"n") % 512 == 0 for image in torn)


# --- A file system ---------------------------------------------------------------------------------------------------

e2fsprogs = pytest.mark.needs("mke2fs")

STEPS = [
    "mkdir new\nwrite {file} new/file\nsymlink c b\n",
    "rm a\nwrite {file} a\nmkdir new/deep\nwrite {file} new/deep/file\nrm new/file\n",
]


@pytest.fixture
def states(tmp_path: Path):
    """An ext4 before any change, and after each of STEPS."""
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a").write_bytes(b"a" * 5000)
    (folder / "b").write_bytes(b"b" * 100)
    large = tmp_path / "large"
    large.write_bytes(random.Random(3).randbytes(6000))
    path = tmp_path / "disk.img"
    make(path, folder)
    found = [path.read_bytes()]
    work = tmp_path / "work.img"
    work.write_bytes(found[0])
    found += [changed(work, step.format(file=large)) for step in STEPS]
    return path, found


def differences(old, new):
    return {at: block(new, at) for at in range(len(old) // BLOCK) if block(old, at) != block(new, at)}


def run(path, states):
    """Have a driver take the file system in `path` through `states`; its log, and where each state became stable."""
    driver = LoggedDriver(open_disk(str(path)))
    journal = Journal(states[0], journal_blocks(path), driver.write, driver.flush)
    journal.mount()
    stable = [0]
    for old, new in pairwise(states):
        journal.commit(differences(old, new), done=lambda: stable.append(len(driver.log.log)))
    journal.unmount()
    log = driver.log
    driver.close()
    return log, stable


def state_of(path, states):
    """Which of `states` the file system in `path` is in, its superblock aside; an error if it is between two."""
    found = path.read_bytes()
    blocks = set().union(*(differences(old, new) for old, new in pairwise(states)))
    [which] = [
        number
        for number, state in enumerate(states)
        if all(block(found, at) == block(state, at) for at in blocks - {crashfs.SUPERBLOCK})
    ]
    return which


@e2fsprogs
@pytest.mark.parametrize(("prefixes", "samples"), [(20, 30), pytest.param(1000, 400, marks=pytest.mark.soak)])
def test_every_power_cut_leaves_a_sound_file_system_with_all_that_was_flushed(tmp_path, states, prefixes, samples):
    """The unit variant: the writes of a journal, by way of the device, and everything a power cut may make of them."""
    path, contents = states
    log, stable = run(path, contents)
    assert log.log.count(None) >= 10
    crash = tmp_path / "crash.img"
    seen = set()
    for image in log.images(samples, prefixes=prefixes):
        crash.write_bytes(image.data)
        assert not (problem := fsck(crash)), f"{image.name}: {problem}"
        which = state_of(crash, contents)
        assert which >= max(number for number, at in enumerate(stable) if at <= image.after), image.name
        seen.add(which)
    assert seen == {0, 1, 2}
    crash.write_bytes(log.at(len(log.log)))
    assert not fsck(crash) and state_of(crash, contents) == 2


@e2fsprogs
def test_a_disk_whose_flushes_do_nothing_is_found_out(tmp_path, states):
    """The test above can fail: without the flushes some power cut breaks the file system."""
    path, contents = states
    log, _ = run(path, contents)
    log.log = [entry for entry in log.log if entry is not None]
    crash = tmp_path / "crash.img"
    broken = 0
    for image in log.images(60, prefixes=1):
        crash.write_bytes(image.data)
        try:
            broken += bool(fsck(crash)) or state_of(crash, contents) not in (0, 1, 2)
        except (AssertionError, ValueError):  # the journal itself is broken, or the state is between two
            broken += 1
        if broken:
            break
    assert broken


@e2fsprogs
def test_fsck_accepts_the_states_and_nothing_torn(tmp_path, states):
    _, contents = states
    crash = tmp_path / "crash.img"
    for number, state in enumerate(contents):
        crash.write_bytes(state)
        assert not fsck(crash) and state_of(crash, contents) == number
    half = dict(list(differences(contents[0], contents[1]).items())[::2])
    torn = bytearray(contents[0])
    for at, data in half.items():
        torn[BLOCK * at : BLOCK * (at + 1)] = data
    crash.write_bytes(torn)
    assert fsck(crash)


# --- Flushes of the host's -------------------------------------------------------------------------------------------


@pytest.fixture
def host(tmp_path):
    """A driver of a file on the host, and the file."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(65536))
    driver = Driver(VirtioBlock(open_disk(str(path)))).bring_up()
    yield driver, path
    driver.close()


def status(driver, kind, data=b""):
    _, answer = driver.request(0, [kind.to_bytes(16, "little"), *([data] if data else [])], [1])
    return answer[-1]


@pytest.mark.parametrize("through", [False, True])
def test_nothing_is_answered_before_the_host_has_synced(host, monkeypatch, through):
    """virtio 1.3, 5.2.6.2: committed before the completion of the flush (case 3) or of the write (case 2) is reported.

    At fdatasync the data is in the file, and the driver has not been answered.
    """
    driver, path = host
    driver.put_config(32, 1, not through)
    seen = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: seen.append((driver.rings[0].used_index, path.read_bytes()[:3])))
    assert status(driver, BLK_T_OUT, b"new" + bytes(509)) == BLK_S_OK
    if not through:
        assert not seen and status(driver, BLK_T_FLUSH) == BLK_S_OK
    assert seen == [(0 if through else 1, b"new")]


@pytest.mark.parametrize("through", [False, True])
def test_nothing_is_done_after_the_host_has_failed_to_sync(host, monkeypatch, through):
    driver, _ = host
    driver.put_config(32, 1, not through)

    def fails(fd):
        raise OSError(5, "Input/output error")

    kind, data = (BLK_T_OUT, bytes(512)) if through else (BLK_T_FLUSH, b"")
    monkeypatch.setattr(os, "fdatasync", fails)
    assert status(driver, kind, data) == BLK_S_IOERR
    monkeypatch.setattr(os, "fdatasync", lambda fd: None)
    assert status(driver, kind, data) == BLK_S_IOERR
    driver.bring_up()
    assert status(driver, BLK_T_FLUSH) == BLK_S_IOERR  # a reset of the device makes the host's disk no better
    _, answer = driver.request(0, [bytes(16)], [512, 1])
    assert answer == bytes(513)  # reading goes on
