"""Every program on docs/api.md is run, and what it prints compared with the comments behind its prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, clean_environment

PAGE = (ROOT / "docs" / "api.md").read_text()
PROGRAMS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.needs("kvm", "gcc")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_prints_what_stands_behind_it(tmp_path: Path, program: str) -> None:
    (tmp_path / "program.py").write_text(program)
    environment = clean_environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)$", program, re.MULTILINE)


def test_there_are_programs() -> None:
    assert len(PROGRAMS) >= 6


@pytest.mark.parametrize("page", ["api.md", "config.md", "running.md", "inspect.md", "testing.md"])
def test_every_file_that_a_page_points_to_exists(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / page).read_text()):
        assert (ROOT / "docs" / target).exists(), target
