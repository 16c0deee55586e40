"""What every virtio device is: status, features, configuration space and queues, whatever the transport.

Imports queue, spec and state. A subclass is one kind of device; a transport translates its registers into the calls of
the section "For a transport"; a data plane calls those of the section "For a data plane".

Two locks. `lock` is the bus's, held around every register access. `plane` is held by whoever serves the queues: queues
belong to their server from DRIVER_OK on, and a reset, which takes `plane`, waits until the request in hand is done and
takes them back. `plane` may be taken while `lock` is held, never the other way round.
"""

from __future__ import annotations

from threading import Lock

from pyvmm.state import Stateful
from pyvmm.virtio.queue import QueueError, Virtqueue
from pyvmm.virtio.spec import (
    DEVICE_NAMES,
    F_ACCESS_PLATFORM,
    F_RING_EVENT_IDX,
    F_RING_INDIRECT_DESC,
    F_VERSION_1,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from pyvmm.memory import GuestMemory
    from pyvmm.virtio.chain import Chain

    class Notifications(Protocol):
        """How a transport tells the driver of something. Any thread."""

        def used_buffer(self, queue: int) -> None: ...

        def config_change(self) -> None: ...


OFFERED = 1 << F_VERSION_1 | 1 << F_RING_INDIRECT_DESC | 1 << F_RING_EVENT_IDX
"""Features that every device offers, because the queue engine has them."""

_A, _D, _F, _OK = STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_FEATURES_OK, STATUS_DRIVER_OK
TRANSITIONS = {
    0: (_A, _A | _D),
    _A: (_A | _D,),
    _A | _D: (_A | _D | _F,),
    _A | _D | _F: (_A | _D | _F | _OK,),
    _A | _D | _F | _OK: (),
}
"""Which status a driver may write after which (2.1, 3.1.1), beside 0, the same again, and FAILED on top of any."""


class VirtioDevice(Stateful):
    """One device. Subclasses set `device_id` and `queue_sizes`, and override the methods of the first section.

    A snapshot has what every device has, and of a subclass's own what it declares in STATE (see `pyvmm.state`).

    name      what messages call it
    memory    the guest's RAM, set by whoever attaches the device
    queues    its virtqueues
    features  those negotiated; 0 before FEATURES_OK
    error     what the driver did that made the device ask for a reset, or ""
    """

    device_id = 0
    queue_sizes: Sequence[int] = ()
    faults: Any = None
    """A plan of faults on purpose (`pyvmm.virtio.faults`), or None."""
    trace: Any = None
    """What records the use of the queues (`pyvmm.trace`), or None."""
    lint: Any = None
    """Who judges the driver (`pyvmm.virtio.lint`), or None."""
    native = True
    """Whether C may serve the queues, as far as it can (pyvmm.virtio.native); otherwise Python does it all."""
    paused = False
    """Whether queues wait to be served, as in a paused VM. Whoever sets it takes `plane` next; then it is so."""

    def __init__(self, name: str = "") -> None:
        self.name = name or f"virtio-{DEVICE_NAMES[self.device_id]}"
        self.lock = Lock()
        self.plane = Lock()
        self.queues = tuple(Virtqueue(index, size) for index, size in enumerate(self.queue_sizes))
        self.memory: GuestMemory | None = None
        self.features = 0
        self.error = ""
        self.config_generation = 0
        self.notifications: Notifications | None = None
        self.ring: Callable[[int], None] = self.serve_unless_broken
        """Has a queue served, by a data plane if there is one; without one, at once. Called under `lock`."""
        self._driver_features = 0
        self._status = 0
        self._broken = False

    # --- What a kind of device overrides ------------------------------------------------------------------------------

    def device_features(self) -> int:
        """Features offered beyond OFFERED, as bits."""
        return 0

    def features_valid(self, features: int) -> bool:
        """Whether the subset `features` of what is offered goes together (2.2.2)."""
        return True

    def config(self) -> bytes:
        """The device-specific configuration space as it is now."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver writes `data` to the configuration space at `offset`; most fields are read-only (ignored)."""

    def activate(self) -> None:
        """The driver has set DRIVER_OK: `features` are final, ready queues may be used."""

    def serve(self, queue: Virtqueue) -> None:
        """Serve what is available in `queue`. On the data plane, `plane` held; may block; QueueError may come out."""

    def discard(self) -> None:
        """A reset: drop every request in hand and all state of the driver's. `plane` is held."""

    def sources(self) -> Sequence[tuple[int, int]]:
        """Descriptors to wait for and the events of poll(2) each, as it is now. On the data plane."""
        return ()

    def ready(self, fd: int, events: int) -> None:
        """Something that `sources()` named has happened. On the data plane, `plane` held."""

    def deadline(self) -> float | None:
        """When (time.monotonic()) `tick` is to be called at the latest, or None. On the data plane."""
        return None

    def tick(self, now: float) -> None:
        """The deadline has come. On the data plane, `plane` held."""

    def close(self) -> None:
        """Give back what the device is connected to. The data plane has ended."""

    # --- For a transport ----------------------------------------------------------------------------------------------

    @property
    def offered(self) -> int:
        """All features offered."""
        return OFFERED | self.device_features()

    @property
    def status(self) -> int:
        """The device status field (2.1)."""
        return self._status | (STATUS_NEEDS_RESET if self._broken else 0)

    @property
    def live(self) -> bool:
        """Whether queues may be served: between DRIVER_OK and the next reset, nothing broken (2.1.2)."""
        return bool(self._status & STATUS_DRIVER_OK) and not self._broken and not self._status & STATUS_FAILED

    def set_status(self, value: int) -> None:
        """The driver writes the status field; what TRANSITIONS does not have is ignored. `lock` is held."""
        if value == 0:
            self.reset()
            return
        value &= ~STATUS_NEEDS_RESET  # the device's own
        current = self._status & ~STATUS_FAILED
        if value & STATUS_FAILED or self._status & STATUS_FAILED:
            self._status |= value & STATUS_FAILED
        elif value in TRANSITIONS[current] and not self._broken:
            if value & ~current & STATUS_FEATURES_OK:
                if not self._features_acceptable():
                    return
                self.features = self._driver_features
            self._status = value
            if value & ~current & STATUS_DRIVER_OK:
                self._go_live()

    def _features_acceptable(self) -> bool:
        chosen = self._driver_features
        return (
            not chosen & ~self.offered
            and bool(chosen >> F_VERSION_1 & 1)
            and not chosen >> F_ACCESS_PLATFORM & 1
            and self.features_valid(chosen)
        )

    def _go_live(self) -> None:
        self.activate()
        for queue in self.queues:
            if queue.ready:
                self.ring(queue.index)  # what was made available before DRIVER_OK

    @property
    def driver_features(self) -> int:
        """The features that the driver has written; not negotiated before FEATURES_OK."""
        return self._driver_features

    def set_driver_features(self, word: int, value: int) -> None:
        """The driver accepts 32 features, numbers 32 * `word` and on; ignored unless it is its time (3.1.1)."""
        if self._status == STATUS_ACKNOWLEDGE | STATUS_DRIVER and word in (0, 1):
            shift = 32 * word
            self._driver_features = self._driver_features & ~(0xFFFFFFFF << shift) | value << shift

    def may_set_up(self, queue: Virtqueue) -> bool:
        """Whether the driver may change `queue`'s fields: it is not enabled, and DRIVER_OK not yet there."""
        return not queue.ready and not self._status & (STATUS_DRIVER_OK | STATUS_FAILED)

    def enable_queue(self, queue: Virtqueue) -> None:
        """The driver has set up `queue` and sets it ready, which it may between FEATURES_OK and DRIVER_OK (3.1.1)."""
        if not self.may_set_up(queue) or not self._status & STATUS_FEATURES_OK or self._broken:
            return
        assert self.memory is not None
        try:
            queue.enable(self.memory, self.features)
        except QueueError as error:
            self.broken(error)

    def disable_queue(self, queue: Virtqueue) -> None:
        """The driver takes `queue` out of use. `lock` is held."""
        queue.ready = False  # whoever serves it stops after the request in hand
        with self.plane:
            queue.disable()

    def reset(self) -> None:
        """Back to the beginning (2.4). `lock` is held; waits for the request in hand."""
        for queue in self.queues:
            queue.ready = False
        with self.plane:
            for queue in self.queues:
                queue.clear()
            self.discard()
            if self.faults is not None:
                self.faults.discard(self)
            self._status = self._driver_features = self.features = 0
            self._broken = False
            self.error = ""

    def notify(self, index: int) -> None:
        """The driver says that queue `index` has something (2.3). Spurious ones are as good as any (2.7.10.2)."""
        if self.live and index < len(self.queues) and self.queues[index].ready:
            self.ring(index)

    def read_config(self, offset: int, length: int) -> int:
        """`length` bytes of the configuration space at `offset`, little-endian; zero beyond its end."""
        return int.from_bytes(self.config()[offset : offset + length], "little")

    # --- For a data plane ---------------------------------------------------------------------------------------------

    def serve_unless_broken(self, index: int) -> None:
        """Serve queue `index` if it may be served; a broken ring makes the device ask for a reset."""
        with self.plane:
            queue = self.queues[index]
            if self.live and queue.ready and not self.paused:
                if self.trace is not None:
                    self.trace.notify(index)
                self.guarded(self.serve, queue)
            again = queue.unfinished and self.live and not self.paused
        if again:
            self.ring(index)  # behind whatever waits for `plane`: a reset, a pause, another queue

    def guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """Do `work(*arguments)`, which uses queues, tell the driver what is due; a broken ring makes the device want a
        reset.
        """
        trace = self.trace
        if trace is not None:
            trace.begin(self)
        try:
            work(*arguments)
        except QueueError as error:
            self.broken(error)
        if trace is not None:
            trace.end(self)
        for queue in self.queues:
            self.tell(queue)

    def next_deadline(self) -> float | None:
        """When `run_due` is to be called at the latest: the device's own deadline or the fault plan's, or None."""
        own = self.deadline()
        plan = None if self.faults is None else self.faults.deadline(self)
        return own if plan is None else plan if own is None else min(own, plan)

    def run_due(self, now: float) -> None:
        """Do what is due at `now`. `plane` is held; QueueError may come out."""
        if self.faults is not None:
            self.faults.run_due(self, now)
        own = self.deadline()
        if own is not None and own <= now:
            self.tick(now)

    def broken(self, error: QueueError) -> None:
        """The driver has broken a ring: ask for a reset."""
        if self.lint is not None:
            self.lint.broken(error)
        self.fail(str(error))

    # --- For kinds of device ------------------------------------------------------------------------------------------

    def complete(self, queue: Virtqueue, chain: Chain, written: int = 0) -> None:
        """Give `chain` back to the driver with `written` bytes written, by way of the fault plan if there is one."""
        if self.faults is None:
            queue.push(chain, written)
        else:
            self.faults.complete(self, queue, chain, written)

    def tell(self, queue: Virtqueue) -> None:
        """Tell the driver of what was completed, if it wants to know."""
        if queue.wants_interrupt():
            self.interrupt(queue)

    def interrupt(self, queue: Virtqueue) -> None:
        """Tell the driver, which wants to know."""
        if self.trace is not None:
            self.trace.interrupt(queue)
        if self.notifications is not None:
            self.notifications.used_buffer(queue.index)

    def fail(self, error: str) -> None:
        """Ask for a reset (2.1.2): the driver broke the rules as `error` says. Nothing is served until then."""
        self.error = self.error or error
        self._broken = True
        if self._status & STATUS_DRIVER_OK and self.notifications is not None:
            self.notifications.config_change()

    def config_changed(self) -> None:
        """The configuration space has changed: a new generation (2.5.1), and the driver is told if it is there."""
        self.config_generation = (self.config_generation + 1) & 0xFFFFFFFF
        if self.live and self.notifications is not None:
            self.notifications.config_change()
