"""What each message of 9P2000.L does, once it has been taken apart.

Imports its neighbours. A method has the name of its message and takes its fields; it returns those of the answer, or
how many bytes of data it has put where those of Rread belong. What it raises, OSError or Refused, is what is answered.
"""

from __future__ import annotations

import errno
import os

from pyvmm.backends.share import codec, xattrs
from pyvmm.backends.share.codec import HEADER, LAYOUTS, U32, Refused
from pyvmm.backends.share.fids import Fid, Fids
from pyvmm.backends.share.files import OFFSET_MAX, Files
from pyvmm.backends.share.listing import Listing, Room
from pyvmm.backends.share.locks import Locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.backends.share import Exchange
    from pyvmm.backends.share.ids import Passthrough
    from pyvmm.backends.share.tree import Tree


class Operations:
    """The messages of one client.

    fids      what its fids stand for
    exchange  the message in hand; set by whoever calls
    msize     bytes that a message or an answer may have, 0 without a session; set by whoever calls
    """

    def __init__(self, tree: Tree, ids: Passthrough, readonly: bool) -> None:
        self.exchange: Exchange | None = None
        self.msize = 0
        self._tree = tree
        self._ids = ids
        self._readonly = readonly
        self._files = Files(tree, ids, readonly)
        self._locks = Locks(not readonly)
        self.fids = Fids(tree, self._locks)
        self._entries = Room()

    def _room(self, offset: int, count: int) -> int:
        """How many of `count` bytes an answer may carry from `offset` on."""
        assert self.exchange is not None
        return max(0, min(count, min(self.msize, self.exchange.room) - offset))

    # --- Sessions: attach(5), flush(5) --------------------------------------------------------------------------------

    def attach(self, number: int, auth: int, name: bytes, tree: bytes, user: int) -> bytes:
        """The root, for the guest's user `user`. There is one tree, and nobody has to prove anything."""
        if auth != codec.NO_FID:
            raise Refused(errno.EINVAL)
        if tree not in (b"", b"/"):
            raise Refused(errno.ENOENT)
        self.fids.check_new(number)
        root = self._tree.root
        qid = self._tree.qid_of(root)
        self.fids.add(number, Fid(self._tree.hold(root), user))
        return qid

    def flush(self, tag: int) -> bytes:
        """Whatever had that tag has been answered."""
        return b""

    # --- Places: walk(5), clunk(5) ------------------------------------------------------------------------------------

    def walk(self, number: int, new: int, count: int, message: bytes, at: int) -> bytes:
        if count > codec.MAX_WALK:
            raise Refused(errno.EINVAL)
        names = codec.strings(message, at, count)
        fid = self.fids.closed(number) if new == number else self.fids.place(number)
        if new != number:
            self.fids.check_new(new)
        if self._room(HEADER.size + 2, codec.QID.size * count) < codec.QID.size * count:
            raise Refused(errno.EMSGSIZE)
        qids: list[bytes] = []
        node = self._tree.hold(fid.node)
        try:
            for name in names:
                found, qid = self._tree.walk(node, name)
                self._tree.release(node)
                node = found
                qids.append(qid)
        except (OSError, Refused):
            self._tree.release(node)
            if not qids:
                raise
            return codec.U16.pack(len(qids)) + b"".join(qids)  # as far as it went; `new` stands for nothing
        if new == number:
            self.fids.stand_for(fid, node)
        else:
            self.fids.add(new, Fid(node, fid.user))
        return codec.U16.pack(count) + b"".join(qids)

    def clunk(self, number: int) -> bytes:
        fid = self.fids.take(number)
        try:
            if fid.xattr is not None and fid.xattr.name:
                fid.xattr.set(self._tree.descriptor(fid.node))
        finally:
            self.fids.let_go(fid)
        return b""

    def remove(self, number: int) -> bytes:
        fid = self.fids.get(number)
        try:
            if self._readonly:
                raise Refused(errno.EROFS)
            parent = self._files.check_place(self.fids.place(number).node)
            self._files.remove(parent, fid.node.name, fid.node.is_directory)
        finally:
            self.fids.let_go(self.fids.take(number))
        return b""

    # --- Open files: open(5), read(5), and diod's protocol.md for lopen, lcreate, readdir, fsync, lock, getlock -------

    def lopen(self, number: int, flags: int) -> bytes:
        fid = self.fids.closed(number)
        handle = fid.handle = self._files.open(fid.node, flags, fid.user)
        qid = self._tree.qid_of(fid.node) if handle.fd < 0 else self._tree.qid(os.fstat(handle.fd))
        return qid + U32.pack(0)  # iounit: whatever a message holds

    def lcreate(self, number: int, name: bytes, flags: int, mode: int, group: int) -> bytes:
        fid = self.fids.closed(number)
        node, handle = self._files.create(fid.node, codec.name(name), flags, mode, fid.user, group)
        self.fids.stand_for(fid, node)
        fid.handle = handle
        return self._tree.qid(os.fstat(handle.fd)) + U32.pack(0)

    def read(self, number: int, offset: int, count: int) -> bytes | int:
        fid = self.fids.get(number)
        count = self._room(codec.DATA_OFFSET, count)
        if fid.xattr is not None:
            data = bytes(fid.xattr.value[offset : offset + count])
            return U32.pack(len(data)) + data
        _, handle = self.fids.open(number)
        if offset > OFFSET_MAX - count:
            raise Refused(errno.EINVAL)
        if fid.node.is_directory:
            raise Refused(errno.EISDIR)
        assert self.exchange is not None
        return os.preadv(handle.fd, self.exchange.space(codec.DATA_OFFSET, count), offset)

    def write(self, number: int, offset: int, count: int, length: int) -> bytes:
        fid = self.fids.get(number)
        assert self.exchange is not None
        if count > length or offset > OFFSET_MAX - count:
            raise Refused(errno.EINVAL)
        if fid.xattr is not None:
            return U32.pack(fid.xattr.write(offset, self.exchange.read(codec.WRITE_OFFSET, count)))
        _, handle = self.fids.open(number)
        if not handle.writable:
            raise Refused(errno.EBADF)
        if handle.guarded:
            self._files.unguard(handle)
        return U32.pack(os.pwritev(handle.fd, self.exchange.given(codec.WRITE_OFFSET, count), offset))

    def readdir(self, number: int, offset: int, count: int) -> bytes:
        fid, handle = self.fids.open(number)
        node = fid.node
        if not node.is_directory:
            raise Refused(errno.ENOTDIR)
        if handle.fd >= 0 and node is not self._tree.root:
            self._tree.check_inside(handle.fd)
        if handle.listing is None or offset == 0:
            if handle.listing is not None:
                handle.listing.close()
                handle.listing = None
            device, path_of = node.key[0], self._tree.path_of
            above = (node.parent or node).key
            first = [codec.QID.pack(codec.QT_DIR, 1, path_of(key[0], key[1])) for key in (node.key, above)]
            handle.listing = Listing(
                handle.fd, (first[0], first[1]), lambda inode: path_of(device, inode), self._entries
            )
        data = handle.listing.read(offset, self._room(codec.DATA_OFFSET, count))
        return U32.pack(len(data)) + data

    def fsync(self, number: int, data_only: int) -> bytes:
        _, handle = self.fids.open(number)
        if handle.fd >= 0:
            (os.fdatasync if data_only else os.fsync)(handle.fd)
        return b""

    def lock(self, number: int, kind: int, flags: int, start: int, length: int, process: int, client: bytes) -> bytes:
        _, handle = self.fids.open(number)
        if handle.fd < 0:
            raise Refused(errno.EBADF)
        return bytes((self._locks.lock(handle, kind, start, length, process, client),))

    def getlock(self, number: int, kind: int, start: int, length: int, process: int, client: bytes) -> bytes:
        _, handle = self.fids.open(number)
        size = LAYOUTS[codec.TGETLOCK].room + len(client)
        if handle.fd < 0 or self._room(0, size) < size:
            raise Refused(errno.EBADF if handle.fd < 0 else errno.EMSGSIZE)
        kind, start, length, process = self._locks.test(handle, kind, start, length, process, client)
        return codec.GETLOCK.pack(kind, start, length, process) + codec.packed(client)

    # --- Attributes: diod's protocol.md -------------------------------------------------------------------------------

    def getattr(self, number: int, mask: int) -> bytes:
        fid = self.fids.place(number)
        return self._files.attributes(fid.node, fid.handle, mask)

    def setattr(self, number: int, valid: int, mode: int, uid: int, gid: int, size: int, *times: int) -> bytes:
        fid = self.fids.place(number)
        self._files.set_attributes(fid.node, fid.handle, valid, mode, uid, gid, size, list(times))
        return b""

    def statfs(self, number: int) -> bytes:
        node = self.fids.place(number).node
        found = os.statvfs(self._tree.root.fd if node.mount else self._tree.descriptor(node))
        return codec.STATFS.pack(
            codec.STATFS_TYPE,
            found.f_frsize,
            *(found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree),
            found.f_fsid & 0xFFFFFFFFFFFFFFFF,
            found.f_namemax,
        )

    def readlink(self, number: int) -> bytes:
        target = os.readlink(b"", dir_fd=self._tree.descriptor(self.fids.place(number).node))
        if self._room(HEADER.size + 2, len(target)) < len(target):
            raise Refused(errno.EMSGSIZE)
        return codec.packed(target)

    def xattrwalk(self, number: int, new: int, name: bytes) -> bytes:
        fid = self.fids.place(number)
        if new != number:
            self.fids.check_new(new)
        elif fid.handle is not None:
            raise Refused(errno.EBADF)
        fd = self._files.fd(fid.node, fid.handle)
        value = Fid(fid.node, fid.user) if new != number else fid
        found = self.fids.become_value(value, lambda: xattrs.read(fd, name, self._ids.hidden))
        if value is not fid:
            self._tree.hold(fid.node)
            self.fids.add(new, value)
        return codec.U64.pack(len(found.value))

    def xattrcreate(self, number: int, name: bytes, size: int, flags: int) -> bytes:
        fid = self.fids.closed(number)
        self.fids.become_value(fid, lambda: xattrs.create(name, size, flags, self._ids.hidden))
        return b""

    # --- Names: diod's protocol.md ------------------------------------------------------------------------------------

    def mkdir(self, number: int, name: bytes, mode: int, group: int) -> bytes:
        fid = self.fids.place(number)
        return self._files.make_directory(fid.node, codec.name(name), mode, fid.user, group)

    def symlink(self, number: int, name: bytes, target: bytes, group: int) -> bytes:
        fid = self.fids.place(number)
        return self._files.make_link(fid.node, codec.name(name), target, fid.user, group)

    def mknod(self, number: int, name: bytes, mode: int, major: int, minor: int, group: int) -> bytes:
        fid = self.fids.place(number)
        if major > 0xFFF or minor > 0xFFFFF:
            raise Refused(errno.EINVAL)
        return self._files.make_node(fid.node, codec.name(name), mode, os.makedev(major, minor), fid.user, group)

    def link(self, directory: int, number: int, name: bytes) -> bytes:
        self._files.link(self.fids.place(directory).node, codec.name(name), self.fids.place(number).node)
        return b""

    def rename(self, number: int, directory: int, name: bytes) -> bytes:
        node = self.fids.place(number).node
        parent = self._files.check_place(node)
        self._files.rename(parent, node.name, self.fids.place(directory).node, codec.name(name))
        return b""

    def renameat(self, old: int, old_name: bytes, new: int, new_name: bytes) -> bytes:
        source, target = self.fids.place(old).node, self.fids.place(new).node
        self._files.rename(source, codec.name(old_name), target, codec.name(new_name))
        return b""

    def unlinkat(self, number: int, name: bytes, flags: int) -> bytes:
        if flags & ~codec.AT_REMOVEDIR:
            raise Refused(errno.EINVAL)
        self._files.remove(self.fids.place(number).node, codec.name(name), bool(flags))
        return b""
