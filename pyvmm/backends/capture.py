"""The console kept in memory, for programs and tests: read what the guest wrote, wait for it, answer it.

Imports errors; re where a pattern is looked for.
"""

from __future__ import annotations

import threading
import time

from pyvmm.errors import PyvmmError, TimeLimitError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

    from pyvmm.backends import Link

TRANSCRIPT = 1 << 20
"""Bytes of output kept by default: the last ones."""
LOOK_AGAIN = 0.1
"""Seconds between two looks whether the run has ended."""
SHOWN = 400
"""Characters of the transcript's end that an error shows."""


class CaptureConsole:
    """The guest's console in memory. At most the last `limit` bytes of output are kept."""

    def __init__(self, limit: int = TRANSCRIPT) -> None:
        self.failure = 0
        self._limit = limit
        self._kept = bytearray()
        self._dropped = 0  # bytes of output before those kept
        self._position = 0  # where expect() goes on, counted from the first byte of output
        self._link: Link | None = None
        self._closed = False
        self._waiting = 0
        self._room = False
        self._changed = threading.Condition()

    # --- For the program -----------------------------------------------------------------------------------------

    @property
    def output(self) -> bytes:
        """What the guest wrote so far."""
        with self._changed:
            return bytes(self._kept)

    @property
    def text(self) -> str:
        """`output` as text; what is not UTF-8 shows as U+FFFD."""
        return self.output.decode("utf-8", "replace")

    def expect(self, pattern: str, timeout: float | None = 30.0) -> re.Match[str]:
        """Wait until the guest writes something that the regular expression `pattern` matches; returns the match.

        The search begins after the last match. Bytes that are not UTF-8 are lone surrogates (PEP 383). Raises
        TimeLimitError after `timeout` seconds (None: never), and PyvmmError as soon as the run has ended without a
        match; both show the end of what the guest wrote.
        """
        import re

        sought = re.compile(pattern)
        deadline = None if timeout is None else time.monotonic() + timeout
        searched = -1
        while True:
            start, new, over = self._await_output(searched, deadline)
            unchanged, searched = searched == start + len(new), start + len(new)
            began = time.monotonic()
            # surrogateescape keeps every byte, so that a place in the text is a place in the bytes.
            text = new.decode("utf-8", "surrogateescape")
            match = sought.search(text)
            now = time.monotonic()
            if match is not None:
                self._position = start + len(text[: match.end()].encode("utf-8", "surrogateescape"))
                return match
            if over:
                raise PyvmmError(f"the VM ended before its console showed {pattern!r}{self._tail()}")
            if unchanged and deadline is not None and now >= deadline:
                raise TimeLimitError(f"the console did not show {pattern!r} within {timeout} s{self._tail()}")
            # Guests write byte by byte: a look at each byte would take the interpreter away from the vCPU.
            time.sleep(min(0.05, max(0.001, 4 * (now - began))))

    def read(self, timeout: float | None = 30.0) -> bytes:
        """What the guest wrote behind what `expect()` or `read()` gave last, a byte at least; b"" once the run is over.

        Waits for it. Raises TimeLimitError after `timeout` seconds (None: never).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            start, new, over = self._await_output(self._position, deadline)
            if new or over:
                self._position = start + len(new)
                return new
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeLimitError(f"the console showed nothing more within {timeout} s{self._tail()}")

    def _await_output(self, searched: int, deadline: float | None) -> tuple[int, bytes, bool]:
        """Wait for output beyond the byte numbered `searched`, the end of the run, or the deadline.

        Returns what follows the last match, with the number of its first byte, and whether that is all.
        """
        with self._changed:
            self._waiting += 1
            try:
                over = self._over()
                while self._dropped + len(self._kept) == searched and not over:
                    left = LOOK_AGAIN if deadline is None else min(LOOK_AGAIN, deadline - time.monotonic())
                    if left <= 0:
                        break
                    self._changed.wait(left)
                    over = self._over()
            finally:
                self._waiting -= 1
            start = max(self._position, self._dropped)
            return start, bytes(self._kept[start - self._dropped :]), over

    def _over(self) -> bool:
        return self._closed or (self._link is not None and self._link.over)

    def send(self, data: str | bytes, timeout: float | None = 30.0) -> None:
        """Type `data` at the guest; returns when its console has taken all of it.

        Raises TimeLimitError after `timeout` seconds (None: never), PyvmmError if the VM does not run.
        """
        rest = data.encode() if isinstance(data, str) else bytes(data)
        deadline = None if timeout is None else time.monotonic() + timeout
        while rest:
            with self._changed:
                self._room = False
                link = None if self._over() else self._link
            if link is None:
                raise PyvmmError(f"the VM does not run: {len(rest)} bytes of input could not be sent")
            # Without our lock: the device takes its own, and calls write() and input_ready() with that one held.
            rest = rest[link.receive(rest) :]
            with self._changed:
                while rest and not self._room and not self._over():
                    left = LOOK_AGAIN if deadline is None else min(LOOK_AGAIN, deadline - time.monotonic())
                    if left <= 0:
                        raise TimeLimitError(
                            f"the guest did not read its console: {len(rest)} bytes left after {timeout} s"
                        )
                    self._changed.wait(left)

    # --- For the VM ----------------------------------------------------------------------------------------------

    def start(self, link: Link) -> None:
        """Begin."""
        with self._changed:
            self._link = link
            self._closed = False

    def write(self, data: bytes) -> None:
        """Output of the guest."""
        with self._changed:
            kept = self._kept
            kept += data
            excess = len(kept) - self._limit
            if excess > 0:
                del kept[:excess]
                self._dropped += excess
            if self._waiting:
                self._changed.notify_all()

    def input_ready(self) -> None:
        """The device has room again."""
        with self._changed:
            self._room = True
            self._changed.notify_all()

    def drain(self, timeout: float | None) -> bool:
        """Nothing to wait for."""
        return True

    def close(self) -> None:
        """The VM is gone; what was written stays."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _tail(self) -> str:
        text = self.text
        shown = text[-SHOWN:]
        if not shown:
            return ", nor anything else"
        return f"; the last it showed: {shown!r}"
