"""What the fids of a client stand for.

Imports its neighbours codec, locks, tree and xattrs.
"""

from __future__ import annotations

import errno

from pyvmm.backends.share import codec, xattrs
from pyvmm.backends.share.codec import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.backends.share.files import Handle
    from pyvmm.backends.share.locks import Locks
    from pyvmm.backends.share.tree import Node, Tree
    from pyvmm.backends.share.xattrs import Xattr

MAX_FIDS = 1 << 18
"""Fids of a client at most. Linux has one for every file that it has cached the name of."""


class Fid:
    """What a number of the client's stands for.

    node    a place, held
    user    the guest's user who attached, or NO_ID
    handle  it is open, or None
    xattr   it is the value of an extended attribute, or None
    """

    __slots__ = ("handle", "node", "user", "xattr")

    def __init__(self, node: Node, user: int) -> None:
        self.node = node
        self.user = user
        self.handle: Handle | None = None
        self.xattr: Xattr | None = None


class Fids:
    """The fids of one client, by their numbers. Whatever is wrong with one is Refused."""

    def __init__(self, tree: Tree, locks: Locks) -> None:
        self._tree = tree
        self._locks = locks
        self._fids: dict[int, Fid] = {}
        self._values = 0  # fids that are values

    def __len__(self) -> int:
        return len(self._fids)

    def get(self, number: int) -> Fid:
        """EBADF if the client has not made it."""
        fid = self._fids.get(number)
        if fid is None:
            raise Refused(errno.EBADF)
        return fid

    def place(self, number: int) -> Fid:
        """A fid that stands for a place, which the value of an attribute does not."""
        fid = self.get(number)
        if fid.xattr is not None:
            raise Refused(errno.EBADF)
        return fid

    def closed(self, number: int) -> Fid:
        """A fid that stands for a place and is not open."""
        fid = self.place(number)
        if fid.handle is not None:
            raise Refused(errno.EBADF)
        return fid

    def open(self, number: int) -> tuple[Fid, Handle]:
        """A fid that is open, and its open file."""
        fid = self.place(number)
        if fid.handle is None:
            raise Refused(errno.EBADF)
        return fid, fid.handle

    def check_new(self, number: int) -> None:
        """Whether the client may make a fid of that number: EBADF if it has one, EMFILE if it has too many."""
        if number in self._fids or number == codec.NO_FID:
            raise Refused(errno.EBADF)
        if len(self._fids) >= MAX_FIDS:
            raise Refused(errno.EMFILE)

    def add(self, number: int, fid: Fid) -> None:
        """The client has made `fid`."""
        self._fids[number] = fid

    def take(self, number: int) -> Fid:
        """The client has clunked it: what it stood for, to be let go of."""
        fid = self.get(number)
        del self._fids[number]
        return fid

    def let_go(self, fid: Fid) -> None:
        """Give up its place, open file and locks."""
        if fid.xattr is not None:
            self._values -= 1
        self._tree.release(fid.node)
        if fid.handle is not None:
            self._locks.closed(fid.handle)
            fid.handle.close()  # which may be when a file system says that it could not write

    def stand_for(self, fid: Fid, node: Node) -> None:
        """`fid` stands for `node`, which is held for it, from now on."""
        old, fid.node = fid.node, node
        self._tree.release(old)

    def clear(self) -> None:
        """Let go of all of them. Values that were to be set are not."""
        while self._fids:
            try:
                self.let_go(self._fids.popitem()[1])
            except OSError:  # nobody is there to be told
                pass

    def become_value(self, fid: Fid, value: Callable[[], Xattr]) -> Xattr:
        """`fid` stands for what `value()` makes from now on; returns that. EMFILE if too many fids are values."""
        if self._values >= xattrs.AT_ONCE:
            raise Refused(errno.EMFILE)
        fid.xattr = value()
        self._values += 1
        return fid.xattr
