"""The overlay: what the guest writes is seen by the guest and by nobody else."""

import errno
import os
import random
from pathlib import Path

import pytest

from pyvmm.backends import overlay
from pyvmm.backends.disk import open_disk
from pyvmm.backends.overlay import CLUSTER
from pyvmm.errors import BackendError
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.spec import BLK_S_IOERR, BLK_S_OK, BLK_T_IN, BLK_T_OUT
from tests.support.virtiodriver import Driver

pytestmark = pytest.mark.transport("mmio")

SIZE = 16 * CLUSTER + 512 + 100
"""Of the base: its last cluster is a short one, and so is its last sector."""
WHOLE = 16 * CLUSTER + 1024


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.img"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.fixture
def disk(base):
    before = base.read_bytes(), base.stat()
    disk = open_disk(str(base), overlay=True)
    yield disk
    disk.close()
    status = base.stat()
    assert base.read_bytes() == before[0]
    assert (status.st_mtime_ns, status.st_blocks, status.st_size) == (
        before[1].st_mtime_ns,
        before[1].st_blocks,
        before[1].st_size,
    )


def read(disk, offset, length):
    view = memoryview(bytearray(b"\xa5" * length))
    third = length // 3
    disk.readv([view[:third], view[third : 2 * third], view[2 * third :]], offset)
    return bytes(view)


def write(disk, offset, data):
    half = len(data) // 2
    disk.writev([memoryview(data)[:half], memoryview(data)[half:]], offset)


def stored(disk):
    """Bytes that the temporary file takes up."""
    return os.fstat(disk._top._fd).st_blocks * 512


def content(base):
    return bytearray(base.read_bytes().ljust(WHOLE, b"\0"))


def test_an_overlay_that_nobody_wrote_to_is_its_base(base, disk):
    assert disk.size == WHOLE and not disk.readonly and disk.path == str(base)
    assert read(disk, 0, WHOLE) == content(base) and stored(disk) == 0


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, CLUSTER),
        (CLUSTER, 3 * CLUSTER),
        (512, 512),
        (CLUSTER - 512, 1024),
        (CLUSTER + 512, 2 * CLUSTER),
        (15 * CLUSTER, CLUSTER),
        (16 * CLUSTER, 512),
        (16 * CLUSTER + 512, 512),
        (16 * CLUSTER, 1024),
        (0, WHOLE),
    ],
)
@pytest.mark.parametrize("what", ["data", "zeroes", "hole"])
def test_what_is_written_is_read_and_what_lies_around_it_is_the_base(base, disk, offset, length, what):
    expected = content(base)
    data = os.urandom(length) if what == "data" else bytes(length)
    if what == "data":
        write(disk, offset, data)
    else:
        disk.write_zeroes(offset, length, what == "hole")
    expected[offset : offset + length] = data
    assert read(disk, 0, WHOLE) == expected


def test_it_behaves_as_a_disk_whatever_is_done_to_it(base, disk):
    """Random writes, zeroes, discards and reads against a copy in memory."""
    chance = random.Random(7)
    expected = content(base)
    for number in range(400):
        start = chance.randrange(WHOLE // 512)
        count = chance.randrange(1, min(3 * CLUSTER, WHOLE - 512 * start) // 512 + 1)
        offset, length = 512 * start, 512 * count
        step = chance.randrange(4)
        if step == 0:
            data = chance.randbytes(length)
            write(disk, offset, data)
            expected[offset : offset + length] = data
        elif step == 1:
            disk.write_zeroes(offset, length, bool(number & 1))
            expected[offset : offset + length] = bytes(length)
        elif step == 2:
            disk.discard(offset, length)
            found = read(disk, offset, length)
            for at in range(0, length, 512):
                sector = found[at : at + 512]
                assert sector in (bytes(512), expected[offset + at : offset + at + 512])
            expected[offset : offset + length] = found
        assert read(disk, offset, length) == expected[offset : offset + length]
        disk.flush()
    assert read(disk, 0, WHOLE) == expected
    assert os.fstat(disk._top._fd).st_size == WHOLE


def test_only_what_was_written_takes_space(disk):
    write(disk, 4 * CLUSTER, bytes(range(256)) * (CLUSTER // 256))
    write(disk, 9 * CLUSTER + 512, b"x" * 512)
    assert stored(disk) == 2 * CLUSTER
    disk.discard(4 * CLUSTER, CLUSTER)
    assert stored(disk) == CLUSTER and read(disk, 4 * CLUSTER, CLUSTER) == bytes(CLUSTER)
    disk.discard(9 * CLUSTER + 512, 512)  # part of a cluster: left alone
    assert stored(disk) == CLUSTER


def test_two_overlays_do_not_see_each_other(base):
    first, second = (open_disk(str(base), overlay=True) for _ in range(2))
    write(first, 0, b"1" * 512)
    write(second, 0, b"2" * 512)
    assert read(first, 0, 512) == b"1" * 512 and read(second, 0, 512) == b"2" * 512
    first.close()
    first.close()
    assert read(second, 0, 512) == b"2" * 512
    second.close()


@pytest.mark.parametrize("number", [0, errno.EOPNOTSUPP, errno.EISDIR])
def test_the_temporary_file_has_no_name_and_goes_away(base, tmp_path, monkeypatch, number):
    """On file systems that cannot make such a file it is made with a name, which is removed."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    real = os.open

    def without(path, flags, *mode, **where):
        if number and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", without)
    before = len(os.listdir("/proc/self/fd"))
    disk = open_disk(str(base), overlay=True)
    write(disk, 0, bytes(512))
    target = os.readlink(f"/proc/self/fd/{disk._top._fd}")
    assert target.startswith(str(folder)) and "deleted" in target
    assert not list(folder.iterdir()) and os.fstat(disk._top._fd).st_mode & 0o777 == 0o600
    disk.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_tmpdir_it_lies_where_large_files_may(base, monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    disk = open_disk(str(base), overlay=True)
    assert os.readlink(f"/proc/self/fd/{disk._top._fd}").startswith(overlay.TEMPORARY)
    disk.close()


@pytest.mark.parametrize(("name", "problem"), [("missing", "No such file or directory"), ("file", "Not a directory")])
def test_a_folder_that_cannot_hold_it_is_named(base, tmp_path, monkeypatch, name, problem):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / name))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError) as error:
        open_disk(str(base), overlay=True)
    assert str(error.value) == f"cannot make a disk overlay of {WHOLE} bytes in {tmp_path}/{name}: {problem}"
    assert len(os.listdir("/proc/self/fd")) == before
    open_disk(str(base)).close()  # and the base is not left locked


def test_a_disk_too_large_for_the_folders_file_system_is_said(base, monkeypatch):
    before = len(os.listdir("/proc/self/fd"))

    def refuse(*_):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(BackendError, match="cannot make a disk overlay of .* bytes in .*: File too large"):
        open_disk(str(base), overlay=True)
    assert len(os.listdir("/proc/self/fd")) == before


def header(kind, sector):
    return kind.to_bytes(8, "little") + sector.to_bytes(8, "little")


def test_a_full_disk_of_the_host_is_an_io_error_of_the_guest(base, monkeypatch):
    """And what was there before is still there, for later requests."""
    told = []
    driver = Driver(VirtioBlock(open_disk(str(base), overlay=True), report=told.append)).bring_up()
    real = os.pwritev

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    def ask(kind, sector, readable=(), room=0):
        _, data = driver.request(0, [header(kind, sector), *readable], [*([room] if room else []), 1])
        return data[-1], data[:-1]

    data = os.urandom(2 * CLUSTER)
    assert ask(BLK_T_OUT, 8, [data]) == (BLK_S_OK, b"")
    monkeypatch.setattr(os, "pwritev", full)
    for sector, part in ((8, data), (1, data[:512]), (31, data)):
        assert ask(BLK_T_OUT, sector, [part])[0] == BLK_S_IOERR
    monkeypatch.setattr(os, "pwritev", real)
    expected = content(base)
    expected[4096 : 4096 + len(data)] = data
    assert ask(BLK_T_IN, 0, room=WHOLE) == (BLK_S_OK, bytes(expected))
    assert ask(BLK_T_OUT, 1, [b"n" * 512])[0] == BLK_S_OK
    assert ask(BLK_T_IN, 0, room=1536) == (BLK_S_OK, expected[:512] + b"n" * 512 + expected[1024:1536])
    assert told == [f"disk {base}: No space left on device; the guest gets an I/O error"]
    driver.close()


def test_a_large_disk_costs_nothing_until_it_is_written(tmp_path):
    path = tmp_path / "large.img"
    path.touch()
    os.truncate(path, 1 << 38)
    disk = open_disk(str(path), overlay=True)
    try:
        write(disk, (1 << 38) - CLUSTER, b"e" * CLUSTER)
        assert stored(disk) == CLUSTER and read(disk, (1 << 38) - CLUSTER - 512, 1024) == bytes(512) + b"e" * 512
        disk.discard(0, 1 << 30)
        disk.write_zeroes(1 << 30, 1 << 26, False)
        assert stored(disk) == CLUSTER
    finally:
        disk.close()


def test_a_read_takes_as_few_calls_as_there_are_stretches(disk, monkeypatch):
    calls = []
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: calls.append(at) or real(fd, views, at))
    read(disk, 0, 8 * CLUSTER)
    assert calls == [0]
    write(disk, 2 * CLUSTER, bytes(3 * CLUSTER))
    calls.clear()
    read(disk, 0, 8 * CLUSTER)
    assert calls == [0, 2 * CLUSTER, 5 * CLUSTER]
    assert overlay.CLUSTER == 4096
