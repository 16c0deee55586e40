"""What every benchmark leaves behind: a JSON file with the figures and what they were measured on, and a plot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write(figures: Mapping[str, object], folder: Path, name: str, plot: Callable[[Path], bool]) -> None:
    """Write NAME.json and NAME.svg to `folder`, and say so. `plot` draws to a path, or says that it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"host": host(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **figures}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    written = [str(folder / f"{name}.json")]
    if plot(folder / f"{name}.svg"):
        written.append(str(folder / f"{name}.svg"))
    else:
        print("no plot: pip install matplotlib")
    print("written:", *written)


def pyplot() -> Any:
    """matplotlib's pyplot, which draws SVG without a screen; None where it is missing."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("svg")
    import matplotlib.pyplot

    return matplotlib.pyplot


class Bar:
    """One contender in a row: its rate as `text`, its `share` of the row's best, and seconds of `cpu` an operation."""

    __slots__ = ("cpu", "share", "text")

    def __init__(self, text: str, share: float, cpu: float) -> None:
        self.text = text
        self.share = share
        self.cpu = cpu


def plot_pairs(path: Path, rows: Sequence[tuple[str, Mapping[str, Bar]]], rate: str, cpu: str) -> bool:
    """Draw `rows`, each a test and the bars of pyvmm and QEMU, as SVG; False where matplotlib is missing.

    Beside the rates, each row's on its own scale, stands the CPU time for one operation. `rate` and `cpu` are titles.
    """
    plt = pyplot()
    if plt is None:
        return False
    figure, (rates, times) = plt.subplots(1, 2, figsize=(15, 2 + 0.4 * len(rows)), layout="constrained", sharey=True)
    for number, (name, colour) in enumerate((("pyvmm", "#3367d6"), ("qemu", "#e8710a"))):
        for row, (_, bars) in enumerate(rows):
            if name not in bars:
                continue
            bar, place = bars[name], row + 0.4 * (1 - number)
            drawn = rates.barh(place, bar.share, 0.38, color=colour, label=name if row == 0 else None)
            rates.bar_label(drawn, [bar.text], padding=3)
            drawn = times.barh(place, bar.cpu * 1e6, 0.38, color=colour)
            times.bar_label(drawn, [f"{bar.cpu * 1e6:.3g}"], padding=3)
    rates.set_yticks([row + 0.2 for row in range(len(rows))], [test for test, _ in rows])
    rates.set_title(rate)
    figure.legend(loc="outside lower left")
    times.set_xscale("log")
    times.set_title(cpu)
    for axis in (rates, times):
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True


def host() -> dict[str, object]:
    """What was measured on."""
    with open("/proc/cpuinfo") as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": model,
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
