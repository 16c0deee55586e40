"""Recording a device model by itself: a driver in Python, a device, its back-end; no KVM and no machine.

    with Recorded("virtio-block", {"serial": "x"}, real={"disk": disk, "interrupt": told}) as recorded:
        transport = recorded.devices["mmio"]
        transport.write(0x70, 4, 1)
        recorded.host("resize", 4096)
        recorded.save("block.jsonl")

Imports models, outside, writer and memory. What replay.py plays back is all there: each access with its answer, what
the guest and what the device changed in memory, each message between the device and `real`, what it is connected to.
One thread; the device does its work when it is rung, within the access.
"""

from __future__ import annotations

import re

from pyvmm.memory import GuestMemory
from pyvmm.trace.devices.models import make
from pyvmm.trace.devices.outside import Recorder
from pyvmm.trace.writer import write_lines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    Record = dict[str, Any]

FORMAT = 1
GUEST, DEVICE = "guest", "device"
MEMORY = 1 << 20
"""Bytes of RAM for a virtio device."""
PIECE = 4096
_RUNS = re.compile(rb"[^\0]+(?:\0{1,7}[^\0]+)*")
"""Bytes that differ, with up to seven between them that do not: one entry then."""


class Recorded:
    """A device of `model` (see models.py) with `options`, connected to `real`: objects and functions by name.

    devices   what the driver accesses, by name: each has name, lock, read and write
    memory    the guest's RAM, which the driver may write at any time between accesses
    records   what has been recorded so far
    """

    def __init__(self, model: str, options: dict[str, Any], real: dict[str, Any]) -> None:
        length = MEMORY if model.startswith("virtio-") else 0
        self.memory = GuestMemory.allocate([(0, length)] if length else [])
        self._outside = Recorder({"clock": lambda: 0.0, **real})
        self.records = self._outside.entries
        self.header: Record = {
            "kind": "trace",
            "format": FORMAT,
            "cpus": 1,
            "mem": length,
            "kernel": "",
            "devices": [],
            "recording": {"model": model, "options": options},
        }
        self._image = bytes(length)
        try:
            self._rig = make(model, self._outside, options, self.memory)
        except BaseException:
            self.memory.close()
            raise
        self.devices = {name: _Recording(self, name, device) for name, device in self._rig.devices.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def host(self, name: str, *arguments: Any) -> Any:
        """Have the host do something with the device: one of the model's targets. Returns and raises what that does."""
        self._watch(GUEST)
        try:
            return self._outside.call(name, self._rig.targets[name], *arguments)
        finally:
            self._watch(DEVICE)

    def access(self, device: Any, name: str, offset: int, size: int, value: int | None) -> int:
        """A read, with None for `value`, or a write."""
        self._watch(GUEST)
        record: Record = {
            "kind": "exit",
            "t": len(self.records),
            "vcpu": 0,
            "reason": "MMIO",
            "run": 0,
            "by": "python",
            "device": name,
            "space": "mmio",
            "at": offset,
            "size": size,
            "count": 1,
            "write": value is not None,
            "data": "" if value is None else value.to_bytes(size, "little").hex(),
        }
        self.records.append(record)
        found = 0
        with device.lock:
            if value is None:
                found = device.read(offset, size)
                record["data"] = found.to_bytes(size, "little").hex()
            else:
                device.write(offset, size, value)
        self._watch(DEVICE)
        return found

    def _watch(self, by: str) -> None:
        """Note what has changed in memory since the last look."""
        now = self.memory.read(0, len(self._image)) if self._image else b""
        for at, data in changes(self._image, now):
            self.records.append({"kind": "memory", "at": at, "data": data.hex(), "by": by})
        self._image = now

    def save(self, path: str) -> None:
        """Write it as JSON lines. Raises OSError."""
        for number, record in enumerate(self.records):
            record["t"] = number
        with open(path, "w", encoding="utf-8") as file:
            write_lines(file, [self.header, *self.records])

    def close(self) -> None:
        """Give memory back, and modules their clock."""
        self._rig.close()
        self._rig = None  # type: ignore[assignment]  # it may hold views of memory
        self.devices = {}
        try:
            self.memory.close()
        except BufferError:
            pass  # the driver or the device still has some of it in hand


class _Recording:
    """A bus device whose accesses are recorded."""

    def __init__(self, recorded: Recorded, name: str, device: Any) -> None:
        self._recorded = recorded
        self.name = name
        self.device = device
        self.lock = _NoLock()

    def read(self, offset: int, size: int) -> int:
        """The bus's read."""
        return self._recorded.access(self.device, self.name, offset, size, None)

    def write(self, offset: int, size: int, value: int) -> None:
        """The bus's write."""
        self._recorded.access(self.device, self.name, offset, size, value)


class _NoLock:
    """The device has one, which is taken for each access."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *_: object) -> None:
        pass


def changes(before: bytes, after: bytes) -> list[tuple[int, bytes]]:
    """Where the two, of one length, differ: each place with what is there now."""
    found: list[tuple[int, bytes]] = []
    if before == after:
        return found
    for start in range(0, len(after), PIECE):
        old, new = before[start : start + PIECE], after[start : start + PIECE]
        if old == new:
            continue
        # Equal bytes are zero here, and few changes are at places that are neighbours.
        differ = (int.from_bytes(old, "little") ^ int.from_bytes(new, "little")).to_bytes(len(new), "little")
        for run in _RUNS.finditer(differ):
            found.append((start + run.start(), new[run.start() : run.end()]))
    return found
