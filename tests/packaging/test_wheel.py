"""The sdist and the wheel hold all that they must, and an installed pyvmm needs nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.packaging.conftest import Distributions, clean_environment

pytestmark = [
    pytest.mark.needs("git", "gcc"),
    pytest.mark.timeout(900),
]

PROGRAM = """
from __future__ import annotations

import sys

from pyvmm import VM, KvmUnavailableError, LoadError, Outcome


def run(path: str) -> int:
    try:
        with VM(path, mem="64M", timeout=20) as vm:
            ended: Outcome = vm.wait(timeout=30)
    except (KvmUnavailableError, LoadError) as error:
        print(error, file=sys.stderr)
        return error.exit_status
    print(ended.reason, ended.status)
    return ended.status


sys.exit(run(sys.argv[1]))
"""


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd="/",
        env=clean_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def images(sources: frozenset[str]) -> set[str]:
    """The files of guest images and of the course, under the names that they have in the package."""
    names = {name.replace("guest-images", "pyvmm/_images", 1) for name in sources if name.startswith("guest-images/")}
    names |= {name.replace("docs/course", "pyvmm/_course", 1) for name in sources if name.startswith("docs/course/")}
    assert {"pyvmm/_images/hello64/guest.toml", "pyvmm/_course/writing.md"} <= names
    return names


def test_the_sdist_is_whole(distributions: Distributions) -> None:
    with tarfile.open(distributions.sdist) as archive:
        members = archive.getmembers()
    names = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert not [member.name for member in members if member.issym() or member.islnk()]
    wanted = {
        name
        for name in distributions.sources
        if "/" in name and not name.startswith((".", "pyvmm/_images", "pyvmm/_course"))
    }
    wanted |= {"pyproject.toml", "setup.py", "Makefile", "LICENSE", "README.md", "CHANGELOG.md"}
    assert (wanted | images(distributions.sources)) - names == set()
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc"))]


def test_the_wheel_is_whole_and_holds_nothing_else(distributions: Distributions) -> None:
    with zipfile.ZipFile(distributions.wheel) as archive:
        names = set(archive.namelist())
    package = {name for name in distributions.sources if name.startswith("pyvmm/")}
    modules = {name for name in package if name.endswith((".py", ".pyi", "py.typed", ".css", ".js"))}
    native = {name for name in names if name.endswith(".so")}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - metadata - native == modules | images(distributions.sources)
    assert {Path(name).stem.partition(".")[0] for name in native} == {"_kvm", "_rings"}
    assert any(name.endswith("licenses/LICENSE") for name in metadata)


@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="no limited API without a GIL")
def test_the_wheel_fits_every_later_python(distributions: Distributions) -> None:
    assert distributions.wheel.name.startswith("pyvmm_kvm-")
    assert "-cp311-abi3-linux_" in distributions.wheel.name
    with zipfile.ZipFile(distributions.wheel) as archive:
        assert {"pyvmm/_native/_kvm.abi3.so", "pyvmm/_native/_rings.abi3.so"} <= set(archive.namelist())


def test_the_installed_package_is_the_installed_one(installed: Path) -> None:
    result = run(installed / "python", "-c", "import pyvmm._native._kvm, pyvmm._native._rings as m; print(m.__file__)")
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(installed.parent)


def test_it_depends_on_cffi_alone(installed: Path) -> None:
    result = run(installed / "python", "-m", "pip", "list", "--format=freeze")
    names = {line.partition("==")[0] for line in result.stdout.splitlines()}
    assert names <= {"pyvmm-kvm", "cffi", "pycparser", "pip", "setuptools"}
    assert {"pyvmm-kvm", "cffi"} <= names


def test_the_version_has_one_home(installed: Path) -> None:
    shown = run(installed / "pyvmm", "--version")
    metadata = run(installed / "python", "-c", "from importlib.metadata import version; print(version('pyvmm-kvm'))")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split()[-1] == metadata.stdout.strip()
    assert run(installed / "python", "-m", "pyvmm", "--version").stdout == shown.stdout


@pytest.mark.needs("kvm")
def test_the_packaged_hello_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    cache = {"PYVMM_CACHE": str(tmp_path / "cache")}
    built = run(installed / "pyvmm", "image", "build", "hello64", **cache)
    assert built.returncode == 0, built.stderr
    path = run(installed / "pyvmm", "image", "path", "hello64", **cache).stdout.strip()
    result = run(installed / "pyvmm", "run", path, "--timeout", "30s", **cache)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Hello from 64-bit long mode!\n", "")


@pytest.mark.needs("kvm", "tiny-image")
def test_it_boots_linux_from_anywhere(installed: Path) -> None:
    """The image is that of the checkout, which is found only if the wheel holds the same recipe."""
    words = "quiet pyvmm.greeting=from-the-wheel pyvmm.poweroff"
    result = run(installed / "pyvmm", "run", "--append", words, "--timeout", "4m")
    assert (result.returncode, result.stderr) == (0, "")
    assert "pyvmm: greeting=from-the-wheel kernel=6.1." in result.stdout


def test_a_strictly_typed_program_checks_against_it(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", os.devnull, "--cache-dir", str(tmp_path)]
    result = run(*mypy, "--python-executable", installed / "python", program)
    assert result.returncode == 0, result.stdout + result.stderr
    program.write_text(PROGRAM.replace("timeout=30", "timeout=b'30'"))
    result = run(*mypy, "--python-executable", installed / "python", program)
    assert "[arg-type]" in result.stdout, "the installed package is not typed: " + result.stdout


@pytest.mark.needs("kvm")
def test_that_program_runs(installed: Path, tmp_path: Path) -> None:
    from tests.support.guests import EXIT_5

    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "five.bin").write_bytes(EXIT_5)
    result = run(installed / "python", tmp_path / "program.py", tmp_path / "five.bin")
    assert result.returncode == 11, result.stderr


def test_that_program_says_what_is_wrong_with_a_kernel(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "empty.bin").write_bytes(b"")
    result = run(installed / "python", tmp_path / "program.py", tmp_path / "empty.bin")
    assert result.returncode in (126, 127)
    assert result.stderr.count("\n") == 1


PROJECT = {
    "conftest.py": """
import sys


def pytest_collection_finish():
    found = sorted(name for name in sys.modules if name.partition(".")[0] == "pyvmm")
    assert found == ["pyvmm", "pyvmm.testing", "pyvmm.testing.plugin"]
""",
    "pytest.ini": "[pytest]\naddopts = --strict-markers --strict-config\nvm_timeout = 4m\n",
    "test_guests.py": """
import pytest


def test_the_guest_runs_linux(vm_snapshot):
    assert vm_snapshot.exec(["uname", "-s"], timeout=60).text == "Linux\\n"


def test_a_guest_keeps_a_file(vm_snapshot):
    vm_snapshot.push("pytest.ini", "/tmp/there")
    vm_snapshot.pull("/tmp/there", "back")
    assert open("back").read() == open("pytest.ini").read()


@pytest.mark.vm(mem="1M")
def test_a_kernel_of_five_bytes(vm_factory):
    assert vm_factory("five.bin").wait(20).status == 11
""",
}


@pytest.mark.needs("kvm", "tiny-image")
def test_a_project_elsewhere_tests_its_guests_with_two_workers(distributions: Distributions, tmp_path: Path) -> None:
    from tests.support.guests import EXIT_5

    environment, project, base = tmp_path / "environment", tmp_path / "project", tmp_path / "base"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    result = run(python, "-m", "pip", "install", "-q", distributions.wheel, "pytest", "pytest-xdist")
    assert result.returncode == 0, result.stdout + result.stderr
    project.mkdir()
    for name, text in PROJECT.items():
        (project / name).write_text(text)
    (project / "five.bin").write_bytes(EXIT_5)
    command = f"cd {project} && exec {python} -m pytest -n 2 --basetemp {base}"
    result = run("sh", "-c", command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 passed" in result.stdout
    assert [len(path.read_text().splitlines()) for path in base.glob("pyvmm-snapshots/*/made")] == [1]
