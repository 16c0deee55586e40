"""A command in the guest of a VM that another process runs, by the VM's control socket. Imports guest and errors."""

from __future__ import annotations

import struct
import threading

from pyvmm.control.lines import hang_up
from pyvmm.errors import PyvmmError
from pyvmm.guest import frames
from pyvmm.guest.channel import ExecChannel
from pyvmm.guest.process import STDERR, GuestProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence

PIECE = 64 << 10


class RemoteChannel(ExecChannel):
    """What a GuestProcess has of its channel, over `connection`: one process, whose number is 0. `name` is the VM's."""

    def __init__(self, connection: _socket.socket, name: str) -> None:
        self._connection = connection
        self._name = name
        self._sending = threading.Lock()

    def begin(self, args: Sequence[str], pid: int, terminal: bool, early: bytes) -> GuestProcess:
        """The command, which runs already; `early` are frames that have come."""
        process = GuestProcess(self, 0, args)
        process.pid = pid
        process._raw[STDERR]._ended = terminal
        threading.Thread(target=self._read, args=(process, early), name="remote-exec", daemon=True).start()
        return process

    def _send(self, data: bytes) -> None:
        try:
            with self._sending:
                self._connection.sendall(data)
        except OSError as error:
            raise PyvmmError(f"{self._name}: the command cannot be reached: {error.strerror}") from error

    def _forget(self, number: int, tell: bool) -> None:
        hang_up(self._connection)

    def _read(self, process: GuestProcess, data: bytes) -> None:
        why = f"{self._name} ended before the command in it did"
        cutter = frames.Frames()
        try:
            while True:
                for kind, _, stream, payload in cutter.feed(data):
                    if kind == frames.CLOSE:
                        process._lose(payload.decode("utf-8", "replace"))
                    else:
                        process._take(kind, stream, payload)
                data = self._connection.recv(PIECE)
                if not data:
                    break
        except (ValueError, struct.error) as error:
            why = f"{self._name} does not keep to its protocol: {error}"
        except OSError:
            pass  # it has hung up
        process._lose(why)
