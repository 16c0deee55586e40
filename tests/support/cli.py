"""Running the `pyvmm` command in tests, and a console back-end's neighbours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.support.plain import VARIABLE

PYVMM = [sys.executable, "-m", "tests.support.plain" if VARIABLE in os.environ else "pyvmm"]
ROOT = Path(__file__).parents[2]
NOT_IGNORED = [
    number
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup: a child inherits it
]
"""Signals that end a command of ours."""
LIMIT = 60
"""Seconds that any command may take."""

ECHO = bytes.fromhex("bafd03 ec a801 74fb baf803 ec 3c71 7403 ee ebed baf400 b000 ee f4")
"""Real mode: write what COM1 receives back to it, a byte at a time; `q` ends the guest with status 1."""


def environment(**extra: str) -> dict[str, str]:
    """The environment in which `python -m pyvmm` finds this checkout from any directory, and buffers as usual."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(ROOT), **extra}


def pyvmm(*arguments: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    """Run `pyvmm` with `arguments`, its output captured unless `options` say otherwise."""
    settings: dict[str, object] = {"stdin": subprocess.DEVNULL, "timeout": LIMIT, "env": environment()}
    if "stdout" not in options and "stderr" not in options:
        settings["capture_output"] = True
    return subprocess.run([*PYVMM, *map(str, arguments)], **{**settings, **options})  # type: ignore[call-overload, no-any-return]


def wait_for(condition: Callable[[], object], what: str, limit: float = 20.0) -> None:
    """Return once `condition()` holds; fail after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit} s for {what}"
        time.sleep(0.01)


def cpu_ticks(process: subprocess.Popen[bytes]) -> int:
    """The CPU time that `process` has used, in hundredths of a second."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # user and system time, proc(5)


def wait_until_still(process: subprocess.Popen[bytes]) -> None:
    """Return once `process` uses no CPU any more: its vCPUs are held outside the guest."""

    def still() -> bool:
        before = cpu_ticks(process)
        time.sleep(0.3)
        return cpu_ticks(process) - before <= 2

    # Three times: on a busy machine a process may get no CPU for a moment.
    wait_for(lambda: still() and still() and still(), "the process to stand still", 30)


class FakeLink:
    """A VM that takes `room` bytes of input and notes what it is told."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.received = bytearray()
        self.room = room
        self.calls: list[str] = []
        self.errors: list[int] = []
        self.over = False
        self.lock = threading.Lock()

    def receive(self, data: bytes) -> int:
        with self.lock:
            taken = data[: self.room]
            self.received += taken
            self.room -= len(taken)
            return len(taken)

    def hold(self) -> None:
        self.calls.append("hold")

    def release(self) -> None:
        self.calls.append("release")

    def broken(self, errno: int) -> None:
        self.errors.append(errno)
