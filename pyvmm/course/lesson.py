"""A lesson: lesson.toml and lesson.md read and held to each other.

Imports files, exercise, page, quote. Whatever a directive names must be there: a lesson that loads can be taught.
"""

from __future__ import annotations

import re

from pyvmm.course import page, quote
from pyvmm.course.exercise import CODE, QUESTION, Exercise
from pyvmm.course.files import COURSE, CourseError, course_root, guests_root, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from traceback import StackSummary
    from typing import Any, NoReturn

    from pyvmm.course.draw import Drawing
    from pyvmm.course.quote import Quotation

TIME_LIMIT = 60.0
"""Seconds that a step or a check may take, where lesson.toml says nothing else: a hundred times what one needs."""
NAME = re.compile(r"[a-z][a-z0-9_]*")


class Lesson:
    """One lesson. `folder` holds its files, `slug` is that folder's name; `minutes` is what working through it takes.

    `aims` and `prerequisites` are for people; `guests` are names of images; `varies` are regular expressions of what
    differs from run to run in what steps print; `time_limit` is in seconds, of a step or a check.
    """

    __slots__ = (
        "aims", "exercises", "folder", "guests", "minutes", "number", "prerequisites", "slug", "steps", "time_limit",
        "title", "varies",
    )  # fmt: skip

    def __init__(self, folder: Traversable, slug: str, table: _Table, steps: list[page.Step]) -> None:
        self.folder = folder
        self.slug = slug
        self.steps = steps
        self.number: int = table.take("number", int)
        self.title: str = table.take("title", str)
        self.minutes: int = table.take("minutes", int)
        self.aims = table.strings("aims")
        self.prerequisites = table.strings("prerequisites", ())
        self.guests = list(table.strings("guests", ()))
        self.varies = table.strings("varies", ())
        self.time_limit = float(table.take("time_limit", (int, float), TIME_LIMIT))
        self.exercises = [_exercise(entry) for entry in table.tables("exercise")]
        table.end()
        if f"{self.number:02}" != slug[:2]:
            table.fail("number", f"is {self.number}, but the folder is called {slug}")
        if self.minutes < 1 or not self.aims:
            table.fail("aims" if self.minutes >= 1 else "minutes", "says nothing")
        for pattern in self.varies:
            try:
                re.compile(pattern)
            except re.error as error:
                table.fail("varies", f"has {pattern!r}, which is no regular expression: {error}")
        names = [exercise.name for exercise in self.exercises]
        for name in names:
            if names.count(name) > 1:
                table.fail("name", f"{name!r} is given twice")
        for name in self.guests:
            if not guests_root().joinpath(name).joinpath("guest.toml").is_file():
                table.fail("guests", f"has {name!r}, which is no guest of guest-images/")

    def place(self, file: str) -> str:
        """What errors call a file of the lesson."""
        return f"{COURSE}/{self.slug}/{file}"

    def exercise(self, name: str) -> Exercise:
        """The exercise called `name`. Raises KeyError."""
        return {exercise.name: exercise for exercise in self.exercises}[name]

    def code(self, part: page.Code) -> Quotation:
        """What a `{{ code ... }}` shows. Raises CourseError."""
        if part.guest:
            return quote.guest(self.guests, part.file, part.name)
        if part.file.startswith("pyvmm/"):
            return quote.own(part.file, part.name)
        place = self.place(part.file)
        if "/" in part.file:
            raise CourseError(place, 0, "is not in the lesson's folder")
        if part.file.endswith(".py"):
            return quote.python(self.folder.joinpath(part.file), place, part.name)
        return quote.labelled(self.folder.joinpath(part.file), place, part.name)

    def drawing(self, part: page.Picture) -> Drawing:
        """What a `{{ picture }}` shows. Raises CourseError where picture.py fails."""
        place = self.place("picture.py")
        module: dict[str, Any] = {"__name__": "picture"}
        try:
            exec(compile(read(self.folder.joinpath("picture.py"), place), place, "exec"), module)
            drawing: Drawing = module[part.name]()
        except Exception as error:
            line = next((frame.lineno for frame in reversed(_frames(error)) if frame.filename == place), 0)
            raise CourseError(place, line or 0, f"cannot be drawn: {error}") from error
        return drawing

    @property
    def runs(self) -> list[str]:
        """The names of the functions of lesson.py that are run, in order."""
        return list(
            dict.fromkeys(part.name for step in self.steps for part in step.parts if isinstance(part, page.Run))
        )

    def verify(self) -> None:
        """Hold every directive to what it names. Raises CourseError with the line of lesson.md."""
        functions: dict[str, set[str]] = {}
        for step in self.steps:
            for part in step.parts:
                try:
                    self._verify(part, functions)
                except CourseError as error:
                    raise CourseError(self.place("lesson.md"), part.line, str(error)) from None

    def _verify(self, part: page.Part, functions: dict[str, set[str]]) -> None:
        if isinstance(part, page.Code):
            self.code(part)
        elif isinstance(part, page.Ask):
            if not any(one.name == part.name and one.kind == QUESTION for one in self.exercises):
                raise CourseError(self.place("lesson.toml"), 0, f"has no question {part.name!r}")
        elif isinstance(part, page.Run | page.Picture):
            file = "lesson.py" if isinstance(part, page.Run) else "picture.py"
            if file not in functions:
                functions[file] = quote.names_in(self.folder.joinpath(file), self.place(file))
            if part.name not in functions[file]:
                raise CourseError(self.place(file), 0, f"has no function {part.name}")


def _frames(error: Exception) -> StackSummary:
    import traceback

    return traceback.extract_tb(error.__traceback__)


def load(slug: str) -> Lesson:
    """The lesson in the folder `slug`. Raises CourseError, one line with file and line."""
    return load_from(course_root().joinpath(slug), slug)


def load_from(folder: Traversable, slug: str) -> Lesson:
    """The lesson in `folder`, whose files errors call `docs/course/SLUG/...`. Raises CourseError."""
    place = f"{COURSE}/{slug}"
    table = _table(read(folder.joinpath("lesson.toml"), f"{place}/lesson.toml"), f"{place}/lesson.toml")
    steps = page.parse(read(folder.joinpath("lesson.md"), f"{place}/lesson.md"), f"{place}/lesson.md")
    lesson = Lesson(folder, slug, table, steps)
    lesson.verify()
    return lesson


def _exercise(table: _Table) -> Exercise:
    name: str = table.take("name", str)
    title: str = table.take("title", str)
    kind: str = table.take("kind", str)
    hints = table.strings("hints", ())
    if not NAME.fullmatch(name):
        table.fail("name", f"is {name!r}, expected a name in small letters")
    if kind == QUESTION:
        prompt: str = table.take("prompt", str)
        answer = table.take("answer", (str, int, list))
        table.take("kvm", bool, False)
        answers = tuple(str(one) for one in (answer if isinstance(answer, list) else [answer]))
        table.end()
        if not answers:
            table.fail("answer", "is empty")
        return Exercise(name, title, kind, hints, prompt=prompt, answers=answers)
    if kind != CODE:
        table.fail("kind", f"is {kind!r}, expected {QUESTION!r} or {CODE!r}")
    kvm: bool = table.take("kvm", bool, False)
    table.end()
    return Exercise(name, title, kind, hints, kvm=kvm)


def _table(text: str, place: str) -> _Table:
    import tomllib

    try:
        return _Table(tomllib.loads(text), text.splitlines(), 0, place)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise CourseError(place, int(line[1]) if line else 0, str(error)) from None


class _Table:
    """A table from which every key is taken once, with its type; errors name the line of the key."""

    def __init__(self, table: dict[str, Any], lines: list[str], start: int, place: str) -> None:
        self._table = dict(table)
        self._lines = lines
        self._start = start
        self._place = place

    def take(self, key: str, kind: Any, default: Any = None) -> Any:
        value = self._table.pop(key, default)
        if value is None:
            self.fail(key, "is missing")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(key, f"is {value!r}")
        return value

    def strings(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        values = self.take(key, (list, tuple), default)
        if not all(isinstance(value, str) for value in values):
            self.fail(key, f"is {values!r}, expected a list of strings")
        return tuple(values)

    def tables(self, key: str) -> list[_Table]:
        """Those of `[[key]]`."""
        entries = self.take(key, list, [])
        starts = [number for number, line in enumerate(self._lines) if line.strip() == f"[[{key}]]"]
        if len(starts) != len(entries):
            self.fail(key, f"is not written as [[{key}]]")
        return [_Table(entry, self._lines, start, self._place) for entry, start in zip(entries, starts, strict=True)]

    def end(self) -> None:
        for key in self._table:
            self.fail(key, "is not known")

    def fail(self, key: str, problem: str) -> NoReturn:
        own = re.compile(rf"\s*{re.escape(key)}\s*=")
        found = 0
        for number, line in enumerate(self._lines[self._start :], self._start + 1):
            if number > self._start + 1 and line.startswith("[["):
                break
            if own.match(line):
                found = number
                break
        raise CourseError(self._place, found or (self._start + 1 if self._start else 0), f"{key} {problem}")
