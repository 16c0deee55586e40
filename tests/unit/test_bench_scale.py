"""The scale benchmark's arithmetic, and that what it asks for is what a command line has."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.scale import AXES, FIGURES, Samples, argv, growth, table
from pyvmm.cli.configuration import make_config
from pyvmm.cli.options import parse
from pyvmm.cli.runoptions import RUN


@pytest.mark.parametrize("axis", AXES)
def test_a_size_changes_one_thing_of_the_vm(axis: str, tmp_path: Path) -> None:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"\xf4")

    def config(size: int) -> tuple[int, int, int]:
        words = argv(axis, size, str(kernel), tmp_path / "image", "word")[4:]
        made = make_config(parse(RUN, words))
        return len(made.disks), made.disks[0].queues, made.mem >> 20

    first, last = AXES[axis][0], AXES[axis][-1]
    changed = [(a, b) for a, b in zip(config(first), config(last), strict=True) if a != b]
    assert changed == [(first, last)]


def test_growth_is_that_of_the_medians() -> None:
    samples: Samples = {("disks", 1, "wall_us"): [1.0, 2.0, 9.0], ("disks", 8, "wall_us"): [3.0, 5.0, 5.0]}
    assert growth(samples, "disks", (1, 2, 8), "wall_us") == 2.5


def test_every_size_has_a_line() -> None:
    samples: Samples = {
        (axis, size, figure): [1.0] for axis, sizes in AXES.items() for size in sizes for figure in FIGURES
    }
    assert len(table(samples).splitlines()) == 1 + sum(len(sizes) + 1 for sizes in AXES.values())
