"""Shows that the tests of the virtio standard's requirements can fail: `python -m tests.conformance.run [WORD...]`.

Runs the tests of musts.toml as they are, then each of them against its mutant, and prints requirement, test, mutant
and whether the test has killed it. The exit status is 1 if one survives, a test fails without a mutant, or the lists
are not whole. With WORDs, only entries whose section begins with one or whose key contains one.

A mutant lives in a child process in which an import hook serves the mutated source. A test kills it by failing in its
own body: one that falls over while it is imported or set up has not judged anything. A mutant that makes its test go on
for ever is killed too.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import CodeType

import pytest

from tests.conformance.lists import ROOT, Must, musts, problems, sections

JOBS = 2
TIME_LIMIT = 20.0
"""Seconds for one test; unmutated, none takes more than one or two."""

QUICK = ("--assert=plain", "-p", "no:unraisableexception", "-p", "no:threadexception")
PLUGIN = "pyvmm.testing.plugin"
"""Our own, which knows an option of the ini file: plugins are not looked for here."""
"""No explanations: that the test fails is enough, and rewriting its assertions takes longer than running it."""

KILLED, SURVIVED = "killed", "SURVIVED"


class Hook(SourceFileLoader):
    """Serves `source` as the module `name`."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        code = compile(self.source, self.path, "exec", dont_inherit=True)
        assert isinstance(code, CodeType)
        return code


class Watcher:
    """A pytest plugin: how each test went. `passed` has node ids without parameters, `failed` (node id, stage)."""

    def __init__(self) -> None:
        self.passed: set[str] = set()
        self.failed: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid.partition("[")[0]
        if report.failed or report.skipped:
            self.failed.append((name, f"{report.when}, skipped" if report.skipped else str(report.when)))
        elif report.when == "call":
            self.passed.add(name)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append((report.nodeid, "import"))


def run_tests(tests: Iterable[str], *options: str) -> tuple[Watcher, str]:
    """Run pytest here, in a process of its own; returns how it went and what it printed."""
    watcher, output = Watcher(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        pytest.main(
            [*tests, "-q", "--tb=short", "--no-header", "-p", "pytest_timeout", "-p", PLUGIN, *options],
            plugins=[watcher],
        )
    return watcher, output.getvalue()


def check_unmutated(tests: list[str]) -> list[str]:
    """Runs all tests as they are; what is wrong, a line each."""
    watcher, output = run_tests(tests)
    wrong = [f"{name}: fails unmutated ({stage})" for name, stage in watcher.failed]
    failed = {name for name, _ in watcher.failed}
    wrong += [f"{name}: did not run" for name in tests if name not in watcher.passed | failed]
    return [*wrong, output] if wrong else []


def judge(must: Must) -> list[str]:
    """What becomes of one mutant: a word, and perhaps why."""
    sys.meta_path.insert(0, Hook(must.module, str(ROOT / must.file), must.mutated()))
    watcher, output = run_tests([must.test], "-x", *QUICK)
    if must.module not in sys.modules:
        return [SURVIVED, f"{must.module} is not imported by the test"]
    stages = {stage for _, stage in watcher.failed}
    if "call" in stages:
        return [KILLED]
    if stages:
        return ["BROKEN", f"not the test itself has failed, but its {', '.join(sorted(stages))}:\n{output}"]
    return [SURVIVED, "" if watcher.passed else f"the test did not run:\n{output}"]


class Child:
    """A process that does `work` and tells what came of it."""

    def __init__(self, work: Callable[[], list[str]]) -> None:
        self.started = time.monotonic()
        self.fd, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                os.close(self.fd)
                with open(writing, "w") as pipe:
                    json.dump(work(), pipe)
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        self._told = b""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def ended(self) -> bool:
        """Take what it tells; whether that was the end. To be called when `fd` is readable."""
        data = os.read(self.fd, 1 << 16)
        self._told += data
        return not data

    def result(self, limit: float) -> list[str]:
        """After its end, or after its time: what it told. It leaves no process behind."""
        late = self.seconds >= limit
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        os.close(self.fd)
        status = os.waitpid(self.pid, 0)[1]
        try:
            told: list[str] = json.loads(self._told)
        except ValueError:
            return [KILLED, "it never ends"] if late else ["BROKEN", f"its process ended with status {status}"]
        return told


def in_children(work: Sequence[Callable[[], list[str]]], limit: float) -> Iterator[tuple[list[str], float]]:
    """Do all of `work`, JOBS at a time, `limit` seconds for each; its results and seconds, in its order."""
    waiting = list(enumerate(work))
    running: dict[int, tuple[int, Child]] = {}
    results: dict[int, tuple[list[str], float]] = {}
    for wanted in range(len(work)):
        while wanted not in results:
            while waiting and len(running) < JOBS:
                number, job = waiting.pop(0)
                child = Child(job)
                running[child.fd] = number, child
            left = min(limit - child.seconds for _, child in running.values())
            readable = select.select(list(running), [], [], max(0.0, left))[0]
            for fd, (number, child) in list(running.items()):
                if (fd in readable and child.ended()) or child.seconds >= limit:
                    del running[fd]
                    results[number] = child.result(limit), child.seconds
        yield results.pop(wanted)


def main(words: list[str]) -> int:
    started = time.monotonic()
    wrong = problems()
    chosen = [
        must
        for must in musts()
        if not words or any(must.section.startswith(word) or word in must.key for word in words)
    ]
    if not chosen:
        print(f"no requirement has {' or '.join(words)} in its section or key", file=sys.stderr)
        return 2
    if not wrong:
        os.chdir(ROOT)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        tests = list(dict.fromkeys(must.test for must in chosen))
        [(wrong, _)] = in_children([partial(check_unmutated, tests)], TIME_LIMIT * len(tests))
    if wrong:
        print(*wrong, sep="\n")
        return 1
    survivors = 0
    for must, (result, seconds) in zip(
        chosen, in_children([partial(judge, must) for must in chosen], TIME_LIMIT), strict=True
    ):
        survivors += result[0] != KILLED
        show(must, result, seconds)
    print(summary(chosen, survivors, time.monotonic() - started))
    return 1 if survivors else 0


def show(must: Must, result: list[str], seconds: float) -> None:
    verdict, *why = result
    note = f" ({why[0]})" if why and why[0] else ""
    print(f"{must.section:10} {must.must}")
    print(f"{'':10} {must.test}")
    print(f"{'':10} {must.file}: {must.line}  ->  {must.mutant}")
    print(f"{'':10} {verdict} in {seconds:.1f} s{note}", flush=True)


def summary(chosen: list[Must], survivors: int, seconds: float) -> str:
    everything = sections()
    tested = {(must.section, must.key) for must in chosen}
    reasons: dict[str, int] = {}
    for section in everything:
        for reason in section.inapplicable.values():
            reasons[reason] = reasons.get(reason, 0) + 1
    inapplicable = sum(reasons.values())
    total = inapplicable + sum(len(section.musts) for section in everything)
    lines = [f"{total} requirements on devices: {len(tested)} tested, {inapplicable} do not apply because"]
    lines += [f"{count:5} {reason}" for reason, count in reasons.items()]
    lines.append(f"{len(chosen)} mutants in {seconds:.0f} s: {len(chosen) - survivors} killed, {survivors} survived")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
