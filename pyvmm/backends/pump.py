"""InputPump: the thread that carries what a console reads to the device, and never more than the device takes.

Imports events and threads. What the device did not take waits here, and nothing more is read once `limit` bytes
wait: whoever writes at the other end is slowed down, and nothing is lost.
"""

from __future__ import annotations

import select
import threading

from pyvmm import threads
from pyvmm.events import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CLOSE_WAIT = 0.5
"""Seconds that close() waits for the thread to come out of a device or a read."""


class InputPump:
    """Calls `ready()` whenever the descriptor that `watch()` names can be read, and offers the device what is added.

    `watch()` returns a descriptor, or -1, and after how many milliseconds it is to be asked again (None: not before
    something happens); it is asked before every wait. Both run on the pump's thread.
    """

    def __init__(
        self, name: str, watch: Callable[[], tuple[int, int | None]], ready: Callable[[], None], *, limit: int = 4096
    ) -> None:
        self._watch = watch
        self._ready = ready
        self._limit = limit
        self._waiting = bytearray()
        self._stalled = False
        self._closing = False
        self._receive: Callable[[bytes], int] = len
        self._event: EventFd | None = None
        self._lock = threading.Lock()  # `_event` is not closed while somebody signals it
        self._thread = threading.Thread(target=self._run, name=name)

    def start(self, receive: Callable[[bytes], int]) -> None:
        """Begin; `receive(data)` gives the device input and returns how many bytes it took."""
        self._receive = receive
        self._event = EventFd()
        threads.start(self._thread)

    def add(self, data: bytes) -> None:
        """Queue input for the device. For `ready()` alone."""
        self._waiting += data

    def input_ready(self) -> None:
        """The device has room again. It calls this under its lock, so the thread is woken and nothing else done."""
        if self._stalled:
            self.wake()

    def wake(self) -> None:
        """Have `watch()` asked again."""
        with self._lock:
            if self._event is not None:
                self._event.signal()

    def close(self) -> None:
        """End the thread; a second call does nothing."""
        self._closing = True
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_WAIT)
        with self._lock:
            if self._event is not None and not self._thread.is_alive():
                self._event.close()
                self._event = None

    def _offer(self) -> None:
        # Before the device is asked, so that room which it makes right after its answer is not missed.
        self._stalled = True
        while self._waiting:
            offered = bytes(self._waiting[:4096])
            taken = self._receive(offered)
            del self._waiting[:taken]
            if taken < len(offered):
                return
        self._stalled = False

    def _run(self) -> None:
        event = self._event
        assert event is not None
        while not self._closing:
            self._offer()
            fd, timeout = self._watch()
            poll = select.poll()
            poll.register(event.fd, select.POLLIN)
            if fd >= 0 and len(self._waiting) < self._limit:
                poll.register(fd, select.POLLIN)
            for source, _ in poll.poll(timeout):
                if source == event.fd:
                    event.drain()
                else:
                    self._ready()
