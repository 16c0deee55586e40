"""What the socket device asks of the host's side: streams of bytes, and somebody who makes them. Imports nothing."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Protocol

    class HostStream(Protocol):
        """A connected byte stream of the host's. No call blocks; all but `close` raise OSError.

        owner    whatever the device wants to find there
        read     fill buffers; returns how many bytes, 0 at the end. BlockingIOError: nothing now
        write    take bytes; returns how many of them. BlockingIOError: no room now
        notice_room    have it told, or no longer, when there is room to write
        end_input, end_output    read no more; write no more, which the other end sees
        accept   the guest has accepted the connection, which the host's end has asked for, as from `port`
        """

        owner: Any

        def read(self, buffers: Sequence[memoryview]) -> int: ...

        def write(self, buffers: Sequence[memoryview | bytearray]) -> int: ...

        def notice_room(self, wanted: bool) -> None: ...

        def end_input(self) -> None: ...

        def end_output(self) -> None: ...

        def accept(self, port: int) -> None: ...

        def close(self) -> None: ...

    class Sockets(Protocol):
        """The host's side of all streams.

        on_call    on_call(port, stream): the host wants to be connected to the guest's `port`; it may close `stream`
        fileno     a descriptor that is readable when `poll` has something
        poll       what has happened, a bounded number at a time: (stream, events of poll(2)), each event once, never
                   of a stream that is closed
        connect    a stream to whoever listens for the guest at `port`; `poll` tells of input that it has already.
                   BlockingIOError: try again in a moment; any other OSError: nobody does
        deadline, tick    when `tick` is to be called, by time.monotonic(), or None
        """

        on_call: Callable[[int, HostStream], None]

        def fileno(self) -> int: ...

        def poll(self) -> Iterable[tuple[HostStream, int]]: ...

        def connect(self, port: int) -> HostStream: ...

        def deadline(self) -> float | None: ...

        def tick(self, now: float) -> None: ...

        def close(self) -> None: ...
