"""Giving the guest an exception that KVM has shown to the debugger and that is the guest's own. Imports nothing.

KVM API, 4.32 (KVM_SET_VCPU_EVENTS); Intel SDM volume 3B, 18.2.3 (DR6).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DB, BP = 1, 3
"""Vectors of #DB and #BP."""


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
