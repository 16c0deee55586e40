"""Event descriptors and interrupt lines: all that a device knows of interrupts.

Imports errors alone. An interrupt is a level or an edge by declaration, never both: `IrqLine.set(bool)` is a level
(16550A, RTC), `EdgeLine.pulse()` an edge. Who delivers it (an ioctl, an irqfd, a test that records it) is injected.
"""

from __future__ import annotations

import os
from threading import Lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class EventFd:
    """A Linux eventfd (eventfd(2)): a 64-bit counter behind a descriptor, non-blocking, closed on exec."""

    __slots__ = ("fd",)

    def __init__(self) -> None:
        """Raises OSError when the process is out of descriptors."""
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor, or -1 once closed."""
        return self.fd

    def signal(self, count: int = 1) -> None:
        """Add `count` (at least 1) to the counter. A full counter already says what it must: no error."""
        try:
            os.eventfd_write(self.fd, count)
        except BlockingIOError:
            pass

    def drain(self) -> int:
        """Read the counter and set it to zero; 0 if nothing was signalled."""
        try:
            return os.eventfd_read(self.fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class IrqLine:
    """A level-triggered line. Only changes are delivered, so a device may set it after every register access.

    Set under the device's lock: two threads that race here could leave the line at the older level.
    """

    __slots__ = ("_deliver", "asserted")

    def __init__(self, deliver: Callable[[bool], None]) -> None:
        """`deliver(asserted)` carries each change to the interrupt controller."""
        self._deliver = deliver
        self.asserted = False

    def set(self, asserted: bool) -> None:
        """Raise or lower the line."""
        if asserted != self.asserted:
            self.asserted = asserted
            self._deliver(asserted)


class SharedLine:
    """A level-triggered line that several devices share, asserted while any of them asserts it (PCI 3.0, 2.2.6)."""

    __slots__ = ("_asserted", "_deliver", "_lock")

    def __init__(self, deliver: Callable[[bool], None]) -> None:
        """`deliver(asserted)` carries each change to the interrupt controller; one at a time, in order."""
        self._deliver = deliver
        self._lock = Lock()  # a leaf
        self._asserted = 0

    def source(self) -> IrqLine:
        """One more device's end of the line. Unlike others it may be set from any thread."""
        return _Source(self)

    def set_source(self, source: IrqLine, asserted: bool) -> None:
        """What `source` does when it is set."""
        with self._lock:
            if asserted == source.asserted:
                return
            source.asserted = asserted
            before, self._asserted = self._asserted, self._asserted + (1 if asserted else -1)
            if not before or not self._asserted:
                self._deliver(asserted)


class _Source(IrqLine):
    """One of the ends of a SharedLine."""

    __slots__ = ("_line",)

    def __init__(self, line: SharedLine) -> None:
        super().__init__(lambda asserted: None)
        self._line = line

    def set(self, asserted: bool) -> None:
        """Raise or lower the line as far as this device goes. Any thread."""
        self._line.set_source(self, asserted)


class EdgeLine:
    """An edge-triggered line: every pulse is one interrupt, unless the last one is still pending."""

    __slots__ = ("_deliver",)

    def __init__(self, deliver: Callable[[], None]) -> None:
        """`deliver()` carries each pulse to the interrupt controller."""
        self._deliver = deliver

    def pulse(self) -> None:
        """Signal one interrupt."""
        self._deliver()
