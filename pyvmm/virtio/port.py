"""One port of the console device: the bytes that wait for the guest, and how guest and host have it open.

Imports errors, state and spec. A port is where a console device and a back-end meet. Which thread may touch what:
`receive`, `hold`, `release` and `connect` are for back-ends and any thread; the second section is the device's, with
its `plane` held.
"""

from __future__ import annotations

from struct import pack
from threading import Lock

from pyvmm.errors import UsageError
from pyvmm.state import FLAG, U32, U64, Bytes, Several, Stateful
from pyvmm.virtio.spec import (
    CONSOLE_CONSOLE_PORT,
    CONSOLE_DEVICE_ADD,
    CONSOLE_PORT_NAME,
    CONSOLE_PORT_OPEN,
    CONSOLE_RESIZE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.virtio.chain import Chain

INPUT_LIMIT = 4096
"""Bytes of input that wait for the guest at most."""
NAME_LIMIT = 255
"""Bytes: what fits a file's name, which a guest makes of it."""
CONTROL_RECEIVEQ = 2


class Port(Stateful):
    """A port called `name`, which may be empty for a console's.

    output            output(data) takes what the guest writes. It may block, until the VM is closed at the latest;
                      called on the data plane, and for emergency writes on a vCPU
    on_input_drained  called once each time `receive`, having taken less than it was given, would take half of
                      `limit` again. On the data plane: it may signal, not call back
    on_open           on_open(flag): the guest has opened or closed its side. On the data plane
    on_close          called when the device is closed
    connected         whether somebody is there on the host's side, which the guest is told
    held              whether output is to wait
    open              whether the guest has it open

    Of what is saved the input in hand and what the driver has been told are the guest's; who is connected is not.

    Raises UsageError for a name of more than 255 bytes, or with NUL or a slash in it.
    """

    STATE = {
        **dict.fromkeys(("open", "added", "ready"), FLAG),
        **dict.fromkeys(("sent", "_told_connection", "_connections"), U64),
        "_told": Several(U32, 16, container=set),
        **dict.fromkeys(("_told_size", "_size"), Bytes(limit=4, container=bytes)),
        "_input": Bytes(),
    }

    def __init__(
        self, name: str = "", output: Callable[[bytes], None] | None = None, *, limit: int = INPUT_LIMIT
    ) -> None:
        if len(name.encode("utf-8", "replace")) > NAME_LIMIT or not name.isprintable() or "/" in name:
            raise UsageError(f"port name {name[:80]!r} (expected up to {NAME_LIMIT} bytes, all printable, no /)")
        self.name = name
        self.limit = limit
        self.output: Callable[[bytes], None] = _nowhere if output is None else output
        self.on_input_drained: Callable[[], None] | None = None
        self.on_open: Callable[[bool], None] | None = None
        self.on_close: Callable[[], None] | None = None
        self.number = 0
        self.receiveq = 0
        self.held = False
        self.open = False
        self._nudge: Callable[[int], None] = _nobody
        self._lock = Lock()  # a leaf, for the input and the count of connections
        self._input = bytearray()
        self._congested = False
        self._connections = 1  # so far
        self._connection = 1  # which of them it is now, or 0
        self._size = b""
        self.forget()

    # --- For a back-end -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> int:
        """Give the guest input; returns how many bytes, from the start of `data`, there was room for.

        Input waits until the guest has the port open. Without a data plane the guest is served at once: hold no lock.
        """
        with self._lock:
            taken = data[: max(0, self.limit - len(self._input))]
            self._input += taken
            if len(taken) < len(data):
                self._congested = True
        if taken:
            self._nudge(self.receiveq)
        return len(taken)

    def hold(self) -> None:
        """Let output wait until `release()`; the guest notices by buffers that are not used."""
        self.held = True

    def release(self) -> None:
        """Let output go on."""
        self.held = False
        self._nudge(self.receiveq + 1)

    def connect(self, connected: bool) -> None:
        """Somebody came, or went, on the host's side."""
        with self._lock:
            if connected:
                self._connections += 1
            self._connection = self._connections if connected else 0
        self._nudge(CONTROL_RECEIVEQ)

    @property
    def connected(self) -> bool:
        return self._connection > 0

    # --- For the device -----------------------------------------------------------------------------------------------

    def attach(self, nudge: Callable[[int], None], number: int, receiveq: int) -> None:
        """Be port `number` of a device, served when nudge(queue) is called."""
        self._nudge = nudge
        self.number = number
        self.receiveq = receiveq

    def forget(self) -> None:
        """A reset: the driver knows nothing, and nothing of its is in hand. Input that it did not get stays."""
        self.chain: Chain | None = None  # output in hand,
        self.sent = 0  # and how much of it has been handed out
        self.added = self.ready = False  # whether the driver knows of it, and has said that it can use it
        self._told: set[int] = set()  # events that are sent once
        self._told_connection = 0
        self._told_size = b""
        self._about = self._connection, self._size  # what the message in hand tells of
        self.set_open(False)

    def restored(self) -> None:
        """Whoever is connected now is somebody else; but the console stays what it was."""
        if self.number and self._connection:
            self._connection = self._connections = self._connections + 1
        elif not self.number:
            self._connection = self._connections = self._told_connection or self._connections
        if self.open and self.on_open is not None:
            self.on_open(True)

    def set_open(self, opened: bool) -> None:
        """The guest has opened or closed it."""
        changed, self.open = self.open != opened, opened
        if changed and self.on_open is not None:
            self.on_open(opened)

    def size_changed(self, columns: int, rows: int) -> None:
        """It is a console of another size now, which the driver is to be told."""
        # In the standard's order; Linux before 6.16 reads it as rows and columns.
        self._size = pack("<HH", columns, rows)

    @property
    def waiting(self) -> bool:
        """Whether there is input for a guest that listens."""
        return self.open and bool(self._input)

    def take(self, room: int) -> bytes:
        """Input for the guest, up to `room` bytes."""
        with self._lock:
            data = bytes(self._input[:room])
            del self._input[:room]
            drained = self._congested and len(self._input) <= self.limit // 2
            if drained:
                self._congested = False
        if drained and self.on_input_drained is not None:
            self.on_input_drained()
        return data

    def write(self, data: bytes) -> None:
        """Output of the guest. Where nobody is connected, only a console's back-end keeps it for who comes next."""
        if self.number == 0 or self.connected:
            self.output(data)

    def news(self, sized: bool) -> tuple[int, int, bytes] | None:
        """The next control message about it, as event, value and what follows; None if the driver knows everything.

        `sized`: whether the driver wants to know a console's size.
        """
        self._about = connection, size = self._connection, self._size  # which other threads change
        console = self.number == 0
        if not self.added:
            return CONSOLE_DEVICE_ADD, 0, b""
        if not self.ready:
            return None
        if console and CONSOLE_CONSOLE_PORT not in self._told:
            return CONSOLE_CONSOLE_PORT, 1, b""
        if console and sized and size != self._told_size:
            return CONSOLE_RESIZE, 0, size
        if self.name and CONSOLE_PORT_NAME not in self._told:
            return CONSOLE_PORT_NAME, 1, self.name.encode()
        if connection != self._told_connection:
            # One connection after another is a close and an open, even if the driver could not be told between them.
            return CONSOLE_PORT_OPEN, int(self._told_connection == 0), b""
        return None

    def told(self, event: int) -> None:
        """The driver has been told what `news` said last."""
        connection, size = self._about
        if event == CONSOLE_DEVICE_ADD:
            self.added = True
        elif event == CONSOLE_PORT_OPEN:
            self._told_connection = 0 if self._told_connection else connection
        elif event == CONSOLE_RESIZE:
            self._told_size = size
        else:
            self._told.add(event)


def _nowhere(data: bytes) -> None:
    """Output of a port that is not connected to anything."""


def _nobody(queue: int) -> None:
    """There is no device yet."""
