"""An answer of any length: what follows the answer's line on the connection, up to its end. Imports lines."""

from __future__ import annotations

from pyvmm.control.lines import hang_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

PATIENCE = 10.0
"""Seconds that a client may take for what it is sent next."""


class Told:
    """Sends `data` to `client` and hangs up. A client that does not read is hung up on."""

    def __init__(self, data: bytes, client: _socket.socket) -> None:
        self._data = data
        self._client = client

    def run(self, early: bytes = b"") -> None:
        """`early` is of no use: nothing is asked on this connection any more. Raises OSError."""
        self._client.settimeout(PATIENCE)
        self._client.sendall(self._data)
        hang_up(self._client)

    def finish(self, timeout: float) -> None:
        """The run is over; what was seen of it is still told."""
