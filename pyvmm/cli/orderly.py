"""Verbs that make files end in order: a signal that would end the process at once ends it as Ctrl-C does.

Imports nothing of pyvmm. For verbs that run no VM, on any platform; `signals` has what those do that run one.
"""

from __future__ import annotations

import signal

NAMES = ("SIGTERM", "SIGHUP")
"""Of signals that end a process unless it is caught; not every platform has both."""


def end_in_order() -> None:
    """Let what is half made go when the process is told to end. A signal that was ignored stays ignored."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for name in NAMES:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)
