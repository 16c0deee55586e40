"""What the benchmarks' report makes of their files: ratios round by round, and verdicts that respect the spread."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.report import Records, Row, ratios, rows

HOST = {"processor": "a processor", "cpus": 2, "kernel": "6.1", "python": "3.11"}


@pytest.mark.parametrize(
    ("less", "values", "verdict"),
    [
        (True, [0.8, 0.9, 1.0], "met"),
        (True, [0.8, 0.9, 1.1], "equal"),
        (True, [1.1, 1.2, 1.3], "missed"),
        (False, [1.0, 1.1, 1.2], "met"),
        (False, [0.9, 1.1, 1.2], "equal"),
        (False, [0.7, 0.8, 0.9], "missed"),
    ],
)
def test_a_bar_is_met_or_missed_by_every_round_or_else_neither(less: bool, values: list[float], verdict: str) -> None:
    assert Row("measure", "bar", 1.0, values, less=less, unit="").verdict == verdict


def test_a_ratio_is_of_one_round() -> None:
    assert ratios([1.0, 4.0], [2.0, 2.0]) == [0.5, 2.0]


def test_a_folder_without_figures_gives_no_rows(tmp_path: Path) -> None:
    assert rows(Records(tmp_path)) == []


def test_virtio_is_held_against_qemu_at_its_best(tmp_path: Path) -> None:
    def rates(*values: float) -> list[dict[str, float]]:
        return [{"rate": value} for value in values]

    contenders = {"pyvmm": rates(30, 36), "qemu threads": rates(10, 12), "qemu io_uring": rates(20, 18)}
    tests = {"read:4096:32": {"contenders": contenders}}
    (tmp_path / "virtio.json").write_text(json.dumps({"host": HOST, "tests": tests}))
    (row,) = rows(Records(tmp_path))
    assert row.values == [1.5, 2.0] and row.verdict == "met"
    assert (
        row.markdown() == "| 4 KiB random reads a second, depth 32 | at least 1.2 of QEMU's | 1.75 (1.5 to 2) | met |"
    )


def test_exits_are_shown_in_their_unit(tmp_path: Path) -> None:
    samples = [{"measurement": "PIO write", "contender": "pyvmm", "figure": "user_us", "values": [2.0, 2.25, 2.5]}]
    (tmp_path / "exits.json").write_text(json.dumps({"host": HOST, "samples": samples}))
    (row,) = rows(Records(tmp_path))
    expected = "| exit to a Python device, user CPU | under 2.5 µs | 2.25 (2 to 2.5) µs | met |"
    assert row.markdown() == expected
