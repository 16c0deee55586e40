"""A small trace as a run records it: the sample that the tests of everything which reads traces use."""

from __future__ import annotations

import json
from typing import Any

from pyvmm.kvm.exits import KVM_EXIT_HLT, KVM_EXIT_INTR, KVM_EXIT_IO, KVM_EXIT_MMIO
from pyvmm.trace import spool

GREETING = b"Hello, trace\n"
HEADER: dict[str, Any] = {
    "kind": "trace",
    "format": 1,
    "pyvmm": "0",
    "began": "2026-11-22T03:00:00+00:00",
    "cpus": 2,
    "mem": 128 << 20,
    "kernel": "vmlinux",
    "append": "console=ttyS0 reboot=k",
    "kvm": "kvm_pvm",
    "devices": [
        {"name": "rtc", "space": "pio", "base": 0x70, "length": 2, "model": "rtc"},
        {"name": "debugexit", "space": "pio", "base": 0xF4, "length": 4, "model": "debugexit"},
        {"name": "serial", "space": "pio", "base": 0x3F8, "length": 8, "model": "serial"},
        {"name": "blk0", "space": "mmio", "base": 0xD0000000, "length": 4096, "model": "virtio-mmio", "id": 2},
    ],
}


class SpoolFile:
    """Makes the bytes of what is recorded, chunk by chunk."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, bytearray]] = []
        self._open: dict[int, bytearray] = {}

    def chunk(self, stream: int, length: int = 1 << 16, lost: int = 0) -> None:
        """From now on `stream` goes on in another chunk."""
        data = bytearray(spool.CHUNK.pack(spool.MAGIC, length, stream, lost))
        self.chunks.append((length, data))
        self._open[stream] = data

    def add(self, stream: int, *fields: int, behind: bytes = b"") -> None:
        """A record: the fields of spool.RECORD, and what follows it."""
        if stream not in self._open:
            self.chunk(stream)
        self._open[stream] += spool.RECORD.pack(*fields) + behind.ljust(spool.trailing(len(behind)), b"\0")

    def text(self, t: int, **record: Any) -> None:
        data = json.dumps(record).encode()
        self.add(spool.EVENTS, spool.TEXT, 0, 0, 0, len(data), t, 0, 0, 0, 0, 0, 0, behind=data)

    def name(self, number: int, name: str) -> None:
        data = name.encode()
        self.add(spool.EVENTS, spool.NAME, 0, 0, 0, len(data), 0, 0, 0, 0, number, 0, 0, behind=data)

    def access(self, vcpu: int, t: int, at: int, data: bytes, write: bool, *, size: int = 1, flags: int = 0) -> None:
        mmio = at > 0xFFFF
        flags |= spool.ACCESS | (spool.WRITE if write else 0) | (spool.MMIO if mmio else 0)
        reason = KVM_EXIT_MMIO if mmio else KVM_EXIT_IO
        value, handle = int.from_bytes(data[:8], "little"), 900 if flags & spool.BY_C else 12_000
        fields = (spool.EXIT, flags, size, reason, len(data) // size, t, 50_000, handle, 0xFFFFFFFF81000000, at, value)
        self.add(vcpu, *fields, t, behind=data if len(data) > spool.INLINE else b"")

    def bytes(self) -> bytes:
        """The file."""
        return b"".join(bytes(data.ljust(length, b"\0")) for length, data in self.chunks)


def sample() -> SpoolFile:
    """Two vCPUs that use a serial port, the clock and a disk; the run ends by the debug-exit port."""
    made, t = SpoolFile(), 1_000_000_000
    made.text(t, **HEADER)
    made.name(1, "blk0")
    made.name(2, "serial")
    made.text(t + 1000, kind="phase", name="loaded")
    made.text(t + 2000, kind="statistics", vcpu=0, counters={"exits": 3, "io_exits": 1})
    made.text(t + 3000, kind="lifecycle", state="running")
    now = t + 100_000
    for at, data, write in (
        *((0x3FB, b"\x83", True), (0x3F8, b"\x01", True), (0x3F9, b"\0", True), (0x3FB, b"\x03", True)),
        *((0x70, b"\x0a", True), (0x71, b"\x26", False)),
    ):
        made.access(0, now, at, data, write)
        now += 100_000
    for byte in GREETING:
        made.access(0, now, 0x3FD, b"\x60", False, flags=spool.BY_C)
        made.access(0, now + 60_000, 0x3F8, bytes((byte,)), True, flags=spool.BY_C)
        now += 120_000
    made.access(0, now, 0x3F8, GREETING, True)
    made.add(spool.EVENTS, spool.INTERRUPT, 1, 0, 0, 1, now + 4000, 2, 0, 0, 4, 0, 0)
    made.add(spool.EVENTS, spool.INTERRUPT, 0, 0, 0, 1, now + 5000, 2, 0, 0, 4, 0, 0)
    for number, (at, value, write) in enumerate(
        ((0, 0x74726976, False), (8, 2, False), (0x70, 0, True), (0x70, 1, True), (0x70, 3, True), (0x100, 2048, False))
    ):
        made.access(1, now + 20_000 * number, 0xD0000000 + at, value.to_bytes(4, "little"), write, size=4)
    now += 1_000_000
    for event, count, depth in ((0, 1, 0), (1, 3, 3), (2, 3, 0), (3, 1, 0)):
        made.add(spool.EVENTS, spool.QUEUE, event, 0, 0, count, now, 1, 70_000 if event == 2 else 0, 0, 0, depth, 0)
        now += 30_000
    made.add(spool.EVENTS, spool.INTERRUPT, 2, 0, 0, 1, now, 1, 0, 0, 5, 0, 0)
    made.add(1, spool.EXIT, 0, 0, KVM_EXIT_HLT, 0, now, 400_000, 2_000, 0xFFFFFFFF81000010, 0, 0, now)
    made.add(1, spool.EXIT, 0, 0, KVM_EXIT_INTR, 0, now + 10_000, 5_000, 1_000, 0xFFFFFFFF81000010, 0, 0, now)
    made.access(0, now + 20_000, 0xF4, b"\0", True)
    made.text(now + 30_000, kind="lifecycle", state="ended")
    made.text(now + 40_000, kind="statistics", vcpu=0, counters={"exits": 60, "io_exits": 40})
    made.text(now + 50_000, kind="end", reason="debug-exit", status=1)
    return made
