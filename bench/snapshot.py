"""`python -m bench snapshot`: what saving a Linux costs and what its clones cost, beside a boot in the same run.

The tiny image with its agent boots once in this process; then it is saved, and clones of it are restored by turns: in
this process, and in fresh ones that import pyvmm first. "First instruction" is the moment in which the first vCPU
enters the guest (KVM_RUN), "first ping" the agent's first answer, before which it has set the guest's clock. Memory is
counted when clones have answered and then been idle for a moment: Private_Dirty and Pss of the whole process, less
what it had before, from smaps (proc(5)).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.clone import LIMIT, restored
from bench.contenders import ROOT, environment, guest
from bench.record import pyplot, write
from pyvmm import VM

MEMORY = 128
"""MiB of the guest."""
COMMAND = ["true"]
CLONES = (1, 10, 50)
TARGETS = {
    "restore to first instruction, running process, ms": 20.0,
    "restore to first instruction, fresh process, ms": 60.0,
    "restore to first ping, running process, ms": 300.0,
    "exec in a clone / in the warm guest": 1.2,
    **{f"Private_Dirty a clone, {count} in one process, MiB": 12.0 for count in CLONES},
}
"""What the median should stay under, by figure."""

Samples = dict[str, list[float]]


def start(path: str, count: int) -> tuple[float, subprocess.Popen[str]]:
    command = [sys.executable, "-m", "bench.clone", str(count), path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    began = time.monotonic()
    return began, subprocess.Popen(command, cwd=ROOT, env=environment(), text=True, **pipes)  # type: ignore[call-overload]


def answer(process: subprocess.Popen[str]) -> dict[str, dict[str, float]]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a process of clones ended with {process.wait()}")
    found: dict[str, dict[str, float]] = json.loads(line)
    return found


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.wait(LIMIT)
    process.stdout.close()


def memory(path: str, count: int, note: Note) -> None:
    """Of `count` clones in one process, and in one each."""
    _, process = start(path, count)
    clones = answer(process)["clones"]
    end(process)
    for name, value in clones.items():
        note(f"{name} a clone, {count} in one process, MiB", value)
    processes = [start(path, 1)[1] for _ in range(count)]
    found = [answer(process)["process"] for process in processes]
    for process in processes:
        end(process)
    for name in found[0]:
        note(f"{name} of {count} processes, each, MiB", sum(one[name] for one in found) / count)


class Note:
    """Keeps figures by name."""

    def __init__(self) -> None:
        self.samples: Samples = {}

    def __call__(self, name: str, value: float) -> None:
        self.samples.setdefault(name, []).append(value)
        print(f"{name:56}{value:10.2f}", file=sys.stderr)


def execute(vm: VM) -> float:
    """Milliseconds of one command."""
    began = time.monotonic()
    vm.exec(COMMAND, timeout=LIMIT).check()
    return (time.monotonic() - began) * 1e3


def run(rounds: int, clones: list[int]) -> Samples:
    """The figures of all rounds."""
    note = Note()
    with TemporaryDirectory() as folder:
        path = os.path.join(folder, "base")
        began = time.monotonic()
        words = "quiet pyvmm.agent"
        kernel, initrd = guest("tiny"), guest("tiny", "initrd")
        with VM(kernel, initrd=initrd, mem=f"{MEMORY}M", agent=True, append=words, timeout=LIMIT * 4) as vm:
            vm.guest.wait_ready(LIMIT)
            note("boot to first ping, ms", (time.monotonic() - began) * 1e3)
            execute(vm)  # from now on the program is in the guest's memory
            for number in range(rounds):
                measured = os.path.join(folder, f"s{number % 2}")
                began = time.monotonic()
                vm.snapshot(measured)
                note("snapshot create, ms", (time.monotonic() - began) * 1e3)
                began = time.monotonic()
                vm.snapshot(measured + "d", base=os.path.join(folder, f"s{number % 2}"))
                note("differential snapshot create, ms", (time.monotonic() - began) * 1e3)
            vm.snapshot(path)
            for _ in range(rounds):
                began = time.monotonic()
                clone, entered, answered = restored(path)
                with closing(clone):
                    note("restore to first instruction, running process, ms", (entered - began) * 1e3)
                    note("restore to first ping, running process, ms", (answered - began) * 1e3)
                    note("exec in a clone, the first, ms", execute(clone))
                    warm, own = execute(vm), execute(clone)
                    note("exec in the warm guest, ms", warm)
                    note("exec in a clone, ms", own)
                began, process = start(path, 1)
                entered, answered = answer(process)["moments"][0]  # type: ignore[index, misc]
                end(process)
                note("restore to first instruction, fresh process, ms", (entered - began) * 1e3)
                note("restore to first ping, fresh process, ms", (answered - began) * 1e3)
        for count in clones:
            memory(path, count, note)
    found = note.samples
    share = median(found["exec in a clone, ms"]) / median(found["exec in the warm guest, ms"])
    note("exec in a clone / in the warm guest", share)
    return found


def table(samples: Samples) -> str:
    """Median, least and greatest of each figure, and the targets."""
    lines = [f"{'figure':56}{'median':>10}{'least':>10}{'greatest':>10}  target"]
    for name, values in samples.items():
        target = TARGETS.get(name)
        verdict = "" if target is None else f"  {'met' if median(values) < target else 'MISSED'} (< {target:g})"
        lines.append(f"{name:56}{median(values):10.2f}{min(values):10.2f}{max(values):10.2f}{verdict}")
    return "\n".join(lines)


def plot(samples: Samples, path: Path) -> bool:
    """Bars of the medians, times and memory apart, as SVG; False where matplotlib is missing."""
    plt = pyplot()
    if plt is None:
        return False
    units = [("ms", "milliseconds"), ("MiB", "MiB")]
    figure, axes = plt.subplots(1, 2, figsize=(17, 6), layout="constrained")
    for axis, (unit, title) in zip(axes, units, strict=True):
        names = [name for name in samples if name.endswith(f", {unit}")][::-1]
        middles = [median(samples[name]) for name in names]
        drawn = axis.barh([name.removesuffix(f", {unit}") for name in names], middles, color="#3367d6")
        axis.bar_label(drawn, fmt="%.3g", padding=3)
        axis.set_title(title)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        if unit == "ms":
            axis.set_xscale("log")
    figure.savefig(path)
    return True


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench snapshot", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clones", type=int, nargs="*", default=CLONES, help="how many whose memory is counted")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("at least one round")
    samples = run(options.rounds, options.clones)
    print(table(samples))
    figures = {"rounds": options.rounds, "memory_mib": MEMORY, "samples": samples, "targets": TARGETS}
    write(figures, options.output, "snapshot", lambda path: plot(samples, path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
