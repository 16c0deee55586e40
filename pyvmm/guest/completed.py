"""How a command in the guest ended. Imports errors."""

from __future__ import annotations

from pyvmm.errors import GuestAgentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    class Stream(Protocol):
        """What a client of the agent needs of its port; `pyvmm.backends.ports.PortStream` is one."""

        def send(self, data: bytes, timeout: float | None = 30.0) -> None: ...

        def recv(self, size: int = 65536, timeout: float | None = 30.0) -> bytes: ...

        def wait_open(self, timeout: float | None = 30.0) -> None: ...


class Completed:
    """A command that has ended: its `args`, `returncode` (-n after signal n), and what it wrote, as bytes."""

    __slots__ = ("args", "returncode", "stderr", "stdout")

    def __init__(self, args: Sequence[str], returncode: int, stdout: bytes, stderr: bytes) -> None:
        self.args = tuple(args)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr

    @property
    def text(self) -> str:
        """`stdout` as text; what is not UTF-8 shows as U+FFFD."""
        return self.stdout.decode("utf-8", "replace")

    def check(self) -> Completed:
        """This. Raises GuestAgentError, with the end of `stderr`, if the command did not end with 0."""
        if self.returncode:
            said = self.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise GuestAgentError(
                f"{self.args[0]} in the guest {ending(self.returncode)}" + (f": {said[-400:]}" if said else "")
            )
        return self

    def __repr__(self) -> str:
        return f"Completed(args={self.args}, returncode={self.returncode}, stdout={self.stdout!r})"


def ending(returncode: int) -> str:
    """ "ended with status 7", "was killed by signal 9"."""
    return f"was killed by signal {-returncode}" if returncode < 0 else f"ended with status {returncode}"
