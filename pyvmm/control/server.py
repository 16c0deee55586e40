"""Serves the control socket of one VM.

Imports folder, lines, errors and threads; what a client's first request needs besides, only then. It waits in
accept(2), so that a VM nobody asks for anything pays for a socket and a thread that sleeps. Each client has a thread of
its own: a request may take its time, and one that reads no answers keeps nobody waiting but itself.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from pyvmm import threads
from pyvmm.control.folder import SUFFIX, Folder, check_name
from pyvmm.errors import BackendError, GuestAgentError, PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from pyvmm.control.commands import Handover, Session
    from pyvmm.control.lines import Lines
    from pyvmm.vm import VM

MOST_CLIENTS = 32
IDLE, SLOW = 300.0, 5.0
"""Seconds after which a client is hung up on that asks for nothing, or does not read its answer."""
FULL = 0.1
"""Seconds until a client that the process has no descriptor or thread for is looked at again."""
CLOSE_WAIT = 1.0
"""Seconds that close() waits for requests in hand."""


class ControlServer:
    """The control socket of `vm`, which other programs call `name`.

    `open()` takes the name; clients that come after that wait until `start()`. Raises UsageError for a name that cannot
    be.
    """

    def __init__(self, vm: VM, name: str) -> None:
        self.vm = vm
        self.name = check_name(name)
        self._folder: Folder | None = None
        self._listener: _socket.socket | None = None
        self._inode = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._clients: dict[_socket.socket, threading.Thread] = {}
        self._sessions: set[Session] = set()
        self._closing = False

    def open(self) -> None:
        """Make the socket. Raises BackendError: another VM has the name, or the folder cannot be had."""
        try:
            self._folder = folder = Folder(make=True)
            folder.lock()
            try:
                folder.remove_stale()
                self._listener = self._listen(folder)
                self._inode = folder.inode(self.name)
            finally:
                folder.unlock()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and not isinstance(error, BackendError):
                raise BackendError(f"no control socket for {self.name}: {error.strerror or error}") from error
            raise

    def _listen(self, folder: Folder) -> _socket.socket:
        # Not the module socket: its enumerations would cost a run that nobody talks to milliseconds.
        from _socket import AF_UNIX, SOCK_STREAM, socket

        listener = socket(AF_UNIX, SOCK_STREAM)
        try:
            try:
                listener.bind(folder.address(self.name))
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not folder.inode(self.name):
                    raise
                raise BackendError(f"a VM called {self.name} is running already") from None
            listener.listen(MOST_CLIENTS)
        except BaseException:
            listener.close()
            raise
        return listener

    def start(self) -> None:
        """Begin to serve. Raises PyvmmError where the host has no room for a thread."""
        self._thread = threads.start(threading.Thread(target=self._run, args=(self._listener,), name="control"))

    def close(self) -> None:
        """Give up the name and hang up; a second call does nothing."""
        self._closing = True
        listener, self._listener = self._listener, None
        folder, self._folder = self._folder, None
        if listener is not None and folder is not None:
            self._remove(folder)
        if listener is not None:
            from _socket import SHUT_RDWR

            listener.shutdown(SHUT_RDWR)  # accept(2) returns
            if self._thread is not None:
                self._thread.join(CLOSE_WAIT)
            listener.close()
            for session in tuple(self._sessions):
                session.finish(CLOSE_WAIT)
            self._hang_up()
        if folder is not None:
            folder.close()

    def _remove(self, folder: Folder) -> None:
        folder.lock()
        try:
            if folder.inode(self.name) == self._inode != 0:
                os.unlink(self.name + SUFFIX, dir_fd=folder.fd)
        except OSError:
            pass  # removed by somebody else
        finally:
            folder.unlock()

    def _hang_up(self) -> None:
        with self._lock:
            clients = dict(self._clients)
        if clients:
            from pyvmm.control.lines import hang_up

            for client in clients:
                hang_up(client)
        end = time.monotonic() + CLOSE_WAIT
        for thread in clients.values():
            thread.join(max(0.0, end - time.monotonic()))

    # --- The thread that waits for clients ----------------------------------------------------------------------------

    def _run(self, listener: _socket.socket) -> None:
        from _socket import socket

        while True:
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except OSError:
                if self._closing:
                    return
                time.sleep(FULL)
                continue
            client = socket(fileno=fd)
            try:
                self._begin(client)
            except PyvmmError:  # no room for a thread
                client.close()
                time.sleep(FULL)

    def _begin(self, client: _socket.socket) -> None:
        thread = threading.Thread(target=self._serve, args=(client,), name="control-client")
        with self._lock:
            if len(self._clients) < MOST_CLIENTS and not self._closing:
                threads.start(thread)
                self._clients[client] = thread
                return
        self._reply(client, b'{"error": "too many clients", "status": 125}\n')
        client.close()

    # --- A client's thread --------------------------------------------------------------------------------------------

    def _serve(self, client: _socket.socket) -> None:
        from pyvmm.control.lines import LINE_LIMIT, Lines, LineTooLongError

        lines = Lines(client)
        try:
            client.settimeout(IDLE)
            while (line := lines.next()) is not None and not self._closing:
                answer = self._answer(line)
                if not isinstance(answer, bytes):
                    self._hand_over(client, lines, answer)
                    break
                self._reply(client, answer)
                client.settimeout(IDLE)
        except LineTooLongError:
            self._reply(client, b'{"error": "a line of more than %d bytes", "status": 2}\n' % LINE_LIMIT)
        except OSError:
            pass  # it has gone, or sleeps
        finally:
            with self._lock:
                self._clients.pop(client, None)
            client.close()

    def _reply(self, client: _socket.socket, answer: bytes) -> bool:
        try:
            client.settimeout(SLOW)
            client.sendall(answer)
        except OSError:
            client.close()  # it has gone, or does not read
            return False
        return True

    def _hand_over(self, client: _socket.socket, lines: Lines, handover: Handover) -> None:
        """Answer; what follows on this connection is the session's, both ways."""
        import json

        if not self._reply(client, json.dumps({"ok": handover.answer}).encode() + b"\n"):
            if handover.refuse is not None:
                handover.refuse()
            return
        session = handover.session(client)
        self._sessions.add(session)
        try:
            session.run(lines.rest())
        finally:
            self._sessions.discard(session)

    def _answer(self, line: bytes) -> bytes | Handover:
        """The answer to a request. Whatever goes wrong is told to the client, and only to it."""
        import json

        from pyvmm.control.commands import Handover, perform

        answer: dict[str, object]
        try:
            found = perform(self, line)
            if isinstance(found, Handover):
                return found
            answer = {"ok": found}
        except GuestAgentError as error:
            answer = {"error": str(error), "status": error.exit_status, "errno": error.errno}
        except PyvmmError as error:
            answer = {"error": str(error), "status": error.exit_status}
        except Exception as error:
            text = f"internal error: {type(error).__name__}: {error}"
            answer = {"error": text, "status": PyvmmError.exit_status}
        return json.dumps(answer).encode() + b"\n"
