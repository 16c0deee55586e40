"""What docs/testing.md shows is run, as it stands there: its files' tests are those of this file.

Here, and not by a pytest of their own, they share their snapshots with the other tests of the run. That such a project
works under two workers is in tests/packaging.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pyvmm.images.cache import cache_folder
from tests.support.linux import LIMIT, image

pytest_plugins = ("pytester",)
pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs"), pytest.mark.timeout(3 * LIMIT)]

PAGE = (Path(__file__).parents[2] / "docs/testing.md").read_text()
FILES = dict(re.findall(r"^```(?:python|c|make)\n(?:#|//) (\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
MODULE = ("hello.c", "Makefile", "test_module.py")
"""What takes a kernel that can load it, which is not there before it is built."""
CACHE = cache_folder()
"""Of the images. A Pytester has a home folder of its own, where there are none."""


def _slow(mark: pytest.Mark) -> pytest.Mark:
    """`mark`; if it names kernels in files, each of them takes a boot, and is for the long counts."""
    if mark.name != "parametrize" or mark.args[0] != "kernel":
        return mark
    kernels = [
        kernel._replace(marks=(*kernel.marks, pytest.mark.soak)) if "/" in kernel.values[0] else kernel
        for kernel in mark.args[1]
    ]
    return pytest.Mark(mark.name, ("kernel", kernels), mark.kwargs, _ispytest=True)


def _take(name: str, text: str) -> None:
    """Make the tests and fixtures of the page's file `name` those of this module."""
    found: dict[str, Any] = {}
    exec(compile(text, f"docs/testing.md: {name}", "exec"), found)
    marks = found.pop("pytestmark", [])
    for key, value in found.items():
        if key.startswith("test_"):
            own = [_slow(mark) for mark in getattr(value, "pytestmark", [])]
            value.pytestmark = [*own, *(mark.mark for mark in (marks if isinstance(marks, list) else [marks]))]
        if key.startswith("test_") or isinstance(value, type(files)):
            assert key not in globals(), f"docs/testing.md has two of {key}"
            globals()[key] = value


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with the kernels that the page speaks of, of which there is in truth one."""
    for name, kernel in (("5.15/bzImage", "bzimage"), ("6.6/vmlinux", "kernel")):
        path = tmp_path / "kernels" / name
        path.parent.mkdir(parents=True)
        path.symlink_to(image(kernel))
    monkeypatch.chdir(tmp_path)


for _name, _text in FILES.items():
    if _name not in MODULE:
        _take(_name, _text)


def test_every_file_of_the_page_is_run() -> None:
    assert len(FILES) == len(re.findall(r"^```(?:python|c|make)$", PAGE, re.MULTILINE)), "a file has no name"
    assert {name for name in FILES if name.startswith("test_")} == {
        *("test_first.py", "test_settings.py", "test_kernels.py", "test_power_cut.py", "test_network.py"),
        "test_module.py",
    }
    assert sum(name.startswith("test_") for name in globals()) >= 8


def test_the_pages_settings_are_known(pytester: pytest.Pytester) -> None:
    (ini,) = re.findall(r"^```ini\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (pytester.path / "pytest.ini").write_text(ini)
    for option in re.findall(r"`(--vm-\w+)`", PAGE):
        ini += f"{option[2:].replace('-', '_')} =\n"
    (pytester.path / "pytest.ini").write_text(
        "".join(dict.fromkeys(ini.splitlines(True))).replace("vm_timeout =\n", "")
    )
    result = pytester.runpytest("--strict-config", "--collect-only")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.soak
def test_a_guest_is_booted_for_one_test_and_one_for_the_session(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYVMM_CACHE", CACHE)
    pytester.makepyfile(
        """
        SEEN = []

        def begin(vm):
            SEEN.append(vm)
            return vm.exec(["mkdir", "/tmp/mine"], timeout=60).returncode

        def test_first(vm_session): assert begin(vm_session) == 0

        def test_second(vm_session): assert begin(vm_session) == 1 and vm_session is SEEN[0]

        def test_own(vm): assert begin(vm) == 0 and vm is not SEEN[0]

        def test_over(vm_session):
            assert SEEN[2].state == "ended" and vm_session.state == "running"
        """
    )
    result = pytester.runpytest_subprocess("--vm-timeout", f"{LIMIT}s", timeout=2.5 * LIMIT)
    result.assert_outcomes(passed=4)


@pytest.mark.soak
@pytest.mark.needs("gcc")
@pytest.mark.timeout(3600)
def test_the_pages_module_is_loaded_into_a_kernel_with_modules(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Builds a kernel: the tiny image's, with modules."""
    from pyvmm.images import image_recipe, kernel
    from pyvmm.images.linux import SourceKernel

    recipe = image_recipe("tiny").kernel
    assert isinstance(recipe, SourceKernel)
    config = recipe.config.replace("# CONFIG_MODULES is not set", "CONFIG_MODULES=y\nCONFIG_MODULE_UNLOAD=y")
    assert config != recipe.config
    recipe.config = config
    (tmp_path / "work").mkdir()
    built = Path(kernel.build(recipe, None, str(tmp_path / "work"), 2, lambda *_: None)["vmlinux"])
    monkeypatch.setenv("PYVMM_CACHE", CACHE)
    for name in MODULE:
        (pytester.path / name).write_text(FILES[name])
    (pytester.path / "linux").symlink_to(built.parent)
    for target in (["modules_prepare"], [f"M={pytester.path}", "KBUILD_MODPOST_WARN=1", "modules"]):
        subprocess.run(["make", "-C", "linux", *target], cwd=pytester.path, check=True, timeout=600)
    result = pytester.runpytest_subprocess("--vm-timeout", f"{LIMIT}s", "test_module.py", timeout=3 * LIMIT)
    result.assert_outcomes(passed=3)
