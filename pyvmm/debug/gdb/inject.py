"""Exceptions that came to the debugger and are the guest's own, and those that the guest shall not see.

Imports nothing. KVM API, 4.32 (KVM_SET_VCPU_EVENTS); Intel SDM volume 3B, 18.2.3 (DR6).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DB, BP, UD = 1, 3, 6
"""Vectors of #DB, #BP and #UD."""


def pass_on(vcpu: Any, vector: int, dr6: int) -> None:
    """Let the guest have an exception that is its own. KVM has not told it."""
    if vector == DB:
        debug = vcpu.get_debugregs()
        debug.dr6 |= dr6
        vcpu.set_debugregs(debug)
    events = vcpu.get_vcpu_events()
    exception = events.exception
    exception.injected, exception.pending, exception.nr = 1, 0, vector
    exception.has_error_code = exception.error_code = 0
    events.flags = 0
    vcpu.set_vcpu_events(events)


def take_back(vcpu: Any) -> None:
    """Take #UD back, which a KVM without KVM_CAP_EXIT_ON_EMULATION_FAILURE raises as well as failing."""
    events = vcpu.get_vcpu_events()
    exception = events.exception
    if (exception.injected or exception.pending) and exception.nr == UD:
        exception.injected = exception.pending = exception.nr = 0
        events.flags = 0
        vcpu.set_vcpu_events(events)
