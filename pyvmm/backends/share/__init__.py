"""A directory of the host's as the guest's file system: a server of 9P2000.L, without a transport.

Its parts import only one another and errors. `opening.open_share` makes one; a device hands it message after message.

    codec     messages: their numbers and layouts
    tree      which place of the directory a fid stands for, and the descriptors behind that
    ids       owners and modes: as they are on the host, or as an unprivileged user can keep them
    files     what is done to one file: open, attributes, names made and removed
    listing   the entries of a directory, at offsets that stay
    locks     byte-range locks that the host's processes see
    xattrs    extended attributes, read and written piece by piece
    server    sessions, fids, and which message does what

What holds everywhere:

- Nothing outside the directory is reached. The server never follows a symbolic link (clients do), and never asks the
  kernel for more than one name below a descriptor that it holds; `..` is where the fid came from, and the root's is the
  root. A directory that somebody moves out of the share is refused from then on (ESTALE), whoever held it.
- What is mounted on a directory inside the share is not shared: such a place is an empty directory that cannot be
  changed, for a guest to mount something of its own on. The file system's own subdivisions (subvolumes, snapshots) are.
- FIFOs, sockets and device nodes are shown and can be made and removed, but never opened: what they mean is the
  guest's to say.
- The server acts with the rights of the process it is in, whoever asks: which user of the guest may do what is decided
  in the guest, by owners and modes. Whoever runs a VM as root lets the guest's root do in the directory all that root
  can, set-user-ID programs and device nodes included.

After "9P2000.L" (diod, protocol.md), the manual of 9P2000 (intro(5) to write(5)), and include/net/9p/9p.h of Linux.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from typing_extensions import Buffer

    class Exchange(Protocol):
        """One message of a client's, and the room for the answer, wherever they lie.

        The bytes may change while they are looked at: what is judged is read, once.
        """

        @property
        def length(self) -> int:
            """Bytes of the message, header included."""

        @property
        def room(self) -> int:
            """Bytes that an answer may have."""

        def read(self, offset: int, length: int) -> bytes:
            """A copy of up to `length` bytes of the message; fewer at its end."""

        def given(self, offset: int, length: int) -> Sequence[memoryview]:
            """Those bytes themselves, to be read only."""

        def space(self, offset: int, length: int) -> Sequence[memoryview]:
            """The room itself, to be filled."""

        def write(self, data: Buffer, offset: int = 0) -> int:
            """Fill the room from `offset` on; returns how many bytes there was room for."""
