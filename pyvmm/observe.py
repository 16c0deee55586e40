"""What tracing, statistics and debugging hang on: an observer is told of every exit and of the VM's lifecycle.

Imports nothing. Observers are called on the thread where the thing happens, so they must be quick and thread-safe;
without observers the run loop pays one test of an empty tuple an exit.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.kvm.exits import Exit


class Observer:
    """Does nothing; a subclass overrides what it wants to see."""

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        """vCPU number `vcpu` came out of KVM with `exit`, which has been handled (a read has its answer)."""

    def on_lifecycle(self, state: str) -> None:
        """The VM is now "running", "paused" or "ended"."""
