"""A command that runs in the guest, and its three streams. Imports errors, frames and completed."""

from __future__ import annotations

import io
import threading
import time

from pyvmm.errors import GuestAgentError, PyvmmError, TimeLimitError
from pyvmm.guest import frames
from pyvmm.guest.completed import Completed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any, Self

    from pyvmm.guest.channel import ExecChannel

STDIN, STDOUT, STDERR = range(3)
GRACE = 5.0
"""Seconds that a command whose time is over has to go when it is killed."""


class _Reader(io.RawIOBase):
    """What the command writes to one of its streams. The guest is told of room as it is read."""

    def __init__(self, process: GuestProcess, stream: int) -> None:
        self._process = process
        self._stream = stream
        self._data = bytearray()
        self._ended = False
        self._owed = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        changed = self._process._changed
        with changed:
            changed.wait_for(lambda: self._data or self._ended)
            if not self._data and self._process._gone:
                raise PyvmmError(self._process._gone)
            size = min(len(buffer), len(self._data))
            buffer[:size] = self._data[:size]
            del self._data[:size]
            self._owed += size
            owed = self._owed if self._owed >= frames.OUTPUT_CREDIT // 4 and not self._ended else 0
            self._owed -= owed
        if owed:
            self._process._send(frames.CREDIT, frames.NUMBER.pack(owed), self._stream)
        return size

    def take(self, data: bytes) -> None:
        """On the channel's thread, the lock held: more, or the end."""
        if len(self._data) + len(data) > 2 * frames.OUTPUT_CREDIT:
            self._ended = True  # more than it was allowed to send: no agent of ours
        if not data:
            self._ended = True
        if not self._ended:
            self._data += data


class _Writer(io.RawIOBase):
    """The command's standard input. A write returns when all of it is on its way, which the guest has room for."""

    def __init__(self, process: GuestProcess) -> None:
        self._process = process
        self.credit = frames.INPUT_CREDIT
        self.refused = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        process = self._process
        size = len(rest)
        while len(rest):
            with process._changed:
                process._changed.wait_for(
                    lambda: self.credit or self.refused or process._gone or process.returncode is not None
                )
                if process._gone:
                    raise PyvmmError(process._gone)
                if self.refused or process.returncode is not None or self.closed:
                    raise BrokenPipeError("the command in the guest does not read its input any more")
                count = min(len(rest), self.credit, frames.PIECE)
                self.credit -= count
            process._send(frames.DATA, bytes(rest[:count]), STDIN)
            rest = rest[count:]
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._process.returncode is None and not self.refused and not self._process._gone:
                self._process._send(frames.DATA, b"", STDIN)


class GuestProcess:
    """A command in the guest, made by `ExecChannel.popen`. As a context manager it is killed at the end.

    args        what was run
    pid         its number in the guest; of its process group too
    returncode  None while it runs; then its status, or -n after signal n
    stdin       to be written to, unbuffered; close() is the end of the input
    stdout      buffered readers; with a terminal stderr is empty and all is in stdout
    stderr
    """

    def __init__(self, channel: ExecChannel, number: int, args: Sequence[str]) -> None:
        self.args = tuple(args)
        self.pid = 0
        self.returncode: int | None = None
        self._channel = channel
        self._number = number
        self._changed = threading.Condition()
        self._failure = ""
        self._errno = 0
        self._gone = ""
        self._raw = {stream: _Reader(self, stream) for stream in (STDOUT, STDERR)}
        self.stdin = _Writer(self)
        self.stdout = io.BufferedReader(self._raw[STDOUT], frames.PIECE)
        self.stderr = io.BufferedReader(self._raw[STDERR], frames.PIECE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the command has ended; returns `returncode`.

        Raises TimeLimitError after `timeout` seconds, PyvmmError if the VM ends before.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.returncode is not None or self._gone, timeout):
                raise TimeLimitError(f"{self.args[0]} in the guest still runs after {timeout:g} s")
            if self.returncode is None:
                raise PyvmmError(self._gone)
            return self.returncode

    def poll(self) -> int | None:
        """`returncode`."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send the signal to the command and its process group; nothing if it has ended."""
        if self.returncode is None:
            self._send(frames.SIGNAL, frames.NUMBER.pack(number))

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(9)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(15)

    def resize(self, rows: int, columns: int) -> None:
        """The size of its terminal has changed."""
        self._send(frames.SIZE, frames.TERMINAL_SIZE.pack(rows & 0xFFFF, columns & 0xFFFF))

    def communicate(self, input: bytes = b"", timeout: float | None = None) -> Completed:
        """Send `input`, read both outputs to their end, and wait. The command is killed if it takes longer.

        Raises TimeLimitError after `timeout` seconds, PyvmmError if the VM ends before.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        outputs: dict[int, bytes] = {}
        failures: list[PyvmmError] = []

        def read(stream: int, file: io.BufferedReader) -> None:
            try:
                outputs[stream] = file.read()
            except PyvmmError as error:
                failures.append(error)

        def write() -> None:
            try:
                self.stdin.write(input)
                self.stdin.close()
            except BrokenPipeError:
                pass  # it does not want it all, which is its own affair
            except PyvmmError as error:
                failures.append(error)

        threads = [
            threading.Thread(target=read, args=(STDOUT, self.stdout), daemon=True),
            threading.Thread(target=read, args=(STDERR, self.stderr), daemon=True),
            threading.Thread(target=write, daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads[:2]:
                thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
                if thread.is_alive():
                    raise TimeLimitError(f"{self.args[0]} in the guest did not end within {timeout:g} s")
            if failures:
                raise failures[0]
            code = self.wait(None if deadline is None else max(0.1, deadline - time.monotonic()))
        finally:
            self.close()
        return Completed(self.args, code, outputs[STDOUT], outputs[STDERR])

    def close(self) -> None:
        """Kill what is left of the command and forget it."""
        with self._changed:
            over = self._gone or (self.returncode is not None and all(raw._ended for raw in self._raw.values()))
        self._channel._forget(self._number, tell=not over)
        self._lose("the command in the guest has been closed")

    # --- For the channel ----------------------------------------------------------------------------------------------

    def _send(self, kind: int, data: bytes, stream: int = 0) -> None:
        self._channel._send(frames.frame(kind, self._number, data, stream))

    def _await_start(self, timeout: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self.pid or self._failure or self._gone, timeout):
                raise TimeLimitError(f"{self.args[0]}: the agent in the guest did not start it in time")
            if self._failure:
                raise GuestAgentError(self._failure, errno=self._errno)
            if self._gone:
                raise PyvmmError(self._gone)

    def _take(self, kind: int, stream: int, data: bytes) -> None:
        """A frame for this process."""
        import os

        with self._changed:
            if kind == frames.STARTED:
                self.pid = frames.NUMBER.unpack_from(data)[0]
            elif kind == frames.FAILED:
                self._errno = frames.NUMBER.unpack_from(data)[0]
                what = data[frames.NUMBER.size :].decode("utf-8", "replace")
                self._failure = f"{self.args[0]}: the guest could not have {what}: {os.strerror(self._errno)}"
            elif kind == frames.DATA and stream in self._raw:
                self._raw[stream].take(data)
            elif kind == frames.DATA:
                self.stdin.refused = True
            elif kind == frames.CREDIT:
                self.stdin.credit += frames.NUMBER.unpack_from(data)[0]
            elif kind == frames.EXITED:
                status, signal = frames.ENDING.unpack_from(data)
                self.returncode = -signal if signal else status
            self._changed.notify_all()

    def _lose(self, why: str) -> None:
        """Nothing more will come."""
        with self._changed:
            self._gone = self._gone or why
            for raw in self._raw.values():
                raw._ended = True
            self._changed.notify_all()
