"""Signals that end the process: the run is stopped, everything closed, and the status is 128 + n.

Imports the interpreter's own `_signal`: the `signal` module on top of it only adds enumerations, at 4 ms of start-up.
Nothing else in pyvmm touches signal dispositions (the vCPU kick is C's, on a real-time signal).

Race-free: the interpreter's C handler writes each signal's number into a pipe at once, on whatever thread the kernel
chose, and a thread of our own reads it there. Nothing is raised inside other code, a main thread that waits for a lock
does not delay it, and no signal is blocked, so child processes inherit nothing. A signal that was ignored when
the process was started (nohup(1), a shell's background job) stays ignored. SIGPIPE is ignored by the interpreter:
a closed output is an EPIPE, met where it is written.
"""

from __future__ import annotations

import os
import threading
import time

from pyvmm import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal  # the same functions, with types
    from collections.abc import Callable
else:
    import _signal

ENDING = (
    _signal.SIGHUP,
    _signal.SIGINT,
    _signal.SIGQUIT,
    _signal.SIGTERM,
    _signal.SIGALRM,
    _signal.SIGUSR1,
    _signal.SIGUSR2,
    _signal.SIGXCPU,
)
"""What ends a process unless it is caught (signal(7)) and is no fault of its own."""
SAME = 0.25
"""Seconds within which a signal is not a second one: timeout(1) sends its own to the child and to the group, and a
terminal's hang-up comes from the kernel and from the shell."""


class Signals:
    """Watches for signals from install() to the end of the process.

    The first one calls what `on_end` was given, in a thread that may block; a second one calls what `at_once` was
    given and ends the process there and then.
    """

    def __init__(self) -> None:
        self.received = 0
        """The number of the first signal, or 0."""
        self.at_once: Callable[[], None] = _nothing
        """What must be put back even when there is no time; may not block."""
        self.on_resume: Callable[[], None] = _nothing
        """Called when the process goes on after a stop (SIGCONT)."""
        self.forward: Callable[[int], bool] | None = None
        """Asked with each signal's number first, and again each time: true is that it is not for us. May not block."""
        self._on_size: Callable[[], None] = _nothing
        self._end: Callable[[int], None] | None = None
        self._since = 0.0
        self._lock = threading.Lock()
        self._pipe = -1

    def install(self) -> None:
        """Catch the signals. For the main thread."""
        self._pipe, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(write_end, False)
        _signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        threads.start(threading.Thread(target=self._watch, name="signals"))
        for number in ENDING:
            if _signal.getsignal(number) is not _signal.SIG_IGN:
                _signal.signal(number, _noted)
        _signal.signal(_signal.SIGCONT, _noted)

    def on_end(self, end: Callable[[int], None]) -> None:
        """Have `end(n)` called on the first signal; at once if that has come already."""
        with self._lock:
            self._end = end
            number = self.received
        if number:
            end(number)

    def interrupts(self, to_python: bool) -> None:
        """While somebody types to pyvmm itself, SIGINT is a KeyboardInterrupt and ends nothing. For the main thread."""
        if _signal.getsignal(_signal.SIGINT) is _signal.SIG_IGN:
            return
        self.forward = (lambda number: number == _signal.SIGINT) if to_python else None
        _signal.signal(_signal.SIGINT, _signal.default_int_handler if to_python else _noted)

    def watch_size(self, changed: Callable[[], None]) -> None:
        """Have `changed()` called when the terminal's size has changed. For the main thread."""
        self._on_size = changed
        _signal.signal(_signal.SIGWINCH, _noted)

    def _watch(self) -> None:
        while True:
            for number in os.read(self._pipe, 64):
                if number == _signal.SIGCONT:
                    self.on_resume()
                elif number == _signal.SIGWINCH:
                    self._on_size()
                elif number in ENDING:
                    self._arrived(number)

    def _arrived(self, number: int) -> None:
        forward = self.forward
        if forward is not None and forward(number):
            return
        now = time.monotonic()
        with self._lock:
            first, end = not self.received, self._end
            if first:
                self.received, self._since = number, now
        if not first:
            if now - self._since >= SAME:
                self.at_once()
                os._exit(128 + number)
        elif end is not None:
            # On a thread of its own: this one goes on listening.
            threading.Thread(target=end, args=(number,), name="signal-end", daemon=True).start()


def _noted(number: int, frame: object) -> None:
    """The handler that Python calls: the pipe has the number already."""


def _nothing() -> None:
    pass
