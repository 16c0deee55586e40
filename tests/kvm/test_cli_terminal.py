"""`pyvmm run` on a terminal: every key reaches the guest, the escape key leads out, and the settings come back."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.cli.signals import SAME
from tests.support import guests
from tests.support import session as support
from tests.support.cli import ECHO, LIMIT, PYVMM, environment, wait_for, wait_until_still
from tests.support.session import LFLAG, OFLAG, Session

pytestmark = pytest.mark.needs("kvm")

EVERY_BYTE = bytes(byte for byte in range(256) if byte not in b"\x01q")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    sessions: list[Session] = []

    def start(code: bytes, *arguments: object, **options: Any) -> Session:
        path = tmp_path / "guest.bin"
        path.write_bytes(code)
        sessions.append(Session(path, "--timeout", "50s", *arguments, **options))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def test_the_terminal_shows_the_same_bytes(run):
    greeting = b"lf\ncrlf\r\n" + bytes(range(256)) + b"the end"
    session = run(guests.says(greeting, 3))
    assert session.end() == 7
    assert session.shown == greeting and session.errors() == ""


def test_every_key_reaches_the_guest(run):
    session = run(ECHO)
    wait_for(session.raw, "raw mode")
    session.type(EVERY_BYTE)
    assert session.see(EVERY_BYTE) == EVERY_BYTE
    session.type(b"q")
    assert session.end() == 1 and session.errors() == ""


def test_64_kib_pasted_lose_nothing(run):
    session = run(ECHO)
    wait_for(session.raw, "raw mode")
    pasted = EVERY_BYTE * (65536 // len(EVERY_BYTE) + 1)
    os.set_blocking(session.leader, False)
    sent = 0
    deadline = time.monotonic() + LIMIT
    while len(session.shown) < len(pasted):
        assert time.monotonic() < deadline
        readable, writable, _ = select.select([session.leader], [session.leader] if sent < len(pasted) else [], [], 1)
        if writable:
            sent += os.write(session.leader, pasted[sent : sent + 1000])
        if readable:
            session.shown += os.read(session.leader, 65536)
    assert session.shown == pasted
    session.type(b"q")
    assert session.end() == 1


@pytest.mark.parametrize("key", [b"x", b"X"])
def test_the_escape_key_quits_with_0(run, key):
    session = run(guests.SPIN)
    wait_for(session.raw, "raw mode")
    session.type(b"\x01" + key)
    assert session.end() == 0 and session.errors() == ""


def test_a_guest_that_reads_nothing_can_be_left(run):
    session = run(guests.SPIN)
    wait_for(session.raw, "raw mode")
    for _ in range(20):
        session.type(b"anybody there? " * 60)
        time.sleep(0.01)
    session.type(b"\x01x")
    assert session.end() == 0


def test_a_run_whose_output_nobody_reads_can_be_left(run):
    session = run(guests.CHATTER, stdout=subprocess.PIPE)
    wait_for(session.raw, "raw mode")
    wait_until_still(session.process)
    session.type(b"\x01x")
    began = time.monotonic()
    assert session.end() == 0 and time.monotonic() - began < 10
    assert "the end of the guest's output is lost" in session.errors()


def test_a_doubled_escape_key_is_one(run):
    session = run(ECHO)
    wait_for(session.raw, "raw mode")
    session.type(b"a\x01\x01b\x01cd")
    assert session.see(b"d") == b"a\x01b\x01cd"
    session.type(b"q")
    assert session.end() == 1


def test_another_escape_key(run):
    session = run(ECHO, "--escape", "^]")
    wait_for(session.raw, "raw mode")
    session.type(b"\x01x.")
    assert session.see(b".") == b"\x01x."
    session.type(b"\x1dx")
    assert session.end() == 0


def test_no_escape_key(run):
    session = run(ECHO, "--escape", "none")
    wait_for(session.raw, "raw mode")
    session.type(b"\x01x.")
    assert session.see(b".") == b"\x01x."
    session.type(b"q")
    assert session.end() == 1


def test_help_and_state_are_shown_below_what_the_guest_wrote(run):
    session = run(ECHO, stderr=None)
    wait_for(session.raw, "raw mode")
    session.type(b"in a line")
    session.see(b"in a line")
    session.type(b"\x01h")
    shown = session.see(b"show this help\r\n").decode()
    assert shown.startswith("in a line\r\npyvmm: Ctrl-A X") and "\n" not in shown.replace("\r\n", "")
    session.type(b"\x01s")
    shown = session.see(b"exits").decode()
    assert "pyvmm: vCPU 0" in shown and "real mode" in shown and "rip" in shown
    session.type(b".q")
    assert session.end() == 1


def test_the_keys_of_the_views_show_them_and_the_guest_goes_on(run):
    session = run(ECHO, stderr=None)
    wait_for(session.raw, "raw mode")
    for key, shown in (
        (b"r", b"vcpu 0: real mode"),
        (b"P", b"`- gpa 0x7c"),
        (b"m", b"RAM, memory slot 0"),
        (b"T", b"interrupt vectors of real mode"),
        (b"d", b"THRE TEMT"),
    ):
        session.type(b"\x01" + key)
        assert b"\n" not in session.see(b"pyvmm: ", shown).replace(b"\r\n", b"")
        session.type(b"goes on")
        session.see(b"goes on")
    session.type(b"q")
    assert session.end() == 1


def test_state_shows_every_vcpu_and_the_guest_goes_on(run):
    session = run(ECHO, "--cpus", "3")
    wait_for(session.raw, "raw mode")
    session.type(b"\x01s.")
    session.see(b".")
    session.type(b"q")
    assert session.end() == 1
    errors = session.errors()
    assert [f"vCPU {index}" in errors for index in range(4)] == [True, True, True, False]
    assert len(errors.splitlines()) <= 24 and all(line.startswith("pyvmm:") for line in errors.splitlines())


def test_piped_output_keeps_the_terminals_carriage_returns(run):
    session = run(ECHO, stdout=subprocess.PIPE)
    wait_for(session.raw, "raw mode")
    assert termios.tcgetattr(session.terminal)[OFLAG] & termios.OPOST
    session.type(b"q")
    assert session.end() == 1


# --- Ways out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_restore_the_terminal(run, number):
    session = run(guests.SPIN)
    wait_for(session.raw, "raw mode")
    session.process.send_signal(number)
    assert session.end() == 128 + number and session.errors() == ""


def test_a_second_signal_restores_the_terminal_too(run, monkeypatch):
    """The first one waits for the terminal, which takes no more output: here for longer than anybody waits."""
    program = f"from pyvmm.cli import main, run; run.GRACE = {2 * LIMIT}; main.process()"
    monkeypatch.setattr(support, "PYVMM", [sys.executable, "-c", program])
    session = run(guests.CHATTER)
    wait_for(session.raw, "raw mode")
    wait_until_still(session.process)
    session.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + LIMIT
    while session.process.poll() is None and time.monotonic() < deadline:
        time.sleep(2 * SAME)  # or it is taken for the first one
        session.process.send_signal(signal.SIGINT)
    assert session.end() == 130


def test_a_time_limit_restores_the_terminal_before_the_report(run):
    session = run(guests.says(b"in a line")[:-12] + guests.SPIN, "--timeout", "1s", stderr=None)
    session.process.wait(LIMIT)
    assert session.end() == 124
    assert b"\r\npyvmm: " in session.shown


def test_a_crash_restores_the_terminal(run):
    session = run(bytes.fromhex("0f011e087c d9e8 cc 000000000000"))
    assert session.end() == 121
    assert "crashed" in session.errors()


def test_an_error_at_the_start_restores_the_terminal(run):
    session = run(guests.SPIN, "--cpu", "host,-flux-capacitor")
    assert session.end() == 2


def test_closed_output_restores_the_terminal(run):
    session = run(guests.CHATTER, stdout=subprocess.PIPE)
    wait_for(session.raw, "raw mode")
    assert session.process.stdout is not None
    session.process.stdout.close()
    assert session.end() == 141


def test_a_terminal_that_hangs_up_ends_the_run(run):
    session = run(guests.SPIN)
    wait_for(session.raw, "raw mode")
    os.close(session.terminal)
    os.close(session.leader)
    assert session.process.wait(LIMIT) == 129


def test_after_a_stop_the_terminal_is_taken_again(run):
    session = run(ECHO)
    wait_for(session.raw, "raw mode")
    session.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: b"T" in Path(f"/proc/{session.process.pid}/stat").read_bytes().split(b")")[1][:3], "the stop")
    termios.tcsetattr(session.terminal, termios.TCSANOW, session.before)  # as a shell does
    session.process.send_signal(signal.SIGCONT)
    wait_for(session.raw, "raw mode again")
    session.type(b"\x03.")
    assert session.see(b".") == b"\x03."
    session.type(b"q")
    assert session.end() == 1


def test_in_the_background_it_runs_and_in_the_foreground_it_takes_the_terminal(tmp_path):
    """A shell's `&` and `fg`: reading or setting a terminal from the background would stop the process."""
    guest = tmp_path / "guest.bin"
    guest.write_bytes(ECHO)
    leader, terminal = os.openpty()
    before = termios.tcgetattr(terminal)
    script = (
        f"set -m; '{PYVMM[0]}' -m pyvmm run '{guest}' --timeout 40s & echo started; read line; fg %1; echo status $?"
    )
    shell = subprocess.Popen(
        ["bash", "-c", script],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    shown = b""

    def see(expected: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + LIMIT
        while expected not in shown:
            assert time.monotonic() < deadline, f"{shown!r} has no {expected!r}"
            if select.select([leader], [], [], 0.1)[0]:
                shown += os.read(leader, 65536)

    try:
        see(b"started")
        time.sleep(1)
        os.write(leader, b"typed at the shell\n")
        wait_for(lambda: not termios.tcgetattr(terminal)[LFLAG] & termios.ISIG, "raw mode")
        os.write(leader, b"ping")
        see(b"ping")
        assert b"typed at the shellping" not in shown, "the guest has the shell's input"
        os.write(leader, b"q")
        see(b"status 1")
        shell.wait(LIMIT)
        assert termios.tcgetattr(terminal) == before
    finally:
        shell.kill()
        shell.communicate()
        os.close(leader)
        os.close(terminal)
