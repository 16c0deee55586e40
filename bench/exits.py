"""`python -m bench exits`: what exits cost, a whole process, and memory, in pyvmm, in a bare C program and in QEMU.

Rounds are interleaved: every round measures each contender once, so that a machine whose speed drifts drifts for all.
Figures are medians over the rounds, with the least and the greatest; only ratios within one run mean much.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench import measure
from bench.contenders import ROOT, Contender, build, contenders, guest
from bench.record import pyplot, write

KINDS = {"outb": "PIO write", "inb": "PIO read", "write": "MMIO write", "read": "MMIO read"}
OURS = {"post": "posted write", "two": "PIO write, two vCPUs", "busy": "PIO write, busy"}
"""Of pyvmm alone: a write that C deals with; two vCPUs that write to a device each; beside a busy Python thread."""

Samples = dict[tuple[str, str, str], list[float]]


def run(rounds: int, count: int) -> Samples:
    """(measurement, contender, figure) to the figures of all rounds."""
    samples: Samples = {}

    def note(measurement: str, contender: Contender, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            samples.setdefault((measurement, contender.name, name), []).append(value)

    kernel = guest("exits")
    with tempfile.TemporaryDirectory() as folder:
        launch = build("launch", Path(folder))
        found = contenders(kernel, build("floor", Path(folder)))
        for contender in found:
            measure.whole_process(launch, contender)  # warms the page cache, and Python's compiled bytecode
        for number in range(rounds):
            for contender in found:
                progress(f"round {number + 1} of {rounds}: {contender.name}")
                note("whole process", contender, measure.whole_process(launch, contender))
                for kind, title in KINDS.items():
                    note(title, contender, measure.exits(launch, contender, kernel, kind, count))
                for kind, title in OURS.items() if contender.name == "pyvmm" else ():
                    note(title, contender, measure.exits(launch, contender, kernel, kind, count))
                note("memory", contender, measure.memory_beyond_ram(contender))
    progress("")
    return samples


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def table(samples: Samples) -> str:
    """The samples for a reader: a line for each measurement and contender."""
    lines = [f"{'measurement':22}{'contender':11}{'figure':16}{'median':>10}{'least':>10}{'greatest':>10}"]
    for (measurement, contender, figure), values in sorted(samples.items(), key=_order):
        row = f"{median(values):10.2f}{min(values):10.2f}{max(values):10.2f}"
        lines.append(f"{measurement:22}{contender:11}{figure:16}{row}")
    return "\n".join(lines)


def _order(item: tuple[tuple[str, str, str], list[float]]) -> tuple[int, str, str]:
    (measurement, contender, figure), _ = item
    order = ["whole process", "memory", *KINDS.values(), *OURS.values()]
    return order.index(measurement), figure, contender


def plot(samples: Samples, path: Path) -> bool:
    """Bars of the medians with their spread, as SVG; False where matplotlib is missing."""
    plt = pyplot()
    if plt is None:
        return False
    panels = [
        ("whole process", "cpu_ms", "CPU of the whole process, ms"),
        ("whole process", "wall_ms", "wall of the whole process, ms"),
        ("whole process", "peak_mib", "peak memory, MiB"),
        *[(title, "wall_us", f"wall of a {title}, µs") for title in KINDS.values()],
        *[(title, "user_us", f"user CPU of a {title}, µs") for title in KINDS.values()],
        ("memory", "beyond_ram_mib", "memory beyond guest RAM, MiB"),
    ]
    figure, axes = plt.subplots(3, 4, figsize=(16, 10), layout="constrained")
    colours = {"floor": "#9aa0a6", "pyvmm": "#3367d6", "qemu": "#e8710a"}
    for axis, (measurement, name, title) in zip(axes.flat, panels, strict=True):
        bars = [(who, samples[measurement, who, name]) for who in colours if (measurement, who, name) in samples]
        middles = [median(values) for _, values in bars]
        spread = [
            [middle - min(values) for middle, (_, values) in zip(middles, bars, strict=True)],
            [max(values) - middle for middle, (_, values) in zip(middles, bars, strict=True)],
        ]
        names = [who for who, _ in bars]
        drawn = axis.bar(names, middles, yerr=spread, capsize=4, color=[colours[who] for who in names])
        axis.bar_label(drawn, fmt="%.3g", padding=3)
        axis.set_title(title, fontsize=11)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench exits", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--exits", type=int, default=100_000, help="exits a measurement (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.exits < 10:
        parser.error("at least one round, and at least ten exits")
    samples = run(options.rounds, options.exits)
    print(table(samples))
    figures = {
        "rounds": options.rounds,
        "exits": options.exits,
        "samples": [
            {"measurement": measurement, "contender": contender, "figure": figure, "values": values}
            for (measurement, contender, figure), values in samples.items()
        ],
    }
    write(figures, options.output, "exits", lambda path: plot(samples, path))
    return 0
