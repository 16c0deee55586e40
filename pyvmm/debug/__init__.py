"""Looking into a guest: whether it makes progress, its state, its code, and what probably went wrong.

Below `vm`; imports `kvm`, `memory` and `boot`. Of all this only diagnosis is on the path of a run that is over soon;
consolewatch comes with the first output, watch when the guest has run for a moment.
"""

PANIC, OOPS, WARN = "panic", "oops", "warn"
"""What a guest's kernel may complain of."""
