"""Owners and modes of a share: the host's own for root, and mapped for everybody else."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pyvmm.backends.share.ids import RECORD, Mapped
from pyvmm.backends.share.opening import open_share
from pyvmm.backends.share.server import Share
from pyvmm.backends.share.tree import Tree
from tests.support.p9client import RDWR, ROOT, TRUNC, WRONLY, Client, direct
from tests.support.p9share import refused, shared

__all__ = ["shared"]


@pytest.fixture
def mapped(tmp_path):
    """(client, path) of a directory shared as an unprivileged user would, whoever runs this test."""
    folder = tmp_path / "mapped"
    folder.mkdir()
    try:
        os.setxattr(folder, "user.probe", b"")
        os.removexattr(folder, "user.probe")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    share = Share(str(folder), Tree(os.open(folder, os.O_PATH)), Mapped(), readonly=False)
    yield Client(direct(share)), folder
    share.close()


def owner(client, name):
    found = client.getattr(client.at(name))
    return found["uid"], found["gid"], oct(found["mode"] & 0o7777)


def host(path):
    status = os.lstat(path)
    return status.st_uid, status.st_gid, oct(status.st_mode & 0o7777)


ME = os.geteuid(), os.getegid()


# --- Root ------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("root")
def test_for_root_owners_and_modes_are_the_hosts(shared):
    client, folder = shared
    client.attach(50, 1000)
    file = client.create(50, b"file", RDWR, 0o4755, 1001)
    client.mkdir(50, b"folder", 0o2750, 1001)
    client.symlink(50, b"link", b"x", 1001)
    client.mknod(50, b"fifo", stat.S_IFIFO | 0o600, gid=1001)
    expected = {"file": "0o4755", "folder": "0o2750", "link": "0o777", "fifo": "0o600"}
    for name, mode in expected.items():
        assert host(folder / name) == owner(client, name) == (1000, 1001, mode)
    client.setattr(file, uid=5)
    assert host(folder / "file") == (5, 1001, "0o755")
    client.setattr(client.at("link"), gid=7)
    assert host(folder / "link")[:2] == (1000, 7) and not (folder / "x").exists()
    client.setattr(file, uid=8, gid=9, mode=0o6711)
    assert host(folder / "file") == (8, 9, "0o6711"), "the mode after the owner, who takes bits off"


@pytest.mark.needs("root")
def test_a_write_by_a_user_takes_set_ids_off(shared):
    client, folder = shared
    for user, left in ((0, 0o6775), (1000, 0o775)):
        (folder / "file").touch()
        os.chmod(folder / "file", 0o6775)
        client.attach(60 + user, user)
        fid = client.open(client.walk(60 + user, b"file"), WRONLY)
        assert os.stat(folder / "file").st_mode & 0o7777 == 0o6775, "opening is not writing"
        client.write(fid, b"x")
        client.write(fid, b"x")
        assert os.stat(folder / "file").st_mode & 0o7777 == left


# --- Everybody else --------------------------------------------------------------------------------------------------


def test_what_is_the_users_is_roots_in_the_guest(mapped):
    client, folder = mapped
    (folder / "file").touch(mode=0o640)
    client.create(ROOT, b"made", RDWR, 0o600)
    client.mkdir(ROOT, b"folder", 0o700)
    client.symlink(ROOT, b"link", b"x")
    for name in os.listdir(folder):
        assert owner(client, name)[:2] == (0, 0) and host(folder / name)[:2] == ME
        assert os.listxattr(folder / name, follow_symlinks=False) == []
    assert owner(client, "file") == (0, 0, "0o640")


def test_the_guests_owners_and_modes_are_kept_beside_the_hosts(mapped):
    client, folder = mapped
    client.attach(50, 1000)
    client.create(50, b"file", RDWR, 0o4511, 1001)
    client.mkdir(50, b"folder", 0o3555, 1001)
    assert owner(client, "file") == (1000, 1001, "0o4511") and host(folder / "file") == (*ME, "0o711")
    assert owner(client, "folder") == (1000, 1001, "0o3555") and host(folder / "folder") == (*ME, "0o1755")
    fid = client.at("file")
    client.setattr(fid, uid=5)
    assert owner(client, "file") == (5, 1001, "0o511"), "a new owner takes set-user-ID off"
    client.setattr(fid, mode=0o6000)
    assert owner(client, "file") == (5, 1001, "0o6000") and host(folder / "file") == (*ME, "0o600")
    client.open(client.walk(fid), RDWR | TRUNC)
    client.setattr(fid, valid=2 | 4, uid=0, gid=0)
    client.setattr(fid, mode=0o644)
    assert owner(client, "file") == (0, 0, "0o644") and os.listxattr(folder / "file") == []
    client.setattr(fid, valid=1, mode=0)
    assert owner(client, "file") == (0, 0, "0o0") and host(folder / "file") == (*ME, "0o600")
    client.read(client.opened("file"))


def test_the_host_has_the_last_word_on_modes(mapped):
    client, folder = mapped
    client.create(ROOT, b"file", RDWR, 0o4444)
    assert owner(client, "file")[2] == "0o4444"
    os.chmod(folder / "file", 0o600)
    assert owner(client, "file")[2] == "0o600"


def test_the_attribute_is_not_the_guests(mapped):
    client, folder = mapped
    client.attach(50, 1000)
    client.create(50, b"file")
    fid = client.at("file")
    assert os.listxattr(folder / "file") == [RECORD.decode()]
    assert client.getxattr(fid) == b""
    assert refused(client.getxattr, fid, RECORD) == errno.ENODATA
    assert refused(client.setxattr, fid, RECORD, b"0 0 777") == errno.EPERM
    for nonsense in (b"", b"x", b"1 2", b"1 2 x", b"-1 0 0", b"1 2 77777", b"99999999999 0 0", b"\xff\0"):
        os.setxattr(folder / "file", RECORD, nonsense)
        assert owner(client, "file")[:2] == (0, 0)


def test_links_keep_their_owner(mapped):
    client, folder = mapped
    client.symlink(ROOT, b"link", b"x")
    client.setattr(client.at("link"), uid=5, gid=6)
    assert owner(client, "link")[:2] == (0, 0) and host(folder / "link")[:2] == ME
    client.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o622)
    assert refused(client.setattr, client.at("fifo"), uid=5) == errno.EPERM
    client.setattr(client.at("fifo"), valid=2 | 4)
    assert owner(client, "fifo") == (0, 0, "0o622")


def test_without_extended_attributes_owners_stay(mapped, monkeypatch):
    client, folder = mapped

    def fails(*_):
        raise OSError(errno.EOPNOTSUPP, "none here")

    monkeypatch.setattr(os, "setxattr", fails)
    client.attach(50, 1000)
    client.create(50, b"file", RDWR, 0o4555)
    assert owner(client, "file") == (0, 0, "0o555") == (0, 0, host(folder / "file")[2])
    assert refused(client.setattr, client.at("file"), uid=5) == errno.EPERM
    client.setattr(client.at("file"), valid=2 | 4)
    client.setattr(client.at("file"), mode=0o4711)
    assert host(folder / "file")[2] == "0o711"


@pytest.mark.needs("root")
def test_what_is_others_is_theirs(mapped):
    client, folder = mapped
    (folder / "file").touch()
    os.setxattr(folder / "file", RECORD, b"7 7 777")
    os.chown(folder / "file", 1234, 4321)
    assert owner(client, "file")[:2] == (1234, 4321), "nor is what they say of it believed"
    assert refused(client.setattr, client.at("file"), uid=5) == errno.EPERM


@pytest.mark.needs("unprivileged")
def test_an_unprivileged_users_share(tmp_path):
    """The same, by a user who is one."""
    share = open_share(tmp_path)
    client = Client(direct(share))
    client.attach(50, 1000)
    client.create(50, b"file", RDWR, 0o400, 1000)
    assert owner(client, "file")[2] == "0o400" and host(tmp_path / "file")[2] == "0o600"
    client.write(client.opened("file", RDWR), b"root may")
    client.mkdir(ROOT, b"folder", 0)
    client.create(client.at("folder"), b"below")
    assert owner(client, "folder")[2] == "0o0"
    assert refused(client.mknod, ROOT, b"null", stat.S_IFCHR | 0o666, 1, 3) == errno.EPERM
    share.close()


@pytest.mark.needs("unprivileged")
def test_what_the_user_may_not_nobody_may(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "closed").mkdir()
    os.chmod(tmp_path / "closed", 0)
    share = open_share(tmp_path)
    client = Client(direct(share))
    assert refused(client.at, "closed/x") == 0 and refused(client.opened, "closed") == errno.EACCES
    os.chmod(tmp_path / "closed", 0o700)
    share.close()
