"""The browser on a terminal, by curses: any size, with or without colours.

Imports browser; curses when it is called.
"""

from __future__ import annotations

import os

from pyvmm.errors import UsageError
from pyvmm.trace.look.browser import CHOSEN, QUIET, TITLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import curses

    from pyvmm.trace.look.browser import Browser

ESCAPE_MS = 50
"""How long an escape key waits for the rest of a sequence, in ms; the usual second would look like a hang."""

LOOK_MS = 300
"""How long to wait for a key before looking whether the window has another size: curses misses that at times."""


def browse(browser: Browser) -> None:
    """Show `browser` on the terminal until its user quits. Raises UsageError where there is no such terminal."""
    try:
        import curses
    except ImportError:
        raise UsageError("this Python has no curses: pyvmm trace view --print shows records as text") from None

    os.environ.setdefault("ESCDELAY", str(ESCAPE_MS))
    for fixed in ("LINES", "COLUMNS"):  # which curses would believe, whatever size the window has
        os.environ.pop(fixed, None)
    try:
        curses.setupterm()
    except curses.error:
        name = os.environ.get("TERM", "")
        raise UsageError(
            f"the terminal {name!r} (TERM) is not known: pyvmm trace view --print shows records as text"
        ) from None
    curses.wrapper(_run, browser)


def _run(window: curses.window, browser: Browser) -> None:
    import curses

    names = {
        curses.KEY_UP: "up",
        curses.KEY_DOWN: "down",
        curses.KEY_PPAGE: "pageup",
        curses.KEY_NPAGE: "pagedown",
        curses.KEY_HOME: "home",
        curses.KEY_END: "end",
        curses.KEY_ENTER: "enter",
        curses.KEY_BACKSPACE: "backspace",
        "\n": "enter",
        "\r": "enter",
        "\x7f": "backspace",
        "\b": "backspace",
        "\x1b": "escape",
    }
    if curses.has_colors():
        curses.use_default_colors()  # the terminal's own, not white on black
    looks = {TITLE: curses.A_REVERSE | curses.A_BOLD, CHOSEN: curses.A_REVERSE, QUIET: curses.A_DIM}
    while not browser.over:
        _paint(window, browser, looks)
        window.timeout(0 if browser.busy else LOOK_MS)
        try:
            key = window.get_wch()
        except curses.error:  # no key yet
            browser.work()
            if (size := _size()) != window.getmaxyx():
                curses.resizeterm(*size)
            continue
        except KeyboardInterrupt:
            return
        if key == curses.KEY_RESIZE:
            window.clear()
        else:
            browser.press(names.get(key, key if isinstance(key, str) else ""))


def _size() -> tuple[int, int]:
    """Rows and columns of the terminal's window now."""
    columns, rows = os.get_terminal_size(0)
    return rows, columns


def _paint(window: curses.window, browser: Browser, looks: dict[int, int]) -> None:
    import curses

    height, width = window.getmaxyx()
    window.erase()
    for row, (text, look) in enumerate(browser.screen(height, width)):
        try:
            window.addnstr(row, 0, text, width - (row == height - 1), looks.get(look, curses.A_NORMAL))
        except curses.error:
            pass  # the window has just become smaller, or a character is wider than one column
    try:
        curses.curs_set(1 if browser.prompting else 0)
    except curses.error:
        pass
    window.refresh()
