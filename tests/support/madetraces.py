"""Trace files made up by the schema of docs/trace.md: a short boot, as many records as a test wants, and worse."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER: dict[str, Any] = {
    "kind": "trace",
    "format": 1,
    "pyvmm": "0.1",
    "began": "2026-11-22T03:00:00+00:00",
    "cpus": 2,
    "mem": 128 << 20,
    "kernel": "/boot/vmlinux",
    "append": "console=ttyS0",
    "kvm": "kvm_intel",
    "devices": [
        {"name": "serial", "space": "pio", "base": 0x3F8, "length": 8},
        {"name": "pci", "space": "pio", "base": 0xCF8, "length": 8},
    ],
}
ACCESSES = [  # device, space, at, register, write, words, spec, by, weight
    ("serial", "pio", 0x3F8, "THR", True, "THR 0x41", "PC16550D, 8.2", "c", 60),
    ("serial", "pio", 0x3FD, "LSR", False, "LSR 0x60: THRE TEMT", "PC16550D, 8.4", "python", 25),
    ("pci", "pio", 0xCF8, "CONFIG_ADDRESS", True, "00:01.0 offset 0x0", "PCI 3.0, 3.2.2.3.2", "python", 6),
    ("pci", "pio", 0xCFC, "CONFIG_DATA", False, "vendor 0x1af4", "PCI 3.0, 3.2.2.3.2", "python", 6),
    ("virtio-blk0", "mmio", 0xFEB00070, "Status", True, "Status 0xf: ACKNOWLEDGE", "virtio 1.3, 4.2.2", "python", 2),
    (None, "pio", 0x2F8, None, False, "nobody answers", None, "python", 1),
]


def boot(exits: int = 400, seed: int = 1) -> Iterator[dict[str, Any]]:
    """The records of a run with `exits` exits by two vCPUs: phases, a disk's queue, interrupts, KVM's counters."""
    rng = random.Random(seed)
    t = 1000
    yield {"kind": "statistics", "t": 10, "vcpu": 0, "counters": {"exits": 100, "insn_emulation": 5, "same": 7}}
    yield {"kind": "phase", "t": 500, "name": "loaded"}
    yield {"kind": "lifecycle", "t": 600, "state": "running"}
    weights = [access[-1] for access in ACCESSES]
    for number in range(exits):
        if number == exits // 4:
            yield {"kind": "phase", "t": t, "name": "first output"}
        device, space, at, register, write, words, spec, by, _weight = rng.choices(ACCESSES, weights)[0]
        run, handle = rng.randrange(8000, 20000), 400 if by == "c" else rng.randrange(6000, 9000)
        t += run + handle
        record = {"kind": "exit", "t": t, "vcpu": (number % 8 == 7 and 1) or 0, "rip": 0xFFFFFFFF81000000 + number}
        record |= {"reason": "IO" if space == "pio" else "MMIO", "run": run, "handle": handle, "by": by}
        record |= {"space": space, "at": at, "size": 1, "count": 1, "write": write, "data": "41", "words": words}
        yield record | ({"device": device, "register": register, "spec": spec} if device else {})
        if number % 50 == 0:
            disk = {"kind": "queue", "device": "virtio-blk0", "queue": 0}
            yield disk | {"t": t + 100, "event": "notify", "count": 1, "depth": 0}
            yield disk | {"t": t + 200, "event": "take", "count": 2, "depth": 2}
            yield disk | {"t": t + 300, "event": "complete", "count": 2, "depth": 0, "handle": 90000}
            yield disk | {"t": t + 400, "event": "interrupt", "count": 1, "depth": 0}
            yield {"kind": "interrupt", "t": t + 410, "gsi": 16, "device": "virtio-blk0", "level": "pulse"}
    yield {
        "kind": "exit",
        "t": t + 5000,
        "vcpu": 0,
        "reason": "HLT",
        "rip": 1,
        "run": 5000,
        "handle": 100,
        "by": "python",
    }
    last = {"exits": 100 + 10 * exits, "insn_emulation": 9, "same": 7}
    yield {"kind": "statistics", "t": t + 6000, "vcpu": 0, "counters": last}
    yield {"kind": "end", "t": t + 7000, "reason": "power-off", "status": 0}


def write(path: Path, records: Any = None, header: Any = HEADER) -> Path:
    """A trace file at `path`, by default of a short boot."""
    with path.open("w") as file:
        for record in (header, *(boot() if records is None else records)):
            file.write(json.dumps(record) + "\n")
    return path
