"""`python -m bench trace`: what it costs to trace a run: an exit with and without, what is recorded, a boot of Linux.

Rounds are interleaved, so that a machine whose speed drifts drifts for all. Figures are medians over the rounds, with
the least and the greatest. A posted write is one that C deals with and records by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.contenders import ROOT, guest
from bench.record import host

KINDS = {"outb": "PIO write", "inb": "PIO read", "post": "posted write", "two": "PIO write, two vCPUs"}
BOOT_LIMIT = 300

Samples = dict[tuple[str, str], list[float]]


def exits(kernel: str, kind: str, count: int, trace: str | None) -> dict[str, float]:
    """Microseconds of wall and user CPU for an exit, in a process of its own."""
    command = [
        sys.executable,
        str(ROOT / "bench" / "exit_cost.py"),
        kernel,
        kind,
        str(count),
        *([trace] if trace else []),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout)
    return {name: found[name] / count * 1e6 for name in ("wall", "user")}


def boot(trace: str | None) -> dict[str, float]:
    """Seconds of wall and of CPU for a boot of the tiny Linux to power-off, its conversion to JSON lines with it."""
    from pyvmm.images import image

    tiny = image("tiny")
    command = [sys.executable, "-m", "pyvmm", "run", tiny.kernel, "--initrd", tiny.initrd, "--timeout", "280s"]
    command += ["--append", "pyvmm.greeting=bench pyvmm.poweroff", *(["--trace", trace] if trace else [])]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        command, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=BOOT_LIMIT, check=True, cwd=ROOT
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.monotonic() - began, "cpu": cpu}


def run(rounds: int, count: int, boots: int) -> Samples:
    """(measurement, figure) to the figures of all rounds."""
    samples: Samples = {}

    def note(title: str, off: dict[str, float], on: dict[str, float]) -> None:
        for name, value in off.items():
            samples.setdefault((title, f"{name} untraced"), []).append(value)
            samples.setdefault((title, f"{name} traced"), []).append(on[name])
            samples.setdefault((title, f"{name} added"), []).append(on[name] - value)
            if name == "wall":
                samples.setdefault((title, "wall ratio"), []).append(on[name] / value)

    kernel = guest("exits")
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for kind, title in KINDS.items():
                note(f"{title}, us", *(exits(kernel, kind, count, path) for path in (None, f"{folder}/run.trace")))
        for _ in range(boots):
            note("boot of Linux, s", *(boot(path) for path in (None, f"{folder}/boot.jsonl")))
    return samples


def table(samples: Samples) -> str:
    """For a reader."""
    lines = [f"{'measurement':26}{'figure':18}{'median':>10}{'least':>10}{'greatest':>10}"]
    for (title, figure), values in samples.items():
        row = f"{median(values):10.3f}{min(values):10.3f}{max(values):10.3f}"
        lines.append(f"{title:26}{figure:18}{row}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench trace", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exits", type=int, default=100_000, help="exits a measurement (default %(default)s)")
    parser.add_argument("--boots", type=int, default=3, help="pairs of boots (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.exits < 10 or options.boots < 0:
        parser.error("at least one round, and at least ten exits")
    load = os.getloadavg()
    samples = run(options.rounds, options.exits, options.boots)
    print(f"load before: {load[0]:.1f}, after: {os.getloadavg()[0]:.1f}")
    print(table(samples))
    figures = {
        "host": host(),
        "rounds": options.rounds,
        "exits": options.exits,
        "load": list(load),
        "samples": [{"measurement": key[0], "figure": key[1], "values": values} for key, values in samples.items()],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "trace.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0
