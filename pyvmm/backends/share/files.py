"""What is done to one file of a share: opened, described, changed; names made, moved and removed.

Imports its neighbours. Everything raises OSError, or Refused, with what the client is told. Nothing is opened by a
name: a place's descriptor is, and only if it is a file or a directory, so nothing opened can be another kind of file
(opening a FIFO waits, and devices are the host's). After every making of a name its owner and mode are set exactly,
whatever the process's umask is.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from pyvmm.backends.share import codec
from pyvmm.backends.share.codec import NO_ID, Refused
from pyvmm.backends.share.ids import PERMISSIONS, SET_IDS
from pyvmm.backends.share.tree import BUDGET, key_of, link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.backends.share.ids import Passthrough
    from pyvmm.backends.share.listing import Listing
    from pyvmm.backends.share.locks import Owner
    from pyvmm.backends.share.tree import Node, Tree

OFFSET_MAX = (1 << 63) - 1
NSEC = 1_000_000_000
_KEPT = codec.TRUNC | codec.APPEND | codec.DSYNC | codec.SYNC
"""Open flags that are passed on. Others say what the client does itself, or cannot mean anything here (O_DIRECT)."""
_ALWAYS = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OPENED = (stat.S_IFREG, stat.S_IFDIR)


class Handle:
    """An open file: `fd`, or -1 for the empty directory of a mount point.

    writable    whether it was opened to be written to
    guarded     whether a write by this user takes set-user-ID and set-group-ID off (write(2), on a local file system)
    listing     what has been read of it, if it is a directory
    owners      processes of the guest that have locked parts of it by this handle
    """

    __slots__ = ("fd", "guarded", "listing", "owners", "writable")

    def __init__(self, fd: int, writable: bool, guarded: bool = False) -> None:
        self.fd = fd
        self.writable = writable
        self.guarded = guarded
        self.listing: Listing | None = None
        self.owners: list[Owner] = []

    def close(self) -> None:
        """Locks have been given up already. A second call does nothing."""
        if self.listing is not None:
            self.listing.close()
            self.listing = None
        fd, self.fd = self.fd, -1
        if fd >= 0:
            BUDGET.give()
            os.close(fd)


class Files:
    """The files of `tree`, whose owners and modes are as `ids` has them."""

    def __init__(self, tree: Tree, ids: Passthrough, readonly: bool) -> None:
        self._tree = tree
        self._ids = ids
        self._readonly = readonly

    # --- Open files ---------------------------------------------------------------------------------------------------

    def open(self, node: Node, flags: int, user: int) -> Handle:
        """Open what is in the place `node`."""
        access = flags & codec.ACCESS
        writes = access != codec.RDONLY or bool(flags & codec.TRUNC)
        if access == codec.ACCESS:
            raise Refused(errno.EINVAL)
        if node.kind not in _OPENED:
            raise Refused(errno.ELOOP if node.kind == stat.S_IFLNK else errno.ENXIO)
        if node.is_directory and writes:
            raise Refused(errno.EISDIR)
        if flags & codec.DIRECTORY and not node.is_directory:
            raise Refused(errno.ENOTDIR)
        if writes and self._readonly:
            raise Refused(errno.EROFS)
        if node.mount:
            return Handle(-1, False)
        fd = self._tree.descriptor(node)
        BUDGET.take()
        try:
            opened = os.open(link(fd), access | flags & _KEPT | _ALWAYS)
        except BaseException:
            BUDGET.give()
            raise
        guarded = False
        if writes and user not in (0, NO_ID):
            guarded = bool(self._ids.seen(opened, os.fstat(opened))[2] & SET_IDS)
        return Handle(opened, access != codec.RDONLY, guarded)

    def create(self, parent: Node, name: bytes, flags: int, mode: int, user: int, group: int) -> tuple[Node, Handle]:
        """Make the file `name` and open it; without EXCL, open the one that is there. The place is held."""
        access = flags & codec.ACCESS
        if access == codec.ACCESS:
            raise Refused(errno.EINVAL)
        base = self._base(parent)
        wanted = access | flags & _KEPT | _ALWAYS | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        BUDGET.take()
        try:
            fd = os.open(name, wanted, mode & 0o777, dir_fd=base)
        except BaseException as error:
            BUDGET.give()
            if isinstance(error, FileExistsError) and not flags & codec.EXCL:
                return self._open_existing(parent, name, flags, user)
            raise
        try:
            self._ids.made(fd, user, group, mode)
            stale = parent.child(name)
            if stale is not None:
                self._tree.forget(stale)
            return self._tree.add(parent, name, key_of(os.fstat(fd))), Handle(fd, access != codec.RDONLY)
        except BaseException:
            os.close(fd)
            BUDGET.give()
            os.unlink(name, dir_fd=base)
            raise

    def _open_existing(self, parent: Node, name: bytes, flags: int, user: int) -> tuple[Node, Handle]:
        node, _ = self._tree.walk(parent, name)
        try:
            return node, self.open(node, flags, user)
        except BaseException:
            self._tree.release(node)
            raise

    def unguard(self, handle: Handle) -> None:
        """A user who is not root writes to a file that was set-user-ID when it was opened."""
        handle.guarded = False
        mode = self._ids.seen(handle.fd, os.fstat(handle.fd))[2]
        if mode & stat.S_ISUID or (mode & stat.S_ISGID and mode & stat.S_IXGRP):
            self._ids.chmod(handle.fd, mode & ~(SET_IDS if mode & stat.S_IXGRP else stat.S_ISUID))

    # --- Attributes ---------------------------------------------------------------------------------------------------

    def fd(self, node: Node, handle: Handle | None = None) -> int:
        """A descriptor of a place or an open file, to ask or change something by."""
        return handle.fd if handle is not None and handle.fd >= 0 else self._tree.descriptor(node)

    def attributes(self, node: Node, handle: Handle | None, mask: int) -> bytes:
        """The fields of Rgetattr."""
        if node.mount:
            qid = self._tree.qid_of(node)
            return codec.GETATTR.pack(
                mask & codec.STATS_BASIC, qid, stat.S_IFDIR | 0o555, 0, 0, 2, 0, 0, 4096, *([0] * 11)
            )
        fd = self.fd(node, handle)
        status = os.fstat(fd)
        uid, gid, mode = self._ids.seen(fd, status)
        times = [
            part & 0xFFFFFFFFFFFFFFFF
            for moment in (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
            for part in divmod(moment, NSEC)
        ]
        return codec.GETATTR.pack(
            mask & codec.STATS_BASIC,
            self._tree.qid(status),
            *(mode, uid, gid, status.st_nlink, status.st_rdev),
            *(status.st_size, status.st_blksize, status.st_blocks),
            *times,
            *(0, 0, 0, 0),  # time of birth, generation, data version: not among STATS_BASIC
        )

    def set_attributes(
        self, node: Node, handle: Handle | None, valid: int, mode: int, uid: int, gid: int, size: int, times: list[int]
    ) -> None:
        """Set those that `valid` (ATTR_*) names; `times` are seconds and nanoseconds of atime and of mtime."""
        fd = self.fd(node, handle)
        if valid & codec.ATTR_SIZE:
            if node.kind != stat.S_IFREG:
                raise Refused(errno.EISDIR if node.is_directory else errno.EINVAL)
            if size > OFFSET_MAX:
                raise Refused(errno.EINVAL)
            if handle is not None and handle.writable:
                os.ftruncate(handle.fd, size)
            else:
                os.truncate(link(fd), size)
        if valid & (codec.ATTR_UID | codec.ATTR_GID):
            self._ids.chown(fd, uid if valid & codec.ATTR_UID else NO_ID, gid if valid & codec.ATTR_GID else NO_ID)
        if valid & codec.ATTR_MODE:
            self._ids.chmod(fd, mode)
        if valid & (codec.ATTR_ATIME | codec.ATTR_MTIME):
            self._set_times(fd, valid, times)

    def _set_times(self, fd: int, valid: int, times: list[int]) -> None:
        if valid & 0x1B0 == codec.ATTR_ATIME | codec.ATTR_MTIME:
            os.utime(link(fd))  # both to now, which those may do who may write
            return
        status, now = os.fstat(fd), time.time_ns()
        new = []
        for at, (which, given, old) in enumerate(
            (
                (codec.ATTR_ATIME, codec.ATTR_ATIME_SET, status.st_atime_ns),
                (codec.ATTR_MTIME, codec.ATTR_MTIME_SET, status.st_mtime_ns),
            )
        ):
            seconds, nanoseconds = times[2 * at : 2 * at + 2]
            if valid & which and valid & given:
                if nanoseconds >= NSEC:
                    raise Refused(errno.EINVAL)
                new.append((seconds - ((seconds >> 63) << 64)) * NSEC + nanoseconds)
            else:
                new.append(now if valid & which else old)
        os.utime(link(fd), ns=(new[0], new[1]))

    # --- Names --------------------------------------------------------------------------------------------------------

    def _base(self, parent: Node) -> int:
        if not parent.is_directory:
            raise Refused(errno.ENOTDIR)
        return self._tree.descriptor(parent)

    def make_directory(self, parent: Node, name: bytes, mode: int, user: int, group: int) -> bytes:
        """mkdir(2); returns its qid."""
        base = self._base(parent)
        os.mkdir(name, mode & 0o777, dir_fd=base)
        return self._made(parent, name, user, group, mode)

    def make_link(self, parent: Node, name: bytes, target: bytes, user: int, group: int) -> bytes:
        """symlink(2); returns its qid."""
        if b"\0" in target:
            raise Refused(errno.EINVAL)
        os.symlink(target, name, dir_fd=self._base(parent))
        return self._made(parent, name, user, group, 0)

    def make_node(self, parent: Node, name: bytes, mode: int, device: int, user: int, group: int) -> bytes:
        """mknod(2); returns its qid. `device` only says what is made: nothing on the host is opened by it."""
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            raise Refused(errno.EINVAL)
        os.mknod(name, kind | mode & 0o777, device, dir_fd=self._base(parent))
        return self._made(parent, name, user, group, mode)

    def _made(self, parent: Node, name: bytes, user: int, group: int, mode: int) -> bytes:
        node, _ = self._tree.walk(parent, name)
        try:
            fd = self._tree.descriptor(node)
            self._ids.made(fd, user, group, mode & PERMISSIONS)
            return self._tree.qid(os.fstat(fd))
        except BaseException:
            self.remove(parent, name, node.is_directory)
            raise
        finally:
            self._tree.release(node)

    def link(self, parent: Node, name: bytes, node: Node) -> None:
        """link(2): another name for `node`'s file."""
        if node.is_directory:
            raise Refused(errno.EPERM)
        fd, base = self._tree.descriptor(node), self._base(parent)
        os.link(link(fd), name, dst_dir_fd=base, follow_symlinks=True)  # as far as the file itself: see link()

    def remove(self, parent: Node, name: bytes, directory: bool) -> None:
        """unlink(2), or rmdir(2) if a `directory` is meant."""
        base, child = self._base(parent), parent.child(name)
        self._tree.pin(child)
        if directory:
            os.rmdir(name, dir_fd=base)
        else:
            os.unlink(name, dir_fd=base)
        if child is not None:
            self._tree.forget(child)

    def rename(self, old: Node, old_name: bytes, new: Node, new_name: bytes) -> None:
        """rename(2)."""
        source, target = self._base(old), self._base(new)
        moved, replaced = old.child(old_name), new.child(new_name)
        self._tree.pin(replaced)
        os.rename(old_name, new_name, src_dir_fd=source, dst_dir_fd=target)
        if moved is replaced and moved is not None:
            return
        if replaced is not None:
            self._tree.forget(replaced)
        if moved is not None:
            self._tree.move(moved, new, new_name)

    def check_place(self, node: Node) -> Node:
        """Returns the place that `node` is in. Raises Refused: EBUSY for the root, ENOENT if it is no longer there."""
        if node.parent is None:
            raise Refused(errno.EBUSY)
        status = os.stat(node.name, dir_fd=self._base(node.parent), follow_symlinks=False)
        if not node.attached or key_of(status) != node.key:
            raise Refused(errno.ENOENT)
        return node.parent
