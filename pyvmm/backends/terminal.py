"""The terminal that a guest's console is shown on: raw mode, and the escape key that leaves it.

Imports errors and base; termios only where there is a terminal. Raw mode is that of cfmakeraw(3), the character size
aside: every key goes to the guest, Ctrl-C too. What the guest writes reaches the terminal unchanged (OPOST off) if
standard output is a terminal as well; where it is piped into another program, that program's lines still want their
carriage returns, so OPOST is left as it was.
"""

from __future__ import annotations

import atexit
import os
import threading

from pyvmm.backends.base import CTRL_A as CTRL_A
from pyvmm.errors import BackendError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

QUIT, HELP, STATE = "q", "h", "s"
COMMANDS = {b"xX": QUIT, b"hH?": HELP, b"sS": STATE, **{bytes((c, c - 0x20)): chr(c) for c in b"rpmtdil"}}
"""What follows the escape key, and the command that it is: a letter."""
HELP_TEXT = """\
{key} X         end the run
{key} S         show the state of the machine; with --shell: have it stand still for the prompt
{key} R         show the registers of vCPU 0
{key} P         show the page-table walk of its RIP
{key} M         show what lies where in memory
{key} T         show its descriptor tables
{key} D         show the registers of the devices
{key} I         show the PICs and the I/O APIC
{key} L         show the local APIC of vCPU 0
{key} {key}  send {key} to the guest
{key} H or ?    show this help"""


def parse_escape(text: str) -> int | None:
    """The byte of an escape key written `^A`, `^]` or as one ASCII character; None for `none`.

    Raises UsageError on anything else.
    """
    if text == "none":
        return None
    if len(text) == 2 and text[0] == "^" and ("@" <= text[1].upper() <= "_" or text[1] == "?"):
        return ord(text[1].upper()) ^ 0x40
    if len(text) == 1 and text.isascii():
        return ord(text)
    raise UsageError(f"{text!r} is not an escape key (expected for example ^A, ^] or none)")


def key_name(key: int) -> str:
    """What the key with this byte is called: `Ctrl-A`, or the character itself."""
    return f"Ctrl-{chr(key ^ 0x40)}" if key < 0x20 or key == 0x7F else chr(key)


class EscapeFilter:
    """Takes the commands that follow the escape key out of what is typed.

    A key that is no command after the escape key is sent to the guest together with it: nothing typed is lost.
    """

    __slots__ = ("_commands", "_escaped", "_key")

    def __init__(self, key: int | None = CTRL_A, commands: str = "".join(COMMANDS.values())) -> None:
        """`key` is the escape key's byte, or None to let everything through. `commands` are those there are."""
        self._key = key
        self._commands = {byte: letter for keys, letter in COMMANDS.items() if letter in commands for byte in keys}
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, str]:
        """What of `data` is for the guest, and the commands in it, a letter each (see COMMANDS)."""
        if self._key is None or not (self._escaped or self._key in data):
            return data, ""
        passed, commands = bytearray(), ""
        for byte in data:
            if not self._escaped:
                if byte == self._key:
                    self._escaped = True
                else:
                    passed.append(byte)
                continue
            self._escaped = False
            if byte == self._key:
                passed.append(byte)
            elif byte in self._commands:
                commands += self._commands[byte]
            else:
                passed += bytes((self._key, byte))
        return bytes(passed), commands

    def help(self) -> str:
        """The commands, a line each."""
        return "" if self._key is None else HELP_TEXT.format(key=key_name(self._key))


class Terminal:
    """A terminal's settings: raw while the console has it, then what they were.

    `restore()` is for every way out, from any thread and from an exit handler; it is final.
    """

    __slots__ = ("_fd", "_lock", "_over", "_raw_output", "_saved")

    def __init__(self, fd: int, *, raw_output: bool) -> None:
        """`fd` is a terminal; with `raw_output` what is written to it is not processed either."""
        self._fd = fd
        self._raw_output = raw_output
        self._saved: list[Any] | None = None
        self._over = False
        # A process that comes back from a stop enters raw mode on one thread while another may restore.
        self._lock = threading.Lock()

    @property
    def raw(self) -> bool:
        """Whether the terminal is in raw mode."""
        return self._saved is not None

    def foreground(self) -> bool:
        """Whether this process may read and set the terminal without being stopped by it (SIGTTIN, SIGTTOU)."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # not our controlling terminal: no job control on it
            return True

    def enter(self) -> None:
        """Switch to raw mode, if in the foreground. Called again after a stop: the shell has changed the settings.

        Raises BackendError if the terminal is gone.
        """
        import termios

        with self._lock:
            if self._over or not self.foreground():
                return
            try:
                if self._saved is None:
                    self._saved = termios.tcgetattr(self._fd)
                    atexit.unregister(self.restore)
                    atexit.register(self.restore)
                termios.tcsetattr(self._fd, termios.TCSANOW, self._raw_settings(self._saved))
            except termios.error as error:
                raise BackendError(f"cannot set the terminal: {error.args[-1]}") from None

    def leave(self) -> None:
        """Put the settings back, for now."""
        with self._lock:
            self._put_back()

    def restore(self) -> None:
        """Put the settings back; enter() does nothing any more."""
        with self._lock:
            self._over = True
            self._put_back()

    def _put_back(self) -> None:
        saved, self._saved = self._saved, None
        if saved is None or not self.foreground():
            return
        import termios

        try:
            termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        except termios.error:
            pass  # the terminal is gone

    def _raw_settings(self, settings: list[Any]) -> list[Any]:
        import termios as t

        iflag, oflag, cflag, lflag, ispeed, ospeed, cc = settings
        iflag &= ~(t.IGNBRK | t.BRKINT | t.PARMRK | t.ISTRIP | t.INLCR | t.IGNCR | t.ICRNL | t.IXON)
        if self._raw_output:
            oflag &= ~t.OPOST
        lflag &= ~(t.ECHO | t.ECHONL | t.ICANON | t.ISIG | t.IEXTEN)
        cc = list(cc)
        cc[t.VMIN], cc[t.VTIME] = 1, 0
        return [iflag, oflag, cflag, lflag, ispeed, ospeed, cc]
