"""A network without privilege: Debian's `passt`, started for one guest, spoken to over a socket, and watched.

Imports stream, forward and errors. passt(1) gives the guest an address (DHCP), names (DNS) and the host's own
connections; it ends by itself when our end of the socket goes.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import time

from pyvmm.backends.net.stream import FrameStream
from pyvmm.errors import BackendError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.backends.net.forward import Forward

START_WAIT = 1.0
"""Seconds that a passt which says nothing is given to come up."""
END_WAIT = 0.5
"""Seconds that one which has closed its socket is given to end."""
SOCKET = 3
"""The descriptor number that passt finds its socket at."""
KEPT = 8192
"""Bytes of passt's complaints that are kept."""
NOBODY = "65534:65534"
"""linux/highuid.h, DEFAULT_OVERFLOWUID: whom passt becomes when started by root."""
_NOISE = re.compile(r"Failed to send \d+ bytes to syslog|Don't run as root.*|\s*")

_HINTS = (
    (
        "user namespace",
        "user namespaces are refused here: by a container's seccomp profile, by AppArmor "
        "(sysctl kernel.apparmor_restrict_unprivileged_userns) or by sysctl user.max_user_namespaces",
    ),
    ("Failed to bind", "the port is taken, needs privilege (below 1024), or the address is not this host's"),
    ("External interface not usable", "this host has no default route"),
    ("sandbox", "a container's seccomp profile or AppArmor refuses passt its sandbox"),
    ("Operation not permitted", "a container's seccomp profile or AppArmor may forbid what passt needs"),
    ("Permission denied", "AppArmor or SELinux may forbid what passt needs"),
)
"""Part of what passt complains of, and what is behind it."""
_SIGSYS = 31


class Passt:
    """The guest's side of a passt that leads `forwards` into the guest.

    `mtu` is what it tells the guest to use, in bytes; None is passt's own choice (65,520). `program` is what to start.
    Returns when passt is up. Raises BackendError, which says what passt said, and UsageError.
    """

    vnet_header = False

    def __init__(self, forwards: Sequence[Forward] = (), *, mtu: int | None = None, program: str = "passt") -> None:
        self._program = program
        self._said = b""
        self._pid = -1
        ours, theirs = socket.socketpair()
        self._stream: FrameStream | None = FrameStream(ours)
        # Non-blocking: a guest that makes passt complain must not stop it by filling the pipe.
        self._complaints, complaints = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with theirs:
                self._start(_arguments(forwards, mtu), theirs.fileno(), complaints)
        except BaseException:
            self.close()
            raise
        finally:
            os.close(complaints)
        try:
            self._wait_until_up()
        except BaseException:
            self.close()
            raise

    def _start(self, arguments: list[str], end: int, complaints: int) -> None:
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, SOCKET + 1) for fd in (end, complaints)]
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
            (os.POSIX_SPAWN_DUP2, 0, 1),
            (os.POSIX_SPAWN_DUP2, high[1], 2),
            (os.POSIX_SPAWN_DUP2, high[0], SOCKET),
        ]
        try:
            # A process group of its own: Ctrl-C is for the VMM, which then ends passt in its turn.
            self._pid = os.posix_spawnp(
                self._program, [self._program, *arguments], os.environ, file_actions=actions, setpgroup=0, setsigmask=()
            )
        except OSError as error:
            # "Permission denied" may also come of a folder in PATH that this user may not look into.
            if not any(os.path.exists(os.path.join(folder, self._program)) for folder in os.get_exec_path()):
                missing = f"a user network needs {self._program}: apt install passt (Debian, Ubuntu)"
                raise BackendError(missing) from None
            raise BackendError(f"a user network: cannot start {self._program}: {error.strerror}") from None
        finally:
            for fd in high:
                os.close(fd)

    def _wait_until_up(self) -> None:
        """Return once passt has put itself behind its seccomp filter, the last that it does before it serves."""
        deadline = time.monotonic() + START_WAIT
        ours = _filters("self")
        while time.monotonic() < deadline:
            status = self._reap()
            if status is not None:
                raise BackendError(f"a user network: {self._end_of(status)}")
            if _filters(self._pid) > ours:
                return
            time.sleep(0.002)

    @property
    def pid(self) -> int:
        """Its process, or -1 once it has ended."""
        return self._pid

    def fileno(self) -> int:
        """Our end of the socket, or -1."""
        return self._stream.socket.fileno() if self._stream is not None else -1

    @property
    def direct(self) -> FrameStream | None:
        """C may read and write frames here, until passt has ended."""
        return self._stream

    def offloads(self, checksum: bool, tso4: bool, tso6: bool, ecn: bool) -> None:
        """passt takes and gives whole frames."""

    def receive(self) -> memoryview | None:
        """The next frame, or None. Raises BackendError once passt has ended, with its last words."""
        if self._stream is None:
            raise BackendError("passt has ended")
        try:
            frame = self._stream.receive()
        except BackendError as error:
            raise self._gone(error) from None
        if frame is None:
            self.idle()
        return frame

    def idle(self) -> None:
        """No frame has come: keep the last of what passt complains of."""
        try:
            while data := os.read(self._complaints, 65536):
                self._said = (self._said + data)[-KEPT:]
        except BlockingIOError:
            pass

    def send(self, frame: memoryview) -> bool:
        """Send a frame, or False for it to be offered again. Raises BackendError as `receive()` does."""
        if self._stream is None:
            raise BackendError("passt has ended")
        try:
            return self._stream.send(frame)
        except BackendError as error:
            raise self._gone(error) from None

    def close(self) -> None:
        """End passt, which keeps nothing that would need time, and return when it has gone."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.socket.close()
        if self._pid > 0:
            try:
                os.kill(self._pid, 9)
                os.waitpid(self._pid, 0)
            except (ProcessLookupError, ChildProcessError):
                pass  # somebody else has reaped it
            self._pid = -1
        complaints, self._complaints = self._complaints, -1
        if complaints >= 0:
            os.close(complaints)

    # --- The end of it ------------------------------------------------------------------------------------------------

    def _reap(self) -> int | None:
        """Its wait status if it has ended; -1 if that is not known."""
        if self._pid < 0:
            return -1
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._pid, -1
        if not pid:
            return None
        self._pid = -1
        return status

    def _gone(self, error: BackendError) -> BackendError:
        deadline = time.monotonic() + END_WAIT
        while (status := self._reap()) is None and time.monotonic() < deadline:
            time.sleep(0.002)
        problem = BackendError(f"passt: {error}" if status is None else self._end_of(status))
        self.close()
        return problem

    def _end_of(self, status: int) -> str:
        """How passt ended, what it said last and what that means, in one line."""
        self.idle()
        lines = [line for line in self._said.decode(errors="replace").splitlines() if not _NOISE.fullmatch(line)]
        said = "; ".join(line.strip() for line in lines[-4:])
        hints = [hint for part, hint in _HINTS if part in said][:1]
        if status < 0:
            text = "passt has ended"
        elif os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            text = f"passt was ended by signal {number}"
            if number == _SIGSYS:
                hints = ["a seccomp filter, passt's own or a container's, does not know a system call that it made"]
        else:
            text = f"passt ended with status {os.WEXITSTATUS(status)}"
        return f"{text}{': ' if said else ''}{said}{''.join(f' ({hint})' for hint in hints)}"


def _arguments(forwards: Sequence[Forward], mtu: int | None) -> list[str]:
    arguments = ["--foreground", "--quiet", "--fd", str(SOCKET)]
    if os.geteuid() == 0 and _is_host_root():
        arguments += ["--runas", NOBODY]
    if mtu is not None:
        arguments += ["--mtu", str(mtu)]
    taken = set()
    for forward in forwards:
        if (forward.protocol, forward.host_port) in taken:
            raise UsageError(f"{forward.protocol} port {forward.host_port} of the host is forwarded twice")
        taken.add((forward.protocol, forward.host_port))
        option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
        arguments += [option, f"{forward.host}/{forward.host_port}:{forward.guest_port}"]
    return arguments


def _is_host_root() -> bool:
    """Whether root here is root of the host, and nobody exists: not in a user namespace (user_namespaces(7))."""
    try:
        with open("/proc/self/uid_map") as table:
            return table.read().split() == ["0", "0", "4294967295"]
    except OSError:
        return True


def _filters(process: int | str) -> int:
    """Seccomp filters of a process (proc(5)); 0 where that cannot be known."""
    try:
        with open(f"/proc/{process}/status") as status:
            for line in status:
                if line.startswith("Seccomp_filters:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0
