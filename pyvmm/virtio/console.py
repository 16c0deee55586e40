"""The console device: a console, and named ports beside it (virtio 1.3, 5.3).

Imports consoleplane, device, native, port, state and spec. Linux calls port 0 /dev/hvc0 and the others /dev/vport0p1
and on, with their names below /dev/virtio-ports.

What the driver is to be told over the control receiveq is not queued: it follows from comparing how each port is with
what the driver was told of it. So it is bounded, however rarely the driver provides buffers.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.errors import UsageError
from pyvmm.state import FLAG, U16, StateError
from pyvmm.virtio.consoleplane import ConsolePlane
from pyvmm.virtio.device import VirtioDevice
from pyvmm.virtio.native import PROBLEM
from pyvmm.virtio.port import Port
from pyvmm.virtio.spec import (
    CONSOLE_DEVICE_READY,
    CONSOLE_F_EMERG_WRITE,
    CONSOLE_F_MULTIPORT,
    CONSOLE_F_SIZE,
    CONSOLE_PORT_OPEN,
    CONSOLE_PORT_READY,
    ID_CONSOLE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.virtio.queue import Virtqueue

QUEUE_SIZE = 64
MAX_PORTS = 32
CONTROL_RECEIVE, CONTROL_TRANSMIT = 2, 3
"""5.3.2: queues 0 and 1 are port 0's, 2n + 2 and 2n + 3 those of each other port n."""
CONFIG = Struct("<HHII")
"""5.3.4: cols, rows, max_nr_ports, emerg_wr."""
EMERG_WR = 8
CONTROL = Struct("<IHH")
"""5.3.6.2: id, event, value."""
COLUMNS, ROWS = 80, 25
"""What the configuration says until somebody knows better."""
PIECE = 16 << 10
"""Bytes of output that a port gets at once, and thus may get after it said that it is full."""


class VirtioConsole(VirtioDevice):
    """A console device with `ports`, of which the first is the console. `queue_size` is each queue's.

    Raises UsageError: no port, more than MAX_PORTS, or two of one name.
    """

    device_id = ID_CONSOLE
    STATE = {"_driver_ready": FLAG, "columns": U16, "rows": U16}

    def __init__(self, ports: Sequence[Port], *, name: str = "", queue_size: int = QUEUE_SIZE) -> None:
        if not 1 <= len(ports) <= MAX_PORTS:
            raise UsageError(f"a virtio console with {len(ports)} ports (expected 1 to {MAX_PORTS})")
        names = [port.name for port in ports if port.name]
        for port_name in names:
            if names.count(port_name) > 1:
                raise UsageError(f"two ports of a virtio console are called {port_name!r}")
        self.queue_sizes = (queue_size,) * (2 * len(ports) + 2)
        super().__init__(name)
        self.ports = tuple(ports)
        self.columns, self.rows = COLUMNS, ROWS
        self._driver_ready = False
        self._plane = None if PROBLEM else ConsolePlane(PIECE)
        for number, port in enumerate(self.ports):
            port.attach(self.nudge, number, receiveq=2 * number + 2 if number else 0)

    def device_features(self) -> int:
        return 1 << CONSOLE_F_SIZE | 1 << CONSOLE_F_MULTIPORT | 1 << CONSOLE_F_EMERG_WRITE

    def config(self) -> bytes:
        return CONFIG.pack(self.columns, self.rows, len(self.ports), 0)

    def write_config(self, offset: int, data: bytes) -> None:
        port = self.ports[0]
        # 5.3.5.1: at any time, so also before DRIVER_OK. Not into a back-end that is full: it has no other bound.
        if offset == EMERG_WR and not port.held:
            port.output(data[:1])

    def activate(self) -> None:
        if not self._multiport:
            self.ports[0].set_open(True)  # there is no control queue to say so

    def discard(self) -> None:
        self._driver_ready = False
        for port in self.ports:
            port.forget()

    def save(self) -> dict[str, Any]:
        return {**super().save(), "ports": [port.save() for port in self.ports]}

    def restore(self, state: Any) -> None:
        ports = state.pop("ports", None) if type(state) is dict else None
        if type(ports) is not list or len(ports) != len(self.ports):
            raise StateError(f"{self.name}: ports is not what it has {len(self.ports)} of")
        super().restore(state)
        for port, of_port in zip(self.ports, ports, strict=True):
            port.restore(of_port)

    def close(self) -> None:
        for port in self.ports:
            port.forget()
            if port.on_close is not None:
                port.on_close()

    def resize(self, columns: int, rows: int) -> None:
        """The console's size has changed, up to 65,535 each. From any thread, with neither `lock` nor `plane` held."""
        with self.lock:
            self.columns, self.rows = min(columns, 0xFFFF), min(rows, 0xFFFF)
            self.ports[0].size_changed(self.columns, self.rows)
            self.config_changed()
        self.nudge(CONTROL_RECEIVE)

    def nudge(self, queue: int) -> None:
        """Have queue number `queue` served, unless the data plane has ended. From any thread, `plane` not held."""
        try:
            self.ring(queue)
        except (OSError, ValueError):
            pass  # its eventfd is closed, or has just been

    # --- Serving ------------------------------------------------------------------------------------------------------

    @property
    def _multiport(self) -> bool:
        return bool(self.features >> CONSOLE_F_MULTIPORT & 1)

    def serve(self, queue: Virtqueue) -> None:
        index = queue.index
        if index > 1 and not self._multiport:
            return  # 5.3.2: no other queues exist
        if index == CONTROL_RECEIVE:
            self._tell_driver()
        elif index == CONTROL_TRANSMIT:
            for chain in queue.chains():
                message = chain.read(0, CONTROL.size)
                self.complete(queue, chain)
                if len(message) == CONTROL.size:
                    self._obey(*CONTROL.unpack(message))
            self._tell_driver()
        else:
            port = self.ports[index // 2 - 1 if index > 1 else 0]
            if index & 1:
                self._transmit(port, queue)
            else:
                self._receive(port, queue)

    def _receive(self, port: Port, queue: Virtqueue) -> None:
        """Give the guest the input that waits, as far as it has provided buffers."""
        while port.waiting:
            chain = queue.pop()
            if chain is not None:
                data = port.take(chain.writable_length)
                chain.write(data)
                self.complete(queue, chain, len(data))
            elif not queue.listen():
                return
        queue.suppress()  # more buffers are no news while there is nothing to fill them with

    def _transmit(self, port: Port, queue: Virtqueue) -> None:
        """Hand out what the guest writes, piece by piece, until there is no more or the port is held."""
        queue.suppress()
        plane = self._plane if self.native and self.faults is None else None
        while queue.ready and not port.held:
            if port.chain is None:
                if plane is not None and (gathered := plane.gather(queue)) is not None:
                    if gathered:
                        port.write(gathered)
                    plane.give_back(queue)
                    continue
                port.chain = queue.pop()
            chain = port.chain
            if chain is None:
                if not queue.listen():
                    return
                queue.suppress()
                continue
            data = chain.read(port.sent, PIECE)
            port.sent += len(data)
            if data:
                port.write(data)
            if port.sent >= chain.readable_length:
                port.chain, port.sent = None, 0
                self.complete(queue, chain)

    # --- The control queues (5.3.6.2) ---------------------------------------------------------------------------------

    def _obey(self, number: int, event: int, value: int) -> None:
        """A message of the driver's; what makes no sense is ignored."""
        if event == CONSOLE_DEVICE_READY:
            self._driver_ready = value == 1
            return
        port = self.ports[number] if number < len(self.ports) else None
        if port is None or not port.added:
            return
        if event == CONSOLE_PORT_READY:
            port.ready = value == 1
        elif event == CONSOLE_PORT_OPEN:
            port.set_open(value == 1)
            self._receive(port, self.queues[port.receiveq])

    def _tell_driver(self) -> None:
        """Send what the driver has not been told yet, as far as it has provided buffers."""
        queue = self.queues[CONTROL_RECEIVE]
        sized = bool(self.features >> CONSOLE_F_SIZE & 1)
        for port in self.ports if self._driver_ready else ():
            while (news := port.news(sized)) is not None:
                chain = queue.pop()
                if chain is None:
                    if not queue.listen():
                        return
                elif chain.writable_length < CONTROL.size:
                    self.complete(queue, chain)  # no message fits: it goes into the next one
                else:
                    event, value, more = news
                    written = chain.write(CONTROL.pack(port.number, event, value) + more)
                    port.told(event)
                    self.complete(queue, chain, written)
        queue.suppress()
