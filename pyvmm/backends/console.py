"""Which console back-end `--console` means, written `stdio`, `pty`, `file:PATH` or `unix:PATH`.

May import the other console back-ends, each only when it is asked for.
"""

from __future__ import annotations

from pyvmm.backends.base import CTRL_A
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.backends.file import FileConsole
    from pyvmm.backends.pty import PtyConsole
    from pyvmm.backends.stdio import StdioConsole
    from pyvmm.backends.unixsocket import UnixConsole


def make_console(
    text: str,
    *,
    quit: Callable[[], None],
    look: Callable[[str], str],
    say: Callable[[str], None],
    escape: int | None = CTRL_A,
    stdin: int = 0,
) -> StdioConsole | PtyConsole | FileConsole | UnixConsole:
    """The back-end that `text` names, nothing opened yet. Raises UsageError.

    `quit`, `look`, `say`, `escape` and `stdin` are those of StdioConsole.
    """
    kind, colon, path = text.partition(":")
    if kind in ("file", "unix") and not path:
        raise UsageError(f"{text!r}: expected a path, {kind}:PATH")
    if kind == "file":
        from pyvmm.backends.file import FileConsole

        return FileConsole(path)
    if kind == "unix":
        from pyvmm.backends.unixsocket import UnixConsole

        return UnixConsole(path)
    if kind == "pty" and not colon:
        from pyvmm.backends.pty import PtyConsole

        return PtyConsole(say=say)
    if kind == "stdio" and not colon:
        from pyvmm.backends.stdio import StdioConsole

        return StdioConsole(escape=escape, quit=quit, look=look, say=say, stdin=stdin)
    raise UsageError(f"unknown console {text!r} (expected stdio, pty, file:PATH or unix:PATH)")
