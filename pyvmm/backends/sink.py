"""OutputSink: what a guest writes, carried to a file descriptor by a thread of its own.

Imports threads. A device's handler may not block and nothing may be lost, so output that the descriptor does
not take yet is kept. The buffer is bounded by the VM: at HIGH_WATER bytes `hold` keeps the vCPUs out of the guest, at
LOW_WATER `release` lets them go on, so at most what the exits under way still write comes on top.

The thread is there because write(2) on an inherited descriptor may block, and O_NONBLOCK on one would change it for
everybody who shares it. It is kept cheap: guests write byte by byte, each byte an exit, and every change of the thread
that holds the GIL costs the vCPU tens of microseconds. So the first byte wakes the thread, and it then lets GATHER
seconds of output come together before it writes.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
import threading
import time

from pyvmm import threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HIGH_WATER = 64 << 10
LOW_WATER = 16 << 10
PIECE = 4096
"""Bytes of one write(2) that may block, so that a slow reader makes progress that is seen."""
GATHER = 0.002
CLOSE_WAIT = 0.5
"""Seconds that close() waits for the thread. One stuck in write(2) is left behind; it is a daemon."""


class OutputSink:
    """Carries bytes, in order, to the descriptor `fd`, which stays the caller's to close.

    Without a descriptor (`fd` None, after `detach()`, after an error) the last HIGH_WATER bytes are kept for the next
    one. `hold` and `release` are called in turn, `broken(errno)` once for each descriptor that fails; they must
    neither block nor call the sink.
    """

    def __init__(
        self,
        fd: int | None,
        *,
        hold: Callable[[], None],
        release: Callable[[], None],
        broken: Callable[[int], None],
        name: str = "console-output",
    ) -> None:
        self._fd = fd
        self._hold = hold
        self._release = release
        self._broken = broken
        self._name = name
        self._pending = bytearray()  # not yet taken by the thread
        self._flight = 0  # bytes taken by the thread and not yet written
        self._progress = 0  # bytes written since the beginning
        self._held = False
        self._idle = True  # the thread waits for work, or there is none yet
        self._hurry = 0  # callers of drain(), who want nothing gathered
        self._busy = False  # the thread is using the descriptor
        self._closed = False
        self._wake = -1  # eventfd that ends a wait for a non-blocking descriptor
        self._thread: threading.Thread | None = None
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._written = threading.Condition(lock)

    @property
    def backlog(self) -> int:
        """Bytes that have not been written yet."""
        return len(self._pending) + self._flight

    def write(self, data: bytes) -> None:
        """Take `data` for writing; returns at once."""
        with self._work:
            if self._closed:
                return
            self._pending += data
            if self._fd is None:
                self._trim()
                return
            size = len(self._pending)
            if self._idle:
                self._idle = False
                self._start_or_wake()
            elif size >= PIECE > size - len(data):
                self._work.notify()
            if size + self._flight >= HIGH_WATER and not self._held:
                self._held = True
                self._hold()

    def attach(self, fd: int) -> None:
        """Write to `fd` from now on, what is kept first."""
        with self._work:
            self._fd = fd
            if self._pending and self._idle:
                self._idle = False
                self._start_or_wake()

    def detach(self) -> None:
        """Return when the descriptor, which must be a non-blocking one, is not used any more."""
        with self._work:
            self._let_go()
            self._cancel()
            while self._busy:
                self._written.wait()

    def drain(self, timeout: float | None) -> bool:
        """Wait until everything is written: True. False once `timeout` seconds have gone by without any progress."""
        with self._work:
            self._hurry += 1
            self._work.notify()
            try:
                while self._fd is not None and self.backlog:
                    before = self._progress
                    deadline = None if timeout is None else time.monotonic() + timeout
                    while self._progress == before and self._fd is not None:
                        left = None if deadline is None else deadline - time.monotonic()
                        if left is not None and left <= 0:
                            return False
                        self._written.wait(left)
            finally:
                self._hurry -= 1
        return True

    def close(self) -> None:
        """Drop what is not written and end the thread. Call drain() first; a second call does nothing."""
        with self._work:
            self._closed = True
            self._pending.clear()
            self._let_go()
            self._cancel()
            self._work.notify()
            thread = self._thread
        if thread is not None:
            thread.join(CLOSE_WAIT)
        with self._work:
            if self._wake >= 0 and not self._busy:
                os.close(self._wake)
                self._wake = -1

    # --- With the lock held ------------------------------------------------------------------------------------

    def _start_or_wake(self) -> None:
        if self._thread is None:
            self._thread = threads.start(threading.Thread(target=self._run, name=self._name))
        else:
            self._work.notify()

    def _trim(self) -> None:
        del self._pending[:-HIGH_WATER]

    def _let_go(self) -> None:
        self._fd = None
        self._trim()
        self._unhold()
        self._written.notify_all()

    def _unhold(self) -> None:
        if self._held and (self._fd is None or self.backlog <= LOW_WATER):
            self._held = False
            self._release()

    def _cancel(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # --- The thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._work:
                while not self._closed and (not self._pending or self._fd is None):
                    self._idle = True
                    self._work.wait()
                self._idle = False
                if not self._closed and not self._hurry and len(self._pending) < PIECE:
                    self._work.wait(GATHER)
                if self._closed:
                    return
                fd = self._fd
                if fd is None:
                    continue
                taken, self._pending = self._pending, bytearray()
                self._flight = len(taken)
                self._busy = True
            failure = self._write_out(fd, taken)
            with self._work:
                rest = taken[len(taken) - self._flight :]
                self._flight = 0
                self._busy = False
                if rest and not self._closed:  # failed, or detached meanwhile: the next descriptor gets them
                    self._pending[:0] = rest
                    if self._fd is None:
                        self._trim()
                failed = failure != 0 and self._fd == fd
                if failed:
                    self._let_go()
                self._written.notify_all()
            if failed:
                self._broken(failure)

    def _write_out(self, fd: int, data: bytearray) -> int:
        """Write `data` piece by piece while `fd` is the sink's descriptor. Returns the errno that ended it, or 0."""
        with memoryview(data) as view:
            done = 0
            while done < len(view) and self._fd == fd:
                try:
                    count = os.write(fd, view[done : done + (PIECE if len(view) - done <= PIECE else _room(fd))])
                except BlockingIOError:
                    self._wait_writable(fd)
                    continue
                except OSError as error:
                    return error.errno or errno.EIO
                done += count
                with self._work:
                    self._flight -= count
                    self._progress += count
                    self._unhold()
                    self._written.notify_all()
        return 0

    def _wait_writable(self, fd: int) -> None:
        with self._work:
            if self._wake < 0:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if self._fd != fd:
                return
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        poll.register(self._wake, select.POLLIN)
        poll.poll()
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass


def _room(fd: int) -> int:
    """How many bytes to write to `fd` at once: PIECE, or as many as it takes without blocking where that is known.

    What a pipe says of itself counts bytes, and it holds pages: once they are not full a write may block after all, for
    as long as it takes somebody to read them. Raises OSError.
    """
    kind = os.fstat(fd).st_mode
    if stat.S_ISREG(kind) or not os.get_blocking(fd):
        return HIGH_WATER
    if stat.S_ISFIFO(kind):
        import fcntl
        import termios

        waiting = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        return max(PIECE, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) - waiting)
    return PIECE
