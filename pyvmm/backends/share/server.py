"""A server of 9P2000.L for one directory and one client: sessions, and messages taken apart and answered.

Imports its neighbours. One message after the other: each is taken apart, judged, done and answered, or refused by
Rlerror with a Linux error number, before the next is looked at; so there is never anything to flush. Whatever a client
sends, it gets an answer, if it has left room for one, and the next good message works.
"""

from __future__ import annotations

import errno
import os

from pyvmm.backends.share import codec
from pyvmm.backends.share.codec import HEADER, LAYOUTS, U32, Refused
from pyvmm.backends.share.operations import Operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.backends.share import Exchange
    from pyvmm.backends.share.ids import Passthrough
    from pyvmm.backends.share.tree import Tree

MSIZE, MIN_MSIZE = 512 << 10, 4096
"""Bytes of a message, at most and at least: Linux's virtio client asks for 500 KiB at most, and not for less than 4."""

_CHANGES = frozenset(
    (
        *(codec.TLCREATE, codec.TSYMLINK, codec.TMKNOD, codec.TRENAME, codec.TSETATTR, codec.TXATTRCREATE),
        *(codec.TLINK, codec.TMKDIR, codec.TRENAMEAT, codec.TUNLINKAT),
    )
)
"""What a read-only share does not do (nor Tremove, which lets go of its fid all the same)."""
_REPORTED = frozenset((errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM))
"""Errors that say something of the host rather than of what was asked for."""


class Share:
    """The directory `path`, whose places are those of `tree`, with owners as `ids` has them; made by `open_share`.

    One thread at a time, and one client: who begins another session (Tversion) has ended the last one.
    """

    def __init__(self, path: str, tree: Tree, ids: Passthrough, *, readonly: bool) -> None:
        self.path = path
        self.readonly = readonly
        self.report: Callable[[str], None] | None = None
        """Told of each kind of error that the host gives the guest, once: disk full and the like."""
        self._reported: set[int] = set()
        self._tree = tree
        self._operations = Operations(tree, ids, readonly)
        self._handlers: dict[int, Callable[..., bytes | int]] = {
            kind: self._version if kind == codec.TVERSION else getattr(self._operations, layout.name)
            for kind, layout in LAYOUTS.items()
        }

    @property
    def in_session(self) -> bool:
        """Whether a client has begun a session, which ends with its connection or its files."""
        return bool(self._operations.msize and len(self._operations.fids))

    def reset(self) -> None:
        """End the session: every fid is let go of, and no value that was being written is set."""
        self._operations.msize = 0
        self._operations.fids.clear()

    def close(self) -> None:
        """End the session and let go of the directory; a second call does nothing."""
        self.reset()
        self._tree.close()

    # --- Messages -----------------------------------------------------------------------------------------------------

    def serve(self, exchange: Exchange) -> int:
        """Answer the message in `exchange`; returns the bytes of the answer, 0 if there is no room for any."""
        if exchange.room < codec.ERROR_SIZE:
            return 0
        message = exchange.read(0, min(exchange.length, codec.WRITE_OFFSET))
        if len(message) < HEADER.size:
            return self._error(exchange, codec.NO_FID & 0xFFFF, errno.EINVAL)
        size, kind, tag = HEADER.unpack_from(message)
        operations = self._operations
        operations.exchange = exchange
        try:
            answer = self._do(exchange, message, size, kind)
        except Refused as refused:
            return self._error(exchange, tag, refused.errno)
        except OSError as error:
            self._tell(error)
            return self._error(exchange, tag, error.errno or errno.EIO)
        finally:
            operations.exchange = None
        placed = 0
        if isinstance(answer, int):
            placed, answer = answer, U32.pack(answer)
        exchange.write(HEADER.pack(HEADER.size + len(answer) + placed, kind + 1, tag) + answer)
        return HEADER.size + len(answer) + placed

    def _do(self, exchange: Exchange, message: bytes, size: int, kind: int) -> bytes | int:
        """The fields of the answer, or how many bytes of data have been put where those of Rread belong."""
        layout = LAYOUTS.get(kind)
        if layout is None:
            raise Refused(errno.EOPNOTSUPP)
        if not HEADER.size <= size <= exchange.length:
            raise Refused(errno.EINVAL)
        msize = self._operations.msize
        if size > (msize or MIN_MSIZE) or exchange.room < layout.room:
            raise Refused(errno.EMSGSIZE)
        if not msize and kind != codec.TVERSION:
            raise Refused(errno.EPROTO)
        if self.readonly and kind in _CHANGES:
            raise Refused(errno.EROFS)
        handler = self._handlers[kind]
        if kind == codec.TWRITE:  # whose data are not copied
            return handler(*layout.decode(message[:size]), size - codec.WRITE_OFFSET)
        message = message[:size] if size <= len(message) else exchange.read(0, size)
        if kind == codec.TWALK:
            fields, end = layout.decode_from(message)
            return handler(*fields, message, end)
        return handler(*layout.decode(message))

    def _error(self, exchange: Exchange, tag: int, number: int) -> int:
        return exchange.write(HEADER.pack(codec.ERROR_SIZE, codec.RLERROR, tag) + U32.pack(number))

    def _tell(self, error: OSError) -> None:
        number = error.errno or errno.EIO
        if self.report is not None and number in _REPORTED and number not in self._reported:
            self._reported.add(number)
            self.report(f"share {self.path}: {os.strerror(number)}; the guest gets that error")

    def _version(self, msize: int, version: bytes) -> bytes:
        """version(5): another session begins, the last one has ended."""
        self.reset()
        msize = min(msize, MSIZE)
        if version != codec.VERSION:
            return U32.pack(msize) + codec.packed(codec.UNKNOWN)
        if msize < MIN_MSIZE:
            raise Refused(errno.EMSGSIZE)
        self._operations.msize = msize
        return U32.pack(msize) + codec.packed(version)
