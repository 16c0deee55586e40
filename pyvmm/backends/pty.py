"""The console on a pseudo-terminal of its own, for a terminal program to be connected to (`screen /dev/pts/7`).

May import its neighbours base, sink and pump. pty(7): while nobody has the other end open, the master polls as hung
up; what the guest writes meanwhile is kept up to the sink's bound, and whoever opens it sees that first.
"""

from __future__ import annotations

import os
import select

from pyvmm.backends.base import StreamConsole
from pyvmm.backends.pump import InputPump
from pyvmm.backends.sink import OutputSink
from pyvmm.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.backends import Link

LOOK_AGAIN = 100
"""Milliseconds between two looks whether somebody has opened the other end: that is no event for poll(2)."""


class PtyConsole(StreamConsole):
    """A pseudo-terminal as a console. `say(text)` announces its name; `name` is the path, once started."""

    def __init__(self, *, say: Callable[[str], None]) -> None:
        super().__init__()
        self.name = ""
        self._say = say
        self._master = -1
        self._connected = False

    def start(self, link: Link) -> None:
        """Make the pseudo-terminal and announce its name. Raises BackendError."""
        import tty

        try:
            self._master, slave = os.openpty()
        except OSError as error:
            raise BackendError(f"{self.what}: cannot make a pseudo-terminal: {error.strerror}") from None
        self.name = os.ttyname(slave)
        # Raw from the start: an echo would be input for the guest.
        tty.setraw(slave)
        os.close(slave)
        os.set_blocking(self._master, False)
        self._sink = OutputSink(None, hold=link.hold, release=link.release, broken=self._broken)
        self._pump = InputPump("console-input", self._watch, self._ready)
        self._pump.start(link.receive)
        self._say(f"console on {self.name}")

    def close(self) -> None:
        """Close the pseudo-terminal; its name is gone with it."""
        super().close()
        master, self._master = self._master, -1
        if master >= 0:
            os.close(master)

    def _watch(self) -> tuple[int, int | None]:
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        state = dict(poll.poll(0)).get(self._master, 0)
        assert self._sink is not None
        if state & select.POLLHUP and not state & select.POLLIN:
            if self._connected:
                self._connected = False
                self._sink.detach()
            return -1, LOOK_AGAIN
        if not self._connected:
            self._connected = True
            self._sink.attach(self._master)
        return self._master, None

    def _ready(self) -> None:
        try:
            data = os.read(self._master, 4096)
        except OSError:  # hung up: _watch() sees to it
            return
        assert self._pump is not None
        self._pump.add(data)

    def _broken(self, errno: int) -> None:
        """Whoever was connected has gone; the sink keeps what follows for the next one."""
