"""`pyvmm run` on a terminal, as a person has it."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import termios
import time

from tests.support.cli import LIMIT, PYVMM, environment

IFLAG, OFLAG, CFLAG, LFLAG = range(4)
"""Places in what tcgetattr() gives."""


class Session:
    """`pyvmm run`, or another `verb`, in a session of its own, on a terminal whose other end is the test's.

    `limit` is the number of seconds that anything waited for may take; `shown` is what the terminal has shown.
    """

    def __init__(
        self,
        *arguments: object,
        verb: str = "run",
        stdout: int | None = None,
        stderr: int | None = subprocess.PIPE,
        limit: float = LIMIT,
    ) -> None:
        self.limit = limit
        self.leader, self.terminal = os.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.shown = b""
        self.process = subprocess.Popen(
            [*PYVMM, verb, *map(str, arguments)],
            stdin=self.terminal,
            stdout=self.terminal if stdout is None else stdout,
            stderr=self.terminal if stderr is None else stderr,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def type(self, keys: bytes) -> None:
        os.write(self.leader, keys)

    def see(self, *expected: bytes) -> bytes:
        """Read what the terminal shows until each of `expected` is in it, one behind the other."""
        deadline = time.monotonic() + self.limit
        searched = 0
        for text in expected:
            while (found := self.shown.find(text, searched)) < 0:
                assert time.monotonic() < deadline, f"{self.shown[-300:]!r} has no {text[-100:]!r}"
                over = self.process.poll() is not None
                if select.select([self.leader], [], [], 0.1)[0]:
                    self.shown += os.read(self.leader, 65536)
                else:
                    assert not over, f"ended; {self.shown[-300:]!r} has no {text[-100:]!r}"
            searched = found + len(text)
        return self.shown

    def raw(self) -> bool:
        return not termios.tcgetattr(self.terminal)[LFLAG] & termios.ISIG

    def end(self) -> int:
        """Wait for the end; the status. The settings must be the first ones."""
        deadline = time.monotonic() + self.limit
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.leader], [], [], 0.05)[0]:
                self.shown += os.read(self.leader, 65536)
        while select.select([self.leader], [], [], 0.05)[0]:
            self.shown += os.read(self.leader, 65536)
        assert termios.tcgetattr(self.terminal) == self.before
        assert self.process.returncode is not None
        return self.process.returncode

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for fd in (self.leader, self.terminal):
            try:
                os.close(fd)
            except OSError:
                pass  # the test has closed it
