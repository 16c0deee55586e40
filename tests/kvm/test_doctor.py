"""`pyvmm doctor` on a host with KVM: its report against the ioctls, and the probe guests' way to an end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from pyvmm.cli import debugprobe, probe
from pyvmm.errors import PyvmmError
from pyvmm.kvm import Kvm
from pyvmm.kvm.host import Host

pytestmark = pytest.mark.needs("kvm")

SPIN = bytes.fromhex("eb fe")  # 1: jmp 1b
HALT = bytes.fromhex("f4")  # hlt
FAULT = bytes.fromhex("0f 0b")  # ud2, without an IDT: a triple fault


def doctor(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyvmm", "doctor", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_report_agrees_with_the_ioctls() -> None:
    done = doctor("--json")
    assert done.returncode == 0
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["usable"] is True and report["problem"] is None and report["compiled"] is True
    with Kvm() as kvm:
        assert report["kvm"]["api_version"] == kvm.api_version()
        for row in report["kvm"]["capabilities"]:
            assert row["value"] == kvm.check_extension(row["number"]), row["name"]
    host = Host()
    assert report["kvm"]["module"] == host.module
    assert report["quirks"] == dict(host.quirks)
    costs = report["costs"]
    assert report["costs_missing"] == ""
    for name in ("exit_ring0", "exit_ring3", "instruction_ring0"):
        cost = costs[name]
        assert 0 <= cost["least_ns"] <= cost["median_ns"] <= cost["most_ns"]
    # An exit takes two world switches and a system call: never as little as 100 ns, never as much as 10 ms.
    assert 100 < costs["exit_ring0"]["median_ns"] < 10_000_000
    assert 100 < costs["exit_ring3"]["median_ns"] < 10_000_000
    if host.module in ("intel", "amd", "pvm"):
        assert costs["ring0_emulated"] is bool(host.quirks.ring0_emulated)
        # What the gdb stub relies on.
        assert report["debug"] == {name: list(getattr(host.debug, name)) for name in report["debug"]}


def test_without_measurements_the_report_is_there_at_once() -> None:
    start = time.monotonic()
    done = doctor("--no-measure")
    assert done.returncode == 0
    assert done.stdout.startswith("KVM is usable")
    assert "not measured" in done.stdout
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("ring", [0, 3])
def test_a_probe_that_spins_is_kicked_at_its_time_limit(monkeypatch: pytest.MonkeyPatch, ring: int) -> None:
    monkeypatch.setattr(probe, "TIME_LIMIT", 0.2)
    start = time.monotonic()
    with pytest.raises(PyvmmError, match=r"did not come back within 0\.2 s"):
        probe._measure(SPIN, ring, 1, 0)
    assert 0.2 <= time.monotonic() - start < 5


@pytest.mark.parametrize(("code", "says"), [(HALT, "HLT"), (FAULT, "SHUTDOWN|INTERNAL_ERROR")])
def test_a_probe_that_goes_wrong_says_how(code: bytes, says: str) -> None:
    with pytest.raises(PyvmmError, match=f"a probe guest ended in .*({says})"):
        probe._measure(code, 0, 1, 0)


def test_measuring_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "TIME_LIMIT", 0.2)
    probe._measure(probe.EXIT_LOOP, 0, 1, 0)

    def left() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    before = left()
    probe._measure(probe.EXIT_LOOP, 3, 1, 0)
    with pytest.raises(PyvmmError):
        probe._measure(SPIN, 0, 1, 0)
    debugprobe.abilities()
    assert left() == before
