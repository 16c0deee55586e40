"""The machine's consoles as a console back-end sees them: one place for input, one that says when to wait.

Imports runloop. The serial port is always there, the virtio console's first port where the guest has one.
"""

from __future__ import annotations

import os

from pyvmm.runloop import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm.steering import Control

    class Console(Protocol):
        """What the VM asks of a console back-end; see `pyvmm.backends`."""

        def start(self, link: ConsoleLink) -> None: ...

        def write(self, data: bytes) -> None: ...

        def input_ready(self) -> None: ...

        def drain(self, timeout: float | None) -> bool: ...

        def close(self) -> None: ...

    class Holder(Protocol):
        """What stops writing to the console, and goes on."""

        def hold(self) -> None: ...

        def release(self) -> None: ...


STATUS_SIGPIPE = 128 + 13


class ConsoleLink:
    """The VM as its console back-end sees it. Every method may be called from any thread."""

    __slots__ = ("_control", "_held", "receive")

    def __init__(self, receive: Callable[[bytes], int], control: Control) -> None:
        """receive(data) gives the guest input and returns how many bytes it took.

        `input_ready()` of the console is called when it can take more.
        """
        self.receive = receive
        self._control = control
        self._held: list[Holder] = [control]

    def also_holds(self, holder: Holder) -> None:
        """Let `hold()` and `release()` reach `holder` too."""
        self._held.append(holder)

    def hold(self) -> None:
        """Nothing more can be written for now."""
        for holder in self._held:
            holder.hold()

    def release(self) -> None:
        """Writing goes on."""
        for holder in self._held:
            holder.release()

    @property
    def over(self) -> bool:
        """The run has ended: no more output will come."""
        return self._control.over

    def broken(self, errno: int) -> None:
        """Nobody reads the output any more: end the run as SIGPIPE would have ended the process."""
        detail = f"the console's output is closed: {os.strerror(errno)}"
        self._control.end(Outcome("signal", STATUS_SIGPIPE, detail))
