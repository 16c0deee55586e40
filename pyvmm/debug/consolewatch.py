"""Reading along on the guest's console: a Linux kernel's panics, oopses, warnings and telling last words.

Imports hints, and virtio's search for words once there is much output. Guests write byte by byte, each byte an exit, so
`feed` only puts bytes aside; they are looked at when some have come together, when somebody asks, and at the end. Much
of a program's output is passed over at one look, not line by line. Everything kept is bounded, whatever a guest writes.

A kernel's line begins with a time stamp where CONFIG_PRINTK_TIME is on. That tells it from what programs write to the
same console; without time stamps nothing does, and only a line's beginning counts. Message formats: Linux
kernel/panic.c, arch/x86/kernel/dumpstack.c, lib/bug.c, kernel/watchdog.c, init/main.c.
"""

from __future__ import annotations

import threading
from collections import deque

from pyvmm.debug import OOPS, PANIC, WARN
from pyvmm.debug.hints import HINTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.debug.hints import Hint
    from pyvmm.virtio.words import Words

LOG = 64 << 10
"""Bytes of output kept; they are taken from what is looked at anyway."""
GATHER = 512
"""Pieces of output put aside before they are looked at."""
BULK = 16 << 10
"""Bytes, about, in pieces of more than one byte that are put aside before they are looked at."""
MUCH = 16 << 10
"""Bytes of output from which on C searches it: loading that costs some milliseconds."""
LINE = 1024
"""Bytes of a line that are looked at together: a longer one is several."""
KEPT_LINES = 48
"""Lines kept of one complaint."""
KEPT_COMPLAINTS = 4
"""Complaints of one kind kept: the first ones, which tell most."""
SHOWN = 200
"""Characters kept of a line."""
WITHDRAWN_AFTER = 100
"""Without time stamps: a kernel that says so many lines after its panic has not panicked."""

_PANIC = b"Kernel panic - not syncing"
_OOPS = (b"BUG: ", b"kernel BUG at ", b"Oops: ", b"watchdog: BUG: ", b"PANIC: double fault", b"traps: PANIC: ")
_WARN = (b"WARNING: ", b"rcu: INFO: ", b"INFO: task ")
_WARN_PROOF = (b" PID: ", b" at ", b"possible ", b"suspicious ", b"stall", b"blocked for more than", b"lock")
"""One of them is in every warning of the kernel; a program's `WARNING: ` need not be one."""
_DIE = b" [#"
"""As in `Oops: 0002 [#1]` and `invalid opcode: 0000 [#1] SMP`: die() numbers them."""
_CUT, _END = b"------------[ cut here ]", b"---[ end "
_INIT = (b"Run ", b" as init process")
_BANNER = b"Linux version "
_OFFSET = b"Kernel Offset: 0x"
_MARKERS = (_PANIC, *_OOPS, *_WARN, _DIE, _CUT, _END, _INIT[1], _BANNER, _OFFSET)
_SIGNS = (
    *(b"BUG", b"Oops: ", b"PANIC: ", b"INFO: ", b"WARNING: ", b"Kernel ", b"System ", b" [#", b"-[ ", b"init process"),
    *(
        b"Linux version ",
        b" for root",
        b"VFS: ",
        b"compress",
        b"no cpio magic",
        b"failed",
        b"working init",
        b"(error -",
    ),
    *(b"unable to ", b"Attempted to kill init!", b"Out of memory", b"ran out of input", b"data is corrupt"),
    *(b"crc error", b"NULL pointer dereference", b"IO-APIC + timer", b"soft lockup"),
)
"""One of them is in every marker and in every hint's message: there are fewer of them to look for."""
_EARLY = (
    b"early console",
    b"Decompressing Linux",
    b"Booting the kernel",
    b"No EFI",
    b"Physical KASLR",
    b"Virtual KASLR",
)


class Complaint:
    """What the kernel complained of: `kind` is PANIC, OOPS or WARN; `lines` its words, without time stamps."""

    __slots__ = ("kind", "lines", "standing_lines")

    def __init__(self, kind: str, line: str) -> None:
        self.kind = kind
        self.lines = [line]
        self.standing_lines = 0

    @property
    def text(self) -> str:
        """The first line."""
        return self.lines[0]

    def __repr__(self) -> str:
        return f"Complaint({self.kind!r}, {self.text!r})"


class ConsoleWatch:
    """What the guest's console has told so far.

    complaints     the first ones of each kind, in order
    counts         how many there were of each kind
    panic          the panic that stands: nothing has been said since that a panicked kernel would not say
    hints          (hint, the kernel's line) for each that was met, in order
    waiting        the same for the line that was said last, where the kernel then waits; else None
    size           bytes of output
    user_space     whether a program in the guest has written something
    kernel_offset  how far KASLR has moved the kernel, where it has said so

    `feed` may be called from any thread; all else is true as of the last `scan()`.
    """

    def __init__(self) -> None:
        self.complaints: list[Complaint] = []
        self.counts: dict[str, int] = {}
        self.panic: Complaint | None = None
        self.hints: list[tuple[Hint, str]] = []
        self.waiting: tuple[Hint, str] | None = None
        self.size = 0
        self.user_space = False
        self.kernel_offset = 0
        self._chunks: deque[bytes] = deque()
        self._aside = 0
        self._lock = threading.Lock()
        self._log = bytearray()
        self._tail = b""
        self._open: Complaint | None = None
        self._cut: list[str] | None = None
        self._init = False
        self._signs: Words | None = None
        self._stamped: bool | None = None
        """Whether the kernel puts time stamps before its lines; None while it has not said its name."""

    def feed(self, data: bytes) -> None:
        """Output of the guest."""
        # A deque's own operations are atomic, and pieces are mostly the one-byte constants of the serial port.
        self._chunks.append(data)
        if len(data) > 1:
            self._aside += len(data)
        if len(self._chunks) >= GATHER or self._aside >= BULK:
            self.scan()

    def scan(self, end: bool = False) -> None:
        """Look at what has been written since the last time; with `end` at a last line without its end, too."""
        with self._lock:
            chunks, self._aside = self._chunks, 0
            # As many as there are now: a guest that goes on writing does not keep us here.
            data = b"".join([chunks.popleft() for _ in range(len(chunks))])
            self.size += len(data)
            self._log += data
            if len(self._log) > 2 * LOG:
                del self._log[:-LOG]
            text = self._tail + data
            cut = len(text) if end else text.rfind(b"\n") + 1
            if len(text) - cut > LINE:
                cut = len(text)
            self._tail = text[cut:]
            if cut:
                self._look(text[:cut])
            if self._tail.strip():
                self.waiting = None
                if not data:  # it stays as it is: a prompt
                    stamped, line = without_stamp(self._tail)
                    if not stamped:
                        self._unstamped(line)

    def transcript(self) -> bytes:
        """The end of the output: all of it up to LOG bytes, at least as many of what is longer."""
        self.scan()
        with self._lock:
            return bytes(self._log)

    # --- With the lock held ------------------------------------------------------------------------------------

    def _look(self, text: bytes) -> None:
        if self._says_nothing(text):
            return
        told = any(marker in text for marker in _MARKERS)
        hints = [hint for hint in HINTS if hint.message in text]
        for line in text.splitlines():
            for at in range(0, len(line), LINE):
                self._line(line[at : at + LINE], told, hints)

    def _says_nothing(self, text: bytes) -> bool:
        """Whether no line of `text` changes anything: a program's text, and programs are known to have written."""
        if self.waiting is not None or self.panic is not None or self._open is not None or self._cut is not None:
            return False
        if not self.user_space and (self._init or self._stamped is not False):
            return False
        if not self._stamped and self._has_sign(text):
            return False
        # Without signs a stamp still tells that there are some, which is known where the kernel has said its name.
        return self._stamped is False or not without_stamp(text)[0]

    def _has_sign(self, text: bytes) -> bool:
        if self._signs is None:
            if self.size < MUCH:
                return any(sign in text for sign in _SIGNS)
            from pyvmm.virtio.words import Words

            self._signs = Words(_SIGNS)
        return self._signs.are_in(text)

    def _line(self, raw: bytes, told: bool, hints: list[Hint]) -> None:
        if not raw.strip():
            return
        stamped, line = without_stamp(raw)
        self.waiting = None
        if self._stamped is None and (stamped or (told and line.startswith(_BANNER))):
            self._stamped = stamped
        if told and line.startswith(_INIT[0]) and line.endswith(_INIT[1]):
            self._init = True
        elif not stamped:
            self._unstamped(line)
        if self._stamped and not stamped:
            return  # a program's
        for hint in hints:
            if hint.message in line and hint.also in line:
                self._hint(hint, shown(line))
                break
        self._complaint(line, told)

    def _unstamped(self, line: bytes) -> None:
        """A line that a program may have written."""
        if self._stamped:
            self.user_space = True
            self._open = self.panic = None
        elif self._init or (self._stamped is None and not self._open and not line.startswith(_EARLY)):
            # Of a kernel that was told to be quiet we have not even the banner: then all is a program's.
            self.user_space = self.user_space or not any(marker in line for marker in _MARKERS)

    def _hint(self, hint: Hint, line: str) -> None:
        if all(hint is not known for known, _ in self.hints):
            self.hints.append((hint, line))
        if hint.waits:
            self.waiting = hint, line

    def _complaint(self, line: bytes, told: bool) -> None:
        if self.panic is not None:
            self.panic.standing_lines += 1
            if not self._stamped and self.panic.standing_lines > WITHDRAWN_AFTER:
                self.panic = None
        kind = self._kind(line) if told else ""
        block = self._open
        if told and line.startswith(_CUT):
            self._cut, self._open = [], None
        elif kind == PANIC or (kind and block is None):
            self._begin(kind, line)
        elif self._cut is not None:
            # What a WARN with a text of its own says comes before the line that names it.
            self._cut.append(shown(line))
            if len(self._cut) > 3:
                self._cut = None
        elif block is not None:
            block.lines.append(shown(line))
            if len(block.lines) >= KEPT_LINES or (told and line.startswith(_END)):
                self._open = None
        if told and line.startswith(_OFFSET):
            digits = line[len(_OFFSET) :].split(b" ")[0][:16]
            if digits and not digits.strip(b"0123456789abcdef"):
                self.kernel_offset = int(digits, 16)

    def _kind(self, line: bytes) -> str:
        if line.startswith(_PANIC):
            return PANIC
        if line.startswith(_OOPS) or _is_die(line):
            return OOPS
        if line.startswith(_WARN) and (self._cut is not None or any(proof in line for proof in _WARN_PROOF)):
            return WARN
        return ""

    def _begin(self, kind: str, line: bytes) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + 1
        complaint = Complaint(kind, shown(line))
        complaint.lines += self._cut or ()
        self._cut = None
        self._open = complaint
        if kind == PANIC:
            self.panic = complaint
        if self.counts[kind] <= KEPT_COMPLAINTS:
            self.complaints.append(complaint)


def without_stamp(line: bytes) -> tuple[bool, bytes]:
    """Whether a kernel's time stamp is in `line`, and what follows it: all of the line where there is none.

    `[    1.234567] ` stands first, unless a program has left a line (a prompt, say) without its end; with
    CONFIG_PRINTK_CALLER it is `[    1.234567][    T1] `.
    """
    at = line.find(b"[")
    while at >= 0:
        end = line.find(b"]", at, at + 24)
        stamp = line[at + 1 : end].strip().split(b".") if end > 0 else []
        if len(stamp) == 2 and stamp[0].isdigit() and len(stamp[1]) == 6 and stamp[1].isdigit():
            rest = line[end + 1 :]
            if rest.startswith(b"["):
                rest = rest.partition(b"]")[2]
            return True, rest[1:]
        at = line.find(b"[", at + 1)
    return False, line


def _is_die(line: bytes) -> bool:
    at = line.find(_DIE)
    code = line[at - 6 : at] if at >= 6 else b""
    return code[:2] == b": " and not code[2:].strip(b"0123456789abcdef")


def shown(line: bytes) -> str:
    """A guest's line as it may be shown on a terminal: what is not printable is a question mark."""
    text = line[:SHOWN].decode("utf-8", "replace").rstrip()
    return "".join(c if c.isprintable() else " " if c == "\t" else "?" for c in text)
