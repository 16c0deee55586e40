"""What a driver does with the registers of one device, judged access by access (2.1, 2.2, 3.1, 4.1, 4.2).

Imports config, queues, requests, findings, the balloon and spec. Registers go by MMIO's names here, whichever the
transport; a finding names the transport's own. Every call but those from the queues has the device's `lock` held. A
device that is found at work, as after a restore, is taken to have been set up well.
"""

from __future__ import annotations

from pyvmm.virtio.balloon import STATISTICS
from pyvmm.virtio.lint.config import ConfigLint
from pyvmm.virtio.lint.queues import QueueLint
from pyvmm.virtio.lint.requests import judge
from pyvmm.virtio.spec import (
    BALLOON_F_STATS_VQ,
    F_VERSION_1,
    ID_BALLOON,
    INTERRUPT_CONFIG_CHANGE,
    INTERRUPT_USED_BUFFER,
    MSI_NO_VECTOR,
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
    STATUS_NEEDS_RESET,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.virtio.chain import Chain
    from pyvmm.virtio.device import VirtioDevice
    from pyvmm.virtio.lint.findings import Findings
    from pyvmm.virtio.queue import QueueError, Virtqueue

_A, _D, _F, _OK = STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_FEATURES_OK, STATUS_DRIVER_OK
_ORDER = ((_D, _A, "DRIVER without ACKNOWLEDGE"), (_F, _D, "FEATURES_OK without DRIVER"))
_KNOWN = _A | _D | _F | _OK | STATUS_NEEDS_RESET | STATUS_FAILED
IDENTITY = ("MagicValue", "Version", "DeviceID")
QUEUE_FIELDS = (
    "QueueSize",
    *(f"Queue{part}{half}" for part in ("Desc", "Driver", "Device") for half in ("Low", "High")),
)
EVENTS = INTERRUPT_USED_BUFFER | INTERRUPT_CONFIG_CHANGE


class DriverLint:
    """Judges the driver of `device`, which is seen over PCI or over MMIO.

    findings   where all that is found goes
    transport  the device's, which tells of every access
    config     judges the configuration space
    queues     judge the virtqueues
    """

    def __init__(self, device: VirtioDevice, transport: Any, findings: Findings, *, pci: bool) -> None:
        self.device = device
        self.transport = transport
        self.findings = findings
        self._pci = pci
        self.config = ConfigLint(device, self.report)
        self.queues = tuple(QueueLint(queue, self.report) for queue in device.queues)
        self._register = ""  # the one that is being used, by the transport's own name
        self._identity: set[str] = set()
        self._taken: tuple[int, int] | None = None  # queue and head of the chain that was taken last
        self._known = False  # whether this was there from the device's beginning on
        self._begin(was_reset=False)
        device.lint = self
        device.native = False  # what C moves nobody sees
        for queue in device.queues:
            queue.watch = self

    def _begin(self, *, was_reset: bool) -> None:
        """The device is as after a reset; `was_reset` by the driver."""
        self._was_reset = was_reset
        self._awaited = not was_reset  # whether the driver has read that status is 0
        self._offers_read = self._status_read = self._asked = False
        self._selected: set[str] = set()  # of the selectors of feature words, those that were written
        self._interrupts_read = 0
        self._unread: set[tuple[str, int]] = set()  # registers that must be read back, and whose queue's (-1: none)
        self.config.forget()

    def report(
        self,
        rule: str,
        *,
        queue: int | None = None,
        descriptor: int | None = None,
        register: str | None = None,
        detail: str = "",
    ) -> None:
        """Keep a finding of this device."""
        named = self._register if register is None and queue is None else register or ""
        where = {"queue": queue, "descriptor": descriptor, "register": named, "detail": detail}
        self.findings.add(rule, self.device.name, **where)  # type: ignore[arg-type]

    def enter(self, register: str) -> None:
        """The driver uses `register`, as the transport calls it, or another place of which it tells next."""
        self._register = register
        self.findings.accesses += 1
        if not self._known:
            self._known = True
            if self.device.status:
                self._assume()

    def _assume(self) -> None:
        self._identity.update(IDENTITY)
        self._was_reset = self._awaited = self._offers_read = self._status_read = True
        self._selected.update(("DeviceFeaturesSel", "DriverFeaturesSel"))
        self._interrupts_read = EVENTS
        self.config.assume()

    # --- Reads --------------------------------------------------------------------------------------------------------

    def read(self, name: str, value: int) -> None:
        """The driver has read register `name`, and got `value`."""
        if name in IDENTITY:
            self._identity.add(name)
        elif name == "Status":
            self._status_read = True
            self._awaited |= not value
        elif name == "ConfigGeneration":
            self.config.generation()
        elif name == "DeviceFeatures":
            self._offers_read = True
            self._need_selector("DeviceFeaturesSel")
        elif name == "InterruptStatus":
            self._interrupts_read |= value
        elif name.startswith("SHM"):
            self.report("shared-memory")
        if self._unread:
            self._unread.discard(self._of_queue(name))

    def _need_selector(self, name: str) -> None:
        if name not in self._selected and not self._pci:
            self.report("features-unselected", detail=f"{name} was not written")

    # --- Writes -------------------------------------------------------------------------------------------------------

    def write(self, name: str, value: int) -> None:
        """The driver is about to write `value` to register `name`."""
        if name == "Status":
            self._write_status(value & 0xFF)
        elif name == "DriverFeatures":
            self._write_features(value)
        elif name in QUEUE_FIELDS:
            self._write_queue_field(name, value)
        elif name == "QueueReady":
            self._write_ready(value)
        elif name == "QueueNotify":
            self.notify(value)
        elif name == "InterruptACK":
            self._acknowledge(value)
        elif name in ("DeviceFeaturesSel", "DriverFeaturesSel"):
            self._selected.add(name)
        elif name == "SHMSel":
            self.report("shared-memory")

    def wrote(self, name: str, value: int) -> None:
        """The device has dealt with that write."""
        if name == "QueueReady" and value & 1:
            queue = self._queue()
            if queue is not None and queue.ready:
                self.queues[queue.index].enabled()
        elif name == "Status" and value & _OK and self.device.live:
            for queue_lint in self.queues:
                queue_lint.went_live()

    def _queue(self) -> Virtqueue | None:
        """The queue that the driver has selected."""
        found: Virtqueue | None = self.transport.queue
        return found

    def _of_queue(self, name: str) -> tuple[str, int]:
        """Register `name`, and which queue it is about at present, if any."""
        queue = self._queue() if name.lower().startswith("queue") else None
        return name, -1 if queue is None else queue.index

    # --- Status (2.1, 3.1.1) ------------------------------------------------------------------------------------------

    def _write_status(self, value: int) -> None:
        device = self.device
        before, asked = device.status & ~STATUS_NEEDS_RESET, self._asked
        if not value or value & _OK:
            self._must_have_read_back()
        self.config.settle()
        if value == 0:
            self.settle()
            self._begin(was_reset=True)
            return
        if value & ~_KNOWN:
            self.report("status-unknown", detail=f"{value & ~_KNOWN:#x}")
        if self._pci and not self._awaited:
            self.report("reset-not-awaited")
            self._awaited = True
        if before & STATUS_FAILED and value & ~before & _KNOWN & ~STATUS_NEEDS_RESET:
            self.report("status-after-failed", detail=f"wrote {value:#x}")
        if before & ~value:
            self.report("status-cleared", detail=f"{before:#x}, then {value:#x}")
        new = value & ~before
        for bit, first, detail in _ORDER:
            if new & bit and not value & first:
                self.report("status-order", detail=detail)
        if new & _A:
            self._acknowledged()
        if new & _F:
            self._features_ok()
        if new & _OK:
            self._driver_ok(before, asked)

    def _acknowledged(self) -> None:
        if not self._was_reset:
            self.report("reset-missing")
        if not self._pci and not self._identity.issuperset(IDENTITY):
            missing = [name for name in IDENTITY if name not in self._identity]
            self.report("identity-unread", detail=f"not {', '.join(missing)}")

    def _features_ok(self) -> None:
        self._status_read = False
        self._asked = True  # for FEATURES_OK
        device = self.device
        chosen = device.driver_features
        if not chosen >> F_VERSION_1 & 1:
            self.report("version-1-missing")
        elif not chosen & ~device.offered and not device.features_valid(chosen):
            self.report("feature-requires", detail=f"features {chosen:#x}")

    def _driver_ok(self, before: int, asked: bool) -> None:
        """DRIVER_OK comes; whether FEATURES_OK was `asked` for by an earlier write."""
        queues = self.device.queues
        if before & _F or (self._asked and not asked):
            if not self._status_read:
                self.report("features-ok-unread")
        else:
            self.report("features-ok-refused" if asked else "features-ok-skipped")
        if queues and not any(queue.ready for queue in queues):
            self.report("driver-ok-without-queues")

    def _must_have_read_back(self) -> None:
        for register, queue in sorted(self._unread):
            rule = "queue-disable-unread" if register == "QueueReady" else "vector-unread"
            self.report(rule, register=register, queue=None if queue < 0 else queue)
        self._unread.clear()

    # --- Features (2.2) -----------------------------------------------------------------------------------------------

    def _write_features(self, value: int) -> None:
        device, transport = self.device, self.transport
        self._need_selector("DriverFeaturesSel")
        word = transport.read_driver_word()
        if device.status & _F:
            if value != transport.read_accepted():
                self.report("features-late")
            return
        if not device.status & _D:
            self.report("features-early")
        if not self._offers_read:
            self.report("features-unread")
        wrong = value & ~(device.offered >> 32 * word & 0xFFFFFFFF if word < 2 else 0)
        if wrong:
            bits = [str(32 * word + bit) for bit in range(32) if wrong >> bit & 1]
            self.report("feature-not-offered", detail=f"bit {', '.join(bits)}")

    # --- Queues (4.1.5.1.3, 4.2.3.2) ----------------------------------------------------------------------------------

    def _may_set_up(self, queue: Virtqueue | None) -> bool:
        """Whether it is the time to set up the selected queue."""
        status = self.device.status
        if queue is None:
            self.report("queue-unknown")
        elif queue.ready:
            self.report("queue-frozen", queue=queue.index, register=self._register)
        elif status & _OK:
            self.report("queue-after-driver-ok", queue=queue.index, register=self._register)
        elif not status & _F:
            self.report("queue-early", queue=queue.index, register=self._register)
        else:
            return True
        return False

    def _write_queue_field(self, name: str, value: int) -> None:
        queue = self._queue()
        if not self._may_set_up(queue) or queue is None or name != "QueueSize":
            return
        if not 0 < value <= queue.max_size or value & (value - 1):
            detail = f"{value}, of {queue.max_size} at most"
            self.report("queue-size", queue=queue.index, register=self._register, detail=detail)

    def _write_ready(self, value: int) -> None:
        queue = self._queue()
        if value & 1:
            if queue is None or not queue.ready:  # to enable it twice changes nothing
                self._may_set_up(queue)
        elif self._pci:
            self.report("queue-disable", queue=None if queue is None else queue.index)
        elif queue is not None and queue.ready:
            self._unread.add(self._of_queue("QueueReady"))

    def vector(self, register: str, value: int, count: int) -> None:
        """The driver is about to choose MSI-X vector `value`, of `count`, by `register`."""
        key = self._of_queue(register)
        if register.startswith("queue") and key[1] < 0:
            self.report("queue-unknown")
        elif value == MSI_NO_VECTOR:
            self._unread.discard(key)
        else:
            if value >= count:
                self.report("vector-out-of-range", detail=f"{value} of {count}")
            self._unread.add(key)

    # --- Notifications (2.7.10, 4.1.5.2, 4.2.3.3) ---------------------------------------------------------------------

    def notify(self, index: int) -> None:
        """The driver notifies of queue number `index`."""
        device = self.device
        if index >= len(device.queues):
            self.report("notify-unknown", detail=f"queue {index} of {len(device.queues)}")
        elif not device.status & _OK:
            self.report("notify-early", queue=index)
        elif not device.queues[index].ready:
            self.report("notify-not-ready", queue=index)
        else:
            self.queues[index].notified()
            statistics = device.device_id == ID_BALLOON and device.features >> BALLOON_F_STATS_VQ & 1
            if statistics and index == STATISTICS and self.queues[index].outstanding > 1:
                self.report("balloon-statistics", queue=index)

    # --- Interrupts (4.1.4.5, 4.2.3.4) --------------------------------------------------------------------------------

    def _acknowledge(self, value: int) -> None:
        if value & ~EVENTS:
            self.report("ack-undefined", detail=f"{value:#x}")
        value &= EVENTS
        if value & ~self.transport.pending:
            self.report("ack-not-pending", detail=f"{value:#x} while {self.transport.pending:#x} is pending")
        elif value & ~self._interrupts_read:
            self.report("ack-unread", detail=f"{value:#x}")
        self._interrupts_read &= ~value

    # --- From the queues, with the device's `plane` held --------------------------------------------------------------

    def took(self, queue: Virtqueue, chain: Chain) -> None:
        """The device has taken `chain` of `queue`."""
        self.findings.chains += 1
        self._taken = queue.index, chain.head
        self.queues[queue.index].took(chain)

        def found(rule: str, detail: str = "") -> None:
            self.report(rule, queue=queue.index, descriptor=chain.head, detail=detail)

        judge(found, self.device, queue, chain)

    def gave(self, queue: Virtqueue, chain: Chain, more: bool) -> None:
        """The device is about to give `chain` back."""
        self.queues[queue.index].gave(chain, more)

    def broken(self, error: QueueError) -> None:
        """The device found that it cannot go on."""
        queue, head = (error.queue, None) if error.queue is not None or self._taken is None else self._taken
        rule = error.rule
        if rule == "index-jump" and queue is not None and self.queues[queue].went_back():
            rule = "index-decremented"
        self.report(rule, queue=queue, descriptor=head, detail=str(error))

    def settle(self) -> None:
        """The driver leaves the device, or the VM has ended."""
        self.config.settle()
        if self.device.live:
            for queue in self.queues:
                queue.settle()
