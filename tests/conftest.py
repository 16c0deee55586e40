"""The rules of the suite: requirements (`needs`), long counts (`soak`), the summary of what was skipped."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Generator

import pytest

from tests.support import needs, plain

APART = {"serial": "mark.serial", "unprivileged": '"unprivileged"'}
"""Tests that have runs of their own, by their mark, and by what scripts/run-tests.sh finds their files."""
SKIP_REASON = re.compile(r"needs ([\w-]+): (.*)", re.DOTALL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long counts, and nothing else")
    parser.addoption("--plain", action="store_true", help="VMs take the reference paths, in Python")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--plain"):
        os.environ[plain.VARIABLE] = "1"  # for the commands that tests start, and for workers of the session
    if plain.VARIABLE in os.environ:
        plain.apply()


def _requirements(item: pytest.Item) -> list[str]:
    return [name for mark in item.iter_markers("needs") for name in mark.args]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    soak = config.getoption("--soak")
    chosen: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        names = _requirements(item)
        unknown = [name for name in names if name not in needs.REQUIREMENTS]
        if unknown:
            raise pytest.UsageError(f"{item.nodeid}: needs{tuple(unknown)} is not in tests/support/needs.py")
        if "unprivileged" in names:  # so that `-m unprivileged` picks what a second run, not by root, is for
            item.add_marker("unprivileged")
        for mark, text in APART.items():
            if item.get_closest_marker(mark) is not None and text not in item.path.read_text():
                raise pytest.UsageError(f"{item.nodeid}: its file does not say {text}, so no run would find it")
        (chosen if (item.get_closest_marker("soak") is not None) == soak else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = chosen


def pytest_runtest_setup(item: pytest.Item) -> None:
    for name in _requirements(item):
        reason = needs.missing(name)
        if not reason:
            continue
        if name in needs.required():
            pytest.fail(f"PYVMM_REQUIRE lists {name}, but {reason}", pytrace=False)
        pytest.skip(f"needs {name}: {reason}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each missing requirement with the number of tests that it cost, then any other skip."""
    skipped: dict[str, int] = defaultdict(int)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        match = SKIP_REASON.fullmatch(reason)
        skipped[f"no {match[1]} ({match[2]})" if match else reason] += 1
    if not skipped:
        return
    terminalreporter.section("skipped", sep="-")
    for reason, count in sorted(skipped.items()):
        terminalreporter.write_line(f"{count:5} {'test' if count == 1 else 'tests'}: {reason}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """A test that closes descriptor 0, 1 or 2 would be noticed in another one: name the culprit."""
    result = yield
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)
            pytest.fail(f"this test, or a thread of an earlier one, closed descriptor {fd}", pytrace=False)
    return result
