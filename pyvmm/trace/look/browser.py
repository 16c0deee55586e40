"""Looking through a trace: which records are shown, where one is, and what each key does. Knows no terminal.

Imports bits, filters, lines, show and errors. `screen` gives the lines of a screen of any size and `press` takes a key,
so all of it is tested without a terminal; terminal.py puts it on one. A filter and a search work in slices, so that a
trace of millions of records never keeps a key waiting.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

from pyvmm.errors import UsageError
from pyvmm.trace.fields import clean, grouped, text
from pyvmm.trace.look.bits import Bits
from pyvmm.trace.look.filters import Filter, moment
from pyvmm.trace.look.lines import parse
from pyvmm.trace.look.show import HEAD, details, line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.trace.look.lines import Lines

SLICE = 2000
"""Records that are looked at before the next key."""
DETAIL, BITS = 7, 6
"""Rows of the detail pane, and how many more on a screen that is `TALL`."""
TALL = 36
PLAIN, TITLE, CHOSEN, QUIET = range(4)
"""How a line of the screen looks."""
KEYS = "q quit  f filter  / find  n N next, previous  t time  d r this device, register  x all  ? keys"
HELP = (
    "Up Down j k        one record            PgUp PgDn Space   a screen",
    "Home End g G       first, last           Enter            detail on and off",
    "f   filter: device=serial register=LSR reason=IO kind=queue vcpu=0 from=1.5s to=2s, and words",
    "d r only records of this one's device; of its register as well        x   all records again",
    "/   find words in a record's line        n N              next, previous one found",
    "t   go to a time: 1.5s, 20ms, 300us      q                quit",
)


class Browser:
    """One look at `lines`, beginning with what `filter` lets through. `title` names the trace."""

    def __init__(self, lines: Lines, title: str, filter: Filter | None = None) -> None:
        self._lines = lines
        self._bits = Bits(lines.header)
        self._title = clean(title)
        self._detail = True
        self._help = False
        self._prompt: tuple[str, str, Callable[[str], None]] | None = None
        self._said = ""
        self._find = Filter()
        self._seeking = 0
        self._top = 0
        self._rows = 10
        self.at = 0
        self.over = False
        self.filter = Filter()
        self._set(filter or Filter())

    # Which records.

    def _set(self, filter: Filter) -> None:
        here = self._here()
        self.filter = filter
        self._chosen = array("Q")
        self._looked = 0
        self.at = self._top = 0
        self._goal = here
        self._seeking = 0
        if not filter:
            self.at = here

    def __len__(self) -> int:
        """How many records are shown, as far as is known yet."""
        return len(self._chosen) if self.filter else len(self._lines)

    def number(self, at: int) -> int:
        """The number in the trace of the record that is shown as number `at`."""
        return self._chosen[at] if self.filter else at

    def _here(self) -> int:
        return self.number(self.at) if hasattr(self, "_chosen") and self.at < len(self) else 0

    @property
    def busy(self) -> bool:
        """Whether `work` has something to do."""
        return bool(self._seeking) or (bool(self.filter) and self._looked < len(self._lines))

    def work(self) -> None:
        """Go on with a filter or a search for some thousand records."""
        if self.filter and self._looked < len(self._lines):
            end = min(len(self._lines), self._looked + SLICE)
            for number in range(self._looked, end):
                raw = self._lines.raw(number)
                if self.filter.may_match(raw) and self.filter.matches(parse(raw)):
                    self._chosen.append(number)
                    if number <= self._goal:
                        self.at = len(self._chosen) - 1
            self._looked = end
        elif self._seeking:
            self._seek()

    def _seek(self) -> None:
        step = 1 if self._seeking > 0 else -1
        for _ in range(SLICE):
            self._place += step
            if not 0 <= self._place < len(self):
                self._seeking = 0
                self._said = f"no other {self._find}"
                return
            raw = self._lines.raw(self.number(self._place))
            if self._find.may_match(raw) and self._find.matches(parse(raw)):
                self.at = self._place
                self._seeking -= step
                return

    # What is shown.

    def screen(self, height: int, width: int) -> list[tuple[str, int]]:
        """The `height` lines of a screen, each at most `width` wide, and how they look."""
        if height < 4 or width < 20:
            return [("too small"[:width], PLAIN)][:height]
        self.at = max(0, min(self.at, len(self) - 1))
        lower = self._lower(height)
        self._rows = height - 3 - len(lower)
        self._top = max(min(self._top, self.at, len(self) - self._rows), self.at - self._rows + 1, 0)
        shown = [(self._status(width), TITLE), (HEAD, QUIET)]
        for at in range(self._top, self._top + self._rows):
            row = line(self._lines[self.number(at)]) if at < len(self) else ""
            shown.append((row, CHOSEN if at == self.at and len(self) else PLAIN))
        shown += lower
        shown.append((self._bottom(), QUIET if not self._prompt else PLAIN))
        return [(row[:width], look) for row, look in shown]

    def _lower(self, height: int) -> list[tuple[str, int]]:
        if self._help and height >= len(HELP) + 6:
            return [("-" * 200, QUIET), *((row, PLAIN) for row in HELP)]
        if not self._detail or height < DETAIL + 8:
            return []
        record = self._lines[self.number(self.at)] if len(self) else {}
        rows = [*details(record), *self._bits.of(record)] if record else ["no record"]
        high = DETAIL if height < TALL else DETAIL + BITS
        rows = (rows + [""] * high)[:high]
        return [("-" * 200, QUIET), *((row, PLAIN) for row in rows)]

    def _status(self, width: int) -> str:
        many = len(self)
        place = f"{grouped(self.at + 1 if many else 0)} of {grouped(many)}"
        if self.filter:
            place += f" ({grouped(len(self._lines))} in all)  [{self.filter}]"
        if self.busy:
            place += (
                f"  looking, {100 * self._looked // max(1, len(self._lines))} %" if not self._seeking else "  looking"
            )
        return f"{self._title}  {place}".ljust(width)

    def _bottom(self) -> str:
        if self._prompt:
            return f"{self._prompt[0]}: {self._prompt[1]}"
        return self._said or KEYS

    @property
    def prompting(self) -> bool:
        """Whether keys are text at the moment."""
        return self._prompt is not None

    # Keys.

    def press(self, key: str) -> None:
        """A key: a character, or the name of one such as "up", "pagedown", "enter", "backspace", "escape"."""
        self._said = ""
        if self._prompt:
            self._type(key)
            return
        if self._seeking and key not in ("n", "N"):
            self._seeking = 0  # any other key ends a search
        moves = {
            **dict.fromkeys(("up", "k"), -1),
            **dict.fromkeys(("down", "j"), 1),
            **dict.fromkeys(("pageup",), -self._rows),
            **dict.fromkeys(("pagedown", " "), self._rows),
            **dict.fromkeys(("home", "g"), -len(self)),
            **dict.fromkeys(("end", "G"), len(self)),
        }
        if key in moves:
            self.at = max(0, min(self.at + moves[key], len(self) - 1))
            self._goal = self._here()
        elif key == "q":
            self.over = True
        elif key == "enter":
            self._detail = not self._detail or self._help
            self._help = False
        elif key == "?":
            self._help = not self._help
        elif key == "x":
            self._set(Filter())
        elif key == "f":
            self._prompt = (
                "filter (device= register= reason= kind= vcpu= from= to=, words)",
                str(self.filter),
                self._filter,
            )
        elif key == "/":
            self._prompt = ("find", "", self._search)
        elif key == "t":
            self._prompt = ("go to the time", "", self._go)
        elif key in ("n", "N"):
            self._again(1 if key == "n" else -1)
        elif key in ("d", "r"):
            self._like(key)

    def _type(self, key: str) -> None:
        assert self._prompt is not None
        label, typed, done = self._prompt
        if key == "enter":
            self._prompt = None
            try:
                done(typed)
            except UsageError as error:
                self._said = str(error)
        elif key == "escape":
            self._prompt = None
        elif key == "backspace":
            self._prompt = (label, typed[:-1], done)
        elif len(key) == 1 and key.isprintable() and len(typed) < 200:
            self._prompt = (label, typed + key, done)

    def _filter(self, typed: str) -> None:
        self._set(Filter.parse(typed))

    def _search(self, typed: str) -> None:
        self._find = Filter.parse(typed)
        self._again(1)

    def _again(self, step: int) -> None:
        if not self._find:
            self._said = "nothing was looked for yet (/)"
            return
        if not self._seeking:
            self._place = self.at
        self._seeking += step  # keys may come faster than they are found

    def _go(self, typed: str) -> None:
        goal = moment(typed.strip())
        self.at = bisect_left(range(len(self)), goal, key=lambda at: self._time(at))

    def _time(self, at: int) -> int:
        t = self._lines[self.number(at)].get("t")
        return t if type(t) is int else 0

    def _like(self, key: str) -> None:
        record = self._lines[self.number(self.at)] if len(self) else {}
        device, register = text(record, "device"), text(record, "register")
        if not device or (key == "r" and not register):
            self._said = "this record has no " + ("register" if key == "r" else "device")
            return
        wanted = {"device": device} | ({"register": register} if key == "r" else {})
        self._set(Filter(wanted))
