"""Every command and program that README.md shows is run, and its output compared.

In a `console` block a line that begins with `$ ` is a command, the lines after it are what it prints, `...` stands for
any lines. In a `python` block, what it prints stands in a comment behind the print.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, clean_environment, copy_checkout

pytestmark = [pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands(of: str) -> list[tuple[str, str]]:
    """The commands of the console blocks that are `of` one kind, make, install or shell, and the output shown."""
    shown = []
    for language, block in BLOCKS:
        if language == "console":
            for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                kind = "make" if command.startswith("make ") else "install" if "my-environment" in command else "shell"
                if kind == of:
                    shown.append((command, output))
    return shown


def matches(printed: str, shown: str) -> bool:
    pattern = "".join(".*\n" if line == "...\n" else re.escape(line) for line in shown.splitlines(keepends=True))
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """PATH has a `pyvmm`, which is the checkout's, and nothing else of it."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "pyvmm").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m pyvmm "$@"\n')
    (folder / "pyvmm").chmod(0o755)
    return clean_environment() | {"PATH": f"{folder}:{os.environ['PATH']}"}


def shell(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_it_begins_with_the_two_commands() -> None:
    assert README.splitlines()[2:6] == ["```console", "$ make demo", "$ make test", "```"]


def test_there_is_no_other_kind_of_block() -> None:
    assert {language for language, _ in BLOCKS} == {"console", "python"}


def test_each_make_command_is_a_target() -> None:
    """What the targets do is the business of test_make.py, and of this very run."""
    makefile = (ROOT / "Makefile").read_text()
    for command, _ in commands("make"):
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.MULTILINE), command


@pytest.mark.needs("git", "gcc")
def test_installing(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path)
    for command, output in commands("install"):
        result = shell(command, checkout, clean_environment())
        assert result.returncode == 0, result.stderr
        assert result.stdout == output


@pytest.mark.needs("kvm", "gcc", "tiny-image")
def test_at_the_shell(tmp_path: Path, environment: dict[str, str]) -> None:
    for command, output in commands("shell"):
        result = shell(command, tmp_path, environment)
        assert result.returncode == 0, (command, result.stderr)
        assert matches(result.stdout, output), (command, result.stdout)
        assert result.stderr == "", command


@pytest.mark.needs("kvm", "gcc")
@pytest.mark.parametrize("program", [block for language, block in BLOCKS if language == "python"])
def test_in_python(tmp_path: Path, environment: dict[str, str], program: str) -> None:
    (tmp_path / "five.bin").write_bytes(bytes.fromhex("b005e6f4f4"))
    (tmp_path / "program.py").write_text(program)
    result = shell(f"PYTHONPATH={ROOT} {sys.executable} program.py", tmp_path, environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == re.findall(r"# (.*)$", program, re.MULTILINE)


def test_every_file_it_points_to_exists() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
