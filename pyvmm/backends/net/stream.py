"""Frames over a stream socket, each behind its length in 4 bytes, big-endian: what passt, QEMU and our switch speak.

Imports its package and errors.
"""

from __future__ import annotations

from pyvmm.backends.net import MAX_FRAME, MIN_FRAME, fail_as_c_did
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

PREFIX = 4
"""Bytes of the length before a frame."""
BUFFER = 256 << 10
"""Bytes that are read ahead at most; several frames come with one system call."""


class FrameStream:
    """Both ends of it are alike. `socket` is non-blocking from now on and stays the caller's to close.

    The other attributes are for C, see `pyvmm.backends.net.Direct`.
    """

    __slots__ = ("_view", "buffer", "end", "failure", "sent", "socket", "start", "stream")

    def __init__(self, socket: socket.socket) -> None:
        socket.setblocking(False)
        self.socket = socket
        self.stream = True
        self.buffer = bytearray(BUFFER)
        self._view = memoryview(self.buffer)
        self.start = self.end = 0  # of what was read and not handed out
        self.sent = 0  # bytes of the frame in hand, prefix included, that have been sent
        self.failure = 0

    def fileno(self) -> int:
        """The socket's descriptor, or -1 once it is closed."""
        return self.socket.fileno()

    def receive(self) -> memoryview | None:
        """The next frame, valid until the next call; None if it has not come yet.

        Raises BackendError: the other side has gone, or says a length that no frame has.
        """
        while True:
            start, waiting = self.start, self.end - self.start
            if waiting >= PREFIX:
                length = int.from_bytes(self.buffer[start : start + PREFIX], "big")
                if not MIN_FRAME <= length <= MAX_FRAME:
                    raise BackendError(f"a frame of {length} bytes (expected {MIN_FRAME} to {MAX_FRAME})")
                if waiting >= PREFIX + length:
                    self.start = start + PREFIX + length
                    return self._view[start + PREFIX : self.start]
            if not self._read():
                return None

    def _read(self) -> bool:
        """Read ahead; False if there is nothing to be read."""
        if self.start == self.end:
            self.start = self.end = 0
        elif self.start > BUFFER // 2:
            left = self.end - self.start
            self.buffer[:left] = self.buffer[self.start : self.end]
            self.start, self.end = 0, left
        try:
            fail_as_c_did(self)
            count = self.socket.recv_into(self._view[self.end :])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise BackendError(f"the other side has gone: {error.strerror}") from None
        if not count:
            raise BackendError("the other side has gone")
        self.end += count
        return True

    def send(self, frame: memoryview) -> bool:
        """Send a frame; False if a part, or all of it, did not fit: the same frame must then be offered again.

        Raises BackendError: the other side has gone.
        """
        total = PREFIX + len(frame)
        try:
            fail_as_c_did(self)
            while self.sent < total:
                if self.sent < PREFIX:
                    prefix = len(frame).to_bytes(PREFIX, "big")[self.sent :]
                    self.sent += self.socket.sendmsg((prefix, frame))
                else:
                    self.sent += self.socket.send(frame[self.sent - PREFIX :])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise BackendError(f"the other side has gone: {error.strerror}") from None
        self.sent = 0
        return True
