"""What every benchmark leaves behind: a JSON file with the figures and what they were measured on, and a plot."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path


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
