"""Sessions, fids and messages of 9P2000.L, and what a bad one comes to."""

from __future__ import annotations

import errno
import os
import random
from struct import pack

import pytest

from pyvmm.backends.share import codec, fids, server, tree
from pyvmm.backends.share.codec import LAYOUTS
from pyvmm.backends.share.opening import open_share
from tests.support.p9client import NO_FID, NOTAG, ROOT, WRLCK, Client, P9Error, direct
from tests.support.p9share import refused, shared

__all__ = ["shared"]


# --- Sessions --------------------------------------------------------------------------------------------------------


def test_a_version_is_agreed_on(tmp_path):
    """version(5)"""
    client = Client(direct(open_share(tmp_path)), msize=0)
    assert client.version(8192) == (8192, b"9P2000.L")
    assert client.version(1 << 31) == (server.MSIZE, b"9P2000.L")
    for other in (b"9P2000", b"9P2000.u", b"9P2001.L", b""):
        assert client.version(8192, other)[1] == b"unknown"
        assert refused(client.attach, 5) == errno.EPROTO
    assert refused(client.version, 4095) == errno.EMSGSIZE
    client.version(4096)
    client.attach(5)


def test_another_version_ends_the_session(shared):
    client, _ = shared
    client.create(ROOT, b"file")
    client.version(8192)
    assert refused(client.getattr, ROOT) == errno.EBADF
    client.attach(ROOT)


def test_attaching(shared):
    """attach(5)"""
    client, folder = shared
    assert client.attach(9, 1000, b"/")[0] == 0x80
    assert client.getattr(9)["path"] == os.stat(folder).st_ino
    assert refused(client.attach, 9) == errno.EBADF, "a fid that is there"
    assert refused(client.attach, NO_FID) == errno.EBADF
    assert refused(client.attach, 10, auth=3) == errno.EINVAL
    assert refused(client.call, 102, "dssd", 10, b"", b"", 0) == errno.EOPNOTSUPP, "Tauth"


def test_flushing(shared):
    """flush(5): whatever it names has been answered."""
    client, _ = shared
    assert client.call(108, "w", 77) == b""


def test_walking(shared):
    """walk(5)"""
    client, folder = shared
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/b/file").touch()
    inodes = [os.stat(folder / path).st_ino for path in ("a", "a/b", "a/b/file")]
    assert [path for _, _, path in client.qids(ROOT, b"a", b"b", b"file")] == inodes
    assert len(client.qids(ROOT, b"a", b"missing", b"x")) == 1
    assert refused(client.qids, ROOT, b"missing", b"x") == errno.ENOENT
    assert refused(client.walk, ROOT, b"a", b"x", new=50) == 0
    assert refused(client.getattr, 50) == errno.EBADF, "not all of it: no fid"
    assert refused(client.qids, ROOT, *[b"a"] * 17) == errno.EINVAL
    assert refused(client.walk, 12345) == errno.EBADF
    assert refused(client.walk, ROOT, new=NO_FID) == errno.EBADF
    fid = client.walk(ROOT)
    client.walk(fid, b"a", new=fid)
    assert client.getattr(fid)["path"] == inodes[0]
    assert refused(client.walk, ROOT, new=fid) == errno.EBADF, "in use"
    file = client.opened("a/b/file")
    assert refused(client.walk, file, new=file) == errno.EBADF, "open"
    assert client.getattr(client.walk(file))["path"] == inodes[2]


def test_many_fids(shared, monkeypatch):
    client, folder = shared
    monkeypatch.setattr(fids, "MAX_FIDS", 1000)
    (folder / "file").touch()
    held = []
    while True:
        try:
            held.append(client.at("file"))
        except P9Error as error:
            assert error.errno == errno.EMFILE
            break
    assert len(held) == 999
    client.clunk(held.pop())
    client.at("file")


def test_many_open_files(shared, monkeypatch):
    """A guest gets EMFILE; the VMM, and whoever else needs a descriptor, does not."""
    client, folder = shared
    limit = 2 * tree.BUDGET.taken + 200
    monkeypatch.setattr(tree, "soft_limit", lambda: limit)
    (folder / "file").touch()
    held = []
    while True:
        try:
            held.append(client.opened("file"))
        except P9Error as error:
            assert error.errno == errno.EMFILE
            break
    assert len(held) == 100
    assert refused(client.create, ROOT, b"new") == errno.EMFILE
    assert refused(client.lock, held[0], WRLCK) == errno.EMFILE
    assert refused(client.getlock, held[0], WRLCK) == errno.EMFILE
    assert not (folder / "new").exists()
    client.unlinkat(ROOT, b"file")
    assert client.read(held[0]) == b""
    for fid in held:
        client.clunk(fid)
    client.create(ROOT, b"new")


# --- Bad messages ----------------------------------------------------------------------------------------------------


def number_of(client, message, room=None):
    """The error number that a message is answered by."""
    kind, _, answer = client.raw(message, room)
    assert kind == 7 and len(answer) == 4
    return int.from_bytes(answer, "little")


def works(client):
    assert client.getattr(ROOT)["kind"] == 0x80


def test_sizes_that_are_wrong(shared):
    client, _ = shared
    good = pack("<IBHIQ", 19, 24, 1, ROOT, 0x7FF)
    for size in (0, 1, 6, 20, 1 << 31, 0xFFFFFFFF):
        assert number_of(client, pack("<I", size) + good[4:]) == errno.EINVAL
    for length in range(7):
        assert number_of(client, good[:length]) == errno.EINVAL
    for length in range(7, 19):
        assert number_of(client, pack("<I", length) + good[4:length]) == errno.EINVAL
    big = pack("<IBHIQI", client.msize + 1, 118, 1, ROOT, 0, 10).ljust(client.msize + 1, b"\0")
    assert number_of(client, big) == errno.EMSGSIZE
    assert client.raw(good + b"what comes behind")[0] == 25
    works(client)


def test_types_that_nobody_knows(shared):
    client, _ = shared
    for kind in set(range(256)) - set(LAYOUTS):
        assert number_of(client, pack("<IBH", 7, kind, 5)) == errno.EOPNOTSUPP
    works(client)


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_messages_that_end_too_early_or_ask_for_what_is_not_there(shared, kind):
    """Every prefix, and every field all ones: an error each, or an answer; then the next good message works."""
    client, _ = shared
    if kind == codec.TVERSION:
        return
    for length in range(64):
        for fill in (b"\0", b"\xff", b"\1"):
            answer = client.raw(pack("<IBH", 7 + length, kind, 3) + fill * length)
            assert answer[0] in (7, kind + 1) and answer[1] == 3
        if kind in (codec.TCLUNK, codec.TREMOVE) and length >= 4:
            assert number_of(client, pack("<IBHI", 11, 24, 1, ROOT)) == errno.EINVAL
            client.version(65536)
            client.attach(ROOT)
    client.version(65536)
    client.attach(ROOT)
    works(client)


@pytest.mark.parametrize("kind", sorted(LAYOUTS))
def test_answers_that_do_not_fit_are_not_begun(shared, kind):
    client, folder = shared
    (folder / "file").write_bytes(b"data")
    message = pack("<IBH", 7 + 60, kind, 3) + bytes(60)
    for room in range(11, LAYOUTS[kind].room):
        assert number_of(client, message, room) == errno.EMSGSIZE
    assert os.listdir(folder) == ["file"]
    works(client)


def test_data_fill_what_room_there_is(shared):
    client, folder = shared
    (folder / "file").write_bytes(b"0123456789")
    (folder / "link").symlink_to("x" * 100)
    file, link = client.opened("file"), client.at("link")
    assert client.call(116, "dqd", file, 0, 10, room=15)[4:] == b"0123"
    assert client.call(116, "dqd", file, 0, 0xFFFFFFFF, room=11)[4:] == b""
    assert client.call(116, "dqd", file, 0, 0xFFFFFFFF)[4:] == b"0123456789"
    assert refused(client.call, 22, "d", link, room=108) == errno.EMSGSIZE
    assert client.call(22, "d", link, room=109)[2:] == b"x" * 100
    assert refused(client.call, 110, "ddwss", ROOT, 50, 2, b".", b".", room=9 + 25) == errno.EMSGSIZE
    assert len(client.call(110, "ddwss", ROOT, 50, 2, b".", b".", room=9 + 26)) == 28
    assert refused(client.call, 54, "dbqqds", file, 1, 0, 0, 1, b"g" * 50, room=79) == errno.EMSGSIZE
    client.version(4096)
    client.attach(ROOT)
    (folder / "file").write_bytes(bytes(10000))
    assert len(client.read(client.opened("file"), 0, 10000)) == 4096 - 11, "no answer is longer than agreed on"


def test_writes_that_claim_more_than_they_bring(shared):
    client, folder = shared
    file = client.create(ROOT, b"file")
    for count, data in ((6, b"hello"), (0xFFFFFFFF, b"hello"), (1, b"")):
        assert refused(client.call, 118, "dqd", file, 0, count, tail=data) == errno.EINVAL
    assert refused(client.write, file, b"x", (1 << 63) - 1) == errno.EINVAL
    assert refused(client.write, file, b"x", (1 << 64) - 1) == errno.EINVAL
    assert refused(client.read, file, 1 << 63) == errno.EINVAL
    assert client.call(118, "dqd", file, 0, 2, tail=b"hello") == pack("<I", 2)
    assert (folder / "file").read_bytes() == b"he"
    assert client.write(file, b"") == 0 and client.read(file, 0, 0) == b""


def test_fids_that_are_something_else(shared):
    client, folder = shared
    (folder / "file").touch()
    file, value = client.at("file"), client.xattrwalk(client.at("file"))[0]
    calls = (
        (client.getattr,),
        (client.setattr, 0o600),
        (client.open,),
        (client.readdir,),
        (client.fsync,),
        (client.statfs,),
        (client.readlink,),
        (client.walk,),
        (client.mkdir, b"x"),
        (client.unlinkat, b"file"),
        (client.lock, WRLCK),
        (client.xattrwalk,),
        (client.write, b"x"),
    )
    for fid in (value, 54321):
        for function, *arguments in calls:
            assert refused(function, fid, *arguments) == errno.EBADF, function
    for function, *arguments in ((client.read,), (client.write, b"x"), (client.readdir,), (client.lock, WRLCK)):
        assert refused(function, file, *arguments) == errno.EBADF, "not open"
    assert refused(client.clunk, 54321) == refused(client.remove, 54321) == errno.EBADF
    assert refused(client.remove, value) == errno.EBADF
    assert (folder / "file").exists()


def test_tags_are_given_back_whatever_they_are(shared):
    client, _ = shared
    for tag in (0, 1, 0xFFFE, NOTAG):
        assert client.raw(pack("<IBHIQ", 19, 24, tag, ROOT, 0))[1] == tag
        assert client.raw(pack("<IBHIQ", 19, 24, tag, 999, 0))[1] == tag


@pytest.mark.parametrize("seed", range(8))
def test_noise(tmp_path, seed):
    """Random fields in messages of every type, on a share with a bit of everything; nothing but answers comes of it."""
    (tmp_path / "outside").mkdir()
    folder = tmp_path / "shared"
    (folder / "a/b").mkdir(parents=True)
    (folder / "a/file").write_bytes(b"data")
    (folder / "link").symlink_to("../outside")
    share = open_share(folder)
    client = Client(direct(share))
    draw = random.Random(seed)
    names = (b"a", b"b", b"file", b"link", b"new", b"..", b"", b"user.x", b"x" * 300, b"a/b", b"\0", b"guest")

    def field(letter):
        if letter == "s":
            text = draw.choice(names)
            return pack("<H", len(text) + draw.choice((0,) * 30 + (1, 9, 60000))) + text
        number = draw.choice((0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0o644, 0o40755, 4096, 1 << 31, (1 << 64) - 1, 1 << 63))
        width = {"b": 1, "w": 2, "d": 4, "q": 8}[letter]
        return (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")

    fields = {
        kind: layout
        for line in (
            "8:d 12:dd 14:dsddd 16:dssd 18:dsdddd 20:dds 22:d 24:dq 26:dddddqqqqq 30:dds 32:dsqd 40:dqd 50:dd",
            "52:dbdqqds 54:dbqqds 70:dds 72:dsdd 74:dsds 76:dsd 104:ddssd 108:w",
            "110:ddwsss 116:dqd 118:dqds 120:d 122:d",
        )
        for kind, layout in ((int(entry.split(":")[0]), entry.split(":")[1]) for entry in line.split())
    }
    assert set(fields) == set(LAYOUTS) - {codec.TVERSION}
    answered = set()
    for _ in range(3000):
        kind = draw.choice(list(fields))
        body = b"".join(map(field, fields[kind]))
        answer = client.raw(pack("<IBH", 7 + len(body), kind, 1) + body, draw.choice((11, 24, 200, 65536, 65536)))
        assert answer[0] in (7, kind + 1)
        answered.add(answer[0])
        if ROOT not in share._operations.fids._fids:
            client.attach(ROOT)
    assert len(answered) > 12 and os.listdir(tmp_path / "outside") == []
    client.version(8192)
    client.attach(ROOT)
    works(client)
    share.close()
