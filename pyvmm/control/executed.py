"""A command that a client runs in the guest: its frames pass from the agent to the client's connection, and back.

Imports guest and the sink. The frames are those of `pyvmm.guest.frames`, their process always 0. What may be sent is
agreed between the command in the guest and the client: in between nothing is held that they have not allowed.
"""

from __future__ import annotations

import select

from pyvmm.backends.sink import OutputSink
from pyvmm.control.lines import hang_up
from pyvmm.errors import BackendError, PyvmmError, TimeLimitError, UsageError
from pyvmm.guest import frames
from pyvmm.guest.process import GuestProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence

    from pyvmm.guest.channel import ExecChannel
    from pyvmm.guest.session import Guest

AGENT_WAIT = 60.0
"""Seconds that a guest which boots has until its agent answers."""
MOST = 512 << 10
"""Bytes that wait for the client; its credit for both streams is a quarter of that."""
PIECE = 64 << 10
FROM_CLIENT = (frames.DATA, frames.CREDIT, frames.SIGNAL, frames.SIZE)


class RelayedProcess(GuestProcess):
    """A command in the guest whose streams are somebody else's: what the agent says of it goes on as frames."""

    def __init__(self, channel: ExecChannel, number: int, args: Sequence[str]) -> None:
        super().__init__(channel, number, args)
        self._kept = bytearray()
        self._to: Callable[[bytes], None] | None = None

    def connect(self, to: Callable[[bytes], None]) -> None:
        """Hand on what has come already, and from now on what comes; `to` may not block."""
        with self._changed:
            to(bytes(self._kept))
            self._to = to

    def _take(self, kind: int, stream: int, data: bytes) -> None:
        with self._changed:
            if kind == frames.DATA and not data and stream in self._raw:
                self._raw[stream]._ended = True
            elif kind != frames.DATA:
                super()._take(kind, stream, data)
            if kind not in (frames.STARTED, frames.FAILED):
                self._hand_on(frames.frame(kind, 0, data, stream))

    def _lose(self, why: str) -> None:
        with self._changed:
            if not self._gone:
                self._hand_on(frames.frame(frames.CLOSE, 0, why.encode()))
            super()._lose(why)

    def _hand_on(self, data: bytes) -> None:
        if self._to is None:
            self._kept += data
        else:
            self._to(data)


class Executed:
    """Serves `client` on the calling thread, until it hangs up: then what is left of `process` is killed."""

    def __init__(self, process: RelayedProcess, client: _socket.socket) -> None:
        self._process = process
        self._client = client
        self._sink = OutputSink(
            client.fileno(), hold=_nothing, release=_nothing, broken=lambda _: self._drop(), name="exec-output"
        )

    def run(self, early: bytes = b"") -> None:
        """`early` has come already. Raises OSError."""
        cutter = frames.Frames()
        poll = select.poll()
        poll.register(self._client.fileno(), select.POLLIN)
        data = early
        try:
            self._process.connect(self._output)
            while True:
                for kind, _, stream, payload in cutter.feed(data):
                    if kind in FROM_CLIENT:
                        self._process._send(kind, payload, stream)
                poll.poll()
                data = self._client.recv(PIECE)
                if not data:
                    return
        except (ValueError, PyvmmError):
            pass  # no client of ours; or the VM has ended, of which the client is told
        finally:
            self._process.close()
            self._sink.drain(0.0)
            self._sink.close()

    def finish(self, timeout: float) -> None:
        """The run is over: return when the client has all output, or has taken none for `timeout` seconds."""
        self._sink.drain(timeout)

    def _output(self, data: bytes) -> None:
        self._sink.write(data)
        if self._sink.backlog > MOST:
            self._drop()

    def _drop(self) -> None:
        # On the channel's thread, or the sink's: it only ends the wait in run().
        hang_up(self._client)


def begin(
    guest: Guest,
    args: list[str],
    env: dict[str, str],
    user: str,
    cwd: str,
    terminal: tuple[int, int] | None,
) -> RelayedProcess:
    """Start a command. Raises GuestAgentError, UsageError, BackendError if no agent answers."""
    if not all(isinstance(word, str) for word in (*args, *env.values())):
        raise UsageError("exec: args and env (expected strings)")
    try:
        guest.wait_ready(AGENT_WAIT)
    except TimeLimitError as error:
        raise BackendError(str(error)) from error
    process = guest.popen(args, env=env, user=user, cwd=cwd, terminal=terminal, kind=RelayedProcess)
    assert isinstance(process, RelayedProcess)
    return process


def _nothing() -> None:
    pass
