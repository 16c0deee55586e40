"""The console written to a file: output only.

May import its neighbours base and sink. The file is opened without waiting (open(2), O_NONBLOCK): a FIFO that nobody
reads is an error and not a hang.
"""

from __future__ import annotations

import os

from pyvmm.backends.base import StreamConsole
from pyvmm.backends.sink import OutputSink
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.backends import Link


class FileConsole(StreamConsole):
    """The guest's output in the file `path`, which is made or emptied. `failure` is the errno that ended it, or 0."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = os.fspath(path)
        self._fd = -1
        self._link: Link | None = None

    def start(self, link: Link) -> None:
        """Open the file. Raises BackendError, which names it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._fd = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise BackendError(f"{self.what}: cannot write {self.path}: {error.strerror}") from None
        self._link = link
        self._sink = OutputSink(self._fd, hold=link.hold, release=link.release, broken=self._broken)

    def close(self) -> None:
        """Close the file."""
        super().close()
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _broken(self, errno: int) -> None:
        self.failure = errno
        assert self._link is not None
        self._link.broken(errno)
