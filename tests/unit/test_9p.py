"""The 9P transport: messages through a virtqueue, and what a bad driver comes to."""

from __future__ import annotations

import errno
import os
import random
from struct import pack

import pytest

from pyvmm.backends.share import codec
from pyvmm.backends.share.opening import open_share
from pyvmm.errors import UsageError
from pyvmm.virtio import spec
from pyvmm.virtio.p9 import QUEUE_SIZE, Virtio9p
from pyvmm.virtio.plane import DataPlane
from tests.support.headers import macros
from tests.support.p9client import ROOT, Client, by_ring
from tests.support.p9share import refused
from tests.support.virtiodriver import NEXT, WRITE, Driver


class Server:
    """Answers every message by its own bytes."""

    report = None

    def __init__(self):
        self.resets = self.closed = 0

    def serve(self, exchange):
        return exchange.write(exchange.read(0, exchange.length))

    def reset(self):
        self.resets += 1

    def close(self):
        self.closed += 1


@pytest.fixture
def ring(tmp_path):
    """(driver of a device that shares tmp_path, tmp_path)."""
    driver = Driver(Virtio9p(open_share(tmp_path), "tag")).bring_up(size=64)
    yield driver, tmp_path
    driver.close()


# --- The device ------------------------------------------------------------------------------------------------------


def test_it_is_a_9p_transport_with_its_mount_tag():
    """virtio 1.3, 5, and linux/virtio_9p.h: struct virtio_9p_config."""
    driver = Driver(Virtio9p(Server(), "tag"))
    assert driver.get("DeviceID") == 9 and driver.device.name == "virtio-9p"
    assert driver.device.device_features() == 1 << spec.P9_F_MOUNT_TAG == 1
    assert driver.config(0, 2) == 3
    assert bytes(driver.config(2 + at, 1) for at in range(4)) == b"tag\0"
    assert len(driver.device.queues) == 1 and driver.device.queues[0].max_size == QUEUE_SIZE
    driver.close()


@pytest.mark.needs("gcc")
def test_numbers_of_the_device_are_linuxs(tmp_path):
    assert macros(tmp_path, "linux/virtio_9p.h", ["VIRTIO_9P_MOUNT_TAG", "VIRTIO_ID_9P"]) == {
        "VIRTIO_9P_MOUNT_TAG": spec.P9_F_MOUNT_TAG,
        "VIRTIO_ID_9P": spec.ID_9P,
    }


@pytest.mark.needs("gcc")
def test_open_flags_and_the_magic_number_are_linuxs(tmp_path):
    ours = {"O_EXCL": codec.EXCL, "O_TRUNC": codec.TRUNC, "O_APPEND": codec.APPEND, "O_DSYNC": codec.DSYNC}
    ours |= {"O_SYNC": codec.SYNC | codec.DSYNC, "O_DIRECTORY": codec.DIRECTORY, "O_ACCMODE": codec.ACCESS}
    assert macros(tmp_path, "fcntl.h", list(ours)) == ours
    assert macros(tmp_path, "linux/magic.h", ["V9FS_MAGIC"]) == {"V9FS_MAGIC": codec.STATFS_TYPE}
    assert macros(tmp_path, "fcntl.h", ["AT_REMOVEDIR"]) == {"AT_REMOVEDIR": codec.AT_REMOVEDIR}


@pytest.mark.parametrize("tag", ["", "x" * 256, "a b", "a\0", "line\n"])
def test_a_tag_that_no_guest_could_name(tag):
    with pytest.raises(UsageError, match="mount tag .*expected 1 to 255 bytes without spaces"):
        Virtio9p(Server(), tag)
    Virtio9p(Server(), "x" * 255)


def test_a_message_is_any_arrangement_of_buffers(ring):
    """virtio 1.3, 2.7.4.1"""
    driver, folder = ring
    for pieces, indirect in ((1, False), (3, False), (7, True), (15, True)):
        client = Client(by_ring(driver, pieces=pieces, indirect=indirect), msize=8192)
        client.room = 8192
        data = random.Random(pieces).randbytes(8000)
        file = client.create(ROOT, b"file%d" % pieces)
        assert client.write(file, data) == 8000 and client.read(file, 0, 8000) == data
        assert (folder / f"file{pieces}").read_bytes() == data
        assert client.read(file, 7990, 8000) == data[-10:]
        assert client.list("")


def test_data_go_straight_between_files_and_guest_memory(ring, monkeypatch):
    driver, _ = ring
    client = Client(by_ring(driver, pieces=4), msize=65536)
    file = client.create(ROOT, b"file")
    moved = []
    read, write = os.preadv, os.pwritev

    def watch(name, function):
        def watched(fd, views, offset):
            moved.append((name, [view.obj is driver.memory.regions[0].view.obj for view in views]))
            return function(fd, views, offset)

        return watched

    monkeypatch.setattr(os, "preadv", watch("read", read))
    monkeypatch.setattr(os, "pwritev", watch("write", write))
    client.write(file, b"x" * 20000)
    client.read(file, 0, 20000)
    assert [name for name, _ in moved] == ["write", "read"]
    assert all(all(ours) and len(ours) > 1 for _, ours in moved)


def test_many_messages_at_once_come_back_in_order_and_are_told_of():
    driver = Driver(Virtio9p(Server(), "tag")).bring_up(size=128)
    heads = [driver.rings[0].add(driver.heap, [b"%d" % number], [8]) for number in range(60)]
    before = driver.interrupts
    driver.kick()
    assert [head for head, _ in driver.rings[0].used()] == heads
    assert driver.interrupts > before
    driver.close()


def test_a_chain_without_room_comes_back_empty(ring):
    driver, folder = ring
    client = Client(by_ring(driver))
    message = pack("<IBHIH", 7 + 4 + 2 + 1 + 8, 72, 1, ROOT, 1) + b"x" + pack("<II", 0o755, 0)
    for room in ([], [10], [4, 6]):
        head = driver.send(0, [message], room)
        assert driver.rings[0].used() == [(head, 0)]
    assert os.listdir(folder) == [], "and is not carried out"
    client.mkdir(ROOT, b"x")
    assert driver.request(0, [], [11])[0] == 11


def test_a_bad_chain_breaks_the_device_until_reset(ring):
    driver, _ = ring
    driver.rings[0].descriptor(0, 0x40000, 4, WRITE | NEXT, 0)
    driver.rings[0].make_available(0)
    driver.kick()
    assert driver.needs_reset
    driver.bring_up()
    Client(by_ring(driver)).mkdir(ROOT, b"x")


def test_a_reset_ends_the_session(ring):
    driver, _ = ring
    client = Client(by_ring(driver))
    file = client.create(ROOT, b"file")
    open_before = len(os.listdir("/proc/self/fd"))
    driver.bring_up()
    assert len(os.listdir("/proc/self/fd")) < open_before
    again = Client(by_ring(driver), msize=0)
    assert refused(again.getattr, file) == errno.EPROTO
    again.version(8192)
    assert refused(again.getattr, file) == errno.EBADF


def test_closing_the_device_closes_its_server():
    driver = Driver(Virtio9p(Server(), "tag")).bring_up()
    made = driver.device.server
    resets = made.resets
    driver.close()
    assert made.closed == 1 and made.resets > resets


def test_a_data_plane_serves_it(tmp_path):
    driver = Driver(Virtio9p(open_share(tmp_path), "tag"))
    plane = DataPlane(driver.device, driver.transport)
    plane.start()
    driver.bring_up()

    def carry(message, room):
        head = driver.send(0, [message], [room])
        ring = driver.rings[0]
        while not (used := ring.used()):
            pass
        assert used[0][0] == head
        return ring.written(head)[: used[0][1]]

    client = Client(carry)
    client.mkdir(ROOT, b"made")
    assert client.list("") == [b"made"]
    plane.close()
    driver.close()


def test_errors_of_the_host_are_reported_once(ring, monkeypatch):
    driver, _ = ring
    told = []
    driver.device.server.report = told.append
    client = Client(by_ring(driver))
    file = client.create(ROOT, b"file")

    def fails(fd, views, offset):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", fails)
    for _ in range(3):
        assert refused(client.write, file, b"x") == errno.ENOSPC
    assert refused(client.at, "missing") == errno.ENOENT
    assert len(told) == 1 and told[0].startswith("share /") and "No space left on device" in told[0]
