"""What devices are connected to on the host: terminals, files, sockets, memory.

May import events and errors, nothing of KVM and no device. A console back-end has

    start(link)       open what it is connected to and begin to carry input; raises BackendError
    write(data)       output of the guest: never blocks, never loses (one bound: see `sink`)
    input_ready()     the device has room again, after link.receive() took less than it was given
    drain(timeout)    wait until all output is written; False if `timeout` seconds went by without progress
    close()           give everything back; a second call does nothing

and gets with `start` a link to its VM: receive(data) -> accepted count, hold(), release(), broken(errno), over.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Link(Protocol):
        """The VM as a console back-end sees it. Any thread may call it; nothing here blocks for long."""

        def receive(self, data: bytes) -> int:
            """Give the guest input; returns how many bytes the device took."""

        def hold(self) -> None:
            """Output piles up: keep the vCPUs out of the guest until release()."""

        def release(self) -> None:
            """Undo one hold()."""

        def broken(self, errno: int) -> None:
            """Nothing can be written any more."""

        @property
        def over(self) -> bool:
            """The run has ended: no more output will come."""
