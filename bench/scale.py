"""`python -m bench scale`: what an operation costs pyvmm as the VM grows: more disks, more queues, more RAM.

A cost is flat where it is the same at both ends of its line. Measured are reads of 4 KiB by the virtio-bench guest, as
`python -m bench virtio` makes them, spread over all of the disks or queues; and a whole process whose guest leaves at
once, which tells what each of them costs to begin with. Rounds are interleaved: every round measures each size once.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import measure
from bench.contenders import MEMORY, ROOT, Contender, build, guest
from bench.record import pyplot, write
from bench.virtio import LIMIT, Result, announcement, counter, follow

DEVICES = (1, 2, 4, 8)
QUEUES = (1, 2, 4, 8, 16)
RAM = (64, 256, 1024, 4096, 16384)
"""MiB."""
AXES = {"disks": DEVICES, "queues of one disk": QUEUES, "MiB of RAM": RAM}
PER_QUEUE = 16
"""Requests that the guest has in flight on each queue."""
IMAGE_MIB = 16
FIGURES = {
    "wall_us": "wall time of a 4 KiB read, µs",
    "cpu_us": "CPU time of the data planes for it, µs",
    "start_ms": "a whole process that leaves at once, wall, ms",
    "start_cpu_ms": "and its CPU time, ms",
}
Samples = dict[tuple[str, int, str], list[float]]


def argv(axis: str, size: int, kernel: str, image: Path, append: str) -> list[str]:
    """How pyvmm runs the guest `kernel` at this size."""
    disks = size if axis == "disks" else 1
    queues = size if axis == "queues of one disk" else 1
    memory = size if axis == "MiB of RAM" else MEMORY
    command = [sys.executable, "-m", "pyvmm", "run", kernel, "--mem", f"{memory}M"]
    command += [word for _ in range(disks) for word in ("--disk", f"{image},ro,queues={queues}")]
    return [*command, "--append", f"acpi=off {announcement(disks)} {append}"]


def once(axis: str, size: int, image: Path, tools: tuple[str, int], milliseconds: int) -> dict[str, float]:
    """Each of FIGURES at this size."""
    launch, khz = tools
    spread = 1 if axis == "MiB of RAM" else size
    words = f"khz={khz} ms={milliseconds} spread={spread} read:4096:{PER_QUEUE}"
    ((line, cpu),) = follow(argv(axis, size, guest("virtio-bench"), image, words), 1, LIMIT)
    result = Result(line, khz, cpu)
    leaving = Contender("pyvmm", lambda line: argv(axis, size, guest("exits"), image, line))
    start = measure.whole_process(launch, leaving)
    return {
        "wall_us": 1e6 / result.rate,
        "cpu_us": result.cpu * 1e6,
        "start_ms": start["wall_ms"],
        "start_cpu_ms": start["cpu_ms"],
    }


def run(rounds: int, milliseconds: int, folder: Path) -> Samples:
    """(axis, size, figure) to the values of all rounds."""
    image = folder / "image"
    image.write_bytes(os.urandom(1 << 20) * IMAGE_MIB)
    tools = build("launch", folder), counter(build("virtio_peer", folder))
    samples: Samples = {}
    for number in range(rounds):
        for axis, sizes in AXES.items():
            for size in sizes if number % 2 == 0 else reversed(sizes):
                for figure, value in once(axis, size, image, tools, milliseconds).items():
                    samples.setdefault((axis, size, figure), []).append(value)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return samples


def table(samples: Samples) -> str:
    """A line for each size, and for each figure what it is at the last size over what it is at the first."""
    lines = [f"{'':20}{'size':>8}" + "".join(f"{figure:>24}" for figure in FIGURES)]
    for axis, sizes in AXES.items():
        for size in sizes:
            cells = (samples[axis, size, figure] for figure in FIGURES)
            shown = (f"{median(values):10.2f} ({min(values):.2f}-{max(values):.2f})" for values in cells)
            lines.append(f"{axis:20}{size:>8}" + "".join(f"{text:>24}" for text in shown))
        ratios = (growth(samples, axis, sizes, figure) for figure in FIGURES)
        lines.append(f"{'':20}{'last/1st':>8}" + "".join(f"{ratio:>24.2f}" for ratio in ratios))
    return "\n".join(lines)


def growth(samples: Samples, axis: str, sizes: Sequence[int], figure: str) -> float:
    """The figure's median at the last size over that at the first; 0 where it was too small to be seen."""
    first, last = (median(samples[axis, size, figure]) for size in (sizes[0], sizes[-1]))
    return last / first if first else 0.0


def plot(samples: Samples, path: Path) -> bool:
    """Each figure over each axis, medians with their spread, as SVG; False where matplotlib is missing."""
    plt = pyplot()
    if plt is None:
        return False
    figure, axes = plt.subplots(len(FIGURES), len(AXES), figsize=(13, 12), layout="constrained", sharey="row")
    for row, (name, title) in enumerate(FIGURES.items()):
        for column, (axis, sizes) in enumerate(AXES.items()):
            drawn = axes[row][column]
            values = [samples[axis, size, name] for size in sizes]
            middles = [median(each) for each in values]
            spread = [
                [middle - min(each) for middle, each in zip(middles, values, strict=True)],
                [max(each) - middle for middle, each in zip(middles, values, strict=True)],
            ]
            drawn.errorbar(sizes, middles, yerr=spread, marker="o", capsize=4, color="#3367d6")
            drawn.set_xscale("log", base=2)
            drawn.set_xticks(sizes, [str(size) for size in sizes])
            drawn.set_ylim(bottom=0)
            drawn.set_xlabel(axis)
            drawn.spines[["top", "right"]].set_visible(False)
        axes[row][0].set_ylabel(title, fontsize=9)
    figure.savefig(path)
    return True


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench scale", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ms", type=int, default=300, help="milliseconds a measurement (default %(default)s)")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where the image lies (default: the temporary one)")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or not 10 <= options.ms <= 10_000:
        parser.error("at least one round, and 10 to 10000 ms")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        samples = run(options.rounds, options.ms, Path(folder))
    print(table(samples))
    figures = {
        "rounds": options.rounds,
        "milliseconds": options.ms,
        "requests_per_queue": PER_QUEUE,
        "samples": [
            {"axis": axis, "size": size, "figure": figure, "values": values}
            for (axis, size, figure), values in samples.items()
        ],
    }
    write(figures, options.output, "scale", lambda path: plot(samples, path))
    return 0
