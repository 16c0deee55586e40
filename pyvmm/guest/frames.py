"""The frames of the port org.pyvmm.exec.0: commands with their streams, several at a time. Imports nothing.

A frame is a header and `length` bytes: kind, stream (0 stdin, 1 stdout, 2 stderr), number of the process, length.

    HELLO    both ways; up to 16 bytes that come back, and behind them the agent's version. All processes of before are
             killed and forgotten
    START    to the guest: head (terminal or not, rows, columns, 0, arguments, variables), then folder, user,
             arguments and variables, a NUL behind each
    STARTED  its process ID; or FAILED: errno and what could not be done
    DATA     bytes of a stream; none is its end. From the guest on stream 0: nobody reads it any more
    CREDIT   so many bytes more of a stream may be sent. Each begins with INPUT_CREDIT or OUTPUT_CREDIT
    SIGNAL   to the process and its group
    SIZE     of its terminal: rows, columns
    EXITED   exit status and signal; of its streams there may be more to come
    CLOSE    kill what is left of it and forget it
    MOUNT    to the guest, of no process: flags of mount(2), then what, where, type and options, a NUL behind each. The
             folder is made; without a type that is all
    ROOT     to the guest: what is mounted at this path, a NUL behind it, becomes the root of the agent and all commands
    DONE     errno, or 0: the answer to these two, by the number that they had

Numbers are little-endian. Nobody sends more than the other side has said that it has room for, so a port never
stands still for one stream that is not read.
"""

from __future__ import annotations

from struct import Struct

HELLO, START, STARTED, FAILED, DATA, CREDIT, SIGNAL, SIZE, EXITED, CLOSE, MOUNT, ROOT, DONE = range(13)
HEADER = Struct("<BBHI")
START_HEAD = Struct("<HHHHII")
NUMBER = Struct("<I")
TERMINAL_SIZE = Struct("<HH")
ENDING = Struct("<II")
LONGEST = 128 << 10
"""Bytes behind a header."""
WORDS = 4096
"""Arguments and variables of a command, together."""
INPUT_CREDIT = 32 << 10
OUTPUT_CREDIT = 64 << 10
PIECE = 16 << 10
"""Bytes of input in one frame."""


def frame(kind: int, process: int = 0, data: bytes = b"", stream: int = 0) -> bytes:
    """One frame."""
    return HEADER.pack(kind, stream, process, len(data)) + data


class Frames:
    """Cuts what comes into frames. Raises ValueError for one that is too long."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """The frames that are whole now: kind, process, stream, data."""
        self._data += data
        found, at = [], 0
        while len(self._data) - at >= HEADER.size:
            kind, stream, process, length = HEADER.unpack_from(self._data, at)
            if length > LONGEST:
                raise ValueError(f"a frame of {length} bytes")
            end = at + HEADER.size + length
            if end > len(self._data):
                break
            found.append((kind, process, stream, bytes(self._data[at + HEADER.size : end])))
            at = end
        del self._data[:at]
        return found
