"""The places of a shared directory that fids stand for, and the descriptors behind them.

Imports its neighbour codec. A place (`Node`) is a name in another place, up to the root; there is one for each name
that a client has walked to and not let go of. Behind it is a descriptor (O_PATH: it opens nothing) of the file that was
found there. Many more places can be held than descriptors: those used longest ago are closed and found again by their
names, and what is then found must be the same file. A file that the server itself removes or replaces keeps its
descriptor, so whoever still holds its place can go on using it.

Nothing here asks the kernel for more than one name, follows a link, or asks it for "..": see `descriptor()`.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from threading import Lock

from pyvmm.backends.share.codec import QID, QT_DIR, QT_FILE, QT_SYMLINK, Refused

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
CACHE = 512
"""Descriptors of places that one share keeps open at most; fewer where the process may have few."""
_SPREAD = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: multiples of it lie far apart (Knuth, The Art of Computer Programming, 6.4)."""


class Budget:
    """Descriptors that all shares of the process may hold for clients, beside their caches: half of what it may have.

    The other half is for the rest of the VMM, which a guest that opens file after file must not starve.
    """

    def __init__(self) -> None:
        self.taken = 0
        self._lock = Lock()

    def take(self) -> None:
        """One more. Raises OSError (EMFILE)."""
        with self._lock:
            if self.taken >= soft_limit() // 2:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self.taken += 1

    def give(self) -> None:
        """One fewer."""
        with self._lock:
            self.taken -= 1


def soft_limit() -> int:
    """How many descriptors the process may have (getrlimit(2)); a great many count as a million."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit < 0 else min(limit, 1 << 20)


BUDGET = Budget()


def link(fd: int) -> bytes:
    """A path that leads to the file behind `fd` itself, whatever it is (proc(5), /proc/pid/fd)."""
    return b"/proc/self/fd/%d" % fd


def mount_id(fd: int) -> int:
    """Which mount `fd` lies in (proc(5), /proc/pid/fdinfo). Raises OSError."""
    info = os.open(b"/proc/self/fdinfo/%d" % fd, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(info, 1024)
    finally:
        os.close(info)
    return int(text.partition(b"mnt_id:")[2].split(b"\n", 1)[0])


class Node:
    """One place.

    parent, name    where it is; the root has no parent
    attached        whether the server knows of nothing else in that place by now
    key             device, inode number and type of its file
    mount           whether something is mounted there: it is an empty directory then
    fd              its descriptor, or -1
    users           fids that stand for it, and places in it
    children        places in it, by name, or None
    """

    __slots__ = ("attached", "children", "fd", "key", "mount", "name", "parent", "users")

    def __init__(self, parent: Node | None, name: bytes, key: tuple[int, int, int], mount: bool = False) -> None:
        self.parent = parent
        self.name = name
        self.attached = True
        self.key = key
        self.mount = mount
        self.fd = -1
        self.users = 0
        self.children: dict[bytes, Node] | None = None

    @property
    def kind(self) -> int:
        """The file's type: S_IFDIR, ..."""
        return self.key[2]

    @property
    def is_directory(self) -> bool:
        return self.key[2] == stat.S_IFDIR

    def child(self, name: bytes) -> Node | None:
        """The place `name` in it, if somebody holds that."""
        return None if self.children is None else self.children.get(name)


def key_of(status: os.stat_result) -> tuple[int, int, int]:
    """What tells one file from another."""
    return status.st_dev, status.st_ino, stat.S_IFMT(status.st_mode)


class Tree:
    """All places below the directory behind `fd`, which is the tree's from now on. One thread at a time."""

    def __init__(self, fd: int) -> None:
        """Raises OSError, without /proc for one."""
        status = os.fstat(fd)
        self._mount = mount_id(fd)
        self._devices = {status.st_dev: 0}
        self._cached: dict[Node, None] = {}  # the one used last is at the end
        self._limit = max(8, min(CACHE, soft_limit() // 16))
        self.root = Node(None, b"", key_of(status))
        self.root.fd = fd
        self.root.users = 1
        self._path()

    def close(self) -> None:
        """Close the root's descriptor. Every place has been let go of."""
        fd, self.root.fd = self.root.fd, -1
        if fd >= 0:
            os.close(fd)

    # --- Places -------------------------------------------------------------------------------------------------------

    def walk(self, node: Node, name: bytes) -> tuple[Node, bytes]:
        """The place `name` in `node`, held for the caller, and the qid of what is there. Raises OSError or Refused.

        ".." is the place it was walked to from: where the directory is on the host by now does not matter.
        """
        if not node.is_directory:
            raise Refused(errno.ENOTDIR)
        if name in (b".", b".."):
            found = (node.parent or self.root) if name == b".." else node
            return self.hold(found), self.qid_of(found)
        if not name or b"/" in name or b"\0" in name or node.mount:
            raise Refused(errno.ENOENT)
        base = self.descriptor(node)
        child = node.child(name)
        if child is not None:
            status = os.stat(name, dir_fd=base, follow_symlinks=False)
            if key_of(status) == child.key:
                return self.hold(child), self.qid(status)
            self.forget(child)
        fd = os.open(name, PATH_FLAGS, dir_fd=base)
        try:
            status = os.fstat(fd)
            key = key_of(status)
            mount = mount_id(fd) != self._mount
            if mount and key[2] != stat.S_IFDIR:
                raise Refused(errno.EXDEV)
        except BaseException:
            os.close(fd)
            raise
        child = self.add(node, name, key, mount)
        if mount:
            os.close(fd)
            return child, self.qid_of(child)
        self._keep(child, fd)
        return child, self.qid(status)

    def add(self, parent: Node, name: bytes, key: tuple[int, int, int], mount: bool = False) -> Node:
        """A new place, held for the caller. Nobody holds one of that name."""
        child = Node(self.hold(parent), name, key, mount)
        if parent.children is None:
            parent.children = {}
        parent.children[name] = child
        return self.hold(child)

    def hold(self, node: Node) -> Node:
        """One more user of `node`; returns it."""
        node.users += 1
        return node

    def release(self, node: Node) -> None:
        """One user fewer; without any, the place is forgotten, and so on towards the root."""
        at: Node | None = node
        while at is not None:
            at.users -= 1
            if at.users or at is self.root:
                return
            self._close(at)
            self._detach(at)
            at = at.parent

    def forget(self, node: Node) -> None:
        """Something else is in the place of `node`, or nothing. Its descriptor stays open as long as it has users."""
        self._detach(node)
        if self._cached.pop(node, node) is None:  # it was there
            try:
                BUDGET.take()
            except OSError:
                os.close(node.fd)
                node.fd = -1

    def move(self, node: Node, parent: Node, name: bytes) -> None:
        """`node` has been renamed."""
        at: Node | None = parent
        while at is not None:
            if at is node:  # only if others have moved directories meanwhile: never into itself
                self.forget(node)
                return
            at = at.parent
        self._detach(node)
        old = node.parent
        assert old is not None
        node.attached, node.parent, node.name = True, self.hold(parent), name
        if parent.children is None:
            parent.children = {}
        parent.children[name] = node
        self.release(old)

    def _detach(self, node: Node) -> None:
        if node.attached and node.parent is not None:
            assert node.parent.children is not None
            del node.parent.children[node.name]
            node.attached = False

    # --- Descriptors --------------------------------------------------------------------------------------------------

    def descriptor(self, node: Node) -> int:
        """The descriptor of `node`'s file, which lies in the shared directory; good until four others are asked for.

        Raises OSError if it cannot be found, Refused: ESTALE if another file is in its place or somebody has moved it
        out of the share, EROFS for a mount point. Where it is, the kernel is asked (readlink(2) of /proc/self/fd): a
        process that renames directories at the same time can do so just before or after, as with any other program's
        working directory, but no name leads anywhere but down from a directory that was inside.
        """
        if node is self.root:
            return node.fd
        if node.mount:
            raise Refused(errno.EROFS)
        if node.fd < 0:
            self._keep(node, self._find(node))
        elif node.attached:
            del self._cached[node]
            self._cached[node] = None
        self.check_inside(node.fd)
        return node.fd

    def check_inside(self, fd: int) -> None:
        """Raises Refused (ESTALE) if the file behind `fd` is no longer below the root."""
        if not os.readlink(link(fd)).startswith(self._path()):
            raise Refused(errno.ESTALE)

    def _path(self) -> bytes:
        """Where the shared directory is now, and a slash."""
        path = os.readlink(link(self.root.fd))
        return path if path == b"/" else path + b"/"

    def _find(self, node: Node) -> int:
        """Open `node`'s file by the names that lead to it."""
        names: list[Node] = []
        at = node
        while at.fd < 0:
            if not at.attached or at.parent is None:
                raise Refused(errno.ESTALE)
            names.append(at)
            at = at.parent
        fd, own = at.fd, False
        for child in reversed(names):
            try:
                found = os.open(child.name, PATH_FLAGS, dir_fd=fd)
            finally:
                if own:
                    os.close(fd)
            fd, own = found, True
            if key_of(os.fstat(fd)) != child.key:
                os.close(fd)
                raise Refused(errno.ESTALE)
        return fd

    def _keep(self, node: Node, fd: int) -> None:
        node.fd = fd
        self._cached[node] = None
        if len(self._cached) > self._limit:
            oldest = next(iter(self._cached))
            del self._cached[oldest]
            os.close(oldest.fd)
            oldest.fd = -1

    def pin(self, node: Node | None) -> None:
        """`node` may be removed or replaced in a moment: have its descriptor, if it can still be had."""
        if node is not None and node is not self.root and not node.mount and node.fd < 0:
            try:
                self._keep(node, self._find(node))
            except (OSError, Refused):
                pass

    def _close(self, node: Node) -> None:
        if self._cached.pop(node, node) is not None and node.fd >= 0:
            BUDGET.give()
        fd, node.fd = node.fd, -1
        if fd >= 0:
            os.close(fd)

    # --- Identities ---------------------------------------------------------------------------------------------------

    def qid(self, status: os.stat_result) -> bytes:
        """intro(5): what a client tells files by, 13 bytes. The version changes with the time of the last change."""
        mode = status.st_mode
        kind = QT_DIR if stat.S_ISDIR(mode) else QT_SYMLINK if stat.S_ISLNK(mode) else QT_FILE
        changed = status.st_mtime_ns
        version = (changed ^ changed >> 32 ^ status.st_size << 8) & 0xFFFFFFFF or 1  # 0 is: not to be cached
        return QID.pack(kind, version, self.path_of(status.st_dev, status.st_ino))

    def qid_of(self, node: Node) -> bytes:
        """The qid of what is in the place `node`. Raises OSError or Refused."""
        if node.mount:
            return QID.pack(QT_DIR, 1, self.path_of(node.key[0], node.key[1]))
        return self.qid(os.fstat(self.descriptor(node)))

    def path_of(self, device: int, inode: int) -> int:
        """A number for a file that no other one has: its inode number, moved far away on any device but the root's."""
        number = self._devices.setdefault(device, len(self._devices))
        return (inode + number * _SPREAD) & 0xFFFFFFFFFFFFFFFF
