"""Running Debian's gdb on a guest under `pyvmm run --gdb`, by scripts of commands."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.cli import PYVMM, environment, wait_for

LIMIT = 60
SETTINGS = ("set pagination off", "set confirm off", "set remotetimeout 30", "set width 0", "set style enabled off")


def gdb(*commands: str, file: str = "", limit: float = LIMIT) -> str:
    """A batch session with the symbols of `file`; what gdb printed, on both streams."""
    words = ["gdb", "-q", "-batch", "-nx"]
    for command in (*SETTINGS, *((f"file {file}",) if file else ()), *commands):
        words += ["-ex", command]
    out, none = subprocess.PIPE, subprocess.DEVNULL
    done = subprocess.run(
        words, stdin=none, stdout=out, stderr=subprocess.STDOUT, text=True, timeout=limit, check=False
    )
    return done.stdout


class Debugged:
    """`pyvmm run --gdb` on a unix socket. Use it as a context manager; nothing is left behind."""

    def __init__(self, *arguments: object, limit: float = LIMIT) -> None:
        self._folder = TemporaryDirectory()
        self.socket = Path(self._folder.name) / "gdb"
        self._limit = limit
        words = [*PYVMM, "run", *map(str, arguments), f"--gdb=unix:{self.socket}", "--timeout", str(limit)]
        self._out = open(Path(self._folder.name) / "out", "w+b")  # noqa: SIM115
        self._err = open(Path(self._folder.name) / "err", "w+b")  # noqa: SIM115
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._out, stderr=self._err, env=environment()
        )

    def __enter__(self) -> Debugged:
        wait_for(lambda: self.socket.exists() or self.process.poll() is not None, "the stub to listen", self._limit)
        assert self.process.poll() is None, self.errors
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._out.close()
        self._err.close()
        self._folder.cleanup()

    def gdb(self, *commands: str, file: str = "") -> str:
        """A session from `target remote` on; what gdb printed."""
        return gdb(f"target remote {self.socket}", *commands, file=file, limit=self._limit)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(self._limit)

    @property
    def output(self) -> str:
        """What the guest has written."""
        return os.pread(self._out.fileno(), 1 << 20, 0).decode(errors="replace")

    @property
    def errors(self) -> str:
        """What pyvmm has said."""
        return os.pread(self._err.fileno(), 1 << 20, 0).decode(errors="replace")


class Interactive:
    """A gdb session that a test does something to meanwhile; it is killed in the end."""

    def __init__(self, run: Debugged, *commands: str) -> None:
        words = ["gdb", "-q", "-batch", "-nx"]
        for command in (*SETTINGS, f"target remote {run.socket}", *commands):
            words += ["-ex", command]
        # With a process group of its own, which a signal is for.
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._shown = b""

    def __enter__(self) -> Interactive:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def see(self, what: str, limit: float = LIMIT) -> str:
        """Return all that was printed once `what` is there."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + limit
        while what.encode() not in self._shown:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            assert data, self._shown.decode(errors="replace")
            self._shown += data
        return self._shown.decode(errors="replace")


def number(text: str, name: str) -> int:
    """The value that `info registers` shows for register `name`."""
    found = re.search(rf"^{name}\s+(0x[0-9a-f]+)", text, re.MULTILINE)
    assert found, text
    return int(found[1], 16)
