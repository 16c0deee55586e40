"""A build that cannot work says why in one line; the pure Python parts import without the compiled module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, clean_environment, copy_checkout

pytestmark = pytest.mark.needs("git")

PRETEND = {
    "macOS": "sys.platform = 'darwin'; platform.system = lambda: 'Darwin'",
    "aarch64": "platform.machine = lambda: 'aarch64'",
    "32-bit": "platform.machine = lambda: 'i686'",
    "no Python.h": "sysconfig.get_path = lambda name: '/nowhere'",
}
SAYS = {
    "macOS": "pyvmm: KVM is part of Linux, and this is Darwin",
    "aarch64": "pyvmm: only 64-bit x86 is supported, and this is aarch64",
    "32-bit": "pyvmm: only 64-bit x86 is supported, and this is i686",
    "no Python.h": "pyvmm: /nowhere/Python.h is missing (Debian: apt install python3-dev)",
}


SETUP = (
    "import platform, runpy, sys, sysconfig, setuptools; sysconfig.get_config_vars(); {}; runpy.run_path('setup.py')"
)


def build(checkout: Path, pretend: str = "pass", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETUP.format(pretend), "-q", "build_ext", "--inplace"],
        cwd=checkout,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.mark.parametrize("where", sorted(SAYS))
def test_the_wrong_machine(checkout: Path, where: str) -> None:
    result = build(checkout, PRETEND[where])
    assert (result.returncode, result.stderr.strip()) == (1, SAYS[where])


def test_no_compiler(checkout: Path) -> None:
    result = build(checkout, CC="no-such-cc -O2")
    says = "pyvmm: there is no C compiler: no-such-cc was not found (Debian: apt install gcc; or set CC)"
    assert (result.returncode, result.stderr.strip()) == (1, says)


def test_the_line_reaches_a_user_of_pip(checkout: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", str(tmp_path), "."],
        cwd=checkout,
        env=clean_environment() | {"CC": "no-such-cc"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode != 0
    assert "pyvmm: there is no C compiler: no-such-cc was not found" in result.stdout + result.stderr


def test_an_sdist_needs_no_compiler(checkout: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path), str(checkout)],
        env=clean_environment() | {"CC": "no-such-cc"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert list(tmp_path.glob("pyvmm_kvm-*.tar.gz"))


def test_pure_python_parts_import_without_the_compiled_module(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pyvmm", tmp_path / "pyvmm", ignore=shutil.ignore_patterns("*.so", "_images", "*.pyc"))
    program = """
import importlib, pathlib, sys
sys.path.insert(0, sys.argv[1])
root = pathlib.Path(sys.argv[1])
for path in sorted(root.glob("pyvmm/**/*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    if name.startswith("pyvmm._native.build") or name.endswith("__main__"):
        continue
    importlib.import_module(name)
assert not {"pyvmm._native._kvm", "pyvmm._native._rings"} & set(sys.modules)
import pyvmm
assert pyvmm.__file__.startswith(sys.argv[1]), pyvmm.__file__
for name in pyvmm.__all__:
    getattr(pyvmm, name)
try:
    from pyvmm.kvm import Kvm
    Kvm()
except Exception as error:
    print(error)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd="/",
        env=clean_environment() | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")
    said = result.stdout.strip()
    assert os.linesep not in said
    assert "pyvmm._native" in said or "C helper" in said or "/dev/kvm" in said
