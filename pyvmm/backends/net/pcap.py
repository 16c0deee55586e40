"""A capture around any network: every frame, each way, to a file that Wireshark and tcpdump read.

Imports errors. The format is that of draft-ietf-opsawg-pcap: a header of 24 bytes, then records, each a header of 16
bytes and a frame.
"""

from __future__ import annotations

import os
import struct
import time

from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.backends.net import Frames

MAGIC = 0xA1B2C3D4
"""Time stamps count microseconds."""
SNAPLEN = 262144
"""Bytes of a frame that are kept at most: more than any has."""
LINKTYPE_ETHERNET = 1
VNET_HEADER = 12
"""Bytes of virtio_net_hdr before a frame, which are not captured."""
_FILE = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")


class Capture:
    """`backend`, with its frames written to `path`, a file that is emptied first, or a pipe.

    Each frame is written at once, so that a reader sees it; who reads a pipe slowly slows the network down.
    `report(text)` is told if the file can no longer be written; the network goes on. Raises BackendError if it cannot
    be made; `backend` is then still the caller's to close.
    """

    def __init__(
        self, backend: Frames, path: str | os.PathLike[str], *, report: Callable[[str], None] | None = None
    ) -> None:
        self.path = os.fspath(path)
        self.vnet_header = backend.vnet_header
        self._backend = backend
        self._skip = VNET_HEADER if backend.vnet_header else 0
        self._report = report
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BackendError(f"capture {self.path}: {error.strerror}") from None
        self._length = 0  # of what is whole in the file
        self._write((_FILE.pack(MAGIC, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET),))

    def fileno(self) -> int:
        """The network's descriptor."""
        return self._backend.fileno()

    def offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """The network's."""
        self._backend.offloads(checksum, tso4, tso6, ecn)

    def receive(self) -> memoryview | None:
        """The next frame, or None; captured."""
        frame = self._backend.receive()
        if frame is not None:
            self._record(frame)
        return frame

    def send(self, frame: memoryview) -> bool:
        """Send a frame; captured when the network has taken it."""
        taken = self._backend.send(frame)
        if taken:
            self._record(frame)
        return taken

    def close(self) -> None:
        """Close the network and the file; a second call does nothing."""
        self._backend.close()
        self._end()

    def _record(self, frame: memoryview) -> None:
        if self._fd >= 0:
            data = frame[self._skip :]
            seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
            header = _RECORD.pack(seconds & 0xFFFFFFFF, nanoseconds // 1000, len(data), len(data))
            self._write((header, data))

    def _write(self, parts: tuple[bytes | memoryview, ...]) -> None:
        data = b"".join(parts)
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            if done:
                self._cut()
            self._end()
            if self._report is not None:
                self._report(f"capture {self.path} ends here: {error.strerror}")
            return
        self._length += len(data)

    def _cut(self) -> None:
        """Take away the part of a record that was written: readers stumble over it."""
        try:
            os.ftruncate(self._fd, self._length)
        except OSError:
            pass  # a pipe

    def _end(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
