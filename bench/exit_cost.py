"""What one exit to a Python device costs in pyvmm: run by bench/exits.py, in a process of its own for each figure.

    exit_cost.py KERNEL KIND COUNT

KERNEL is the `exits` guest, KIND one of outb, inb, write, read. Prints one line of JSON as bench/floor.c does: wall and
user-space CPU seconds of the vCPU's thread (getrusage(RUSAGE_THREAD)) from the first exit to the last.
"""

from __future__ import annotations

import json
import resource
import sys
import threading
import time

from pyvmm import VM
from pyvmm.bus import Bus
from pyvmm.runloop import Outcome

PLACES = {"outb": 0x500, "inb": 0x500, "write": 0xD0000000, "read": 0xD0000000}


def now() -> tuple[float, float]:
    return time.monotonic(), resource.getrusage(resource.RUSAGE_THREAD).ru_utime


class Scratch:
    """The least that a device can be: one register."""

    name = "scratch"

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        self.value = value


class FirstAccess(Scratch):
    """Notes when the first access came, and from then on leaves the place to the scratch register."""

    def __init__(self, bus: Bus, base: int) -> None:
        super().__init__()
        self.bus, self.base = bus, base
        self.began = (0.0, 0.0)

    def _begin(self) -> None:
        self.bus.detach(self.base)
        self.bus.attach(self.base, 4, Scratch())
        self.began = now()

    def read(self, offset: int, size: int) -> int:
        self._begin()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._begin()


class End(Scratch):
    """Answers at the debug-exit port: the guest's last write ends the measurement, on the vCPU's own thread."""

    def __init__(self, vm: VM) -> None:
        super().__init__()
        self.vm = vm
        self.ended = (0.0, 0.0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.ended = now()
        self.vm.stop(Outcome("debug-exit", 1))


def measure(kernel: str, kind: str, count: int) -> dict[str, float]:
    place = PLACES[kind]
    vm = VM(kernel, mem="64M", timeout=120, append=f"{kind} {count + 10} {place:#x}", paused=True)
    with vm:
        bus = vm.machine.mmio if kind in ("read", "write") else vm.machine.ports
        first, end = FirstAccess(bus, place), End(vm)
        bus.attach(place, 4, first)
        vm.machine.ports.detach(0xF4)
        vm.machine.ports.attach(0xF4, 4, end)
        vm.resume()
        outcome = vm.wait(120)
        exits = sum(vm.stats.exits.values())
    if outcome.reason != "debug-exit" or exits < count:
        raise SystemExit(f"the guest did not do its work: {outcome}, {exits} exits")
    (wall, user), (wall_end, user_end) = first.began, end.ended
    return {"exits": exits, "wall": wall_end - wall, "user": user_end - user}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
