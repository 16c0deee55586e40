"""A client of 9P2000.L for tests: messages made and taken apart by hand, over anything that carries them.

It can do all that a good client does; `raw()` sends whatever bytes there are.
"""

from __future__ import annotations

from struct import calcsize, pack, unpack_from

NO_FID = NO_ID = 0xFFFFFFFF
NOTAG = 0xFFFF
ROOT = 0
RDONLY, WRONLY, RDWR, EXCL, TRUNC, APPEND = 0, 1, 2, 0o200, 0o1000, 0o2000
RDLCK, WRLCK, UNLCK = 0, 1, 2
SUCCESS, BLOCKED = 0, 1
ATTRIBUTES = (
    *("valid", "kind", "version", "path", "mode", "uid", "gid", "nlink", "rdev", "size", "blksize", "blocks"),
    *("atime", "atime_ns", "mtime", "mtime_ns", "ctime", "ctime_ns", "btime", "btime_ns", "gen", "data_version"),
)
SET = {"mode": 1, "uid": 2, "gid": 4, "size": 8, "atime": 16, "mtime": 32, "ctime": 64}


class P9Error(Exception):
    """Rlerror, with its number."""

    def __init__(self, number):
        super().__init__(number)
        self.errno = number


class Piece:
    """A message and the room for its answer, in one piece each (`pyvmm.backends.share.Exchange`)."""

    def __init__(self, message, room):
        self.message = memoryview(bytes(message))
        self.answer = memoryview(bytearray(b"\xa5" * room))
        self.length, self.room = len(message), room

    def read(self, offset, length):
        return bytes(self.message[offset : offset + length])

    def given(self, offset, length):
        return [piece] if len(piece := self.message[offset : offset + length]) else []

    def space(self, offset, length):
        return [piece] if len(piece := self.answer[offset : offset + length]) else []

    def write(self, data, offset=0):
        piece = self.answer[offset : offset + len(data)]
        piece[:] = data[: len(piece)]
        return len(piece)


def direct(share):
    """Carries messages to a server without any device."""

    def carry(message, room):
        exchange = Piece(message, room)
        written = share.serve(exchange)
        assert written <= room and bytes(exchange.answer[written:]) == b"\xa5" * (room - written)
        return bytes(exchange.answer[:written])

    return carry


def by_ring(driver, *, pieces=1, indirect=False):
    """Carries messages through a virtqueue, cut into so many buffers each way."""

    def cut(length):
        step = -(-length // pieces) or 1
        return [min(step, length - at) for at in range(0, length, step)]

    def carry(message, room):
        readable, at = [], 0
        for length in cut(len(message)):
            readable.append(message[at : at + length])
            at += length
        written, answer = driver.request(0, readable, cut(room), indirect)
        assert answer[written:] == b"\xa5" * (len(answer) - written)
        return answer[:written]

    return carry


class Client:
    """`carry(message, room)` returns the answer. With `msize`, a session is begun and ROOT attached by `user`."""

    def __init__(self, carry, *, msize=65536, user=0):
        self.carry = carry
        self.room = 65536
        self.next = 1
        if msize:
            self.msize, version = self.version(msize)
            assert version == b"9P2000.L"
            self.attach(ROOT, user)

    def raw(self, message, room=None):
        """The answer to `message` as it stands: (type, tag, fields)."""
        answer = self.carry(message, self.room if room is None else room)
        if not answer:
            return None
        size, kind, tag = unpack_from("<IBH", answer)
        assert size == len(answer) >= 7
        return kind, tag, answer[7:]

    def call(self, kind, layout="", *fields, tag=1, room=None, tail=b""):
        """The fields of the answer to a good message. `s` in the layout is a string. Raises P9Error."""
        body, fields = b"", list(fields)
        for letter in layout:
            value = fields.pop(0)
            if letter == "s":
                body += pack("<H", len(value)) + value
            else:
                body += pack("<" + {"b": "B", "w": "H", "d": "I", "q": "Q"}[letter], value)
        body += tail
        answered, echoed, answer = self.raw(pack("<IBH", 7 + len(body), kind, tag) + body, room)
        assert echoed == tag
        if answered == 7:
            raise P9Error(*unpack_from("<I", answer))
        assert answered == kind + 1
        return answer

    def new(self):
        self.next += 1
        return self.next

    # --- Sessions and places ------------------------------------------------------------------------------------------

    def version(self, msize, version=b"9P2000.L"):
        answer = self.call(100, "ds", msize, version, tag=NOTAG)
        return unpack_from("<I", answer)[0], answer[6:]

    def attach(self, fid, user=0, tree=b"", auth=NO_FID):
        return self.call(104, "ddssd", fid, auth, b"", tree, user)

    def walk(self, fid, *names, new=None):
        """A new fid for the place that `names` lead to from `fid`. All of them, or P9Error(0)."""
        new = self.new() if new is None else new
        answer = self.call(110, "ddw" + "s" * len(names), fid, new, len(names), *names)
        if unpack_from("<H", answer)[0] != len(names):
            raise P9Error(0)
        return new

    def qids(self, fid, *names):
        """The qids on the way, as far as it goes."""
        answer = self.call(110, "ddw" + "s" * len(names), fid, self.new(), len(names), *names)
        return [unpack_from("<BIQ", answer, 2 + 13 * at) for at in range(*unpack_from("<H", answer))]

    def at(self, path):
        """A new fid for a path from the root, like "a/b"."""
        return self.walk(ROOT, *(name.encode() for name in path.split("/") if name))

    def clunk(self, fid):
        self.call(120, "d", fid)

    def remove(self, fid):
        self.call(122, "d", fid)

    # --- Open files ---------------------------------------------------------------------------------------------------

    def open(self, fid, flags=RDONLY):
        self.call(12, "dd", fid, flags)
        return fid

    def opened(self, path, flags=RDONLY):
        return self.open(self.at(path), flags)

    def create(self, directory, name, flags=RDWR, mode=0o644, gid=0):
        """A new fid for a new file, open."""
        fid = self.walk(directory)
        try:
            self.call(14, "dsddd", fid, name, flags, mode, gid)
        except P9Error:
            self.clunk(fid)
            raise
        return fid

    def read(self, fid, offset=0, count=4096):
        answer = self.call(116, "dqd", fid, offset, count)
        assert unpack_from("<I", answer)[0] == len(answer) - 4 <= count
        return answer[4:]

    def write(self, fid, data, offset=0):
        return unpack_from("<I", self.call(118, "dqd", fid, offset, len(data), tail=data))[0]

    def readdir(self, fid, offset=0, count=4096):
        """(name, type, offset of the next, inode number) each."""
        answer = self.call(40, "dqd", fid, offset, count)
        assert unpack_from("<I", answer)[0] == len(answer) - 4 <= count
        found, at = [], 4
        while at < len(answer):
            _, _, path, following, kind, length = unpack_from("<BIQQBH", answer, at)
            at += calcsize("<BIQQBH") + length
            found.append((answer[at - length : at], kind, following, path))
        return found

    def names(self, fid, count=4096):
        """All names in an open directory, but for . and .."""
        found, offset = [], 0
        while entries := self.readdir(fid, offset, count):
            found += [name for name, *_ in entries]
            offset = entries[-1][2]
        assert found[:2] == [b".", b".."]
        return found[2:]

    def list(self, path):
        fid = self.opened(path)
        names = self.names(fid)
        self.clunk(fid)
        return names

    def fsync(self, fid, data_only=0):
        self.call(50, "dd", fid, data_only)

    def lock(self, fid, kind, start=0, length=0, process=1, client=b"guest", flags=0):
        return self.call(52, "dbdqqds", fid, kind, flags, start, length, process, client)[0]

    def getlock(self, fid, kind, start=0, length=0, process=1, client=b"guest"):
        answer = self.call(54, "dbqqds", fid, kind, start, length, process, client)
        assert answer[21:] == pack("<H", len(client)) + client
        return unpack_from("<BQQI", answer)

    # --- Attributes and names -----------------------------------------------------------------------------------------

    def getattr(self, fid, mask=0x7FF):
        return dict(
            zip(ATTRIBUTES, unpack_from("<QBIQIIIQQQQQQQQQQQQQQQ", self.call(24, "dq", fid, mask)), strict=True)
        )

    def setattr(self, fid, mode=0, uid=0, gid=0, size=0, atime=(0, 0), mtime=(0, 0), valid=None):
        if valid is None:
            given = {"mode": mode, "uid": uid, "gid": gid, "size": size}
            valid = sum(SET[name] for name, value in given.items() if value)
        self.call(26, "dddddqqqqq", fid, valid, mode, uid, gid, size, *atime, *mtime)

    def statfs(self, fid):
        return unpack_from("<IIQQQQQQI", self.call(8, "d", fid))

    def readlink(self, fid):
        return self.call(22, "d", fid)[2:]

    def xattrwalk(self, fid, name=b""):
        """(fid of the value, its size)."""
        new = self.new()
        return new, unpack_from("<Q", self.call(30, "dds", fid, new, name))[0]

    def getxattr(self, fid, name=b""):
        value, size = self.xattrwalk(fid, name)
        found = self.read(value, 0, size)
        self.clunk(value)
        assert len(found) == size
        return found

    def setxattr(self, fid, name, value, flags=0):
        clone = self.walk(fid)
        try:
            self.call(32, "dsqd", clone, name, len(value), flags)
        except P9Error:
            self.clunk(clone)
            raise
        if value:
            assert self.write(clone, value) == len(value)
        self.clunk(clone)

    def mkdir(self, fid, name, mode=0o755, gid=0):
        return self.call(72, "dsdd", fid, name, mode, gid)

    def symlink(self, fid, name, target, gid=0):
        return self.call(16, "dssd", fid, name, target, gid)

    def mknod(self, fid, name, mode, major=0, minor=0, gid=0):
        return self.call(18, "dsdddd", fid, name, mode, major, minor, gid)

    def link(self, directory, fid, name):
        self.call(70, "dds", directory, fid, name)

    def rename(self, fid, directory, name):
        self.call(20, "dds", fid, directory, name)

    def renameat(self, old, old_name, new, new_name):
        self.call(74, "dsds", old, old_name, new, new_name)

    def unlinkat(self, fid, name, flags=0):
        self.call(76, "dsd", fid, name, flags)
