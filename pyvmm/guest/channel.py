"""The port org.pyvmm.exec.0 of our own agent: starts commands and hands each what comes for it.

Imports errors, frames and process. One thread reads the port and never waits for anything else.
"""

from __future__ import annotations

import os
import struct
import threading

from pyvmm.errors import GuestAgentError, PyvmmError, TimeLimitError, UsageError
from pyvmm.guest import frames
from pyvmm.guest.process import STDERR, GuestProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvmm.guest.completed import Stream

PROCESSES = 8
"""Commands at a time, which is what the agent has room for."""
SEND_WAIT = 60.0
"""Seconds after which an agent that does not read its port is given up."""


class ExecChannel:
    """Our agent's exec port at the other end of `stream`. Call `open` first. Any thread may use it."""

    def __init__(self, stream: Stream) -> None:
        self.version = ""
        self._stream = stream
        self._frames = frames.Frames()
        self._processes: dict[int, GuestProcess] = {}
        self._next = 0
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._answered = threading.Event()
        self._token = b""
        self._over = ""
        self._done = threading.Condition()
        self._asked = 0
        self._results: dict[int, int | None] = {}

    def open(self, timeout: float | None = 30.0) -> None:
        """Agree with the agent where to begin; what it ran for somebody else is killed.

        Raises TimeLimitError, PyvmmError if the VM ends.
        """
        self._token = os.urandom(16)
        self._stream.send(frames.frame(frames.HELLO, data=self._token), timeout)
        threading.Thread(target=self._listen, name="guest-exec", daemon=True).start()
        if not self._answered.wait(timeout):
            raise TimeLimitError("the agent in the guest did not answer in time")
        if self._over:
            raise PyvmmError(self._over)

    def popen(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        user: str = "",
        terminal: tuple[int, int] | None = None,
        timeout: float | None = 30.0,
        kind: type[GuestProcess] = GuestProcess,
    ) -> GuestProcess:
        """Start a command; returns when it runs.

        env       variables beside those that the agent has
        cwd       folder to start in; "" is the agent's own, /
        user      name or number of whom it runs as; "" is the agent's own, root
        terminal  rows and columns of a terminal for it, on which all three streams are
        kind      the class of what is returned

        Raises GuestAgentError, with its `errno`, if the guest cannot; UsageError for what cannot be meant.
        """
        head, data = _start(args, env or {}, cwd, user, terminal)
        with self._lock:
            if self._over:
                raise PyvmmError(self._over)
            if len(self._processes) >= PROCESSES:
                raise UsageError(f"{PROCESSES} commands run in the guest already")
            while self._next in self._processes:
                self._next = self._next + 1 & 0xFFFF
            process = kind(self, self._next, args)
            if terminal is not None:
                process._raw[STDERR]._ended = True
            self._processes[self._next] = process
            number, self._next = self._next, self._next + 1 & 0xFFFF
        try:
            self._send(frames.frame(frames.START, number, head + data))
            process._await_start(timeout)
        except BaseException:
            self._forget(number, tell=False)
            raise
        return process

    def mount(
        self, source: str, target: str, type: str, options: str = "", flags: int = 0, timeout: float | None = 60.0
    ) -> None:
        """Have the agent mount something, as mount(2) does, on the folder `target`, which it makes.

        Without a `type` the folder is all that is made. Raises GuestAgentError with its `errno`, TimeLimitError.
        """
        words = (source, target, type, options)
        if any("\0" in word for word in words) or sum(map(len, words)) > frames.LONGEST // 8:
            raise UsageError(f"a mount of {source[:80]!r} on {target[:80]!r} (expected paths)")
        data = frames.NUMBER.pack(flags) + b"".join(os.fsencode(word) + b"\0" for word in words)
        what = f"mount {type} on {target}" if type else f"have the folder {target}"
        self._ask(frames.MOUNT, data, f"the guest could not {what}", timeout)

    def change_root(self, path: str, timeout: float | None = 60.0) -> None:
        """Make what is mounted at `path` the root file system of the agent and all its commands.

        Raises GuestAgentError with its `errno`, TimeLimitError.
        """
        data = os.fsencode(path) + b"\0"
        self._ask(frames.ROOT, data, f"the guest could not make {path} its root file system", timeout)

    def _ask(self, kind: int, data: bytes, failure: str, timeout: float | None) -> None:
        with self._done:
            self._asked = number = self._asked + 1 & 0xFFFF
            self._results[number] = None
        try:
            self._send(frames.frame(kind, number, data))
            with self._done:
                if not self._done.wait_for(lambda: self._results[number] is not None or self._over, timeout):
                    raise TimeLimitError(f"{failure} within {timeout:g} s")
        finally:
            with self._done:
                result = self._results.pop(number)
        if result is None:
            raise PyvmmError(self._over)
        if result:
            raise GuestAgentError(f"{failure}: {os.strerror(result)}", errno=result)

    def _send(self, data: bytes) -> None:
        with self._sending:
            self._stream.send(data, SEND_WAIT)

    def _forget(self, number: int, tell: bool) -> None:
        with self._lock:
            known = self._processes.pop(number, None)
        if known is not None and tell and not self._over:
            try:
                self._send(frames.frame(frames.CLOSE, number))
            except PyvmmError:
                pass  # it went with the VM

    def _listen(self) -> None:
        why = "the VM ended before the command in the guest did"
        try:
            while data := self._stream.recv(65536, None):
                for kind, number, stream, payload in self._frames.feed(data):
                    self._take(kind, number, stream, payload)
        except (ValueError, struct.error) as error:
            why = f"the agent in the guest does not keep to its protocol: {error}"
        except PyvmmError as error:
            why = str(error)
        with self._lock:
            self._over = why
            left = list(self._processes.values())
            self._processes.clear()
        for process in left:
            process._lose(why)
        with self._done:
            self._done.notify_all()
        self._answered.set()

    def _take(self, kind: int, number: int, stream: int, payload: bytes) -> None:
        if not self._answered.is_set():
            if kind == frames.HELLO and payload.startswith(self._token):
                self.version = payload[len(self._token) :].decode("utf-8", "replace")
                self._answered.set()
            return  # what somebody else was told
        if kind == frames.DONE:
            with self._done:
                if number in self._results:
                    self._results[number] = frames.NUMBER.unpack_from(payload)[0]
                    self._done.notify_all()
            return
        with self._lock:
            process = self._processes.get(number)
        if process is not None:
            process._take(kind, stream, payload)


def _start(
    args: Sequence[str], env: Mapping[str, str], cwd: str, user: str, terminal: tuple[int, int] | None
) -> tuple[bytes, bytes]:
    """The data of a START. Raises UsageError."""
    if isinstance(args, str | bytes) or not args:
        raise UsageError(f"a command is a list of words, the first of them the program, not {args!r}")
    words = [cwd, user, *args, *(f"{name}={value}" for name, value in env.items())]
    if any("\0" in word for word in words):
        raise UsageError("a command for the guest has a NUL in it")
    if any(not name or "=" in name for name in env):
        raise UsageError("a variable for the guest needs a name without =")
    rows, columns = terminal or (0, 0)
    head = frames.START_HEAD.pack(terminal is not None, rows & 0xFFFF, columns & 0xFFFF, 0, len(args), len(env))
    data = b"".join(os.fsencode(word) + b"\0" for word in words)
    if len(head) + len(data) > frames.LONGEST or len(args) + len(env) > frames.WORDS:
        raise UsageError(
            f"a command of {len(args) + len(env)} words and {len(data)} bytes: "
            f"the guest takes {frames.WORDS} and {frames.LONGEST - len(head)}"
        )
    return head, data
