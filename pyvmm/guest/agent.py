"""The guest agent's JSON protocol, as distributions ship it (QEMU's docs/interop/qemu-ga-ref): our agent's or theirs.

Imports errors and its neighbours; json and base64 of the standard library. One request is under way at a time.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
import time

from pyvmm.errors import GuestAgentError, PyvmmError, TimeLimitError
from pyvmm.guest.completed import Completed
from pyvmm.writing import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from pyvmm.guest.completed import Stream

LONGEST_REPLY = 64 << 20
"""Bytes. QEMU's agent keeps 16 MiB of each output, which become 44 MB of base64."""
PIECE = 256 << 10
"""Bytes of a file in one request."""
MOST_INPUT = 512 << 10
"""Bytes of input that one request takes."""
FIRST_LOOK, LAST_LOOK = 0.005, 0.2
"""Seconds between two looks whether a command has ended: at first, and at most."""
CLOCK_OFF = 1_000_000_000
"""Nanoseconds by which a clock that has been set may be off."""
OWN = "pyvmm"
"""How the version of our own agent begins."""


class GuestAgent:
    """An agent at the other end of `stream`.

    Every method takes `timeout` in seconds (None: for ever) and raises TimeLimitError when it is over, GuestAgentError
    with what the agent said when it refuses, PyvmmError when the VM ends. A request that was given up does no harm to
    the next one: its answer is passed over.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._read = bytearray()
        self._dirty = True
        self._number = int.from_bytes(os.urandom(3), "big")
        self._lock = threading.Lock()

    def call(self, command: str, arguments: Mapping[str, object] | None = None, *, timeout: float | None = 30.0) -> Any:
        """Have the agent obey `command`; returns what it returns."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._dirty:
                self._sync(deadline)
            self._dirty = True  # unless this comes to its end
            self._send(command, arguments, deadline)
            reply = self._line(command, deadline)
            self._dirty = False
        if "error" in reply:
            error = reply["error"] if isinstance(reply["error"], dict) else {}
            raise GuestAgentError(f"{command}: {error.get('desc', 'refused')}")
        if "return" not in reply:
            raise GuestAgentError(f"{command}: the agent's answer is neither a result nor an error")
        return reply["return"]

    def sync(self, timeout: float | None = 30.0) -> None:
        """Wait until the agent answers, and pass over all that it said before."""
        with self._lock:
            self._sync(None if timeout is None else time.monotonic() + timeout)

    def _sync(self, deadline: float | None) -> None:
        # 0xff ends whatever half a request the agent may still have from somebody before us.
        self._number += 1
        arguments = {"id": self._number}
        self._dirty = True
        self._stream.send(b"\xff", _left(deadline))
        self._send("guest-sync-delimited", arguments, deadline)
        while True:
            if b"\xff" in self._read:
                del self._read[: self._read.index(b"\xff") + 1]
                reply = self._line("guest-sync-delimited", deadline)
                if reply.get("return") == self._number:
                    self._dirty = False
                    return
            else:
                self._read.clear()
                self._more("guest-sync-delimited", deadline)

    def _send(self, command: str, arguments: Mapping[str, object] | None, deadline: float | None) -> None:
        request: dict[str, object] = {"execute": command}
        if arguments is not None:
            request["arguments"] = arguments
        self._stream.send(json.dumps(request).encode() + b"\n", _left(deadline))

    def _line(self, command: str, deadline: float | None) -> dict[str, Any]:
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            if searched > LONGEST_REPLY:
                self._read.clear()
                raise GuestAgentError(f"{command}: the answer is longer than {LONGEST_REPLY} bytes")
            self._more(command, deadline)
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            raise GuestAgentError(f"{command}: the agent's answer is no JSON: {line[:80]!r}") from None
        if not isinstance(reply, dict):
            raise GuestAgentError(f"{command}: the agent's answer is no object: {line[:80]!r}")
        return reply

    def _more(self, command: str, deadline: float | None) -> None:
        try:
            data = self._stream.recv(65536, _left(deadline))
        except TimeLimitError:
            raise TimeLimitError(f"{command}: the agent in the guest did not answer in time") from None
        if not data:
            raise PyvmmError(f"{command}: the VM ended before the agent answered")
        self._read += data

    # --- What it can do -----------------------------------------------------------------------------------------------

    def ping(self, timeout: float | None = 30.0) -> None:
        """Return when the agent has answered."""
        self.call("guest-ping", timeout=timeout)

    def info(self, timeout: float | None = 30.0) -> dict[str, Any]:
        """`version` and `supported_commands`."""
        return _dictionary("guest-info", self.call("guest-info", timeout=timeout))

    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        input: bytes = b"",
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run a command to its end. `env` is added to the agent's own variables.

        Input goes to the agent whole, up to 512 KiB; of the output it keeps a limited part (QEMU's 16 MiB, ours 512
        KiB of each stream), and more is an error. `Guest.exec` has neither limit where our own agent runs.
        """
        if len(input) > MOST_INPUT:
            raise GuestAgentError(f"{len(input)} bytes of input: the agent's protocol takes {MOST_INPUT}")
        deadline = None if timeout is None else time.monotonic() + timeout
        words = list(args)
        if env:
            words = ["env", *(f"{name}={value}" for name, value in env.items()), *words]
        if cwd:
            words = ["sh", "-c", 'cd "$0" && exec "$@"', cwd, *words]
        arguments: dict[str, object] = {"path": words[0], "arg": words[1:], "capture-output": True}
        if input:
            arguments["input-data"] = base64.b64encode(input).decode()
        pid = _dictionary("guest-exec", self.call("guest-exec", arguments, timeout=_left(deadline))).get("pid")
        look = FIRST_LOOK
        while True:
            found = self.call("guest-exec-status", {"pid": pid}, timeout=_left(deadline))
            status = _dictionary("guest-exec-status", found)
            if status.get("exited"):
                break
            if deadline is not None and time.monotonic() + look > deadline:
                self.call("guest-exec", {"path": "kill", "arg": ["-KILL", str(pid)]})
                raise TimeLimitError(f"{args[0]} in the guest did not end within {timeout:g} s")
            time.sleep(look)
            look = min(look * 1.5, LAST_LOOK)
        for stream in ("out", "err"):
            if status.get(f"{stream}-truncated"):
                kept = len(_bytes(status.get(f"{stream}-data", "")))
                raise GuestAgentError(f"{args[0]} in the guest wrote more than the {kept} bytes that its agent keeps")
        code = -int(status["signal"]) if "signal" in status else int(status.get("exitcode", 0))
        return Completed(args, code, _bytes(status.get("out-data", "")), _bytes(status.get("err-data", "")))

    def push(self, local: str | os.PathLike[str], remote: str, timeout: float | None = 60.0) -> None:
        """Copy the host's file `local` to `remote` in the guest. What is executable here is so there."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with open(local, "rb") as file:
            handle = self.call("guest-file-open", {"path": remote, "mode": "w"}, timeout=_left(deadline))
            try:
                while data := file.read(PIECE):
                    self._write(handle, data, deadline)
                self.call("guest-file-flush", {"handle": handle}, timeout=_left(deadline))
            finally:
                self.call("guest-file-close", {"handle": handle})
            executable = os.stat(file.fileno()).st_mode & 0o111
        if executable:
            self.exec(["chmod", "755", remote], timeout=_left(deadline)).check()

    def _write(self, handle: object, data: bytes, deadline: float | None) -> None:
        while data:
            arguments = {"handle": handle, "buf-b64": base64.b64encode(data).decode()}
            reply = self.call("guest-file-write", arguments, timeout=_left(deadline))
            count = int(_dictionary("guest-file-write", reply).get("count", 0))
            if not 0 < count <= len(data):
                raise GuestAgentError(f"guest-file-write: the agent wrote {count} of {len(data)} bytes")
            data = data[count:]

    def pull(self, remote: str, local: str | os.PathLike[str], timeout: float | None = 60.0) -> None:
        """Copy the guest's file `remote` to `local` here, which is there as a whole or not at all."""
        deadline = None if timeout is None else time.monotonic() + timeout
        target, new = place(os.fspath(local))
        handle = self.call("guest-file-open", {"path": remote, "mode": "r"}, timeout=_left(deadline))
        part = f"{target}.{os.getpid()}.part" if new else target
        try:
            with open(part, "wb") as file:
                while True:
                    arguments = {"handle": handle, "count": PIECE}
                    reply = self.call("guest-file-read", arguments, timeout=_left(deadline))
                    data = _bytes(_dictionary("guest-file-read", reply).get("buf-b64", ""))
                    file.write(data)
                    if not data:
                        break
            if new:
                os.replace(part, target)
        finally:
            self.call("guest-file-close", {"handle": handle})
            if new and os.path.exists(part):
                os.unlink(part)

    def set_time(self, nanoseconds: int | None = None, timeout: float | None = 30.0) -> None:
        """Set the guest's clock, in nanoseconds since 1970; None is the host's time.

        QEMU's agent has hwclock(8) set the hardware's clock after it: that this is missing is no error.
        """
        wanted, began = time.time_ns() if nanoseconds is None else nanoseconds, time.monotonic_ns()
        try:
            self.call("guest-set-time", {"time": wanted}, timeout=timeout)
        except GuestAgentError:
            off = self.get_time(timeout) - wanted
            if not -CLOCK_OFF < off <= time.monotonic_ns() - began + CLOCK_OFF:
                raise

    def get_time(self, timeout: float | None = 30.0) -> int:
        """The guest's clock, in nanoseconds since 1970."""
        return int(self.call("guest-get-time", timeout=timeout))

    def shutdown(self, mode: str = "powerdown", timeout: float | None = 30.0) -> None:
        """Have the guest end: "powerdown", "reboot" or "halt". Returns at once; `VM.wait` tells when it has."""
        arguments = {"mode": mode}
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            if self._dirty:
                self._sync(deadline)
            self._dirty = True  # there is no answer, unless it fails
            self._send("guest-shutdown", arguments, deadline)

    def freeze(self, timeout: float | None = 60.0) -> int:
        """Have every file system of the guest write all it has and stand still; returns how many."""
        return int(self.call("guest-fsfreeze-freeze", timeout=timeout))

    def thaw(self, timeout: float | None = 60.0) -> int:
        """Let them go on."""
        return int(self.call("guest-fsfreeze-thaw", timeout=timeout))

    def network_interfaces(self, timeout: float | None = 30.0) -> list[dict[str, Any]]:
        """The guest's interfaces: `name`, `hardware-address`, `ip-addresses`."""
        found = self.call("guest-network-get-interfaces", timeout=timeout)
        return [_dictionary("guest-network-get-interfaces", each) for each in found]


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _dictionary(command: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise GuestAgentError(f"{command}: the agent's answer is no object: {str(value)[:80]!r}")
    return value


def _bytes(text: object) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except binascii.Error:
        raise GuestAgentError("the agent's answer has data that is not base64") from None
