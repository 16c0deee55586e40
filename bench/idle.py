"""`python -m bench idle`: the CPU time of many Linux guests that do nothing, each in a pyvmm of its own.

The tiny image boots once and is saved when it waits for input; `pyvmm snapshot restore` then starts every guest from
there. Counted is what the kernel has accounted to each thread (proc(5)) over a while. The floor is what any VMM would
pay: the system time of the vCPU's thread, which is KVM's. Everything beyond it is pyvmm's: its other threads, and what
the vCPU's thread does outside KVM.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

from bench.contenders import ROOT, environment, guest
from bench.record import pyplot, write
from pyvmm import VM

MEMORY = 64
"""MiB of each guest."""
LIMIT = 300
SETTLE = 10.0
"""Seconds that the guests have before they are measured: for the last of what comes with a start."""
TARGET = 0.1
"""Percent of a core beyond the floor that a guest may cost."""
TICK = os.sysconf("SC_CLK_TCK")
PROMPT = "# "

Times = dict[int, tuple[float, float]]
"""A thread's user and system time in seconds, by its id."""


def save(folder: str) -> str:
    """Boot the guest to its shell and save it; the snapshot's path."""
    path = os.path.join(folder, "idle")
    kernel, initrd = guest("tiny"), guest("tiny", "initrd")
    with VM(kernel, initrd=initrd, mem=f"{MEMORY}M", append="quiet", timeout=LIMIT) as vm:
        vm.console.expect(PROMPT, LIMIT)  # type: ignore[attr-defined]
        time.sleep(2)
        vm.snapshot(path)
    return path


def start(path: str) -> subprocess.Popen[bytes]:
    """A guest that goes on from the snapshot. Its standard input stays open and silent."""
    command = [sys.executable, "-m", "pyvmm", "snapshot", "restore", path]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    return subprocess.Popen(command, cwd=ROOT, env=environment(), stdin=pipe, stdout=null, stderr=pipe)


def times(process: int) -> Times:
    """What every thread of `process` has used so far."""
    found = {}
    for thread in os.listdir(f"/proc/{process}/task"):
        fields = Path(f"/proc/{process}/task/{thread}/stat").read_text().rpartition(")")[2].split()
        run = int(Path(f"/proc/{process}/task/{thread}/schedstat").read_text().split()[0]) * 1e-9
        user, system = int(fields[11]) / TICK, int(fields[12]) / TICK
        share = system / (user + system) if user + system else 0.0
        found[int(thread)] = run * (1 - share), run * share
    return found


def used(before: Times, after: Times, seconds: float) -> dict[str, float]:
    """Percent of a core that a process has used: in all, as floor, and beyond it."""
    spent = {
        thread: tuple(now - then for now, then in zip(after[thread], before.get(thread, (0.0, 0.0)), strict=True))
        for thread in after
    }
    floor = max(system for _, system in spent.values())  # no other thread is in the kernel for long
    total = sum(map(sum, spent.values()))
    share = 100 / seconds
    return {"total_pct": total * share, "floor_pct": floor * share, "beyond_pct": (total - floor) * share}


def run(guests: int, seconds: float) -> list[dict[str, float]]:
    """The figures of each guest."""
    with TemporaryDirectory() as folder:
        path = save(folder)
        processes = []
        try:
            for _ in range(guests):
                processes.append(start(path))
            time.sleep(SETTLE)
            before = [times(process.pid) for process in processes]
            began = time.monotonic()
            time.sleep(seconds)
            after = [times(process.pid) for process in processes]
            elapsed = time.monotonic() - began
            for process in processes:
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise SystemExit(f"a guest has ended: {process.stderr.read().decode()}")
        finally:
            for process in processes:
                process.kill()
                process.communicate()
    return [used(then, now, elapsed) for then, now in zip(before, after, strict=True)]


def table(found: list[dict[str, float]]) -> str:
    """Mean, least and greatest of each figure, and the target."""
    lines = [f"{'figure':16}{'mean':>10}{'least':>10}{'greatest':>10}"]
    for name in found[0]:
        values = [figures[name] for figures in found]
        lines.append(f"{name:16}{mean(values):10.3f}{min(values):10.3f}{max(values):10.3f}")
    worst = max(figures["beyond_pct"] for figures in found)
    lines.append(f"beyond the floor, at most: {worst:.3f} %  {'met' if worst <= TARGET else 'MISSED'} (<= {TARGET})")
    return "\n".join(lines)


def plot(found: list[dict[str, float]], path: Path) -> bool:
    """Every guest's floor and what is beyond it, as SVG; False where matplotlib is missing."""
    plt = pyplot()
    if plt is None:
        return False
    figure, axis = plt.subplots(figsize=(10, 4), layout="constrained")
    numbers = range(1, len(found) + 1)
    floor = [figures["floor_pct"] for figures in found]
    axis.bar(numbers, floor, color="#9aa0a6", label="KVM, in the vCPU's thread")
    axis.bar(numbers, [one["beyond_pct"] for one in found], bottom=floor, color="#3367d6", label="pyvmm")
    axis.set_title("percent of a core, each guest")
    axis.legend()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench idle", description=__doc__)
    parser.add_argument("--guests", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(argv)
    if options.guests < 1 or options.seconds <= 0:
        parser.error("at least one guest, and some time")
    found = run(options.guests, options.seconds)
    print(table(found))
    figures = {"memory_mib": MEMORY, "seconds": options.seconds, "guests": found, "target_pct": TARGET}
    write(figures, options.output, "idle", lambda path: plot(found, path))
    return 0
