"""An Ethernet switch between the VMs of one host, served by a thread of whichever process came first.

Imports stream, events, threads and errors. It learns which addresses are behind which port, and floods what it does not
know. It would rather have a sender wait than lose a frame: a port's queue is bounded, and while it is full the ports
whose frames are for it are not read. Only a port that takes nothing for PATIENCE seconds loses its frames.
"""

from __future__ import annotations

import os
import select
import socket
import threading
import time

from pyvmm import threads
from pyvmm.backends.net.stream import PREFIX, FrameStream
from pyvmm.errors import BackendError
from pyvmm.events import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

PORTS = 128
ADDRESSES = 4096
"""Addresses that are learnt at most; frames to others are flooded."""
QUEUE = 256 << 10
"""Bytes that wait for a port before its senders do. One frame each of all other ports may come on top."""
TURN = 64
"""Frames that are taken from a port before the others have their turn."""
PATIENCE = 1.0
GLANCE = 0.1
"""Seconds between two looks while frames wait for a port, and what a longer time between them counts for, twice: the
host may have slept, or not have let the ports run either."""
FAREWELL = 0.2
"""Seconds in which what is under way is still delivered when the switch closes."""
LOOK = 5
"""Milliseconds after which nothing more is under way."""
FULL = 0.05
"""Seconds until a caller that the process has no descriptor for is looked at again."""


class Port:
    """One VM's connection. `since` is when it last took something, or when something began to wait for it."""

    __slots__ = ("held", "out", "since", "stream", "stuck", "watched")

    def __init__(self, stream: FrameStream) -> None:
        self.stream = stream
        self.out = bytearray()
        self.held: memoryview | None = None  # a frame of its own that waits for another port's queue
        self.since = 0.0
        self.stuck = False
        self.watched = 0


class SwitchServer:
    """The switch behind the listening socket `listener`, which it owns from now on.

    dropped   frames lost to ports that took nothing
    """

    def __init__(self, listener: socket.socket) -> None:
        """Starts to serve. Raises OSError when out of descriptors, and PyvmmError when out of threads."""
        listener.setblocking(False)
        self.dropped = 0
        self._listener = listener
        self._ports: dict[int, Port] = {}
        self._addresses: dict[bytes, Port] = {}
        self._waiting: set[Port] = set()  # those with a frame held, and those with more to be read at once
        self._busy: set[Port] = set()
        self._now = 0.0  # a clock that stands still while the host sleeps
        self._closing = False
        self._poll = select.poll()
        self._wake = EventFd()
        self._thread = threading.Thread(target=self._run, name="net-switch")
        try:
            threads.start(self._thread)
        except BaseException:
            self._wake.close()
            raise

    @property
    def ports(self) -> int:
        """VMs that are connected."""
        return len(self._ports)

    def close(self) -> None:
        """Deliver what is under way, hang up on everybody and end the thread. A second call does nothing."""
        self._closing = True
        if self._wake.fd >= 0:
            self._wake.signal()
            self._thread.join()
            self._wake.close()

    # --- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._poll.register(self._wake.fd, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)
        last: float | None = None
        before = time.monotonic()
        try:
            while True:
                happened = self._poll.poll(LOOK if last is not None else self._timeout())
                now = time.monotonic()
                self._now += min(now - before, 2 * GLANCE)
                before = now
                if last is None and self._closing:
                    last = now + FAREWELL
                    self._poll.unregister(self._wake.fd)
                elif last is not None and (now > last or not (happened or self._under_way())):
                    return
                self._serve(happened)
        finally:
            self._listener.close()
            for port in self._ports.values():
                port.stream.socket.close()

    def _under_way(self) -> bool:
        return bool(self._busy) or any(port.out or port.held is not None for port in self._ports.values())

    def _timeout(self) -> float | None:
        """Milliseconds until there is something to be done without anything happening, or None."""
        if self._busy:
            return 0
        return GLANCE * 1000 if self._waiting else None

    def _serve(self, happened: Iterable[tuple[int, int]]) -> None:
        busy, self._busy = self._busy, set()
        for fd, events in happened:
            port = self._ports.get(fd)
            if port is None:
                if fd == self._listener.fileno() and not self._accept():
                    time.sleep(FULL)
                continue
            if events & select.POLLOUT:
                self._flush(port)
            if events & ~select.POLLOUT:
                busy.add(port)
        for port in self._waiting:
            if port.held is not None and self._forward(port, port.held):
                port.held = None
                busy.add(port)
        self._waiting = {port for port in self._waiting if port.held is not None}
        for port in busy:
            self._read(port)
        for port in list(self._ports.values()):
            if port.out and not port.watched & select.POLLOUT:
                self._flush(port)
            self._watch(port)

    def _watch(self, port: Port) -> None:
        """Have the port's socket waited for: for input unless a frame of its own is held, for output if some waits."""
        wanted = (0 if port.held is not None else select.POLLIN) | (select.POLLOUT if port.out else 0)
        if wanted != port.watched and port.stream.socket.fileno() in self._ports:
            if wanted:
                self._poll.register(port.stream.socket, wanted)
            else:
                self._poll.unregister(port.stream.socket)
            port.watched = wanted

    def _accept(self) -> bool:
        """Let in whoever calls; False if there is no room for one, who then stays where he is."""
        while True:
            try:
                caller, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return True
            except OSError:
                return False
            if len(self._ports) < PORTS:
                self._ports[caller.fileno()] = Port(FrameStream(caller))
            else:
                caller.close()

    def _read(self, port: Port) -> None:
        """Take frames from a port, a turn's worth at most, until one has to wait."""
        try:
            for _ in range(TURN):
                if port.held is not None or port.stream.socket.fileno() < 0:
                    return
                frame = port.stream.receive()
                if frame is None:
                    return
                if not self._forward(port, frame):
                    port.held = frame
                    self._waiting.add(port)
        except BackendError:  # it has gone, or speaks something else
            self._drop(port)
            return
        if port.held is None:
            self._busy.add(port)

    def _forward(self, port: Port, frame: memoryview) -> bool:
        """Queue a frame of `port` for those it is for; False if one of them has no room."""
        source, destination = bytes(frame[6:12]), bytes(frame[:6])
        addresses = self._addresses
        if (
            not source[0] & 1
            and addresses.get(source) is not port
            and (source in addresses or len(addresses) < ADDRESSES)
        ):
            addresses[source] = port
        known = None if destination[0] & 1 else addresses.get(destination)
        if known is None:
            self._accept()  # a frame for all is for those too who came before it was sent
        targets = [known] if known is not None else list(self._ports.values())
        for target in targets:
            if _full(target) and target is not port and not self._is_stuck(target):
                return False
        prefix = len(frame).to_bytes(PREFIX, "big")
        for target in targets:
            if target is port:
                continue
            if _full(target):
                self.dropped += 1
                continue
            if not target.out:
                target.since = self._now
            target.out += prefix
            target.out += frame
        return True

    def _is_stuck(self, port: Port) -> bool:
        if not port.stuck and self._now - port.since >= PATIENCE:
            port.stuck = True
        return port.stuck

    def _flush(self, port: Port) -> None:
        """Send what waits for a port, as much as fits."""
        full = _full(port)
        try:
            count = port.stream.socket.send(port.out)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(port)
            return
        del port.out[:count]
        port.since = self._now
        if len(port.out) <= QUEUE // 2:
            port.stuck = False
        if full and not _full(port):
            self._busy |= self._waiting  # their frames may go now

    def _drop(self, port: Port) -> None:
        """Hang up on a port, and forget what is known of it."""
        fd = port.stream.socket.fileno()
        if self._ports.pop(fd, None) is None:
            return
        if port.watched:
            self._poll.unregister(fd)
        port.stream.socket.close()
        port.out.clear()
        port.held = None
        self._addresses = {address: other for address, other in self._addresses.items() if other is not port}


def _full(port: Port) -> bool:
    return len(port.out) >= QUEUE


def listen(path: str) -> socket.socket:
    """A socket that listens at `path`, for its owner alone (mode 0600). Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), 0o600)  # bind() makes the file with the mode of the socket (unix(7))
        listener.bind(path)
        listener.listen(PORTS)
    except OSError:
        listener.close()
        raise
    return listener
