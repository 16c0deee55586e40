"""The pytest plugin: fixtures that give a test virtual machines, and what a report says of them when it fails.

Imports pytest, and of pyvmm nothing before a fixture is used: pytest loads this in every suite of an environment that
has pyvmm. What the fixtures do is `fixtures`; docs/testing.md describes them as their user meets them.
"""

from __future__ import annotations

from types import ModuleType

import pytest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from pyvmm.testing.fixtures import VmFactory, Worker
    from pyvmm.testing.network import VmNet
    from pyvmm.vm import VM

OPTIONS = {
    "kernel": ("NAME|PATH", "kernel of the guests: an image's name, or a path (default: tiny)"),
    "initrd": ("PATH", "initial RAM disk of the guests (default: the image's)"),
    "append": ("WORDS", "words for the command line of the guests' kernel"),
    "mem": ("SIZE", "memory of a guest, as 128M"),
    "cpus": ("N", "CPUs of a guest"),
    "timeout": ("TIME", "how long a guest may run, as 90s or 2m (default: 120s)"),
    "trace": ("DIR", "keep a trace of each VM of a test that fails, in this folder"),
}
"""Each is an option `--vm-NAME` and a key `vm_NAME` of the ini file: what stands for its value, and what it says."""
WORKER: pytest.StashKey[Worker] = pytest.StashKey()
FAILED: pytest.StashKey[bool] = pytest.StashKey()
"""Of a test: whether it has failed so far."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pyvmm", "virtual machines (pyvmm)")
    for name, (value, text) in OPTIONS.items():
        group.addoption(f"--vm-{name}", dest=f"vm_{name}", metavar=value, help=text)
        parser.addini(f"vm_{name}", text, default="")
    text = "judge the virtio drivers of all guests: a test fails whose guests' drivers break the specification"
    group.addoption("--vm-lint", dest="vm_lint", action="store_true", default=None, help=text)
    parser.addini("vm_lint", text, type="bool", default=False)
    text = "what the names of pyvmm's fixtures and of its mark begin with (default: nothing)"
    group.addoption("--vm-prefix", dest="vm_prefix", metavar="PREFIX", help=text)
    parser.addini("vm_prefix", text, default="")


def prefix(config: pytest.Config) -> str:
    """What the names of the fixtures and of the mark begin with."""
    given: str | None = config.getoption("vm_prefix")
    return str(config.getini("vm_prefix")) if given is None else given


def pytest_configure(config: pytest.Config) -> None:
    before = prefix(config)
    config.addinivalue_line(
        "markers", f"{before}vm(mem=, cpus=, kernel=, ...): settings of the test's virtual machines (pyvmm.VmConfig's)"
    )
    config.pluginmanager.register(fixtures(before), "pyvmm-fixtures")


def pytest_unconfigure(config: pytest.Config) -> None:
    worker = config.stash.get(WORKER, None)
    if worker is not None:
        worker.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, None]:
    """The guest of the session may run for as long as one does in each test that has it. A lint has its say."""
    worker = item.config.stash.get(WORKER, None)
    if worker is None:
        yield
        return
    if f"{prefix(item.config)}vm_session" not in getattr(item, "fixturenames", ()):
        result = yield
    else:
        with worker.session_limited(item):
            result = yield
    found = worker.findings(item)
    if found and result.excinfo is None:
        result.force_exception(pytest.fail.Exception(found, pytrace=False))


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Say of each VM of a test that failed what state it was in: fixtures are closed only after this."""
    result = yield
    worker = item.config.stash.get(WORKER, None)
    if worker is not None:
        report: pytest.TestReport = result.get_result()
        if report.failed and report.when != "teardown":
            item.stash[FAILED] = True
            report.sections.extend(worker.sections(item))


def fixtures(before: str) -> ModuleType:
    """The fixtures, by names that begin with `before`, as pytest finds them: in a module."""
    found = ModuleType("pyvmm-fixtures")
    for function in (_vm_factory, _vm, _vm_session, _vm_snapshot, _vm_net):
        name = function.__name__[1:]
        make = pytest.fixture(scope="session" if function is _vm_session else "function", name=before + name)
        setattr(found, name, make(function))
    return found


def _vm_factory(request: pytest.FixtureRequest) -> VmFactory:
    """Make VMs: vm_factory(kernel, mem=..., ...) gives a running VM. They are closed at the end of the test."""
    return _worker(request).factory(request)


def _vm(request: pytest.FixtureRequest) -> VM:
    """A freshly booted Linux of the test's own, with the agent."""
    return _worker(request).booted(request)


def _vm_session(request: pytest.FixtureRequest) -> VM:
    """A Linux with the agent that all tests of the session share."""
    return _worker(request).booted_for_session(request)


def _vm_snapshot(request: pytest.FixtureRequest) -> VM:
    """A clone of a booted Linux with the agent: the test's own, within milliseconds."""
    return _worker(request).clone(request)


def _vm_net(request: pytest.FixtureRequest) -> VmNet:
    """Several Linux guests on one network: vm_net(2) gives that many."""
    return _worker(request).net(request)


def _worker(request: pytest.FixtureRequest) -> Worker:
    """What the fixtures of this process share, made for the first of them that is used."""
    config = request.config
    worker = config.stash.get(WORKER, None)
    if worker is None:
        from pyvmm.testing.fixtures import Worker

        base = request.getfixturevalue("tmp_path_factory").getbasetemp()
        config.stash[WORKER] = worker = Worker(config, prefix(config), base)
    return worker
