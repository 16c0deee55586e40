"""What `make` does on a new machine, and what it says on one that lacks something."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT, clean_environment, copy_checkout

pytestmark = [pytest.mark.needs("git", "make"), pytest.mark.timeout(600)]

NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
HIDDEN = ["unshare", "--mount", "sh", "-c", 'mount --bind /dev/null /dev/kvm && "$@"', "sh"]
USED_BY_SCRIPTS = ("sh", "id", "basename", "mktemp", "rm", "tail", "stat", "gcc", "ld")
FOR_LINUX = ("make", "flex", "bison", "bc", "patch", "xz")
LOOKED_FOR = (
    *FOR_LINUX,
    "git",
    "cpio",
    "iasl",
    "setpriv",
    "busybox",
    "passt",
    "fio",
    "gdb",
    "chromium",
    "qemu-system-x86_64",
)


def run(
    *command: str | Path, cwd: Path | str = "/", timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=clean_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def until(line: str, *command: str, cwd: Path, **environment: str) -> str:
    """What `command` prints up to one that begins with `line`; then all that it has started is ended."""
    said = ""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=clean_environment() | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for shown in process.stdout:
            said += shown
            if shown.startswith(line):
                break
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
    return said


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("fresh") / "checkout")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH that holds what the scripts use, and stand-ins for what they look for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in USED_BY_SCRIPTS:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    for name in LOOKED_FOR:
        stand_in(folder, name, "exit 0")
    stand_in(folder, "python3", f'exec {sys.executable} "$@"')
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_help_names_every_target() -> None:
    result = run("make", "-s", cwd=ROOT)
    for target in ("demo", "test", "test-unit", "soak", "conformance", "fuzz", "lint", "bench", "images", "clean"):
        assert f"make {target} " in result.stdout
        assert run("make", "-n", target, cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        pytest.param(["env", "PYVMM_NO_KVM=1"], "PYVMM_NO_KVM=1 is set", id="told"),
        pytest.param(HIDDEN, "/dev/kvm is not the KVM device", id="hidden", marks=pytest.mark.needs("root", "kvm")),
    ],
)
def test_demo_without_kvm_ends_at_once_with_126(tmp_path: Path, wrap: list[str], says: str) -> None:
    for name in ("Makefile", "scripts", "pyproject.toml"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    started = time.monotonic()
    result = run(*wrap, "make", "demo", cwd=tmp_path)
    assert time.monotonic() - started < 5, "it sets something up first, which takes longer"
    assert result.returncode == 2
    reason, from_make = result.stderr.splitlines()
    assert reason == f"pyvmm: KVM is not usable here: {says}"
    assert from_make.startswith("make: ***") and from_make.endswith("Error 126")
    assert result.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert run(*wrap, ROOT / "scripts/check-kvm.sh").returncode == 126


@pytest.mark.needs("root", "kvm")
def test_a_user_who_may_not_open_kvm_is_told_whose_it_is() -> None:
    if os.stat("/dev/kvm").st_mode & 0o006:
        pytest.skip("/dev/kvm is open to everybody here")
    result = run(*NOBODY, "sh", "-c", (ROOT / "scripts/check-kvm.sh").read_text())
    assert result.returncode == 126
    assert result.stderr.startswith(
        "pyvmm: KVM is not usable here: /dev/kvm may not be opened by nobody (it belongs to "
    )
    assert result.stderr.count("\n") == 1


def tools(programs: Path, what: str = "build") -> subprocess.CompletedProcess[str]:
    return run(ROOT / "scripts/tools.sh", what, PATH=str(programs))


def test_a_complete_machine_hears_nothing(programs: Path) -> None:
    for what in ("build", "linux", "test", "bench"):
        result = tools(programs, what)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.needs("root")
def test_root_gets_what_is_missing(programs: Path, tmp_path: Path) -> None:
    for name in ("ld", "git", "qemu-system-x86_64"):
        (programs / name).unlink()
    stand_in(programs, "apt-get", f'echo "$*" >> {tmp_path}/asked')
    assert tools(programs).returncode == 0
    assert (tmp_path / "asked").read_text() == "update -q\ninstall -qy --no-install-recommends binutils\n"
    assert tools(programs, "test").stdout == "==> installing binutils git\n"
    assert tools(programs, "bench").stdout == "==> installing binutils qemu-system-x86\n"
    assert (tmp_path / "asked").read_text().splitlines()[-1].endswith(" binutils qemu-system-x86")


@pytest.mark.needs("root")
@pytest.mark.parametrize("what", ["linux", "test", "bench"])
def test_what_builds_linux_is_installed_where_linux_is_built(programs: Path, what: str) -> None:
    for name in FOR_LINUX:
        (programs / name).unlink()
    stand_in(programs, "apt-get", "exit 0")
    assert tools(programs, what).stdout == "==> installing make flex bison bc patch xz-utils\n"
    assert tools(programs).stdout == ""


@pytest.mark.needs("root")
def test_lists_of_packages_that_lack_the_kernels_source_are_updated(programs: Path, tmp_path: Path) -> None:
    stand_in(programs, "apt-get", f'echo "$*" >> {tmp_path}/asked')
    stand_in(programs, "apt-cache", "exit 0")
    assert tools(programs, "linux").stdout == ""
    stand_in(programs, "apt-cache", "exit 100")
    assert tools(programs).stdout == ""
    assert tools(programs, "linux").stdout == "==> updating apt's lists of packages\n"
    assert (tmp_path / "asked").read_text() == "update -q\n"


@pytest.mark.needs("root")
def test_an_installation_that_fails_is_shown(programs: Path) -> None:
    (programs / "ld").unlink()
    stand_in(programs, "apt-get", "echo E: no network; exit 100")
    result = tools(programs)
    assert result.returncode == 1
    assert result.stderr == "E: no network\npyvmm: apt-get could not install binutils\n"


@pytest.fixture
def somebody(programs: Path) -> Path:
    """The same, for a user other than root."""
    stand_in(programs, "id", "echo 1000")
    stand_in(programs, "apt-get", "echo never; exit 1")
    return programs


def test_anybody_else_is_told_the_one_command(somebody: Path) -> None:
    (somebody / "ld").unlink()
    (somebody / "gcc").unlink()
    result = tools(somebody)
    assert (result.returncode, result.stdout) == (1, "")
    missing, _, remedy = result.stderr.partition(". As root: ")
    assert missing == "pyvmm: missing: a C compiler, a linker, the C library's headers"
    assert remedy == "apt-get install gcc binutils libc6-dev\n"


def test_a_demo_without_what_builds_linux_stops_before_anything_slow(somebody: Path) -> None:
    (somebody / "flex").unlink()
    result = tools(somebody, "linux")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "pyvmm: missing: what builds a Linux kernel. As root: apt-get install flex\n"


@pytest.mark.parametrize(("what", "package"), [("test", "git"), ("bench", "qemu-system-x86")])
def test_what_can_be_left_out_stops_nobody(somebody: Path, what: str, package: str) -> None:
    for name in ("git", "qemu-system-x86_64"):
        (somebody / name).unlink()
    result = tools(somebody, what)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.endswith(f" as root: apt-get install {package}\n")
    assert tools(somebody, "build").stdout == ""


@pytest.mark.parametrize(
    ("python", "says"),
    [
        ("exit 127", "As root: apt-get install python3 python3-dev python3-venv\n"),
        (f'case "$2" in *version_info*) exit 1;; *) exec {sys.executable} "$@";; esac', "needs Python 3.11 or newer"),
        (
            f'case "$2" in *base_prefix*) echo True;; *Python.h*) echo /none;; *) exec {sys.executable} "$@";; esac',
            "missing: python3's C headers (/none). As root: apt-get install python3-dev\n",
        ),
        (
            f'case "$2" in *base_prefix*) echo False;; *Python.h*) echo /none;; *) exec {sys.executable} "$@";; esac',
            "python3 has no C headers (/none)",
        ),
        (
            f'case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac',
            "missing: python3's venv. As root: apt-get install python3-venv\n",
        ),
    ],
    ids=["none", "old", "no headers", "no headers of its own", "no venv"],
)
def test_a_python_that_will_not_do(somebody: Path, python: str, says: str) -> None:
    stand_in(somebody, "python3", python)
    result = tools(somebody)
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1


def test_sudo_is_never_called() -> None:
    for path in [ROOT / "Makefile", *(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]:
        commands = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not [line for line in commands if "sudo" in line], path


def test_an_image_that_cannot_be_built_stops_no_test(tmp_path: Path) -> None:
    stand_in(tmp_path, "pyvmm", 'echo "$*"; exit 1')
    result = run(ROOT / "scripts/linux-image.sh", tmp_path / "pyvmm", cwd=ROOT)
    assert result.returncode == 0
    if run(ROOT / "scripts/check-kvm.sh").returncode == 0:
        assert result.stdout.splitlines()[1:] == ["image build tiny", "pyvmm: without that image, no test boots Linux"]
    without = run(ROOT / "scripts/linux-image.sh", tmp_path / "pyvmm", cwd=ROOT, PYVMM_NO_KVM="1")
    assert (without.returncode, without.stdout) == (0, "")


@pytest.mark.timeout(900)
@pytest.mark.needs("kvm", "gcc", "tiny-image")
def test_a_fresh_checkout_runs_the_demo_and_again_quickly(checkout: Path, tmp_path: Path) -> None:
    carried = str(tmp_path / "tiny.tar")  # building a kernel anew would take minutes
    image = [sys.executable, "-m", "pyvmm", "image"]
    assert run(*image, "export", "tiny", carried, cwd=ROOT).returncode == 0
    assert run(*image, "import", carried, cwd=ROOT, PYVMM_CACHE=str(tmp_path / "cache")).returncode == 0
    result = run("make", "demo", cwd=checkout, PYVMM_CACHE=str(tmp_path / "cache"))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Hello from 64-bit long mode!\n" in result.stdout
    assert "16 CPUs, together 16000\n" in result.stdout
    found = re.search(r"(?m)^pyvmm: greeting=(\w{12}) kernel=6\.1\.\S+ memory=\d+kB cpus=2$", result.stdout)
    assert found and f"==> booting it, with the word {found[1]}\n" in result.stdout
    booting = "==> booting it, with the word "
    again = until(booting, "make", "demo", cwd=checkout, PYVMM_CACHE=str(tmp_path / "cache"), TMPDIR=str(tmp_path))
    assert booting in again and found[1] not in again
    assert "virtual environment" in result.stdout and "virtual environment" not in again
    assert "C helper" in result.stdout and "C helper" not in again
