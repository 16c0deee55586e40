"""Where gdb connects: a listening socket, one client at a time, and the thread that serves it.

Imports its neighbours, the back-ends' listener, errors, events and threads. On 127.0.0.1 or a unix socket of mode 0600:
whoever may connect may do anything to the guest. The thread waits for the client, for a stop of the target and for the
end of the run.
"""

from __future__ import annotations

import select
import socket
import threading
import time

from pyvmm import threads
from pyvmm.backends.listener import LOCALHOST, PortListener, UnixListener
from pyvmm.debug.gdb.connection import FULL, Connection
from pyvmm.debug.gdb.description import elf_bits
from pyvmm.debug.gdb.loop import DebuggedLoop
from pyvmm.debug.gdb.monitor import Monitor
from pyvmm.debug.gdb.session import Session
from pyvmm.debug.gdb.target import Target
from pyvmm.errors import BackendError, PyvmmError, UsageError
from pyvmm.events import EventFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.kvm.host import DebugAbilities
    from pyvmm.runloop import Outcome
    from pyvmm.steering import Control

PORT = 1234
UNIX = "unix:"
BACKLOG = 8
SLOW = 5.0
"""Seconds after which a client that does not read is dropped."""
CLOSE_WAIT = 2.0
"""Seconds that `close()` waits for the client to be told."""


def parse_where(text: str | int | bool) -> tuple[int, str]:
    """The port, or the path of a unix socket, that `--gdb` names; True is the usual port. Raises UsageError."""
    if text is True:
        return PORT, ""
    word = str(text)
    if word.startswith(UNIX):
        path = word[len(UNIX) :]
        if not path or "\0" in path:
            raise UsageError(f"{word!r} names no socket (expected unix:PATH)")
        return 0, path
    if not (word.isascii() and word.isdigit() and len(word) < 6 and int(word) < 1 << 16):
        raise UsageError(f"{word!r} is no port (expected 0 to 65535, where 0 is any that is free, or unix:PATH)")
    return int(word), ""


class GdbServer:
    """The debugger's way into one VM. `where` is as of `--gdb`. Raises UsageError."""

    def __init__(self, where: str | int | bool, say: Callable[[str], None] | None = None) -> None:
        self._port, self._path = parse_where(where)
        self._say = say or (lambda text: None)
        self._listener: UnixListener | PortListener | None = None
        self._wake: EventFd | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self.target: Target | None = None

    # --- The VM's side -----------------------------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """What gdb's `target remote` takes."""
        return self._path or f"{LOCALHOST}:{self._port}"

    @property
    def stood(self) -> float:
        """Seconds that the VM has stood still for a debugger, which its time limit is longer by."""
        return 0.0 if self.target is None else self.target.stood

    @property
    def stands(self) -> bool:
        """Whether the VM stands still for a debugger, connected or awaited."""
        return self.target is not None and self.target.held

    def open(self) -> None:
        """Listen. Raises BackendError where that cannot be."""
        try:
            self._wake = EventFd()
            if self._path:
                self._listener = UnixListener(self._path, "--gdb", waiting=BACKLOG, mode=0o600)
            else:
                self._listener = PortListener(self._port, "--gdb", waiting=BACKLOG)
                self._port = self._listener.port
        except OSError as error:
            self.close()
            if isinstance(error, BackendError):
                raise
            raise BackendError(f"--gdb: no event descriptor: {error.strerror} (ulimit -n)") from error

    def begin(
        self,
        vm: Any,
        control: Control,
        can: DebugAbilities,
        quiet: Callable[[bool], None],
        kernel: str = "",
    ) -> None:
        """Take `vm`, whose threads have not been started: its vCPUs stand until a debugger lets them go.

        `kernel` is the path of what is booted: gdb may be given its symbols.
        """
        self.target = target = Target(can, self._notify, quiet)
        target.begin(control, vm.vcpus, vm.memory)
        self._monitor = Monitor(vm, elf_bits(kernel))

    def start(self) -> None:
        """Let the debugger in. Raises PyvmmError where the host has no room for a thread."""
        self._thread = threads.start(threading.Thread(target=self._run, name="gdb"))
        self._say(f"the guest stands before its first instruction; in gdb: target remote {self.address}")

    def loop(self, *arguments: Any) -> DebuggedLoop:
        """A vCPU's loop, made of what `VcpuLoop` takes."""
        assert self.target is not None
        return DebuggedLoop(self.target, *arguments)

    def withdraw(self) -> None:
        """The run is over, and every vCPU stands still: leave nothing in the guest's memory."""
        if self.target is not None:
            self.target.points.withdraw()

    def ended(self, outcome: Outcome) -> None:
        """Tell the debugger how."""
        if self.target is not None:
            self.target.over = outcome
        self._notify()

    def close(self) -> None:
        """Tell the client how the run ended, hang up and listen no more. A second call does nothing."""
        self._closing = True
        self._notify()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_WAIT)
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        wake, self._wake = self._wake, None
        if wake is not None and (thread is None or not thread.is_alive()):
            wake.close()

    def _notify(self) -> None:
        wake = self._wake
        if wake is not None:
            wake.signal()

    # --- The thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        assert self._listener is not None and self._wake is not None and self.target is not None
        listener, wake = self._listener.socket, self._wake  # close() may give up waiting for this thread
        at = listener.fileno()
        poll = select.poll()
        for fd in (at, wake.fd):
            poll.register(fd, select.POLLIN)
        while not self._closing and self.target.over is None:
            found = {fd for fd, _ in poll.poll()}
            if wake.fd in found:
                wake.drain()
            if at in found and not self._closing:
                client = self._accept(listener)
                if client is not None:
                    self._serve(client, listener, wake)

    def _accept(self, listener: socket.socket) -> socket.socket | None:
        try:
            client, _ = listener.accept()
            client.settimeout(SLOW)
            if not self._path:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            time.sleep(FULL)  # out of descriptors, or gone again
            return None
        return client

    def _serve(self, client: socket.socket, listener: socket.socket, wake: EventFd) -> None:
        target = self.target
        assert target is not None
        try:
            target.halt()
            target.connect(True)
            connection = Connection(client, Session(target, self._monitor))
            connection.run(listener, wake, lambda: self._closing)
        except OSError:
            pass  # it has gone, or does not read
        except Exception as error:
            self._say(f"the debugger is let go: {type(error).__name__}: {error}")
        finally:
            client.close()
            self._let_go(target)

    def _let_go(self, target: Target) -> None:
        """Without a debugger nothing stops the guest: one that ran runs on, one that stood waits for the next."""
        try:
            if not target.held:
                target.run_free()
            elif target.control.outcome is None:
                target.points.clear()
        except PyvmmError as error:
            self._say(f"the guest cannot be let go: {error}")
        target.connect(False)
