"""What one exit costs in pyvmm: run by bench/exits.py, in a process of its own for each figure.

    exit_cost.py KERNEL KIND COUNT [TRACE]

With TRACE the run is traced to that file. KERNEL is the `exits` guest. KIND is what goes to a Python device: outb, inb,
write, read; or one of

    post   outb to a register whose writes the run loop in C keeps for later
    busy   outb, while another Python thread computes
    two    outb from two vCPUs, each to a device of its own; the figures are the mean of both

Prints one line of JSON as bench/floor.c does: wall and user-space CPU seconds of the vCPU's thread
(getrusage(RUSAGE_THREAD)) from the first exit to the last.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time

from pyvmm import VM
from pyvmm.bus import Bus
from pyvmm.hot import POST, Group
from pyvmm.kvm.constants import KVM_MP_STATE_RUNNABLE
from pyvmm.runloop import Outcome

PLACES = {"outb": 0x500, "inb": 0x500, "post": 0x500, "busy": 0x500, "write": 0xD0000000, "read": 0xD0000000}
GUEST_KIND = {"post": "outb", "busy": "outb"}
SECOND = 0x510
"""Where the second vCPU's device is, and behind it the port that it writes to at its end."""

TEN_OUTS = b"\xee" * 10 + bytes.fromhex("6649 75f2 89da ee fa f4 ebfd")
"""Real mode: 1: ten times out %al, %dx; dec %ecx; jnz 1b; mov %bx, %dx; out %al, %dx; cli; 2: hlt; jmp 2b."""

Moment = tuple[float, float]


def now() -> Moment:
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


class Posted(Scratch):
    """The same, with writes that may be posted."""

    def __init__(self, group: Group) -> None:
        self.value = 0
        self.lock = group.lock
        self.window = group.window(self, 0, 4, 1)
        self.window.on_write(0, POST)

    def posted(self, offset: int, size: int, data: bytes) -> None:
        self.value = data[-1]


class FirstAccess(Scratch):
    """Notes when the first access came, and from then on leaves the place to `device`."""

    def __init__(self, bus: Bus, base: int, device: Scratch) -> None:
        super().__init__()
        self.bus, self.base, self.device = bus, base, device
        self.began = (0.0, 0.0)

    def _begin(self) -> None:
        self.bus.detach(self.base)
        self.bus.attach(self.base, 4, self.device)
        self.began = now()

    def read(self, offset: int, size: int) -> int:
        self._begin()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        self._begin()


class End(Scratch):
    """Where each vCPU writes last: ends the measurement on its own thread, and the run with the last one."""

    def __init__(self, vm: VM, vcpus: int) -> None:
        super().__init__()
        self.vm = vm
        self.left = vcpus
        self.ended: dict[int, Moment] = {}

    def write(self, offset: int, size: int, value: int) -> None:
        self.ended[offset] = now()
        self.left -= 1
        if not self.left:
            self.vm.stop(Outcome("debug-exit", 1))


def one(kernel: str, kind: str, count: int, trace: str | None) -> dict[str, float]:
    place = PLACES[kind]
    words = f"{GUEST_KIND.get(kind, kind)} {count + 10} {place:#x}"
    vm = VM(kernel, mem="64M", timeout=120, append=words, paused=True, trace=trace)
    computing = kind == "busy"

    def compute() -> None:
        turns = 0
        while computing:
            turns += 1

    with vm:
        bus = vm.machine.mmio if kind in ("read", "write") else vm.machine.ports
        device = Posted(vm.machine.hot.group()) if kind == "post" else Scratch()
        first, end = FirstAccess(bus, place, device), End(vm, 1)
        bus.attach(place, 4, first)
        vm.machine.ports.detach(0xF4)
        vm.machine.ports.attach(0xF4, 4, end)
        worker = threading.Thread(target=compute, daemon=True)
        worker.start()
        vm.resume()
        outcome = vm.wait(120)
        computing = False
        exits = sum(vm.stats.exits.values())
    worker.join()
    return figures(outcome, exits, count, [(first.began, end.ended.get(0, first.began))])


def two(count: int, trace: str | None) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(suffix=".bin") as code:
        code.write(TEN_OUTS)
        code.flush()
        with VM(code.name, mem="64M", cpus=2, timeout=120, paused=True, trace=trace) as vm:
            bus, end = vm.machine.ports, End(vm, 2)
            bus.detach(0xF4)
            bus.attach(0xF4, 8, end)
            firsts = []
            for index, (vcpu, place) in enumerate(zip(vm.vcpus, (PLACES["outb"], SECOND), strict=True)):
                firsts.append(FirstAccess(bus, place, Scratch()))
                bus.attach(place, 4, firsts[-1])
                sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
                sregs.cs.base = sregs.cs.selector = 0
                regs.rip, regs.rflags, regs.rcx, regs.rdx, regs.rbx = 0x7C00, 2, count // 10 + 1, place, 0xF4 + index
                vcpu.set_sregs(sregs)
                vcpu.set_regs(regs)
                vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)
            vm.resume()
            outcome = vm.wait(120)
            exits = sum(vm.stats.exits.values())
    return figures(outcome, exits // 2, count, [(firsts[i].began, end.ended.get(i, firsts[i].began)) for i in (0, 1)])


def figures(outcome: Outcome, exits: int, count: int, spans: list[tuple[Moment, Moment]]) -> dict[str, float]:
    if outcome.reason != "debug-exit" or exits < count:
        raise SystemExit(f"the guest did not do its work: {outcome}, {exits} exits")
    wall, user = (sum(end[i] - begin[i] for begin, end in spans) / len(spans) for i in (0, 1))
    return {"exits": exits, "wall": wall, "user": user}


def measure(kernel: str, kind: str, count: int, trace: str | None = None) -> dict[str, float]:
    return two(count, trace) if kind == "two" else one(kernel, kind, count, trace)


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:5])))
