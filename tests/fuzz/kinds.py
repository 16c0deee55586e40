"""How often each kind of error was reached, and which must be.

What breaks a ring is known by the text of QueueError: all that the sources can raise are read from them, so that a new
one is missed until the fuzzer reaches it. The other kinds are named by the harness and by the subjects.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

from pyvmm.virtio import spec
from pyvmm.virtio.mmio import LENGTH, REGISTERS
from pyvmm.virtio.spec import MMIO_CONFIG

_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")


TRANSPORT = (
    "access to two ranges at once",
    "configuration: read beyond the end",
    "configuration: written",
    "register: another width than 4",
    "register: there is none",
    "features: accepted at another time",
    "features: refused",
    "status: refused",
    "status: given up",
    "reset with requests in flight",
    "queue: selected, not there",
    "queue: set up while it may not be",
    "queue: taken away with requests in flight",
    "notified: before DRIVER_OK",
    "notified: no such queue",
    "notified: queue not ready",
    "notified: while a reset is needed",
)
"""Kinds of every device, beside broken rings."""
_OFFSET = {register.name: register.offset for register in REGISTERS}
_QUEUE_FIELDS = {offset for name, offset in _OFFSET.items() if re.match("Queue(Size|Desc|Driver|Device|Ready)", name)}


class Kinds:
    """Counts for one kind of device, whose `modules` raise QueueError; `required` are names beside those errors."""

    def __init__(self, modules=(), required=()):
        self.counts: Counter[str] = Counter()
        self.templates = [template for module in modules for template in templates(module)]
        self.required = tuple(required)
        self._reached: set[str] = set()

    def add(self, name, count=1):
        """`name` was reached `count` times."""
        self.counts[name] += count

    def broken(self, error):
        """The device wants a reset, for the reason `error`."""
        self.counts[f"ring: {_NUMBER.sub('#', error)}"] += 1
        fitting = [text for text, pattern in self.templates if pattern.fullmatch(error)]
        if fitting:
            self._reached.add(max(fitting, key=lambda text: len(text.replace("{}", ""))))

    def transport(self, device, offset, size, value=None):
        """The driver is about to read from `offset` of the transport's range, or to write `value` there."""
        if offset + size > LENGTH:
            self.add("access to two ranges at once")
        elif offset >= MMIO_CONFIG:
            if value is not None:
                self.add("configuration: written")
            elif offset + size - MMIO_CONFIG > len(device.config()):
                self.add("configuration: read beyond the end")
        elif REGISTERS.at(offset, value is not None) is None:
            self.add("register: there is none")
        elif size != 4:
            self.add("register: another width than 4")
        elif value is not None:
            self._written(device, offset, value)

    def _written(self, device, offset, value):
        status = device.status
        if offset == _OFFSET["QueueSel"]:
            if value >= len(device.queues):
                self.add("queue: selected, not there")
        elif offset in _QUEUE_FIELDS:
            if status & spec.STATUS_DRIVER_OK:
                self.add("queue: set up while it may not be")
        elif offset == _OFFSET["DriverFeatures"]:
            if status != spec.STATUS_ACKNOWLEDGE | spec.STATUS_DRIVER:
                self.add("features: accepted at another time")
        elif offset == _OFFSET["Status"]:
            if not value & 0xFF and any(queue.in_flight for queue in device.queues):
                self.add("reset with requests in flight")
        elif offset == _OFFSET["QueueNotify"]:
            if not status & spec.STATUS_DRIVER_OK:
                self.add("notified: before DRIVER_OK")
            elif status & spec.STATUS_NEEDS_RESET:
                self.add("notified: while a reset is needed")
            elif value >= len(device.queues):
                self.add("notified: no such queue")
            elif not device.queues[value].ready:
                self.add("notified: queue not ready")

    def status(self, before, value, after):
        """The driver wrote `value` to the status, which was `before` and is `after`."""
        if value == 11 and before == 3 and after == 3:
            self.add("features: refused")
        elif value & spec.STATUS_FAILED:
            self.add("status: given up")
        elif (value ^ after) & ~spec.STATUS_NEEDS_RESET:
            self.add("status: refused")

    def missing(self):
        """What should have been reached and was not."""
        errors = [f"ring: {text}" for text, _ in self.templates if text not in self._reached]
        return errors + [name for name in self.required if not self.counts[name]]

    def table(self):
        """Lines of text, the kinds with their counts."""
        return [f"{count:9,d}  {name}" for name, count in sorted(self.counts.items())]


def templates(module):
    """Each QueueError that the source of `module` raises: its text with {} for what differs, and a pattern for it."""
    found = []
    for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            if isinstance(node.exc.func, ast.Name) and node.exc.func.id == "QueueError":
                [text], texts = node.exc.args, []
            elif isinstance(node.exc.func, ast.Attribute) and node.exc.func.attr == "_wrong":  # Virtqueue's
                [_, text], texts = node.exc.args, ["queue ", None, ": "]
            else:
                continue
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            texts += [part.value if isinstance(part, ast.Constant) else None for part in parts]
            pattern = "".join(".+" if part is None else re.escape(part) for part in texts)
            found.append(("".join("{}" if part is None else part for part in texts), re.compile(pattern)))
    return found
