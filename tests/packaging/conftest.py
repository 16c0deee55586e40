"""An sdist, the wheel built from it, and an empty environment with the wheel installed; the checkout is then gone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


def clean_environment() -> dict[str, str]:
    """This process's environment without what would let a child see the checkout or the environment of the tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if name == "PYVMM_CACHE"
        or not name.startswith(("PYTHON", "PYTEST_", "PYVMM_", "MAKE", "MFLAGS", "VIRTUAL_ENV"))
    }


def copy_checkout(folder: Path) -> Path:
    """A copy of the work tree's files as git would take them, symbolic links as such."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in sorted(set(subprocess.check_output(listing, timeout=60).decode().split("\0")) - {""}):
        source, target = ROOT / name, folder / name
        if source.is_symlink() or source.exists():  # a file deleted and not yet committed is still listed
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    return folder


class Distributions(NamedTuple):
    sdist: Path
    wheel: Path
    sources: frozenset[str]
    """Every file of the checkout that they were built from, relative to it."""


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """An sdist and the wheel built from it, of a copy of the checkout that is moved away before any use of them."""
    folder = tmp_path_factory.mktemp("build")
    checkout = copy_checkout(folder / "checkout")
    sources = frozenset(str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file())
    out = folder / "dist"
    # With neither --sdist nor --wheel, `build` makes the wheel from the sdist that it has just made.
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(checkout)]
    result = subprocess.run(command, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    checkout.rename(folder / "moved-away")
    (sdist,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return Distributions(sdist, wheel, sources)


@pytest.fixture(scope="session")
def installed(distributions: Distributions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment with nothing but the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("empty") / "environment"
    venv.create(folder, with_pip=True)
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", str(distributions.wheel)]
    result = subprocess.run(command, cwd="/", env=clean_environment(), capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "bin"
