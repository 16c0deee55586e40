"""Clones of a snapshot in a process of their own, for `python -m bench snapshot`: `python -m bench.clone COUNT PATH`.

Imports as little as a program does that restores one: what it takes to load this is part of what is measured.
"""

from __future__ import annotations

import sys
import time

from pyvmm import VM
from pyvmm.kvm.vcpu import VcpuFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.exits import Exit

LIMIT = 300.0
SETTLE = 1.0
"""Seconds that clones are idle before their memory is counted."""


class Entry:
    """Notes when a vCPU enters the guest for the first time from now on. One at a time."""

    def __init__(self) -> None:
        self.at = 0.0
        self._run = VcpuFd.run

    def __enter__(self) -> Entry:
        def run(vcpu: VcpuFd) -> Exit:
            if not self.at and not vcpu.immediate_exit:
                self.at = time.monotonic()
            return self._run(vcpu)

        VcpuFd.run = run  # type: ignore[assignment, method-assign]
        return self

    def wait(self) -> float:
        """The moment, in seconds of the monotonic clock, which all processes share."""
        while not self.at:
            time.sleep(0.0001)
        return self.at

    def __exit__(self, *_: object) -> None:
        VcpuFd.run = self._run  # type: ignore[method-assign]


def restored(path: str) -> tuple[VM, float, float]:
    """A clone that has answered a ping, and when it entered the guest and answered."""
    with Entry() as entry:
        vm = VM.restore(path, timeout=LIMIT)
        vm.start()
        entered = entry.wait()
    try:
        vm.agent.ping()
    except BaseException:
        vm.close()
        raise
    return vm, entered, time.monotonic()


def used() -> dict[str, float]:
    """What this process has, in MiB."""
    found = {}
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name in ("Private_Dirty", "Pss"):
                found[name] = int(value.split()[0]) / 1024
    return found


def main(count: int, path: str) -> None:
    """Restore `count` clones; print moments and memory as JSON, and end when standard input does."""
    before = used()
    vms, moments = [], []
    try:
        for _ in range(count):
            vm, entered, answered = restored(path)
            vms.append(vm)
            moments.append((entered, answered))
        time.sleep(SETTLE)
        after = used()
        clones = {name: (after[name] - before[name]) / count for name in after}
        import json

        print(json.dumps({"moments": moments, "clones": clones, "process": after}), flush=True)
        sys.stdin.read()
    finally:
        for vm in vms:
            vm.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
