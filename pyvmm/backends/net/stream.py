"""Frames over a stream socket, each behind its length in 4 bytes, big-endian: what passt, QEMU and our switch speak.

Imports its package and errors.
"""

from __future__ import annotations

from pyvmm.backends.net import MAX_FRAME, MIN_FRAME
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

PREFIX = 4
"""Bytes of the length before a frame."""
BUFFER = 256 << 10
"""Bytes that are read ahead at most; several frames come with one system call."""


class FrameStream:
    """Both ends of it are alike. `socket` is non-blocking from now on and stays the caller's to close."""

    __slots__ = ("_buffer", "_end", "_sent", "_start", "_view", "socket")

    def __init__(self, socket: socket.socket) -> None:
        socket.setblocking(False)
        self.socket = socket
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0  # of what was read and not handed out
        self._sent = 0  # bytes of the frame in hand, prefix included, that have been sent

    def receive(self) -> memoryview | None:
        """The next frame, valid until the next call; None if it has not come yet.

        Raises BackendError: the other side has gone, or says a length that no frame has.
        """
        while True:
            start, waiting = self._start, self._end - self._start
            if waiting >= PREFIX:
                length = int.from_bytes(self._buffer[start : start + PREFIX], "big")
                if not MIN_FRAME <= length <= MAX_FRAME:
                    raise BackendError(f"a frame of {length} bytes (expected {MIN_FRAME} to {MAX_FRAME})")
                if waiting >= PREFIX + length:
                    self._start = start + PREFIX + length
                    return self._view[start + PREFIX : self._start]
            if not self._read():
                return None

    def _read(self) -> bool:
        """Read ahead; False if there is nothing to be read."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start > BUFFER // 2:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        try:
            count = self.socket.recv_into(self._view[self._end :])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise BackendError(f"the other side has gone: {error.strerror}") from None
        if not count:
            raise BackendError("the other side has gone")
        self._end += count
        return True

    def send(self, frame: memoryview) -> bool:
        """Send a frame; False if a part, or all of it, did not fit: the same frame must then be offered again.

        Raises BackendError: the other side has gone.
        """
        total = PREFIX + len(frame)
        try:
            while self._sent < total:
                if self._sent < PREFIX:
                    prefix = len(frame).to_bytes(PREFIX, "big")[self._sent :]
                    self._sent += self.socket.sendmsg((prefix, frame))
                else:
                    self._sent += self.socket.send(frame[self._sent - PREFIX :])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise BackendError(f"the other side has gone: {error.strerror}") from None
        self._sent = 0
        return True
