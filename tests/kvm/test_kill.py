"""Starts killed at random moments: nothing is left, and the terminal is as it was."""

import fcntl
import os
import pty
import random
import signal
import subprocess
import termios
import time
from unittest.mock import patch

import pytest

from pyvmm.control.client import running
from tests.support import guests
from tests.support.cli import PYVMM

pytestmark = pytest.mark.needs("kvm")
LIMIT = 30


def session_members(session):
    """Processes of `session` that are alive, by the process table."""
    members = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{entry}/stat") as stat:
                state, _, _, sid = stat.read().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == session and state != "Z":
            members.append(int(entry))
    return members


def start_and_kill(path, folder, delay, sent):
    """Run `path` on a terminal of its own, send it `sent` after `delay` seconds; its status and what it showed."""
    leader, terminal = pty.openpty()
    before = termios.tcgetattr(terminal)
    try:
        process = subprocess.Popen(
            [*PYVMM, "run", str(path), "--mem", "1M", "--timeout", "20s"],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder), "HOME": str(folder)}
            | {"PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        time.sleep(delay)
        process.send_signal(sent)
        # Draining the terminal, as a person's terminal does, so that a writer can end.
        os.set_blocking(leader, False)
        deadline = time.monotonic() + LIMIT
        shown = b""
        while (ended := process.poll() is not None) or time.monotonic() < deadline:
            try:
                shown = (shown + os.read(leader, 65536))[-65536:]
            except OSError:
                if ended:
                    break
                time.sleep(0.005)
        status = process.wait(1)
        assert session_members(process.pid) == []
        if sent != signal.SIGKILL:
            assert termios.tcgetattr(terminal) == before, f"{sent!r} after {delay:.3f} s left the terminal changed"
        return status, shown
    finally:
        os.close(leader)
        os.close(terminal)


def kill_many(tmp_path, count, seed):
    path = tmp_path / "guest.bin"
    path.write_bytes(guests.CHATTER)
    folder = tmp_path / "scratch"
    folder.mkdir()
    choose = random.Random(seed)
    for number in range(count):
        sent = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number % 4]
        delay = choose.uniform(0, 0.4)
        status, shown = start_and_kill(path, folder, delay, sent)
        # Before pyvmm's first instruction it is the interpreter that the signal ends: by its default, or as an error.
        starting = b"Could not import runpy" in shown or b"import the site module" in shown or b"import site" in shown
        assert status in (-sent, 128 + sent) or (sent == signal.SIGINT and starting), (
            f"{sent!r} after {delay:.3f} s gave {status}: {shown[-2000:]!r}"
        )
        left = {file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()}
        if sent == signal.SIGKILL:  # nobody could remove the control socket; whoever looks for VMs next does
            with patch.dict(os.environ, {"PYVMM_RUNTIME_DIR": str(folder / "pyvmm")}):
                running()
            left = {file for file in left if (folder / file).exists()}
        assert not left, f"{sent!r} after {delay:.3f} s left a file"


@pytest.mark.timeout(200)
def test_starts_killed_at_random_moments(tmp_path):
    kill_many(tmp_path, 20, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_200_starts_killed_at_random_moments(tmp_path):
    kill_many(tmp_path, 200, seed=2)
