"""One client of the stub: bytes to packets, packets to the session, answers to bytes.

Imports packets. The client's socket has a time limit, which bounds what a client that does not read can hold up.
"""

from __future__ import annotations

import select
import time

from pyvmm.debug.gdb.packets import ACK, BAD, INTERRUPT, NAK, PACKET, Framer, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from pyvmm.debug.gdb.session import Session
    from pyvmm.events import EventFd

FULL = 0.1
"""Seconds until a client that the process has no descriptor for is looked at again."""
PIECE = 1 << 16
MOST_NAKS = 8
"""How often in a row a client may ask for the same answer again."""


class Connection:
    """One client: bytes to packets, answers to bytes."""

    def __init__(self, client: socket.socket, session: Session) -> None:
        self._client = client
        self._session = session
        self._framer = Framer()
        self._sent = b""
        self._naks = 0

    def run(self, listener: socket.socket, wake: EventFd, closing: Callable[[], bool]) -> None:
        """Until the client or the run has ended; who else comes to `listener` is hung up on.

        `wake` is signalled at a stop of the target, at its end, and when `closing()`. Raises OSError when the client is
        gone or does not read.
        """
        session = self._session
        poll = select.poll()
        for fd in (self._client.fileno(), listener.fileno(), wake.fd):
            poll.register(fd, select.POLLIN)
        while not session.leaving:
            found = {fd for fd, _ in poll.poll()}
            if wake.fd in found:
                wake.drain()
                self._send(session.report())
                if closing():
                    return
            if self._client.fileno() in found:
                data = self._client.recv(PIECE)
                if not data:
                    return
                for kind, payload in self._framer.feed(data):
                    if not self._take(kind, payload):
                        return
            elif listener.fileno() in found:  # and not in place of a client whose end is still to be read
                _hang_up(listener)

    def _take(self, kind: str, payload: bytes) -> bool:
        """Whether the connection goes on."""
        session = self._session
        if kind == INTERRUPT:
            self._send(session.interrupt())
        elif kind == NAK and self._sent and self._naks < MOST_NAKS:
            self._naks += 1
            self._client.sendall(self._sent)
        elif kind == ACK:
            self._naks = 0
        elif kind == BAD and not session.no_ack:
            self._client.sendall(b"-")
        elif kind == PACKET:
            if not session.no_ack:
                self._client.sendall(b"+")
            if not session.running:  # nothing but an interrupt is expected from one that waits for a stop
                self._send(session.answer(payload))
        return not session.leaving

    def _send(self, packets: list[bytes]) -> None:
        for packet in packets:
            self._sent = encode(packet)
            self._client.sendall(self._sent)


def _hang_up(listener: socket.socket) -> None:
    """There is a debugger already."""
    try:
        other, _ = listener.accept()
        other.close()
    except OSError:
        time.sleep(FULL)  # out of descriptors: it will be there again
