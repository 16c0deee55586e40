"""`python -m bench report`: what the benchmarks have measured, held against what pyvmm wants to reach, in Markdown.

Reads the JSON files that the benchmarks have left. Ratios are taken round by round, since each round measures every
contender once. A bar is met only if every round is on its right side, missed if none is; else the two are equal as far
as this machine can tell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.contenders import ROOT


class Row:
    """One measure: its name, the bar in words and as a number, whether less is better, the values of all rounds.

    `shown` says what the values are, with a place for the median and one for the spread.
    """

    __slots__ = ("bar", "less", "name", "unit", "values", "wanted")

    def __init__(self, name: str, wanted: str, bar: float, values: Sequence[float], *, less: bool, unit: str) -> None:
        self.name = name
        self.wanted = wanted
        self.bar = bar
        self.values = values
        self.less = less
        self.unit = unit

    @property
    def verdict(self) -> str:
        right = [value <= self.bar if self.less else value >= self.bar for value in self.values]
        return "met" if all(right) else "equal" if any(right) else "missed"

    def markdown(self) -> str:
        middle, least, greatest = median(self.values), min(self.values), max(self.values)
        measured = f"{middle:.3g} ({least:.3g} to {greatest:.3g}) {self.unit}".rstrip()
        return f"| {self.name} | {self.wanted} | {measured} | {self.verdict} |"


def ratios(mine: Sequence[float], other: Sequence[float]) -> list[float]:
    """Ours over theirs, round by round."""
    return [a / b for a, b in zip(mine, other, strict=True)]


class Records:
    """The files in `folder`, each read once; what is not there counts as not measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Any] = {}

    def file(self, name: str) -> Any:
        """What NAME.json holds, or None."""
        if name not in self._read:
            path = self.folder / f"{name}.json"
            self._read[name] = json.loads(path.read_text()) if path.exists() else None
        return self._read[name]

    def exits(self, measurement: str, figure: str, contender: str = "pyvmm") -> list[float]:
        """The values of one figure of `python -m bench exits`."""
        for sample in (self.file("exits") or {}).get("samples", ()):
            if (sample["measurement"], sample["contender"], sample["figure"]) == (measurement, contender, figure):
                return list(sample["values"])
        return []

    def boot(self, figure: str, contender: str) -> list[float]:
        """The values of one figure of `python -m bench boot`."""
        rounds = (self.file("boot") or {}).get("samples", {}).get(contender, ())
        return [figures[figure] for figures in rounds]

    def virtio(self, test: str) -> list[float]:
        """Rates of a test of `python -m bench virtio`, ours over QEMU's where it is at its best, round by round."""
        contenders = (self.file("virtio") or {}).get("tests", {}).get(test, {}).get("contenders", {})
        rates = {name: [result["rate"] for result in results] for name, results in contenders.items()}
        theirs = [name for name in rates if name.startswith("qemu")]
        if not theirs or "pyvmm" not in rates:
            return []
        return ratios(rates["pyvmm"], rates[max(theirs, key=lambda name: median(rates[name]))])


def rows(records: Records) -> list[Row]:
    """Everything that pyvmm wants to reach and that has been measured."""
    found: list[Row] = []

    def below(name: str, bar: float, unit: str, values: list[float]) -> None:
        found.append(Row(name, f"under {bar:g} {unit}", bar, values, less=True, unit=unit))

    def at_most(name: str, bar: float, mine: list[float], theirs: list[float]) -> None:
        found.append(Row(name, f"at most {bar:g} of QEMU's", bar, ratios(mine, theirs), less=True, unit=""))

    below("exit handled in C, user CPU", 150, "ns", [value * 1e3 for value in records.exits("posted write", "user_us")])
    below("exit to a Python device, user CPU", 2.5, "µs", records.exits("PIO write", "user_us"))
    below("the same, two vCPUs on two devices", 3, "µs", records.exits("PIO write, two vCPUs", "user_us"))
    below("the same, wall, beside a busy Python thread", 100, "µs", records.exits("PIO write, busy", "wall_us"))
    at_most("Linux to user space, wall", 0.95, records.boot("wall_s", "pyvmm"), records.boot("wall_s", "qemu"))
    at_most("Linux to user space, user CPU", 1, records.boot("user_s", "pyvmm"), records.boot("user_s", "qemu"))
    for title, bar, tests in (
        ("4 KiB random reads a second, depth {1}", 1.2, ("read:4096:32", "read:4096:256")),
        ("1 MiB sequential, {0}", 1.0, ("seqread:1048576:4", "seqwrite:1048576:4")),
        ("64-byte frames a second, {0}", 1.2, ("send:64:256", "receive:64:256")),
        ("1500-byte frames a second, {0}", 1.0, ("send:1500:256", "receive:1500:256")),
    ):
        for test in tests:
            what, _, depth = test.split(":")
            name = title.format(what, depth)
            found.append(Row(name, f"at least {bar:g} of QEMU's", bar, records.virtio(test), less=False, unit=""))
    below("peak memory beyond guest RAM", 20, "MiB", records.exits("memory", "beyond_ram_mib"))
    idle = [guest["beyond_pct"] for guest in (records.file("idle") or {}).get("guests", ())]
    below(f"each of {len(idle)} idle guests, CPU beyond KVM's own", 0.1, "% of a core", idle)
    for figure, title in (("wall_ms", "wall"), ("cpu_ms", "CPU")):
        mine, theirs = (records.exits("whole process", figure, who) for who in ("pyvmm", "qemu"))
        at_most(f"a whole process that leaves at once, {title}", 1, mine, theirs)
    return [row for row in found if row.values]


def host(records: Records) -> str:
    """What was measured on, in a line."""
    for name in ("exits", "virtio", "boot"):
        if record := records.file(name):
            about = record["host"]
            return f"{about['processor']}, {about['cpus']} CPUs, Linux {about['kernel']}, Python {about['python']}"
    return "nothing measured yet"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench report", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", metavar="DIR")
    records = Records(parser.parse_args(arguments).folder)
    print(f"{host(records)}\n\n| measure | bar | measured | |\n| --- | --- | --- | --- |")
    for row in rows(records):
        print(row.markdown())
    return 0
