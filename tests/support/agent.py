"""pyvmm-agent as a process of the host, built with the sanitizers, at the other ends of two socket pairs."""

from __future__ import annotations

import functools
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

from pyvmm.errors import TimeLimitError

SOURCES = Path(__file__).parents[2] / "guest-images/agent"
WARNINGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror")


@functools.cache
def build() -> str:
    """The program with ASan and UBSan, and with the host's libc for its own."""
    folder = tempfile.mkdtemp(prefix="pyvmm-agent-")
    program = os.path.join(folder, "agent")
    sources = sorted(str(path) for path in SOURCES.glob("*.c") if path.name != "libc.c")
    options = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    subprocess.run(["gcc", *WARNINGS, *options, "-o", program, *sources], check=True, timeout=110)
    return program


class SocketStream:
    """What the client has of a port, over a socket.

    The socket always blocks: a time limit of its own would be for both threads, the one that sends and the one that
    receives.
    """

    def __init__(self, end: socket.socket) -> None:
        self.end = end
        self.opened = threading.Event()
        self.opened.set()

    def send(self, data: bytes, timeout: float | None = 30.0) -> None:
        self.end.sendall(data)

    def recv(self, size: int = 65536, timeout: float | None = 30.0) -> bytes:
        try:
            if select.select([self.end], [], [], timeout)[0]:
                return self.end.recv(size)
        except (OSError, ValueError):  # closed: by the agent, or here
            return b""
        raise TimeLimitError("nothing came")

    def wait_open(self, timeout: float | None = 30.0) -> None:
        if not self.opened.wait(timeout):
            raise TimeLimitError("not open")


class HostAgent:
    """The agent, running; `agent` and `exec` are the streams of its two ports."""

    def __init__(self, program: str | None = None, wrapper: tuple[str, ...] = ()) -> None:
        self.agent, self._first = self._pair()
        self.exec, self._second = self._pair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        ends = (self._first.fileno(), self._second.fileno())
        self.process = subprocess.Popen(
            [*wrapper, program or build(), *map(str, ends)],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=self.errors,
            stderr=self.errors,
            env={"PATH": os.environ["PATH"], "ASAN_OPTIONS": "detect_leaks=0"},
        )
        self._first.close()
        self._second.close()

    @staticmethod
    def _pair() -> tuple[SocketStream, socket.socket]:
        ours, its = socket.socketpair()
        return SocketStream(ours), its

    def close(self) -> None:
        """End it. Raises AssertionError with what the sanitizers said."""
        self.agent.end.shutdown(socket.SHUT_RDWR)
        self.exec.end.shutdown(socket.SHUT_RDWR)
        try:
            status = self.process.wait(10)
        finally:
            self.process.kill()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace")
        self.errors.close()
        self.agent.end.close()
        self.exec.end.close()
        assert status == 0, f"the agent ended with {status}: {said}"


def remove() -> None:
    """Remove what `build` left."""
    if build.cache_info().currsize:
        shutil.rmtree(os.path.dirname(build()))
        build.cache_clear()
