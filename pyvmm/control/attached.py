"""A client that has attached itself to the console of a VM: what the guest writes goes there, what comes is typed.

Imports the sink. The console's own back-end is not touched: this client is one more who listens and types.
"""

from __future__ import annotations

import select

from pyvmm.backends.sink import OutputSink
from pyvmm.control.lines import hang_up

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from pyvmm.vm import VM

TYPE_AGAIN = 20
"""Milliseconds until input is offered again to a guest that had no room for it."""
PIECE = 4096


class Attached:
    """Serves `client` on the calling thread until it hangs up. One that does not read its output is hung up on."""

    def __init__(self, vm: VM, client: _socket.socket) -> None:
        self._vm = vm
        self._client = client
        self._sink = OutputSink(
            client.fileno(),
            hold=self._drop,  # never the VM: HIGH_WATER bytes that a client has not read end it
            release=_nothing,
            broken=lambda _: self._drop(),
            name="attached-output",
        )
        self._deaf = vm.listen(self._sink.write)

    def run(self, early: bytes = b"") -> None:
        """`early` is input that has come already. Raises OSError."""
        waiting = bytearray(early)
        poll = select.poll()
        try:
            while True:
                del waiting[: self._vm.type(bytes(waiting)) if waiting else 0]
                # With input in hand nothing more is read, but a client that goes is noticed.
                poll.register(self._client.fileno(), select.POLLRDHUP if waiting else select.POLLIN)
                found = poll.poll(TYPE_AGAIN if waiting else None)
                if not found:
                    continue
                if waiting:
                    return
                data = self._client.recv(PIECE)
                if not data:
                    return
                waiting += data
        finally:
            self._deaf()
            self._sink.close()

    def finish(self, timeout: float) -> None:
        """The run is over: return when the client has all output, or has taken none for `timeout` seconds."""
        self._sink.drain(timeout)

    def _drop(self) -> None:
        # Under the sink's lock and perhaps a device's: it only ends the wait in run().
        hang_up(self._client)


def _nothing() -> None:
    pass
