"""A shared directory by 9P2000.L: what a client reads, writes, makes, moves and removes is what the host has."""

from __future__ import annotations

import errno
import os
import socket
import stat

import pytest

from pyvmm.backends.share import listing, tree
from pyvmm.backends.share.opening import open_share
from pyvmm.errors import BackendError
from tests.support.p9client import APPEND, EXCL, NO_ID, RDONLY, RDWR, ROOT, TRUNC, WRONLY, Client, direct
from tests.support.p9share import refused, shared

__all__ = ["shared"]


# --- Opening ---------------------------------------------------------------------------------------------------------


def test_a_share_is_an_existing_directory(tmp_path):
    (tmp_path / "file").touch()
    for path, problem in (
        (tmp_path / "missing", "there is no such directory"),
        (tmp_path / "file", r"is a file \(expected a directory\)"),
        (tmp_path / "file/below", r"is not a directory \(expected a directory\)"),
        ("a\0b", "is not a path"),
    ):
        with pytest.raises(BackendError, match=problem) as raised:
            open_share(path)
        assert "share " in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.needs("unprivileged")
def test_a_share_is_a_directory_that_the_user_may_use(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    open_share(closed, readonly=True).close()
    with pytest.raises(
        BackendError, match=r"share .*/closed: no permission \(expected a directory that this user may "
    ):
        open_share(closed)
    closed.chmod(0)
    with pytest.raises(BackendError, match="read and search"):
        open_share(closed, readonly=True)


def test_nothing_is_left_open(tmp_path):
    before = set(os.listdir("/proc/self/fd"))
    taken = tree.BUDGET.taken
    share = open_share(tmp_path)
    client = Client(direct(share))
    client.mkdir(ROOT, b"d")
    files = [client.create(client.at("d"), b"f%d" % number) for number in range(5)]
    client.lock(files[0], 1)
    client.readdir(client.opened("d"), 0, 60)  # not to its end
    client.unlinkat(client.at("d"), b"f1")
    client.xattrwalk(files[2])
    share.close()
    share.close()
    assert set(os.listdir("/proc/self/fd")) == before and tree.BUDGET.taken == taken


# --- Files -----------------------------------------------------------------------------------------------------------


def test_a_file_is_made_written_and_read(shared):
    client, folder = shared
    file = client.create(ROOT, b"file")
    assert client.write(file, b"hello") == 5 and client.write(file, b"J") == 1
    assert (folder / "file").read_bytes() == b"Jello"
    (folder / "file").write_bytes(b"from the host")
    assert client.read(file) == b"from the host" and client.read(file, 5, 3) == b"the"
    assert client.read(file, 13) == b"" and client.read(file, 1 << 40) == b""
    client.clunk(file)
    assert refused(client.read, file) == errno.EBADF


def test_a_file_is_opened_as_it_is_asked_for(shared):
    client, folder = shared
    (folder / "file").write_bytes(b"12345")
    read, write = client.opened("file", RDONLY), client.opened("file", WRONLY)
    assert refused(client.write, read, b"x") == errno.EBADF and refused(client.read, write) == errno.EBADF
    append = client.opened("file", RDWR | APPEND)
    client.write(append, b"67", 0)
    assert client.read(append) == b"1234567"
    client.opened("file", RDWR | TRUNC | 0o40000)  # O_DIRECT means nothing here
    assert (folder / "file").read_bytes() == b""
    assert refused(client.opened, "file", 3) == errno.EINVAL
    assert refused(client.opened, "file", 0o200000) == errno.ENOTDIR
    assert refused(client.open, read) == errno.EBADF, "opened twice"
    assert refused(client.opened, "", RDWR) == errno.EISDIR and refused(client.opened, "", TRUNC) == errno.EISDIR


def test_making_a_file_that_is_there(shared):
    client, folder = shared
    (folder / "file").write_bytes(b"old")
    assert refused(client.create, ROOT, b"file", RDWR | EXCL) == errno.EEXIST
    assert client.read(client.create(ROOT, b"file", RDWR)) == b"old"
    client.create(ROOT, b"file", RDWR | TRUNC)
    assert (folder / "file").read_bytes() == b""
    (folder / "folder").mkdir()
    assert refused(client.create, ROOT, b"folder", RDWR) == errno.EISDIR
    assert refused(client.create, client.at("file"), b"x") == errno.ENOTDIR
    assert refused(client.create, ROOT, b"x", 3) == errno.EINVAL


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o777])
def test_modes_are_exact_whatever_the_umask(shared, mask):
    client, folder = shared
    old = os.umask(mask)
    try:
        client.create(ROOT, b"file", RDWR, 0o666)
        client.create(ROOT, b"locked", RDWR, 0o400)
        client.mkdir(ROOT, b"folder", 0o1777)
        client.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o622)
    finally:
        os.umask(old)
    modes = {name: oct(client.getattr(client.at(name))["mode"] & 0o7777) for name in os.listdir(folder)}
    assert modes == {"file": "0o666", "locked": "0o400", "folder": "0o1777", "fifo": "0o622"}


def test_a_file_outlives_its_name(shared):
    client, folder = shared
    file, place = client.create(ROOT, b"file"), client.at("file")
    client.write(file, b"still there")
    client.unlinkat(ROOT, b"file")
    assert not (folder / "file").exists()
    assert client.read(file) == b"still there" and client.getattr(file)["nlink"] == 0
    assert client.getattr(place)["size"] == 11, "the place that was held, too"
    assert client.read(client.open(client.walk(place))) == b"still there"
    client.setattr(place, size=5)
    assert client.read(file) == b"still"
    other = client.create(ROOT, b"file", RDWR | EXCL)
    assert client.getattr(other)["path"] != client.getattr(file)["path"]
    assert client.getattr(client.at("file"))["size"] == 0


def test_fsync_is_fsync(shared, monkeypatch):
    client, folder = shared
    file, directory = client.create(ROOT, b"file"), client.opened("")
    done = []
    monkeypatch.setattr(os, "fsync", lambda fd: done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}"))))
    monkeypatch.setattr(os, "fdatasync", lambda fd: done.append(("fdatasync", os.readlink(f"/proc/self/fd/{fd}"))))
    client.fsync(file)
    client.fsync(file, 1)
    client.fsync(directory)
    assert done == [("fsync", f"{folder}/file"), ("fdatasync", f"{folder}/file"), ("fsync", str(folder))]
    assert refused(client.fsync, client.at("file")) == errno.EBADF, "not open"

    def fails(fd):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fails)
    assert refused(client.fsync, file) == errno.EIO


def test_fsync_of_directories_and_files_works(shared):
    client, _ = shared
    client.fsync(client.create(ROOT, b"file", WRONLY))
    client.fsync(client.opened(""), 1)


# --- Names -----------------------------------------------------------------------------------------------------------


def test_names_are_made_moved_and_removed(shared):
    client, folder = shared
    client.mkdir(ROOT, b"a")
    client.mkdir(ROOT, b"b")
    a, b = client.at("a"), client.at("b")
    file = client.create(a, b"file")
    client.write(file, b"data")
    client.link(b, file, b"linked")
    assert os.stat(folder / "a/file").st_nlink == 2 and (folder / "b/linked").read_bytes() == b"data"
    client.symlink(a, b"symbolic", b"../anything")
    assert os.readlink(folder / "a/symbolic") == "../anything"
    assert client.readlink(client.at("a/symbolic")) == b"../anything"
    client.link(b, client.at("a/symbolic"), b"same")
    assert os.readlink(folder / "b/same") == "../anything", "the link itself"
    client.renameat(a, b"file", b, b"moved")
    assert not (folder / "a/file").exists() and (folder / "b/moved").read_bytes() == b"data"
    client.rename(client.at("b/moved"), a, b"back")
    assert (folder / "a/back").exists()
    assert refused(client.unlinkat, ROOT, b"a") == errno.EISDIR
    assert refused(client.unlinkat, ROOT, b"a", 0x200) == errno.ENOTEMPTY
    assert refused(client.unlinkat, a, b"back", 0x200) == errno.ENOTDIR
    assert refused(client.unlinkat, a, b"back", 1) == errno.EINVAL
    for name in (b"back", b"symbolic"):
        client.unlinkat(a, name)
    client.unlinkat(ROOT, b"a", 0x200)
    client.remove(client.at("b/linked"))
    client.remove(client.at("b/same"))
    client.remove(client.at("b"))
    assert os.listdir(folder) == []
    assert refused(client.link, ROOT, ROOT, b"x") == errno.EPERM


def test_a_place_follows_its_file_when_it_is_renamed(shared):
    client, folder = shared
    (folder / "a/b/c").mkdir(parents=True)
    (folder / "a/b/c/file").write_bytes(b"data")
    deep, file = client.at("a/b/c"), client.at("a/b/c/file")
    client.renameat(ROOT, b"a", ROOT, b"z")
    assert client.read(client.open(client.walk(deep, b"file"))) == b"data"
    up = client.walk(deep, b"..", b"..")
    client.rename(up, ROOT, b"y")
    assert (folder / "y/b/c/file").exists()
    client.remove(file)
    assert not (folder / "y/b/c/file").exists()


def test_what_a_rename_replaces_lives_on_for_who_holds_it(shared):
    client, folder = shared
    (folder / "old").write_bytes(b"old")
    (folder / "new").write_bytes(b"new")
    old, new = client.at("old"), client.at("new")
    client.renameat(ROOT, b"new", ROOT, b"old")
    assert client.read(client.open(client.walk(old))) == b"old"
    assert client.read(client.open(client.walk(new))) == b"new"
    assert client.read(client.opened("old")) == b"new" and os.listdir(folder) == ["old"]
    client.renameat(ROOT, b"old", ROOT, b"old")
    assert client.getattr(new)["size"] == 3


def test_remove_lets_go_of_its_fid_whatever_happens(shared):
    client, folder = shared
    (folder / "full/file").parent.mkdir()
    (folder / "full/file").touch()
    fid = client.at("full")
    assert refused(client.remove, fid) == errno.ENOTEMPTY and refused(client.getattr, fid) == errno.EBADF
    client.attach(99)
    assert refused(client.remove, 99) == errno.EBUSY and refused(client.getattr, 99) == errno.EBADF


def test_remove_takes_only_what_it_was_walked_to(shared):
    client, folder = shared
    (folder / "file").write_bytes(b"one")
    fid = client.at("file")
    (folder / "other").write_bytes(b"two")
    os.rename(folder / "other", folder / "file")
    assert refused(client.remove, fid) == errno.ENOENT
    assert (folder / "file").read_bytes() == b"two"
    assert refused(client.rename, client.at("file"), 12345, b"x") == errno.EBADF


def test_special_files_are_shown_and_made_and_never_opened(shared):
    client, folder = shared
    client.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o644)
    client.mknod(ROOT, b"file", 0o644)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(str(folder / "socket"))
    assert stat.S_ISFIFO(os.stat(folder / "fifo").st_mode) and stat.S_ISREG(os.stat(folder / "file").st_mode)
    for name in ("fifo", "socket"):
        for flags in (RDONLY, WRONLY, RDWR):
            assert refused(client.opened, name, flags) == errno.ENXIO
        assert refused(client.create, ROOT, name.encode(), WRONLY) == errno.ENXIO
    client.symlink(ROOT, b"link", b"file")
    assert refused(client.opened, "link") == errno.ELOOP
    assert refused(client.create, ROOT, b"link", RDWR) == errno.ELOOP
    assert refused(client.mknod, ROOT, b"x", stat.S_IFDIR | 0o755) == errno.EINVAL
    assert refused(client.mknod, ROOT, b"x", stat.S_IFCHR, 1 << 12, 0) == errno.EINVAL
    assert refused(client.setattr, client.at("fifo"), size=5) == errno.EINVAL
    bound.close()


@pytest.mark.needs("root")
def test_device_nodes_are_the_guests_own(shared):
    client, folder = shared
    client.mknod(ROOT, b"null", stat.S_IFCHR | 0o666, 1, 3)
    assert os.stat(folder / "null").st_rdev == os.makedev(1, 3)
    assert client.getattr(client.at("null"))["rdev"] == 0x103
    assert refused(client.opened, "null", RDWR) == errno.ENXIO
    assert refused(client.create, ROOT, b"null", RDWR) == errno.ENXIO


# --- Attributes ------------------------------------------------------------------------------------------------------


def test_attributes_are_the_hosts(shared):
    client, folder = shared
    (folder / "file").write_bytes(bytes(10000))
    os.utime(folder / "file", ns=(1_000_000_007, -5))
    found, status = client.getattr(client.at("file")), os.stat(folder / "file")
    assert found["valid"] == 0x7FF and found["kind"] == 0 and client.getattr(ROOT)["kind"] == 0x80
    assert found["mode"] == status.st_mode and found["nlink"] == 1 and found["size"] == 10000
    assert found["blocks"] == status.st_blocks and found["blksize"] == status.st_blksize
    assert (found["atime"], found["atime_ns"]) == (1, 7)
    assert (found["mtime"], found["mtime_ns"]) == ((1 << 64) - 1, 999_999_995)
    assert found["path"] == status.st_ino
    assert client.getattr(ROOT, 1 << 63 | 0x12)["valid"] == 0x12
    (folder / "link").symlink_to("file")
    assert client.getattr(client.at("link"))["kind"] == 0x02


def test_a_files_version_changes_with_it(shared):
    client, folder = shared
    (folder / "file").write_bytes(b"one")
    fid = client.at("file")
    before = client.getattr(fid)["version"]
    assert before == client.getattr(fid)["version"] != 0
    os.utime(folder / "file", ns=(0, 10**18))
    assert client.getattr(fid)["version"] != before


def test_attributes_are_set(shared):
    client, folder = shared
    (folder / "file").write_bytes(b"12345")
    path, fid = folder / "file", client.at("file")
    client.setattr(fid, mode=0o640)
    assert os.stat(path).st_mode & 0o7777 == 0o640
    client.setattr(fid, size=3)
    assert path.read_bytes() == b"123"
    client.setattr(client.opened("file", WRONLY), size=4)
    assert path.read_bytes() == b"123\0"
    client.setattr(fid, valid=16 | 32 | 128 | 256, atime=(5, 6), mtime=((1 << 64) - 7, 8))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (5_000_000_006, -7_000_000_000 + 8)
    client.setattr(fid, valid=32 | 256, mtime=(9, 0))
    assert (os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns) == (5_000_000_006, 9_000_000_000)
    client.setattr(fid, valid=16)
    assert os.stat(path).st_atime_ns > 10**18 and os.stat(path).st_mtime_ns == 9_000_000_000
    client.setattr(fid, valid=16 | 32)
    assert os.stat(path).st_mtime_ns > 10**18
    client.setattr(fid, valid=64)
    client.setattr(fid, valid=0)
    for bad in ({"valid": 32 | 256, "mtime": (0, 10**9)}, {"valid": 8, "size": 1 << 63}):
        assert refused(client.setattr, fid, **bad) == errno.EINVAL
    client.setattr(fid, valid=32 | 256, mtime=(1 << 63, 0))  # as early as can be: the file system says how early
    assert refused(client.setattr, ROOT, valid=8, size=1) == errno.EISDIR


def test_the_times_of_a_link_are_its_own(shared):
    client, folder = shared
    (folder / "file").touch()
    (folder / "link").symlink_to("file")
    before = os.stat(folder / "file").st_mtime_ns
    client.setattr(client.at("link"), valid=32 | 256, mtime=(9, 0))
    assert os.stat(folder / "file").st_mtime_ns == before
    assert os.lstat(folder / "link").st_mtime_ns == 9_000_000_000
    assert refused(client.setattr, client.at("link"), mode=0o600) == errno.EOPNOTSUPP


def test_statfs_is_of_the_hosts_file_system(shared):
    client, folder = shared
    found, expected = client.statfs(ROOT), os.statvfs(folder)
    assert found[0] == 0x01021997 and found[1] == expected.f_frsize and found[2] == expected.f_blocks
    assert found[5] == expected.f_files and found[8] == 255


# --- Directories -----------------------------------------------------------------------------------------------------


def test_a_directory_is_read_piece_by_piece(shared):
    client, folder = shared
    names = {b"file number %d" % number for number in range(500)}
    for name in names:
        (folder / name.decode()).touch()
    fid = client.opened("")
    for count in (60, 200, 4096, 65536):
        found = client.names(fid, count)
        assert len(found) == 500 and set(found) == names
    assert refused(client.readdir, fid, 0, 20) == errno.EINVAL, "not even one fits"
    assert refused(client.readdir, client.opened("file number 1")) == errno.ENOTDIR
    assert refused(client.readdir, client.at("")) == errno.EBADF
    assert refused(client.read, fid) == errno.EISDIR


def test_entries_have_types_and_the_numbers_of_their_files(shared):
    client, folder = shared
    (folder / "file").touch()
    (folder / "folder").mkdir()
    (folder / "link").symlink_to("x")
    os.mkfifo(folder / "fifo")
    found = {name: (kind, path) for name, kind, _, path in client.readdir(client.opened(""))}
    assert found.pop(b".") == found.pop(b"..") == (4, os.stat(folder).st_ino)
    kinds = {b"file": 8, b"folder": 4, b"link": 10, b"fifo": 0}
    assert found == {name: (kind, os.lstat(folder / name.decode()).st_ino) for name, kind in kinds.items()}
    entries = client.readdir(client.opened("folder"))
    assert [(name, path) for name, _, _, path in entries] == [
        (b".", os.stat(folder / "folder").st_ino),
        (b"..", os.stat(folder).st_ino),
    ]


def test_offsets_stay_while_entries_go_and_come(shared):
    client, folder = shared
    for number in range(300):
        (folder / f"{number:03}").touch()
    fid = client.opened("")
    seen, offset = [], 0
    while entries := client.readdir(fid, offset, 500):
        offset = entries[-1][2]
        for name, *_ in entries:
            seen.append(name)
            if name.isdigit():
                client.unlinkat(ROOT, name)  # as rm -r does
                (folder / f"new{name.decode()}").touch()
    old = [name for name in seen if name.isdigit()]
    assert len(old) == len(set(old)) == 300
    again = client.readdir(fid, 0)
    assert client.readdir(fid, again[3][2])[0] == again[4], "a client may seek to where it was"
    assert refused(client.readdir, fid, again[3][2] + 1) == errno.EINVAL
    assert refused(client.readdir, fid, 1 << 63) == errno.EINVAL


def test_entries_that_are_kept_are_bounded(shared, monkeypatch):
    client, folder = shared
    monkeypatch.setattr(listing, "MOST", 5000)
    for number in range(300):
        (folder / f"{number:03}").touch()
    fid, other = client.opened(""), client.opened("")
    assert refused(client.names, fid) == errno.ENOMEM
    assert refused(client.names, other) == errno.ENOMEM
    client.clunk(fid)
    client.clunk(other)
    (folder / "folder").mkdir()
    assert client.list("folder") == []


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=[pytest.mark.soak, pytest.mark.timeout(1200)])])
def test_a_large_share_is_walked_and_held(shared, count):
    """As `find` does, and then by a client that keeps a fid of every file, as Linux does with cache=loose."""
    client, folder = shared
    names = {b"%06d" % number for number in range(count)}
    for number in range(0, count, 1000):
        (folder / f"{number}").mkdir()
        for name in range(number, min(number + 1000, count)):
            (folder / f"{number}" / f"{name:06}").touch()
    before, held, found = len(os.listdir("/proc/self/fd")), [], set()
    for directory in client.list(""):
        for name in client.list(directory.decode()):
            held.append(client.walk(ROOT, directory, name))
            found.add(name)
    assert found == names
    assert len(os.listdir("/proc/self/fd")) <= before + tree.CACHE
    for fid in held[:: max(1, count // 2000)]:
        assert client.getattr(fid)["size"] == 0, "also those whose descriptors were closed meanwhile"
    for fid in held:
        client.clunk(fid)
    assert len(os.listdir("/proc/self/fd")) == before


# --- Read-only -------------------------------------------------------------------------------------------------------


def test_a_read_only_share_changes_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "folder").mkdir()
    share = open_share(tmp_path, readonly=True)
    client = Client(direct(share))
    file = client.at("file")
    before = os.stat(tmp_path / "file"), os.stat(tmp_path)
    attempts = (
        (client.create, ROOT, b"new"),
        (client.create, ROOT, b"file", RDONLY),
        (client.mkdir, ROOT, b"new"),
        (client.symlink, ROOT, b"new", b"x"),
        (client.mknod, ROOT, b"new", stat.S_IFIFO),
        (client.link, ROOT, file, b"new"),
        (client.rename, file, ROOT, b"new"),
        (client.renameat, ROOT, b"file", ROOT, b"new"),
        (client.unlinkat, ROOT, b"file"),
        (client.unlinkat, ROOT, b"folder", 0x200),
        (client.remove, client.at("folder")),
        (client.setattr, file, 0o600),
        (client.setxattr, file, b"user.x", b"1"),
        (client.opened, "file", RDWR),
        (client.opened, "file", WRONLY),
        (client.opened, "file", TRUNC),
    )
    for function, *arguments in attempts:
        assert refused(function, *arguments) == errno.EROFS, (function, arguments)
    assert client.read(client.opened("file")) == b"data" and set(client.list("")) == {b"file", b"folder"}
    after = os.stat(tmp_path / "file"), os.stat(tmp_path)
    assert [status.st_ctime_ns for status in before] == [status.st_ctime_ns for status in after]
    share.close()


def test_an_unknown_user_makes_files_of_the_servers(shared):
    client, folder = shared
    client.attach(77, NO_ID)
    client.create(77, b"file", gid=NO_ID)
    assert os.stat(folder / "file").st_uid == os.geteuid()
