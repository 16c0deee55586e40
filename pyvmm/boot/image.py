"""Opening the files that a VM is booted from, and reading them straight into guest memory.

Imports errors. A kernel or initrd is a regular file: whatever else a path may lead to is named and refused before it
is opened, because opening a FIFO waits for its writer and opening some devices has effects.
"""

from __future__ import annotations

import os
import stat

from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

HEAD_LENGTH = 32768
"""As far into a file as a header may lie that tells what it is (multiboot 2, section 3.1, reaches farthest)."""

_KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a FIFO"),
    (stat.S_ISCHR, "is a character device"),
    (stat.S_ISBLK, "is a block device"),
    (stat.S_ISSOCK, "is a socket"),
)


class Image:
    """A file open for reading. A context manager; closing it twice does nothing.

    `size` is its length in bytes, `head` its first HEAD_LENGTH bytes or less. Raises LoadError, with path and
    problem in one line, for a file that is missing, not regular, not readable, or empty.
    """

    __slots__ = ("path", "fd", "size", "head")

    def __init__(self, path: str) -> None:
        self.path = path
        self.fd = -1
        try:
            self._judge(os.stat(path))
            # Nothing said that the path still leads to the same file: O_NONBLOCK, and judge what was opened.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            status = os.fstat(self.fd)
            self._judge(status)
            self.size = status.st_size
            self.head = self.read(0, min(self.size, HEAD_LENGTH))
        except OSError as error:
            self.close()
            raise LoadError(path, f"cannot be opened: {error.strerror}", expected="a readable file") from error
        except ValueError as error:  # a NUL in the path, or a LoadError of our own
            self.close()
            if isinstance(error, LoadError):
                raise
            raise LoadError(repr(path), "is not a path", expected="a name without NUL") from error

    def _judge(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            kind = next((text for test, text in _KINDS if test(status.st_mode)), "is no file")
            raise LoadError(self.path, kind, expected="a regular file")
        if status.st_size == 0:
            raise LoadError(self.path, "is empty", expected="a kernel or an initrd")

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`. Raises LoadError where the file ends before."""
        data = bytearray(length)
        with memoryview(data) as view:
            self.read_into(view, offset)
        return bytes(data)

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset`; no copy is made. Raises LoadError where the file ends."""
        done, length = 0, target.nbytes
        while done < length:
            with target[done:] as rest:
                try:
                    count = os.preadv(self.fd, [rest], offset + done)
                except OSError as error:
                    problem = f"cannot be read: {error.strerror}"
                    raise LoadError(self.path, problem, offset=offset + done) from error
            if count == 0:
                raise LoadError(self.path, "ends", offset=offset + done, expected=f"{length} bytes from {offset:#x}")
            done += count

    def close(self) -> None:
        """Close the file."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class BufferImage(Image):
    """The same over bytes that are in memory already. `path` is what errors call them."""

    __slots__ = ("_data",)

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        self.fd = -1
        self.size = len(data)
        self.head = data[:HEAD_LENGTH]
        self._data = data

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset`. Raises LoadError where they end."""
        length = target.nbytes
        if offset + length > self.size:
            raise LoadError(self.path, "ends", offset=self.size, expected=f"{length} bytes from {offset:#x}")
        with memoryview(self._data) as data:
            target[:] = data[offset : offset + length]
