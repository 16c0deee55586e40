"""The entropy device: random bytes of the host's for the guest (virtio 1.3, 5.4).

Imports device and spec. Linux calls it /dev/hwrng, and seeds its own generator from it.
"""

from __future__ import annotations

import os
import time

from pyvmm.errors import UsageError
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.spec import ID_RNG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.queue import Virtqueue

QUEUE_SIZE = 64
LARGEST = 64 << 10
"""Bytes that one request gets at most, however many it has room for."""
PORTION = 0.1
"""Seconds' worth of the rate for which a request waits at most: it then gets what there is, not byte after byte."""
SHORTEST = 0.001
"""Seconds to wait at least: what rounding leaves of a byte is not waited for time and again."""
RETRY = 0.1
"""Seconds after which a source that had nothing is asked again."""


class VirtioRng(VirtioDevice):
    """A source of random bytes.

    rate     bytes a second at most, the first second's worth at once, or None: no limit
    source   source(count) returns `count` random bytes, fewer if it has no more now; none, or an exception, is a
             source that is asked again later. On the data plane; may block, for a moment
    failure  the last exception of the source, as text, or ""

    A request gets what is there, at least one byte, and the used length says how much. Raises UsageError for a rate
    below 1.
    """

    device_id = ID_RNG
    queue_sizes = (QUEUE_SIZE,)
    STATE = {}

    def __init__(self, *, name: str = "", rate: int | None = None, source: Callable[[int], bytes] = os.urandom) -> None:
        if rate is not None and rate < 1:
            raise UsageError(f"random numbers at {rate} bytes a second (expected 1 or more)")
        super().__init__(name)
        self.rate = rate
        self.failure = ""
        self._source = source
        self._chain: Chain | None = None  # the request in hand
        self._wanted = 0  # bytes that it is to get
        self._due: float | None = None  # when to go on with it
        self._tokens = float(rate or 0)  # bytes that may be given now
        self._counted = time.monotonic()  # when they were counted

    def serve(self, queue: Virtqueue) -> None:
        if not queue.ready:  # taken out of use while a request waited: its buffers are the driver's again
            self._chain = self._due = None
            return
        if self._chain is not None and not self._go_on(queue, time.monotonic()):
            return
        for chain in queue.chains():
            self._chain = chain
            self._wanted = min(chain.writable_length, LARGEST)
            now = time.monotonic()
            if self.faults is not None:
                self._meet(queue, now)
            if not self._go_on(queue, now):
                return  # the driver need not notify: what it adds is found when this one is done

    def deadline(self) -> float | None:
        return self._due

    def tick(self, now: float) -> None:
        self.serve(self.queues[0])

    def discard(self) -> None:
        self._chain = self._due = None

    def _meet(self, queue: Virtqueue, now: float) -> None:
        """What a fault plan has for the request in hand: fewer bytes, or a source that has none for a moment."""
        fault = self.faults.draw(self.name, queue.index, "read", None, self._wanted)
        if fault is not None and fault.kind == "short":
            self._wanted = max(1, fault.amount)
        elif fault is not None:
            self._due = now + RETRY

    def _go_on(self, queue: Virtqueue, now: float) -> bool:
        """Answer the request in hand, or False: it is not its time, and `deadline` says when it is."""
        if self._due is not None and now < self._due:
            return False
        chain = self._chain
        assert chain is not None
        if self._wanted:
            data = self._draw(now)
            if not data:
                return False
            self._tokens -= len(data)
            chain.write(data)
            written = len(data)
        else:
            written = 0  # no room: a driver must not ask so (5.4.6)
        self._chain = self._due = None
        self.complete(queue, chain, written)
        return True

    def _draw(self, now: float) -> bytes:
        """Random bytes for the request in hand; if there are none yet, `_due` is set."""
        count = self._wanted
        if self.rate is not None:
            self._tokens = min(float(self.rate), self._tokens + (now - self._counted) * self.rate)
            self._counted = now
            enough = max(1, min(count, int(self.rate * PORTION)))
            if self._tokens < enough:
                self._due = now + max(SHORTEST, (enough - self._tokens) / self.rate)
                return b""
            count = min(count, int(self._tokens))
        try:
            data = self._source(count)[:count]
        except Exception as error:  # whoever injected it: the guest only waits
            self.failure = f"{type(error).__name__}: {error}"
            data = b""
        if not data:
            self._due = now + RETRY
        return data
