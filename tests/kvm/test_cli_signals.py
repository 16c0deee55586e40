"""Signals to `pyvmm run` at every stage: 128 + n, nothing left behind, the report written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import guests
from tests.support.cli import LIMIT, PYVMM, environment, wait_for, wait_until_still

pytestmark = pytest.mark.needs("kvm")
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(code: bytes, *arguments: object, ignored: int = 0, **options: object) -> subprocess.Popen[bytes]:
        path = tmp_path / "guest.bin"
        path.write_bytes(code)

        def ignore() -> None:
            if ignored:
                signal.signal(ignored, signal.SIG_IGN)

        settings = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        command = [*PYVMM, "run", str(path), "--timeout", "50s", *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment(), preexec_fn=ignore, **settings))  # type: ignore[call-overload]
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def running(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has a vCPU, so that the guest runs."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        try:
            if "kvm-vcpu" in os.readlink(descriptor):
                return True
        except FileNotFoundError:  # closed just now
            pass
    return False


@pytest.mark.parametrize("number", ENDING)
def test_a_running_guest_is_ended(start, tmp_path, number):
    process = start(guests.SPIN, "--report", tmp_path / "report")
    wait_for(lambda: running(process), "the guest")
    began = time.monotonic()
    process.send_signal(number)
    out, errors = process.communicate(timeout=LIMIT)
    assert (process.returncode, out, errors) == (128 + number, b"", b"")
    assert time.monotonic() - began < 10
    report = json.loads((tmp_path / "report").read_text())
    assert report["reason"] == "signal" and report["status"] == 128 + number


@pytest.mark.parametrize("number", ENDING)
def test_a_guest_that_waits_for_a_blocked_reader_is_ended(start, number):
    process = start(guests.CHATTER)
    assert process.stdout is not None and process.stdout.read(1) == b"x"
    wait_until_still(process)
    process.send_signal(number)
    assert process.wait(LIMIT) == 128 + number
    assert process.stderr is not None and b"the end of the guest's output is lost" in process.stderr.read()


def test_a_run_that_only_waits_for_its_reader_is_ended(start):
    """The guest has ended by itself, its output is in our buffer, and nobody reads."""
    text = bytes(30_000)
    head = bytes.fromhex("bb0400 be1e7c b93075 baf803 ac ee e2fc 4b 75f0 b000 e6f4 f4")  # four times 30,000 bytes
    process = start(head + bytes(0x1E - len(head)) + text)
    wait_for(lambda: running(process), "the guest")
    wait_until_still(process)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 143


def test_killed_at_every_stage_of_the_start(start, tmp_path):
    """From the interpreter's own start-up to the running guest."""
    choose = random.Random(4)
    for turn in range(12):
        number = ENDING[turn % 3]
        process = start(guests.SPIN, "--console", f"unix:{tmp_path / 'console'}")
        time.sleep(choose.uniform(0, 0.5))
        process.send_signal(number)
        out, errors = process.communicate(timeout=LIMIT)
        # Before our first instruction it is the interpreter that the signal ends, by itself or by one of its errors.
        interpreter = b"Could not import runpy" in errors or b"Fatal Python error" in errors
        assert interpreter or process.returncode in (128 + number, -number), errors
        assert out == b"" and (interpreter or errors == b"" or process.returncode == -number)
        assert not (tmp_path / "console").exists()


def test_a_second_signal_ends_at_once_and_leaves_no_socket(start, tmp_path):
    process = start(guests.CHATTER, "--console", f"unix:{tmp_path / 'console'}")
    wait_for(lambda: running(process), "the guest")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 143
    assert not (tmp_path / "console").exists()


def test_an_ignored_interrupt_stays_ignored(start):
    """nohup(1), and the background jobs of a shell without job control."""
    process = start(guests.SPIN, ignored=signal.SIGINT)
    wait_for(lambda: running(process), "the guest")
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 143


def test_sigpipe_itself_is_no_end(start):
    """The interpreter ignores it; a closed output is met where it is written."""
    process = start(guests.SPIN)
    wait_for(lambda: running(process), "the guest")
    process.send_signal(signal.SIGPIPE)
    time.sleep(0.3)
    assert process.poll() is None


def test_timeout_1_ends_it_properly(tmp_path):
    """It sends SIGTERM to the child and then to the group, which is one request and not two."""
    path = tmp_path / "guest.bin"
    path.write_bytes(guests.SPIN)
    report = tmp_path / "report"
    done = subprocess.run(
        ["timeout", "2", *PYVMM, "run", str(path), "--report", str(report)],
        capture_output=True,
        env=environment(),
        timeout=LIMIT,
    )
    assert (done.returncode, done.stderr) == (124, b"")
    assert json.loads(report.read_text())["status"] == 143
