"""Disk images: how they are opened, locked, read, written, flushed and punched."""

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.backends import direct, raw
from pyvmm.backends.disk import open_disk
from pyvmm.errors import BackendError, UsageError
from tests.support.headers import macros

KIB = 1024


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """64 KiB, no two sectors alike."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join((b"%-15d\n" % number) * 32 for number in range(128)))
    return path


@pytest.fixture
def opened(image):
    """Opens disks and closes them."""
    disks = []

    def make(path=image, **options):
        disks.append(open_disk(str(path), **options))
        return disks[-1]

    yield make
    for disk in disks:
        disk.close()


def views(*lengths, fill=0):
    return [memoryview(bytearray([fill]) * length) for length in lengths]


def read(disk, offset, length):
    [view] = found = views(length, fill=0xA5)
    disk.readv(found, offset)
    return bytes(view)


def write(disk, offset, data):
    disk.writev([memoryview(data)], offset)


# --- Reading and writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "none", "unsafe"])
def test_what_is_written_is_read_and_stands_in_the_file(image, opened, cache):
    disk = opened(cache=cache)
    assert disk.size == 64 * KIB and not disk.readonly and disk.block_size == 512
    before = image.read_bytes()
    assert read(disk, 512, 4096) == before[512:4608]
    parts = views(512, 1024, 512, fill=0x77)
    disk.writev(parts, 8192)
    disk.flush()
    assert read(disk, 8192, 2048) == b"\x77" * 2048
    disk.close()
    assert image.read_bytes() == before[:8192] + b"\x77" * 2048 + before[8192 + 2048 :]


def test_many_buffers_are_taken_in_several_calls(image, opened, monkeypatch):
    """preadv(2): no more than IOV_MAX at once."""
    assert os.sysconf("SC_IOV_MAX") == raw.IOV_MAX
    disk = opened()
    calls = []
    real = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda fd, buffers, offset: calls.append(len(buffers)) or real(fd, buffers, offset)
    )
    found = views(*[16] * 4096)
    disk.readv(found, 0)
    assert b"".join(found) == image.read_bytes() and calls == [1024] * 4
    disk.writev([memoryview(b"z" * 16)] * 4096, 0)
    assert image.read_bytes() == b"z" * 65536


@pytest.mark.parametrize("most", [1, 100, 511, 513, 4095])
def test_short_transfers_are_continued(image, opened, monkeypatch, most):
    disk = opened()
    content = image.read_bytes()

    def short(call):
        def do(fd, buffers, offset):
            taken, left = [], most
            for buffer in buffers:
                taken.append(buffer[:left])
                left -= len(taken[-1])
            return call(fd, taken, offset)

        return do

    monkeypatch.setattr(os, "preadv", short(os.preadv))
    monkeypatch.setattr(os, "pwritev", short(os.pwritev))
    found = views(300, 724, 1024)
    disk.readv(found, 512)
    assert b"".join(found) == content[512:2560]
    data = os.urandom(2048)
    disk.writev([memoryview(data)[:1000], memoryview(data)[1000:]], 1024)
    assert image.read_bytes() == content[:1024] + data + content[3072:]


def test_a_write_that_writes_nothing_is_an_error(opened, monkeypatch):
    disk = opened()
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with pytest.raises(OSError) as error:
        write(disk, 0, bytes(512))
    assert error.value.errno == errno.EIO


def test_a_disk_that_is_full_is_an_error(image, opened):
    """The limit of this process's files stands in for a full disk: writes past it fail."""
    resource = pytest.importorskip("resource")
    os.truncate(image, 32 * KIB)
    os.truncate(image, 64 * KIB + 100)
    disk = opened()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * KIB, limits[1]))
    try:
        with pytest.raises(OSError) as error:
            write(disk, 64 * KIB, bytes(512))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.errno == errno.EFBIG
    write(disk, 64 * KIB, b"\x11" * 512)
    assert read(disk, 64 * KIB, 512) == b"\x11" * 512


def test_an_image_that_became_shorter_is_an_error_and_not_zeroes(image, opened):
    disk = opened()
    os.truncate(image, 4096)
    assert len(read(disk, 0, 4096)) == 4096
    for offset, length in ((4096, 512), (0, 8192)):
        with pytest.raises(OSError, match="the file has become shorter"):
            read(disk, offset, length)


# --- Files that end within a sector ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("length", [1, 100, 511, 513, 1000, 4097])
def test_the_last_sector_is_filled_up_with_zeroes(tmp_path, opened, length, cache):
    path = tmp_path / "odd.img"
    path.write_bytes(b"\x99" * length)
    disk = opened(path, readonly=True, cache=cache)
    whole = -(-length // 512) * 512
    assert disk.size == whole
    assert read(disk, 0, whole) == (b"\x99" * length).ljust(whole, b"\0")
    assert read(disk, whole - 512, 512) == (b"\x99" * (length - whole + 512)).ljust(512, b"\0")
    assert path.stat().st_size == length


@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_write_to_the_last_sector_makes_the_file_whole(tmp_path, opened, cache):
    path = tmp_path / "odd.img"
    path.write_bytes(b"\x99" * 1000)
    disk = opened(path, cache=cache)
    write(disk, 512, b"\x55" * 512)
    assert path.read_bytes() == b"\x99" * 512 + b"\x55" * 512
    assert read(disk, 0, 1024) == path.read_bytes()


def test_what_was_written_to_the_last_sector_is_there_for_a_short_read_too(tmp_path, opened, monkeypatch):
    path = tmp_path / "odd.img"
    path.write_bytes(b"\x99" * 100)
    disk = opened(path)
    write(disk, 0, b"\x55" * 512)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: real(fd, [buffers[0][:100]], offset))
    assert read(disk, 0, 512) == b"\x55" * 512


def test_reading_behind_the_files_end_needs_no_read(tmp_path, opened):
    path = tmp_path / "odd.img"
    path.write_bytes(b"\x99" * 100)
    found = views(50, 50, 400, 12, fill=1)
    opened(path).readv(found, 0)
    assert b"".join(found) == b"\x99" * 100 + bytes(412)


# --- Flushing --------------------------------------------------------------------------------------------------------


def synced(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    return calls


@pytest.mark.parametrize(("cache", "count"), [("writeback", 1), ("none", 1), ("unsafe", 0)])
def test_a_flush_is_an_fdatasync_unless_the_disk_is_unsafe(opened, monkeypatch, cache, count):
    calls = synced(monkeypatch)
    disk = opened(cache=cache)
    write(disk, 0, bytes(512))
    assert not calls
    disk.flush()
    assert len(calls) == count and disk.durable == bool(count)


def test_a_flush_of_what_cannot_be_written_is_nothing(opened, monkeypatch):
    calls = synced(monkeypatch)
    opened(readonly=True).flush()
    assert not calls


def test_no_flush_is_believed_after_one_has_failed(opened, monkeypatch):
    """What the failed one did not write may have been dropped and marked clean."""
    disk = opened()

    def fails(fd):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        disk.flush()
    calls = synced(monkeypatch)
    for _ in range(2):
        write(disk, 0, bytes(512))
        with pytest.raises(OSError) as error:
            disk.flush()
        assert error.value.errno == errno.EIO and not calls


# --- Discarding and zeroing ------------------------------------------------------------------------------------------


def blocks(path):
    return path.stat().st_blocks * 512


def punches(tmp_path):
    """Whether the file system can punch holes: what the test counts on elsewhere."""
    path = tmp_path / "probe"
    path.write_bytes(bytes(64 * KIB))
    with open(path, "r+b") as file:
        try:
            fcntl.ioctl(file, raw.FS_IOC_UNRESVSP64, raw.SPACE_RESV.pack(0, 0, 0, 32 * KIB, 0, 0))
        except OSError:
            return False
    return True


def test_discarded_space_is_given_back(image, opened, tmp_path):
    if not punches(tmp_path):
        pytest.skip("this file system punches no holes")
    disk = opened()
    disk.flush()
    before, content = blocks(image), image.read_bytes()
    disk.discard(8192, 32768)
    assert blocks(image) <= before - 32768 and image.stat().st_size == 65536
    assert image.read_bytes() == content[:8192] + bytes(32768) + content[40960:]


@pytest.mark.parametrize("cache", ["writeback", "none"])
@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize(("offset", "length"), [(0, 512), (512, 1024), (3584, 9216), (0, 65536), (65024, 512)])
def test_zeroed_ranges_read_as_zeroes_and_their_neighbours_do_not(image, opened, offset, length, unmap, cache):
    disk = opened(cache=cache)
    content = image.read_bytes()
    disk.write_zeroes(offset, length, unmap)
    expected = content[:offset] + bytes(length) + content[offset + length :]
    assert read(disk, 0, 65536) == expected and image.read_bytes() == expected


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL])
def test_zeroes_are_written_where_the_file_system_cannot_punch(image, opened, monkeypatch, number):
    content = image.read_bytes()
    disk = opened()
    written = []
    real = os.pwritev

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    monkeypatch.setattr(raw, "PIECE", 4096)
    monkeypatch.setattr(os, "pwritev", lambda fd, b, o: written.append(sum(map(len, b))) or real(fd, b, o))
    disk.discard(0, 4096)
    assert image.read_bytes() == content and not written
    disk.write_zeroes(512, 10240, True)
    assert written == [4096, 4096, 2048]
    assert image.read_bytes() == content[:512] + bytes(10240) + content[10752:]


def test_other_errors_of_punching_are_errors(opened, monkeypatch):
    disk = opened()

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fcntl, "ioctl", refuse)
    for change in (lambda: disk.discard(0, 512), lambda: disk.write_zeroes(0, 512, False)):
        with pytest.raises(OSError) as error:
            change()
        assert error.value.errno == errno.ENOSPC


# --- Without the page cache ------------------------------------------------------------------------------------------


@pytest.fixture
def strict(monkeypatch):
    """A host that wants `align` bytes for O_DIRECT, memory included, whatever this one wants."""

    def make(align):
        refused = []

        def wrap(call):
            def do(fd, buffers, offset):
                if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                    at = [ctypes.addressof(ctypes.c_char.from_buffer(buffer)) for buffer in buffers]
                    if any(n % align for n in (offset, *at, *map(len, buffers))):
                        refused.append(offset)
                        raise OSError(errno.EINVAL, "Invalid argument")
                return call(fd, buffers, offset)

            return do

        monkeypatch.setattr(os, "preadv", wrap(os.preadv))
        monkeypatch.setattr(os, "pwritev", wrap(os.pwritev))
        return refused

    return make


@pytest.mark.parametrize("align", [512, 4096])
@pytest.mark.parametrize("shift", [0, 1, 512])
@pytest.mark.parametrize(("offset", "length"), [(0, 4096), (8192, 8192), (512, 512), (3584, 5120), (61440, 4096)])
def test_memory_and_places_need_not_be_aligned(image, opened, strict, monkeypatch, align, shift, offset, length):
    monkeypatch.setattr(direct, "BOUNCE", 4096)
    strict(align)
    disk = opened(cache="none")
    content = image.read_bytes()
    memory = memoryview(mmap.mmap(-1, 2 * 65536))
    cut = min(512, length // 2)
    target = [memory[shift : shift + cut], memory[shift + cut : shift + length]]
    disk.readv(target, offset)
    assert bytes(memory[shift : shift + length]) == content[offset : offset + length]
    data = os.urandom(length)
    memory[shift : shift + length] = data
    disk.writev(target, offset)
    assert image.read_bytes() == content[:offset] + data + content[offset + length :]
    assert read(disk, 0, 65536) == image.read_bytes()


def test_aligned_requests_are_not_copied(opened, strict):
    refused = strict(512)
    disk = opened(cache="none")
    memory = memoryview(mmap.mmap(-1, 8192))
    disk.readv([memory[:4096], memory[4096:]], 4096)
    disk.writev([memory[512:1024]], 512)
    assert not refused


def test_errors_other_than_alignment_are_errors(opened, monkeypatch):
    disk = opened(cache="none")

    def fails(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    monkeypatch.setattr(os, "pwritev", fails)
    for use in (lambda: read(disk, 0, 512), lambda: write(disk, 0, bytes(512)), lambda: read(disk, 0, 100)):
        with pytest.raises(OSError, match="Input/output error"):
            use()


def test_a_file_system_that_needs_the_page_cache_is_named(image, monkeypatch):
    real = os.open

    def refuse(path, flags, *mode, **where):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError) as error:
        open_disk(str(image), cache="none")
    assert str(error.value) == (
        f"disk {image}: its file system does not do without the page cache (O_DIRECT): use cache=writeback"
    )
    assert len(os.listdir("/proc/self/fd")) == before


# --- What is not a disk ----------------------------------------------------------------------------------------------


def refusal(path, **options):
    with pytest.raises(BackendError) as error:
        open_disk(str(path), **options)
    return str(error.value)


WANTED = "(expected a disk image or a block device)"


@pytest.mark.parametrize("options", [{}, {"readonly": True}, {"overlay": True}, {"cache": "none"}], ids=str)
def test_what_is_no_image_is_named(tmp_path, options):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        before = len(os.listdir("/proc/self/fd"))
        for name, problem in (
            ("", f"is a directory {WANTED}"),
            ("fifo", f"is a FIFO {WANTED}"),
            ("socket", f"is a socket {WANTED}"),
            ("empty", f"is empty {WANTED}"),
            ("missing", "cannot be opened: No such file or directory"),
            ("missing/disk", "cannot be opened: No such file or directory"),
            ("empty/disk", "cannot be opened: Not a directory"),
        ):
            path = tmp_path / name if name else tmp_path
            assert refusal(path, **options) == f"disk {path}: {problem}"
        assert refusal("/dev/null", **options) == f"disk /dev/null: is a character device {WANTED}"
        assert refusal("a\0b", **options) == "disk 'a\\x00b': is not a path (expected a name without NUL)"
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.needs("unprivileged")
def test_a_file_without_permission_is_named(image):
    image.chmod(0o400)
    assert refusal(image) == f"disk {image}: cannot be opened: Permission denied (if it is only to be read, say so)"
    open_disk(str(image), readonly=True).close()
    open_disk(str(image), overlay=True).close()
    image.chmod(0)
    assert refusal(image, readonly=True) == f"disk {image}: cannot be opened: Permission denied"


def test_no_permission_is_explained(image, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert refusal(image) == f"disk {image}: cannot be opened: Permission denied (if it is only to be read, say so)"
    assert refusal(image, readonly=True) == f"disk {image}: cannot be opened: Permission denied"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"format": "qcow2"}, "unknown format 'qcow2' (expected raw)"),
        ({"format": ""}, "unknown format '' (expected raw)"),
        ({"cache": "directsync"}, "unknown cache mode 'directsync' (expected writeback, none, unsafe)"),
        ({"overlay": True, "readonly": True}, "an overlay is there to be written to, so it cannot be read-only"),
        ({"overlay": True, "cache": "none"}, "an overlay is kept in the page cache (expected cache=writeback)"),
    ],
)
def test_options_that_cannot_be_meant(image, options, problem):
    with pytest.raises(UsageError) as error:
        open_disk(str(image), **options)
    assert str(error.value) == f"disk {image}: {problem}"


def test_an_image_that_looks_like_another_format_is_its_bytes(tmp_path, opened, monkeypatch):
    """A raw image probed as qcow2 would have the VMM open any file of the host that the guest names in it."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 100)
    path = tmp_path / "disk.img"
    name = str(secret).encode()
    header = b"QFI\xfb" + (3).to_bytes(4, "big") + (512).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    content = (header.ljust(512, b"\0") + name).ljust(4096, b"\0")
    path.write_bytes(content)
    names = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda name, *rest, **where: names.append(str(name)) or real(name, *rest, **where))
    for options in ({}, {"readonly": True}, {"cache": "none"}):
        disk = opened(path, **options)
        assert disk.size == 4096 and read(disk, 0, 4096) == content
        disk.close()
    assert {name for name in names if not name.startswith("/proc/self/fd/")} == {str(path)}


# --- Two users of one image ------------------------------------------------------------------------------------------

WRITER: dict[str, bool] = {}
READER = {"readonly": True}
OVERLAY = {"overlay": True}
IN_USE = "is in use by another VM or program, which has locked it"
WRITTEN = "is being written to by another VM or program, which has locked it"


@pytest.mark.parametrize(
    ("first", "second", "problem"),
    [
        (WRITER, WRITER, IN_USE),
        (WRITER, READER, WRITTEN),
        (WRITER, OVERLAY, WRITTEN),
        (READER, WRITER, IN_USE),
        (OVERLAY, WRITER, IN_USE),
        (READER, READER, ""),
        (READER, OVERLAY, ""),
        (OVERLAY, OVERLAY, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("cache", ["writeback", "unsafe"])
def test_a_writer_has_an_image_alone_and_readers_share_it(image, first, second, problem, cache):
    disk = open_disk(str(image), cache=cache, **first)
    if problem:
        assert refusal(image, cache=cache, **second) == f"disk {image}: {problem}"
    else:
        open_disk(str(image), cache=cache, **second).close()
    disk.close()
    disk.close()
    open_disk(str(image), cache=cache, **second).close()


def test_an_image_is_locked_against_other_processes(image):
    program = "import sys; from pyvmm.backends.disk import open_disk; open_disk(sys.argv[1])"
    disk = open_disk(str(image), cache="none")
    found = subprocess.run([sys.executable, "-c", program, str(image)], capture_output=True, text=True, timeout=60)
    assert f"disk {image}: {IN_USE}" in found.stderr
    disk.close()
    subprocess.run([sys.executable, "-c", program, str(image)], check=True, timeout=60)


def test_a_file_system_without_locks_is_used_without(image, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    open_disk(str(image)).close()


# --- Block devices ---------------------------------------------------------------------------------------------------


@pytest.fixture
def loop(image):
    """A loop device of the image."""
    made = subprocess.run(["losetup", "-f", "--show", str(image)], capture_output=True, text=True, timeout=60)
    if made.returncode:
        pytest.skip("no loop device can be had here")
    yield made.stdout.strip()
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True, timeout=60)


@pytest.mark.needs("root")
@pytest.mark.parametrize("cache", ["writeback", "none"])
def test_a_block_device_is_a_disk(image, loop, opened, cache):
    content = image.read_bytes()
    disk = opened(loop, cache=cache)
    assert disk.size == 65536 and disk.block_size == 512 and not disk.may_unmap
    assert read(disk, 512, 8192) == content[512:8704]
    write(disk, 1024, b"\x31" * 512)
    disk.write_zeroes(4096, 8192, True)
    disk.write_zeroes(512, 512, False)
    disk.flush()
    expected = bytearray(content)
    expected[1024:1536], expected[4096:12288], expected[512:1024] = b"\x31" * 512, bytes(8192), bytes(512)
    assert read(disk, 0, 65536) == bytes(expected)
    disk.discard(32768, 4096)
    assert read(disk, 0, 32768) == bytes(expected[:32768])
    problem = refusal(loop)
    assert "Device or resource busy (is it mounted, or another VM's?)" in problem
    assert refusal(loop, readonly=True).endswith(WRITTEN)
    disk.close()
    opened(loop, readonly=True)
    assert refusal(loop).endswith(IN_USE)


def test_a_block_device_is_discarded_in_its_own_blocks(opened, monkeypatch):
    disk = opened()
    disk._block_device, disk.block_size = True, 4096
    calls = []
    monkeypatch.setattr(fcntl, "ioctl", lambda fd, request, data: calls.append((request, data)))
    disk.discard(512, 3584)
    disk.discard(512, 8192)
    disk.discard(4096, 8192)
    ranges = [
        (start.to_bytes(8, "little") + length.to_bytes(8, "little")) for start, length in ((4096, 4096), (4096, 8192))
    ]
    assert calls == [(raw.BLKDISCARD, data) for data in ranges]


# --- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.needs("gcc")
def test_requests_are_those_of_linux(tmp_path: Path) -> None:
    names = [name for name in vars(raw) if name.startswith("BLK")]
    assert macros(tmp_path, "linux/fs.h", names) == {name: getattr(raw, name) for name in names}
    resv = "struct { short type; short whence; long long start; long long len; int sysid; unsigned pid; int pad[4]; }"
    numbers = [f"_IOW('X', 43, {resv})", f"_IOW('X', 57, {resv})", f"sizeof({resv})"]
    assert list(macros(tmp_path, "linux/ioctl.h", numbers).values()) == [
        raw.FS_IOC_UNRESVSP64,
        raw.FS_IOC_ZERO_RANGE,
        raw.SPACE_RESV.size,
    ]
