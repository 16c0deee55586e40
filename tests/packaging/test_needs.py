"""The rules of tests/conftest.py, run on a small suite of their own in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

@pytest.mark.needs("kvm")
def test_guest(): pass

@pytest.mark.needs("unprivileged")
def test_unprivileged(): pass

@pytest.mark.soak
def test_long(): pass

def test_plain(): pass
"""


def run(folder: Path, suite: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_suite.py").write_text(suite)
    (folder / "conftest.py").write_text("from tests.conftest import *\n")
    command = [sys.executable, "-m", "pytest", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYVMM_", "PYTEST_"))}
    env |= {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(
        [*command, "-p", "no:xdist", *args, "test_suite.py"],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_missing_requirement_is_a_named_and_counted_skip(tmp_path: Path) -> None:
    result = run(tmp_path, SUITE, "-k", "guest or plain", PYVMM_NO_KVM="1")
    assert result.returncode == 0, result.stdout
    assert "1 passed, 1 skipped, 2 deselected" in result.stdout
    assert "1 test: no kvm (PYVMM_NO_KVM=1)" in result.stdout


def test_a_required_requirement_is_a_failure(tmp_path: Path) -> None:
    suite = SUITE.replace('"kvm"', '"root"' if os.geteuid() else '"unprivileged"')
    result = run(tmp_path, suite, "-k", "guest", PYVMM_REQUIRE="gcc,root,unprivileged")
    assert result.returncode == 1
    assert "PYVMM_REQUIRE lists" in result.stdout


def test_no_kvm_takes_kvm_off_the_required_list(tmp_path: Path) -> None:
    result = run(tmp_path, SUITE, "-k", "guest", PYVMM_NO_KVM="1", PYVMM_REQUIRE="kvm")
    assert result.returncode == 0, result.stdout
    assert "1 skipped" in result.stdout


def test_an_undeclared_requirement_stops_the_run(tmp_path: Path) -> None:
    result = run(tmp_path, SUITE.replace('"kvm"', '"moon"'))
    assert result.returncode == 4
    assert "needs('moon',) is not in tests/support/needs.py" in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("option", "names"),
    [([], {"guest", "unprivileged", "plain"}), (["--soak"], {"long"})],
)
def test_the_long_counts_run_alone(tmp_path: Path, option: list[str], names: set[str]) -> None:
    result = run(tmp_path, SUITE, "--collect-only", "-q", *option)
    collected = {line.rpartition("::test_")[2] for line in result.stdout.splitlines() if "::" in line}
    assert collected == names


def test_unprivileged_tests_can_be_picked(tmp_path: Path) -> None:
    result = run(tmp_path, SUITE, "--collect-only", "-q", "-m", "unprivileged")
    collected = [line for line in result.stdout.splitlines() if "::" in line]
    assert collected == ["test_suite.py::test_unprivileged"]
