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
    """Does nothing; a subclass overrides what it wants to see."""

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        """vCPU number `vcpu` came out of KVM with `exit`, which has been handled (a read has its answer)."""

    def on_lifecycle(self, state: str) -> None:
        """The VM is now "running", "paused" or "ended"."""


class ExitHooks(Observer):
    """Calls functions for the kinds of exit that they are for, each with the vCPU that `vcpu(number)` gives."""

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
