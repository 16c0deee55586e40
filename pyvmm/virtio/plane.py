"""The data plane of one device: the thread that serves its queues when the driver rings.

Imports events, threads and errors. There is an eventfd for each queue, the doorbell: KVM signals it
when the guest writes QueueNotify (an ioeventfd), the transport where KVM does not. The thread waits for doorbells, for
the descriptors that the device names, and for its deadline; and reminds the driver of interrupts that it does not
acknowledge.
"""

from __future__ import annotations

import select
import threading
import time

from pyvmm import threads
from pyvmm.errors import PyvmmError
from pyvmm.events import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.virtio.device import VirtioDevice

    class Transport(Protocol):
        """What a data plane asks of a transport."""

        @property
        def pending(self) -> int: ...

        def remind(self) -> None: ...


REMIND_FIRST, REMIND_LAST = 0.02, 1.28
"""Seconds after which an unacknowledged interrupt is signalled again: at first, and, doubled each time, at last."""
END_WAIT = 5.0
"""Seconds that `close()` waits for a request in hand."""


class DataPlane:
    """Serves `device`. `doorbells` are its queues' eventfds, in their order.

    `say(text)` is told of an exception that came out of the device model or a back-end, which none should: the device
    then asks the driver for a reset and serves nothing until it gets one.
    """

    def __init__(self, device: VirtioDevice, transport: Transport, say: Callable[[str], None] | None = None) -> None:
        """Opens the doorbells; `start()` makes the thread. Raises OSError when out of descriptors."""
        self.device = device
        self.doorbells: list[EventFd] = []
        self._transport = transport
        self._say = say
        self._wake: EventFd | None = None
        self._closing = False
        self._remind_at: float | None = None
        self._remind_after = REMIND_FIRST
        self._thread = threading.Thread(target=self._run, name=device.name)
        try:
            self._wake = EventFd()
            for _ in device.queues:
                self.doorbells.append(EventFd())
        except OSError:
            self.close()
            raise
        device.ring = self._ring

    def _ring(self, index: int) -> None:
        self.doorbells[index].signal()

    def start(self) -> None:
        """Begin to serve."""
        threads.start(self._thread)

    def pause(self) -> None:
        """Return when the request in hand is done; nothing is served until `resume()`."""
        self.device.paused = True
        with self.device.plane:
            pass

    def resume(self) -> None:
        """Serve again: every queue as if the driver had rung, and what is unacknowledged is signalled again."""
        self.device.paused = False
        for doorbell in self.doorbells:
            doorbell.signal()
        self._transport.remind()

    def close(self) -> None:
        """End the thread, have the device let go of guest memory, close what was opened. A second call does nothing.

        Raises PyvmmError when the thread does not come back from a request in END_WAIT seconds; it is left behind, and
        so are the descriptors.
        """
        self._closing = True
        if self._wake is not None:
            self._wake.signal()
        if self._thread.is_alive():
            self._thread.join(END_WAIT)
            if self._thread.is_alive():
                raise PyvmmError(f"{self.device.name}: a request does not come back from the host")
        if self._wake is not None:
            self.device.reset()
        for event in (*self.doorbells, self._wake):
            if event is not None:
                event.close()
        self._wake = None

    # --- The thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._wake is not None
        fixed = {bell.fd: index for index, bell in enumerate(self.doorbells)}
        poll = select.poll()
        poll.register(self._wake.fd, select.POLLIN)
        for fd in fixed:
            poll.register(fd, select.POLLIN)
        watched: dict[int, int] = {}
        while not self._closing:
            try:
                self._watch(poll, watched)
                for fd, events in poll.poll(self._timeout()):
                    if fd in fixed:
                        self._serve(fixed[fd])
                    elif fd in watched:
                        self._ready(fd, events)
                    else:
                        self._wake.drain()
                self._keep_time()
            except Exception as error:  # a fault of ours: the guest may go on without the device
                problem = f"internal error: {type(error).__name__}: {error}"
                self.device.fail(problem)
                if self._say is not None:
                    self._say(f"{self.device.name}: {problem}")

    def _watch(self, poll: select.poll, watched: dict[int, int]) -> None:
        """Have `poll` wait for what the device names now."""
        sources = self.device.sources()  # most devices have none, and that is soon said
        wanted = dict(sources) if sources and self._may_serve() else {}
        if wanted != watched:
            for fd in watched.keys() - wanted.keys():
                try:
                    poll.unregister(fd)
                except KeyError:
                    pass
            for fd, events in wanted.items():
                poll.register(fd, events)
            watched.clear()
            watched.update(wanted)

    def _may_serve(self) -> bool:
        return not self.device.paused and self.device.live

    def _serve(self, index: int) -> None:
        self.doorbells[index].drain()
        self.device.serve_unless_broken(index)

    def _ready(self, fd: int, events: int) -> None:
        device = self.device
        with device.plane:
            if self._may_serve():
                device.guarded(device.ready, fd, events)

    # --- Time ---------------------------------------------------------------------------------------------------------

    def _timeout(self) -> float | None:
        """Milliseconds until something is due, or None."""
        deadline = self._deadline()
        if deadline is None and self._remind_at is None:
            return None
        due = [at for at in (self._remind_at, deadline) if at is not None]
        return max(0.0, (min(due) - time.monotonic()) * 1000)

    def _deadline(self) -> float | None:
        deadline = self.device.next_deadline()
        return None if deadline is None or not self._may_serve() else deadline

    def _keep_time(self) -> None:
        device = self.device
        deadline = self._deadline()
        if deadline is not None and deadline <= (now := time.monotonic()):
            with device.plane:
                if self._may_serve():
                    device.guarded(device.run_due, now)
        self._remind()

    def _remind(self) -> None:
        if self.device.paused or not self._transport.pending:
            self._remind_at, self._remind_after = None, REMIND_FIRST
            return
        now = time.monotonic()
        if self._remind_at is None:
            self._remind_at = now + self._remind_after
        elif self._remind_at <= now:
            self._transport.remind()
            self._remind_after = min(self._remind_after * 2, REMIND_LAST)
            self._remind_at = now + self._remind_after
