"""Lines over a socket, none longer than both sides have agreed on, and its end. Imports nothing of pyvmm."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

LINE_LIMIT = 64 << 10
"""Bytes of a line at most, its end included."""


class LineTooLongError(Exception):
    """LINE_LIMIT bytes have come without an end of line."""


class Lines:
    """The lines that come over `connection`, read as they are asked for."""

    def __init__(self, connection: _socket.socket) -> None:
        self._connection = connection
        self._waiting = bytearray()

    def rest(self) -> bytes:
        """What has come behind the last line."""
        found = bytes(self._waiting)
        self._waiting.clear()
        return found

    def next(self) -> bytes | None:
        """The next line without its end, or None at the end. Raises LineTooLongError, OSError, TimeoutError."""
        start = 0
        while (at := self._waiting.find(b"\n", start)) < 0:
            start = len(self._waiting)
            if start >= LINE_LIMIT:
                raise LineTooLongError
            data = self._connection.recv(min(4096, LINE_LIMIT - start))
            if not data:
                return None
            self._waiting += data
        line = bytes(self._waiting[:at])
        del self._waiting[: at + 1]
        return line


def hang_up(connection: _socket.socket) -> None:
    """End what goes on over `connection`, both ways and from any thread: who waits for it sees its end. Never waits."""
    from _socket import SHUT_RDWR

    try:
        connection.shutdown(SHUT_RDWR)
    except OSError:
        pass  # it has gone
