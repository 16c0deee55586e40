"""Signals in processes of their own: the first ends properly, a second at once, an ignored one stays ignored."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from pyvmm.cli.signals import ENDING, SAME
from tests.support.cli import environment

READY = """
import os, sys, threading, time
from pyvmm.cli.signals import Signals
signals = Signals()
signals.install()
def say(text): os.write(1, text.encode() + b"\\n")
"""


class Process:
    """A Python process that has printed `ready`."""

    def __init__(self, script: str, ignored: tuple[signal.Signals, ...] = ()) -> None:
        def ignore() -> None:
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)

        self.process = subprocess.Popen(
            [sys.executable, "-c", READY + script],
            bufsize=0,  # communicate() would not see what readline() took into a buffer
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            preexec_fn=ignore,
        )
        self.expect("ready")

    def expect(self, line: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == line.encode() + b"\n"

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        _, errors = self.process.communicate(timeout=30)
        assert errors == b""
        return self.process.returncode


@pytest.fixture
def start() -> Iterator[type[Process]]:
    started: list[Process] = []

    def make(script: str, **options: tuple[signal.Signals, ...]) -> Process:
        started.append(Process(script, **options))
        return started[-1]

    yield make  # type: ignore[misc]
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("number", ENDING, ids=lambda number: signal.Signals(number).name)
def test_every_ending_signal_calls_the_end(start, number):
    process = start(
        "done = threading.Event()\n"
        "signals.on_end(lambda n: done.set()); say('ready'); done.wait()\n"
        "sys.exit(128 + signals.received)"
    )
    process.send(number)
    assert process.status() == 128 + number


def test_the_main_thread_may_wait_for_a_lock_or_a_read(start):
    """What Python's own handlers cannot do: they run on the main thread, when it comes back to the interpreter."""
    process = start(
        "signals.on_end(lambda n: os._exit(128 + n))\nsay('ready')\n"
        "lock = threading.Lock(); lock.acquire(); lock.acquire()"
    )
    process.send(signal.SIGTERM)
    assert process.status() == 143


def test_a_signal_that_came_first_is_told_when_somebody_listens(start):
    process = start(
        "say('ready')\nwhile not signals.received: time.sleep(0.01)\nsignals.on_end(lambda n: sys.exit(128 + n))"
    )
    process.send(signal.SIGHUP)
    assert process.status() == 129


def test_the_end_may_block_and_a_second_signal_ends_at_once(start):
    process = start(
        "signals.at_once = lambda: say('restored')\n"
        "signals.on_end(lambda n: (say('first'), time.sleep(60)))\nsay('ready'); time.sleep(60)"
    )
    process.send(signal.SIGINT)
    process.expect("first")
    time.sleep(SAME + 0.1)
    process.send(signal.SIGTERM)
    process.expect("restored")
    assert process.status() == 143


def test_the_same_request_twice_is_one(start):
    """timeout(1) signals its child and then its group."""
    process = start(
        "signals.on_end(lambda n: (say('first'), time.sleep(0.5), say('properly'), os._exit(128 + n)))\n"
        "say('ready'); time.sleep(60)"
    )
    process.send(signal.SIGTERM)
    process.expect("first")
    process.send(signal.SIGTERM)
    process.send(signal.SIGCONT)
    process.expect("properly")
    assert process.status() == 143


def test_a_second_signal_is_heard_while_nothing_has_been_started_yet(start):
    process = start("say('ready'); time.sleep(60)")
    process.send(signal.SIGINT)
    time.sleep(SAME + 0.1)
    process.send(signal.SIGINT)
    assert process.status() == 130


def test_what_was_ignored_at_the_start_stays_ignored(start):
    process = start(
        "signals.on_end(lambda n: os._exit(128 + n))\nsay('ready'); time.sleep(60)",
        ignored=(signal.SIGINT, signal.SIGHUP),
    )
    process.send(signal.SIGINT)
    process.send(signal.SIGHUP)
    time.sleep(0.2)
    assert process.process.poll() is None
    process.send(signal.SIGTERM)
    assert process.status() == 143


def test_continuing_after_a_stop_is_told(start):
    process = start("signals.on_resume = lambda: say('resumed')\nsay('ready'); time.sleep(60)")
    process.send(signal.SIGSTOP)
    process.send(signal.SIGCONT)
    process.expect("resumed")


def test_children_inherit_nothing(start):
    process = start(
        "import subprocess\nsay('ready')\n"
        "print(subprocess.run(['cat', '/proc/self/status'], capture_output=True).stdout.decode())"
    )
    out, _ = process.process.communicate(timeout=30)
    fields = [line.split() for line in out.decode().splitlines() if line.startswith("Sig")]
    masks = {name: int(value, 16) for name, value in fields if "/" not in value}
    assert masks["SigBlk:"] == 0
    assert not any(masks["SigIgn:"] >> number - 1 & 1 for number in ENDING)
