"""What tracing, statistics and debugging hang on: an observer is told of every exit and of the VM's lifecycle.

Imports nothing. Observers are called on the thread where the thing happens, so they must be quick and thread-safe;
without observers the run loop pays one test of an empty tuple an exit.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm.kvm.exits import Exit

    Hook = Callable[[Any, Any], object]
    """hook(vcpu, exit): the vCPU, whose registers may be read, and the exit."""


class Observer:
    """Does nothing; a subclass overrides what it wants to see.

    at_once   whether it must be told of each exit before the vCPU goes on. Without, the run loop in C deals with some
              accesses by itself and tells of them, in their order, before the vCPU's next exit
    """

    at_once = False

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        """vCPU number `vcpu` came out of KVM with `exit`, which has been handled (a read has its answer)."""

    def on_served(self, vcpu: int, exit: Exit, tsc: int, rip: int) -> None:
        """The run loop in C has dealt with an access of vCPU number `vcpu`, which `exit` describes.

        `tsc` is the host's time stamp counter at that moment, `rip` the guest's RIP, or 0 where KVM does not tell.
        """
        self.on_exit(vcpu, exit)

    def on_lifecycle(self, state: str) -> None:
        """The VM is now "running", "paused" or "ended"."""


class ExitHooks(Observer):
    """Calls functions for the kinds of exit that they are for, each with the vCPU that `vcpu(number)` gives.

    A function may look at the vCPU's registers, so all of them are told at once.
    """

    at_once = True

    def __init__(self, vcpu: Callable[[int], object]) -> None:
        self._vcpu = vcpu
        self._hooks: dict[type[Exit], tuple[Hook, ...]] = {}

    def add(self, kind: type[Exit], hook: Hook) -> None:
        """From now on call `hook` for exits of exactly this class. Any thread."""
        self._hooks[kind] = (*self._hooks.get(kind, ()), hook)

    def remove(self, kind: type[Exit], hook: Hook) -> None:
        """No more; nothing happens if it was removed before."""
        self._hooks[kind] = tuple(one for one in self._hooks.get(kind, ()) if one is not hook)

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        """Called by the run loop."""
        for hook in self._hooks.get(exit.__class__, ()):
            hook(self._vcpu(vcpu), exit)
