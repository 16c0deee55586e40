"""Every way out of a shared directory: symbolic links, "..", renames under way, directories moved out, mounts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading

import pytest

from pyvmm.backends.share.opening import open_share
from tests.support.p9client import RDWR, ROOT, Client, P9Error, direct
from tests.support.p9share import refused, shared

__all__ = ["shared"]

SECRET = b"what is outside"


@pytest.fixture
def outside(tmp_path):
    """A directory beside the shared one, with a secret in it."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_bytes(SECRET)
    return folder


def untouched(folder):
    return os.listdir(folder) == ["secret"] and (folder / "secret").read_bytes() == SECRET


@pytest.mark.parametrize("target", ["{outside}", "../outside", ".."])
def test_no_link_is_followed(shared, outside, target):
    client, folder = shared
    (folder / "link").symlink_to(target.format(outside=outside))
    (folder / "link to file").symlink_to(outside / "secret")
    link, file = client.at("link"), client.at("link to file")
    assert refused(client.walk, link, b"secret") == errno.ENOTDIR
    assert refused(client.walk, link, b"..") == errno.ENOTDIR
    assert refused(client.walk, ROOT, b"link", b"secret") == 0, "as far as the link"
    assert client.qids(ROOT, b"link", b"secret")[0][0] == 0x02
    assert refused(client.open, link) == refused(client.open, file) == errno.ELOOP
    assert refused(client.create, link, b"new") == errno.ENOTDIR
    assert refused(client.create, ROOT, b"link to file", RDWR) == errno.ELOOP
    assert refused(client.mkdir, link, b"new") == errno.ENOTDIR
    assert refused(client.symlink, link, b"new", b"x") == errno.ENOTDIR
    assert refused(client.mknod, link, b"new", 0o644) == errno.ENOTDIR
    assert refused(client.unlinkat, link, b"secret") == errno.ENOTDIR
    assert refused(client.renameat, link, b"secret", ROOT, b"mine") == errno.ENOTDIR
    assert refused(client.renameat, ROOT, b"link", link, b"new") == errno.ENOTDIR
    assert refused(client.link, link, file, b"new") == errno.ENOTDIR
    assert refused(client.setattr, file, size=0, valid=8) == errno.EINVAL
    client.setattr(file, valid=32 | 256, mtime=(5, 0))
    assert refused(client.setxattr, file, b"user.x", b"1") in (errno.EPERM, errno.EOPNOTSUPP)
    client.link(ROOT, file, b"another link")
    assert client.readlink(client.at("another link")) == os.fsencode(outside / "secret")
    assert untouched(outside) and os.stat(outside / "secret").st_mtime_ns > 10**18


def test_the_root_is_above_itself(shared, outside):
    client, folder = shared
    (folder / "a/b").mkdir(parents=True)
    inode = os.stat(folder).st_ino
    for start, names in ((ROOT, [b".."]), (ROOT, [b".."] * 16), (client.at("a/b"), [b".."] * 5)):
        assert client.qids(start, *names)[-1][2] == inode
    assert refused(client.walk, ROOT, b"..", b"outside") == 0
    names = {name: path for name, _, _, path in client.readdir(client.opened(""))}
    assert names[b".."] == inode
    client.qids(ROOT, b"a", b".", b".", b"b")
    assert refused(client.attach, 5, tree=b"../outside") == errno.ENOENT
    assert refused(client.attach, 5, tree=os.fsencode(outside)) == errno.ENOENT


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"/", b"../outside", b"a\0b", b"/etc"])
def test_names_are_names(shared, outside, name):
    client, folder = shared
    (folder / "file").touch()
    file = client.at("file")
    attempts = (
        (client.create, ROOT, name),
        (client.mkdir, ROOT, name),
        (client.symlink, ROOT, name, b"x"),
        (client.mknod, ROOT, name, 0o644),
        (client.link, ROOT, file, name),
        (client.rename, file, ROOT, name),
        (client.renameat, ROOT, b"file", ROOT, name),
        (client.renameat, ROOT, name, ROOT, b"new"),
        (client.unlinkat, ROOT, name),
        (client.unlinkat, ROOT, name, 0x200),
    )
    for function, *arguments in attempts:
        assert refused(function, *arguments) == errno.EINVAL, function
    if name not in (b".", b".."):
        assert refused(client.walk, ROOT, name) == errno.ENOENT
    assert os.listdir(folder) == ["file"] and untouched(outside)
    assert refused(client.symlink, ROOT, b"link", b"a\0b") == errno.EINVAL
    assert refused(client.mkdir, ROOT, b"x" * 256) == errno.ENAMETOOLONG


def test_a_directory_that_is_moved_out_is_refused(shared, outside):
    """And "..", from inside it, leads to where it was."""
    client, folder = shared
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/file").write_bytes(b"was inside")
    directory, deep, file = client.at("a"), client.at("a/b"), client.at("a/b/file")
    listed, opened = client.opened("a/b"), client.opened("a/b/file")
    os.rename(folder / "a", outside / "a")
    (outside / "a/b/new").write_bytes(SECRET)
    for fid, name in ((directory, b"b"), (deep, b"new"), (deep, b"file")):
        assert refused(client.walk, fid, name) == errno.ESTALE
    attempts = (
        (client.create, deep, b"mine"),
        (client.mkdir, deep, b"mine"),
        (client.symlink, deep, b"mine", b"x"),
        (client.mknod, deep, b"mine", 0o644),
        (client.link, deep, file, b"mine"),
        (client.link, ROOT, file, b"mine"),
        (client.renameat, deep, b"new", ROOT, b"mine"),
        (client.rename, file, ROOT, b"mine"),
        (client.unlinkat, deep, b"new"),
        (client.remove, file),
        (client.readdir, listed),
        (client.open, client.walk(deep)),
        (client.getattr, deep),
        (client.setattr, deep, 0o777),
        (client.getxattr, deep),
    )
    for function, *arguments in attempts:
        assert refused(function, *arguments) == errno.ESTALE, (function, arguments)
    assert client.read(opened) == b"was inside", "an open file is open"
    assert sorted(os.listdir(outside / "a/b")) == ["file", "new"] and os.listdir(folder) == []
    os.rename(outside / "a", folder / "elsewhere")
    assert client.read(client.open(client.walk(deep, b"file"))) == b"was inside", "it is back"


def test_dot_dot_leads_to_where_a_directory_was_walked_to(shared, outside):
    client, folder = shared
    (folder / "a/b").mkdir(parents=True)
    (folder / "c").mkdir()
    deep = client.at("a/b")
    a = os.stat(folder / "a").st_ino
    assert client.qids(deep, b"..")[0][2] == a
    os.rename(folder / "a/b", folder / "c/b")
    assert client.qids(deep, b"..")[0][2] == a
    os.rename(folder / "c/b", outside / "b")
    assert client.qids(deep, b"..")[0][2] == a
    assert refused(client.walk, deep, b"..", b"b") == 0


def test_the_whole_share_may_be_moved(shared, tmp_path):
    client, folder = shared
    (folder / "a").mkdir()
    directory = client.at("a")
    os.rename(folder, tmp_path / "moved")
    (tmp_path / "shared/x").mkdir(parents=True)
    client.mkdir(directory, b"b")
    assert (tmp_path / "moved/a/b").is_dir()
    os.rename(tmp_path / "moved/a", tmp_path / "shared/x/a")
    assert refused(client.mkdir, directory, b"c") == errno.ESTALE, "where the share was is outside"


def test_a_name_that_the_host_gives_to_something_else(shared, outside):
    client, folder = shared
    (folder / "a").mkdir()
    (folder / "a/file").write_bytes(b"inside")
    directory = client.at("a")
    os.rename(folder / "a", folder / "b")
    (folder / "a").symlink_to(outside)
    assert refused(client.walk, ROOT, b"a", b"secret") == 0
    assert client.read(client.open(client.walk(directory, b"file"))) == b"inside"
    assert client.qids(ROOT, b"a")[0][0] == 0x02


def test_moves_that_only_the_host_can_make_build_no_ring(shared):
    """Places are kept as a tree: a host that turns two directories inside out must not make that a ring."""
    client, folder = shared
    (folder / "a/b").mkdir(parents=True)
    a, b = client.at("a"), client.at("a/b")
    os.rename(folder / "a/b", folder / "b")  # behind the server's back: to it, b is in a
    client.renameat(ROOT, b"a", b, b"x")
    assert (folder / "b/x").is_dir()
    for fid in (a, b):
        client.qids(fid, *[b".."] * 16)
    client.mkdir(client.at("b/x"), b"y")
    assert (folder / "b/x/y").is_dir()
    for fid in (a, b):
        client.clunk(fid)


# --- With few descriptors --------------------------------------------------------------------------------------------


def few(client, limit=8):
    client.share._tree._limit = limit


def test_more_places_than_descriptors(shared):
    client, folder = shared
    few(client)
    for number in range(100):
        (folder / f"{number}").mkdir()
        (folder / f"{number}/file").write_bytes(b"%d" % number)
    directories = [client.at(f"{number}") for number in range(100)]
    files = [client.at(f"{number}/file") for number in range(100)]
    before = len(os.listdir("/proc/self/fd"))
    assert [client.getattr(fid)["size"] for fid in files] == [len(str(number)) for number in range(100)]
    for number, fid in enumerate(directories):
        client.unlinkat(fid, b"file")
        assert client.getattr(files[number])["nlink"] == 0, "held, so it is kept"
        client.clunk(files[number])
        client.clunk(fid)
        client.unlinkat(ROOT, b"%d" % number, 0x200)
    assert len(os.listdir("/proc/self/fd")) <= before and os.listdir(folder) == []


def test_what_is_found_again_is_the_same_file_or_none(shared, outside):
    client, folder = shared
    few(client)
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/file").write_bytes(b"inside")
    file, deep = client.at("a/b/file"), client.at("a/b")

    for number in range(20):
        (folder / f"other{number}").mkdir()
    others = [client.at(f"other{number}") for number in range(20)]
    assert client.getattr(file)["size"] == 6
    for fid in others:
        client.getattr(fid)
    os.rename(folder / "a", outside / "a")
    (folder / "a").symlink_to(outside / "a")
    assert refused(client.getattr, file) in (errno.ESTALE, errno.ENOTDIR)
    os.unlink(folder / "a")
    assert refused(client.getattr, file) == errno.ENOENT
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/file").write_bytes(b"another one")
    assert refused(client.getattr, file) == refused(client.walk, deep, b"file") == errno.ESTALE
    assert refused(client.readdir, client.opened("a/b"), 1) == errno.EINVAL
    assert client.getattr(client.at("a/b/file"))["size"] == 11


def test_a_directory_as_deep_as_can_be(shared):
    """Deeper than a path can say: the host's own limit ends it, and nothing recurses."""
    client, _ = shared
    few(client)
    fid, depth, number = ROOT, 0, 0
    while not number:
        try:
            client.mkdir(fid, b"d" * 40)
            fid = client.walk(fid, b"d" * 40)
            depth += 1
        except P9Error as error:
            number = error.errno
    assert number == errno.ENAMETOOLONG and depth > 50
    assert client.getattr(ROOT)["kind"] == 0x80


# --- Races -----------------------------------------------------------------------------------------------------------


def raced(work, *disturb):
    """Do `work` time and again while each of `disturb` goes on in a thread of its own."""
    stop = threading.Event()

    def again(function):
        while not stop.is_set():
            function()

    threads = [threading.Thread(target=again, args=(function,)) for function in disturb]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for _ in range(400):
            work()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)


def test_a_directory_that_becomes_a_link_all_the_time(shared, outside):
    client, folder = shared
    (folder / "real").mkdir()
    (folder / "real/secret").write_bytes(b"harmless")
    (folder / "link").symlink_to(outside)
    (folder / "x").mkdir()
    found = []

    def swap():
        os.rename(folder / "x", folder / "spare")
        os.rename(folder / "link", folder / "x")
        os.rename(folder / "x", folder / "link")
        os.rename(folder / "spare", folder / "x")

    def look():
        for path in ("x/secret", "x/../x/secret", "real/secret"):
            try:
                fid = client.opened(path)
                found.append(client.read(fid))
                client.clunk(fid)
            except P9Error:
                pass
        try:
            client.create(client.at("x"), b"made")
        except P9Error:
            pass

    (folder / "x/secret").write_bytes(b"harmless")
    raced(look, swap)
    assert set(found) == {b"harmless"} and untouched(outside)


def test_a_directory_that_goes_out_and_in_all_the_time(shared, outside):
    """What is beside it outside is never reached, and nothing is left there."""
    client, folder = shared
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/file").write_bytes(b"harmless")
    deep = client.at("a/b")
    found = []

    def move():
        os.rename(folder / "a/b", outside / "b")
        os.rename(outside / "b", folder / "a/b")

    def look():
        for names in (
            [b"file"],
            [b"..", b"secret"],
            [b"..", b"..", b"secret"],
            [b"..", b"b", b"file"],
            [b"..", b"..", b"a"],
        ):
            try:
                fid = client.walk(deep, *names)
                if names[-1] != b"a":
                    found.append(client.read(client.open(fid)))
                client.clunk(fid)
            except P9Error:
                pass
        try:
            client.mkdir(client.walk(deep, b".."), b"made")
        except P9Error:
            pass

    raced(look, move)
    assert set(found) == {b"harmless"} and untouched(outside)


def test_renames_of_the_guest_race_with_those_of_the_host(shared, outside):
    client, folder = shared
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    (folder / "a/x").write_bytes(b"harmless")

    def host():
        try:
            os.rename(folder / "a", outside / "a")
            os.rename(outside / "a", folder / "a")
        except OSError:
            pass

    def guest():
        for old, new in (("a", "b"), ("b", "a")):
            try:
                client.renameat(client.at(old), b"x", client.at(new), b"x")
            except P9Error:
                pass

    raced(guest, host)
    assert untouched(outside)
    assert [path.name for path in folder.rglob("x")] == ["x"]


# --- Mounts ----------------------------------------------------------------------------------------------------------

MOUNTED = """
import errno, os, sys
from pyvmm.backends.share.opening import open_share
from tests.support.p9client import ROOT, Client, P9Error, direct
from tests.support.p9share import refused
folder, outside = sys.argv[1:]
share = open_share(folder)
client = Client(direct(share))
for name in ("mounted", "bound"):
    fid = client.at(name)
    attributes = client.getattr(fid)
    assert attributes["kind"] == 0x80 and attributes["mode"] == 0o40555, attributes
    assert client.list(name) == []
    assert refused(client.walk, fid, b"secret") == errno.ENOENT
    assert refused(client.create, fid, b"x") == errno.EROFS
    assert refused(client.mkdir, fid, b"x") == errno.EROFS
    assert refused(client.unlinkat, fid, b"secret") == errno.EROFS
    assert refused(client.renameat, ROOT, b"own", fid, b"x") == errno.EROFS
    assert refused(client.setattr, fid, 0o777) == errno.EROFS
    assert refused(client.getxattr, fid) == errno.EROFS
    assert refused(client.opened, name, 1) == errno.EISDIR
    assert refused(client.unlinkat, ROOT, name.encode(), 0x200) == errno.EBUSY
    assert client.qids(fid, b"..")[0][2] == os.stat(folder).st_ino
    client.statfs(fid)
    client.fsync(client.opened(name))
    assert refused(client.lock, client.opened(name), 0) == errno.EBADF
assert refused(client.at, "file") == errno.EXDEV
paths = {client.getattr(client.at(name))["path"] for name in ("", "own", "mounted", "bound")}
assert len(paths) == 4
assert client.list("own") == ["inside".encode()]
assert sorted(client.list("")) == [b"bound", b"file", b"mounted", b"own"]
share.close()
print("all refused")
"""


@pytest.mark.needs("root")
def test_what_is_mounted_inside_is_not_shared(tmp_path, outside):
    folder = tmp_path / "shared"
    for name in ("mounted", "bound", "own/inside"):
        (folder / name).mkdir(parents=True)
    (folder / "file").touch()
    command = (
        f"mount -t tmpfs none {folder}/mounted && mount --bind {outside} {folder}/bound && "
        f"mount --bind {outside}/secret {folder}/file && exec {sys.executable} -c '{MOUNTED}' {folder} {outside}"
    )
    result = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unshare" in result.stderr:
        pytest.skip(result.stderr)
    assert result.stdout == "all refused\n", result.stderr


def test_every_file_has_a_number_of_its_own_on_every_device(shared):
    client, _ = shared
    tree = client.share._tree
    home = tree.root.key[0]
    numbers = {tree.path_of(home + device, inode) for device in range(50) for inode in range(2000)}
    assert len(numbers) == 50 * 2000
    assert tree.path_of(home, 5) == 5


def test_a_share_opened_by_a_link_is_where_it_leads(tmp_path, outside):
    (tmp_path / "link").symlink_to(outside)
    share = open_share(tmp_path / "link")
    client = Client(direct(share))
    assert client.list("") == [b"secret"]
    client.mkdir(ROOT, b"made")
    client.mkdir(client.at("made"), b"below")
    share.close()
