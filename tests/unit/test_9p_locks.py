"""Locks and extended attributes of a share: both sides see what the other has."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import subprocess
import sys

import pytest

from pyvmm.backends.share import locks, tree, xattrs
from pyvmm.backends.share.opening import open_share
from tests.support.headers import macros
from tests.support.p9client import (
    BLOCKED,
    RDLCK,
    RDONLY,
    RDWR,
    ROOT,
    SUCCESS,
    UNLCK,
    WRLCK,
    Client,
    direct,
)
from tests.support.p9share import refused, shared

__all__ = ["shared"]


@pytest.fixture
def file(shared):
    """A file of ten bytes, by its path."""
    path = shared[1] / "file"
    path.write_bytes(b"0123456789")
    return path


@pytest.fixture
def posix():
    """posix(path, kind, start, length): a POSIX lock by another process; returns what ends that."""
    children = []

    def lock(path, kind, start=0, length=0):
        code = (
            "import fcntl, os, sys\n"
            "fd = os.open(sys.argv[1], os.O_RDWR)\n"
            "fcntl.lockf(fd, int(sys.argv[2]), int(sys.argv[4]), int(sys.argv[3]))\n"
            "print(os.getpid(), flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-S", "-c", code, str(path), str(kind), str(start), str(length)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        children.append(child)
        assert select.select([child.stdout], [], [], 30)[0]
        child.pid_seen = int(child.stdout.readline())

        def end():
            child.stdin.close()
            child.wait(30)

        return end, child.pid_seen

    yield lock
    for child in children:
        child.kill()
        child.wait(30)
        child.stdin.close()
        child.stdout.close()


def free(path, kind=fcntl.LOCK_EX, start=0, length=0):
    """Whether another process could have this lock (by a description of its own, which meets them all)."""
    with open(path, "r+b") as opened:
        number = fcntl.F_WRLCK if kind == fcntl.LOCK_EX else fcntl.F_RDLCK
        try:
            fcntl.fcntl(opened, fcntl.F_OFD_SETLK, struct.pack("@hh4xqqi4x", number, 0, start, length, 0))
        except BlockingIOError:
            return False
        return True


@pytest.mark.needs("gcc")
def test_the_layout_of_a_lock_is_the_systems(tmp_path):
    names = ["sizeof(struct flock)", *(f"offsetof(struct flock, l_{name})" for name in ("start", "len", "pid"))]
    found = list(macros(tmp_path, "fcntl.h", names).values())
    assert found == [locks.FLOCK.size, 8, 16, 24]
    assert locks.FLOCK.pack(1, 2, 3, 4, 5) == struct.pack("<HH4xQQI4x", 1, 2, 3, 4, 5)


def test_a_lock_is_seen_on_the_host(shared, file):
    client, _ = shared
    fid = client.opened("file", RDWR)
    assert client.lock(fid, WRLCK, 2, 4) == SUCCESS
    assert not free(file, fcntl.LOCK_SH, 5, 1) and free(file, start=6) and free(file, length=2)
    assert client.lock(fid, UNLCK, 2, 2) == SUCCESS
    assert free(file, length=4) and not free(file, length=5)
    assert client.lock(fid, RDLCK, 4, 2) == SUCCESS
    assert free(file, fcntl.LOCK_SH) and not free(file)
    assert client.lock(fid, UNLCK) == SUCCESS
    assert free(file)


def test_a_lock_of_the_hosts_is_seen_in_the_guest(shared, file, posix):
    client, _ = shared
    fid = client.opened("file", RDWR)
    end, pid = posix(file, fcntl.LOCK_EX, 3, 2)
    assert client.lock(fid, WRLCK) == client.lock(fid, RDLCK, 4, 1) == BLOCKED
    assert client.lock(fid, WRLCK, 0, 3) == SUCCESS and client.lock(fid, WRLCK, 5) == SUCCESS
    assert client.getlock(fid, RDLCK, 0, 0) == (WRLCK, 3, 2, pid)
    assert client.getlock(fid, UNLCK, 4, 1) == (WRLCK, 3, 2, pid), "what Linux's clients ask"
    assert client.getlock(fid, RDLCK, 5, 9) == (UNLCK, 5, 9, 1), "its own is not in its way"
    end()
    assert client.lock(fid, WRLCK) == SUCCESS


def test_locks_belong_to_the_guests_processes(shared, file):
    """Not to fids: a process may have a file open twice, and processes may share a fid."""
    client, _ = shared
    first, second = client.opened("file", RDWR), client.opened("file", RDWR)
    assert client.lock(first, WRLCK, process=1) == SUCCESS
    assert client.lock(second, WRLCK, process=1) == SUCCESS, "its own"
    assert client.lock(first, WRLCK, process=2) == BLOCKED, "another's, by the same fid"
    assert client.lock(first, WRLCK, process=1, client=b"another guest") == BLOCKED
    assert client.getlock(first, WRLCK, process=2) == (WRLCK, 0, 0, 0)
    assert client.getlock(second, WRLCK, process=1) == (UNLCK, 0, 0, 1)
    assert client.lock(second, UNLCK, process=2) == SUCCESS
    assert not free(file), "a child that ends gives up its own locks, not its parent's"
    assert client.lock(second, UNLCK, process=1) == SUCCESS
    assert free(file) and client.lock(first, WRLCK, process=2) == SUCCESS


def test_locks_go_with_the_last_fid_that_made_them(shared, file):
    client, _ = shared
    taken = tree.BUDGET.taken
    first, second, third = (client.opened("file", RDWR) for _ in range(3))
    client.lock(first, WRLCK, 0, 1)
    client.lock(second, WRLCK, 1, 1)
    client.lock(third, WRLCK, 2, 1, process=2)
    client.clunk(first)
    assert not free(file, length=1)
    client.clunk(second)
    assert free(file, length=2) and not free(file, start=2)
    client.version(8192)
    assert free(file) and tree.BUDGET.taken == taken


def test_a_file_that_may_only_be_read(shared, file, tmp_path):
    client, _ = shared
    fid = client.opened("file", RDONLY)
    assert client.lock(fid, WRLCK) == SUCCESS, "flock(2) asks for no more"
    client.clunk(fid)
    share = open_share(file.parent, readonly=True)
    reader = Client(direct(share))
    fid = reader.opened("file")
    assert reader.lock(fid, RDLCK) == SUCCESS and not free(file)
    assert refused(reader.lock, fid, WRLCK) == errno.EBADF
    assert reader.getlock(fid, WRLCK, process=5)[0] == RDLCK
    share.close()
    assert free(file)


def test_locks_that_cannot_be(shared, file):
    client, _ = shared
    fid = client.opened("file", RDWR)
    bad = ((3, 0, 0), (255, 0, 0), (WRLCK, 1 << 63, 0), (WRLCK, 0, 1 << 63), (WRLCK, (1 << 63) - 1, 2))
    for kind, start, length in bad:
        assert refused(client.lock, fid, kind, start, length) == errno.EINVAL
        assert refused(client.getlock, fid, kind, start, length) == errno.EINVAL
    assert client.lock(fid, WRLCK, (1 << 63) - 1, 1) == SUCCESS
    assert client.lock(fid, UNLCK, process=99) == SUCCESS, "nothing to give up"


# --- Extended attributes ---------------------------------------------------------------------------------------------


@pytest.fixture
def attributes(file):
    """The file, on a file system that has extended attributes."""
    try:
        os.setxattr(file, "user.probe", b"")
        os.removexattr(file, "user.probe")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    return file


def test_attributes_are_set_read_listed_and_removed(shared, attributes):
    client, _ = shared
    fid = client.at("file")
    client.setxattr(fid, b"user.one", b"value")
    assert os.getxattr(attributes, "user.one") == b"value"
    os.setxattr(attributes, "user.two", bytes(range(256)))
    assert client.getxattr(fid, b"user.two") == bytes(range(256))
    assert sorted(client.getxattr(fid).split(b"\0")) == [b"", b"user.one", b"user.two"]
    client.setxattr(fid, b"user.one", b"")
    assert os.getxattr(attributes, "user.one") == b"", "an empty value is a value"
    client.setxattr(fid, b"user.one", b"", os.XATTR_REPLACE)
    assert os.listxattr(attributes) == ["user.two"], "that is how Linux removes one"
    assert refused(client.getxattr, fid, b"user.one") == errno.ENODATA
    assert refused(client.setxattr, fid, b"user.one", b"", os.XATTR_REPLACE) == errno.ENODATA
    assert refused(client.setxattr, fid, b"user.two", b"x", os.XATTR_CREATE) == errno.EEXIST
    assert refused(client.setxattr, fid, b"user.one", b"x", os.XATTR_REPLACE) == errno.ENODATA
    opened = client.opened("file")
    assert client.getxattr(opened, b"user.two") == bytes(range(256)), "of an open file, too"


def test_a_value_is_read_and_written_in_pieces(shared, attributes):
    client, _ = shared
    value = os.urandom(3000)
    fid = client.at("file")
    client.call(32, "dsqd", fid, b"user.big", 3000, 0)
    for at in range(0, 3000, 700):
        client.write(fid, value[at : at + 700], at)
    assert os.listxattr(attributes) == [], "not before it is whole"
    client.clunk(fid)
    assert os.getxattr(attributes, "user.big") == value
    fid, size = client.xattrwalk(client.at("file"), b"user.big")
    assert size == 3000
    assert b"".join(client.read(fid, at, 700) for at in range(0, 3000, 700)) == value
    assert client.read(fid, 3000) == client.read(fid, 1 << 63) == b""


def test_values_that_cannot_be(shared, attributes):
    client, _ = shared

    def create(name, size, flags=0):
        fid = client.at("file")
        client.call(32, "dsqd", fid, name, size, flags)
        return fid

    assert refused(create, b"user.x", 65537) == refused(create, b"user.x", 1 << 63) == errno.E2BIG
    assert refused(create, b"", 1) == refused(create, b"x" * 256, 1) == refused(create, b"a\0b", 1) == errno.ERANGE
    assert refused(create, b"user.x", 1, 4) == errno.EINVAL
    fid = create(b"user.x", 4)
    assert refused(client.write, fid, b"12345") == errno.ENOSPC
    assert refused(client.write, fid, b"1", 1) == errno.EINVAL, "a hole"
    client.write(fid, b"12")
    assert refused(client.clunk, fid) == errno.EINVAL, "not whole"
    assert refused(client.clunk, fid) == errno.EBADF, "but gone"
    fid = create(b"nonsense", 1)
    client.write(fid, b"1")
    assert refused(client.clunk, fid) == errno.EOPNOTSUPP
    fid = create(b"user.x", 2)
    client.write(fid, b"12")
    client.version(8192)
    client.attach(ROOT)
    assert os.listxattr(attributes) == [], "a session that ends sets nothing"
    assert refused(client.xattrwalk, client.at("file"), b"a\0b") == errno.ERANGE
    assert refused(client.xattrwalk, client.at("file"), b"user.none") == errno.ENODATA


def test_values_at_once_are_bounded(shared, attributes):
    client, _ = shared
    fid = client.at("file")
    values = [client.xattrwalk(fid)[0] for _ in range(xattrs.AT_ONCE)]
    assert refused(client.xattrwalk, fid) == errno.EMFILE
    assert refused(client.setxattr, fid, b"user.x", b"1") == errno.EMFILE
    for value in values:
        client.clunk(value)
    client.setxattr(fid, b"user.x", b"1")
    assert client.getxattr(fid, b"user.x") == b"1"


@pytest.mark.needs("root")
def test_a_links_attributes_are_its_own(shared, attributes):
    client, folder = shared
    (folder / "link").symlink_to("file")
    client.setxattr(client.at("link"), b"trusted.x", b"1")
    assert os.listxattr(attributes) == []
    assert os.getxattr(folder / "link", "trusted.x", follow_symlinks=False) == b"1"
