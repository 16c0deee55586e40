"""lesson.md: steps and what they are made of.

Imports files. Each `## Heading` begins a step; what stands before the first is the introduction, a step without a
heading of its own. A line `{{ word ... }}` alone is a directive; docs/course/writing.md lists them.
"""

from __future__ import annotations

import re

from pyvmm.course.files import CourseError

DIRECTIVE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
FENCE = re.compile(r"\s*(```|~~~)")


class Part:
    """A part of a step; `line` is where it begins in lesson.md."""

    __slots__ = ("line",)

    def __init__(self, line: int) -> None:
        self.line = line


class Text(Part):
    """Prose: Markdown."""

    __slots__ = ("markdown",)

    def __init__(self, line: int, markdown: str) -> None:
        super().__init__(line)
        self.markdown = markdown


class Picture(Part):
    """The lesson's picture. `name` is which function of picture.py draws it."""

    __slots__ = ("name",)

    def __init__(self, line: int, name: str = "draw") -> None:
        super().__init__(line)
        self.name = name


class Code(Part):
    """Quoted code: `file` of the lesson, of a guest of the lesson where `guest`, or of pyvmm; `name` may be ""."""

    __slots__ = ("file", "guest", "name")

    def __init__(self, line: int, file: str, name: str, guest: bool) -> None:
        super().__init__(line)
        self.file = file
        self.name = name
        self.guest = guest


class Run(Part):
    """A function of lesson.py is run."""

    __slots__ = ("name",)

    def __init__(self, line: int, name: str) -> None:
        super().__init__(line)
        self.name = name


class Ask(Part):
    """A question is asked."""

    __slots__ = ("name",)

    def __init__(self, line: int, name: str) -> None:
        super().__init__(line)
        self.name = name


class Step:
    """One step: its `heading` ("" for the introduction) and its parts."""

    __slots__ = ("heading", "line", "parts")

    def __init__(self, heading: str, line: int) -> None:
        self.heading = heading
        self.line = line
        self.parts: list[Part] = []


def parse(text: str, place: str) -> list[Step]:
    """The steps of lesson.md. Raises CourseError."""
    step = Step("", 1)
    steps = [step]
    prose: list[str] = []
    fence = ""

    def close(number: int) -> None:
        if "".join(prose).strip():
            step.parts.append(Text(number - len(prose), "\n".join(prose).strip("\n") + "\n"))
        prose.clear()

    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        mark = FENCE.match(line)
        if mark and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        elif not fence and line.startswith("## "):
            close(number)
            step = Step(line[3:].strip(), number)
            steps.append(step)
            continue
        elif not fence and line.startswith("# "):
            raise CourseError(place, number, "the title comes from lesson.toml (expected ## for a step)")
        elif not fence and (found := DIRECTIVE.fullmatch(line.strip())):
            close(number)
            step.parts.append(_directive(found[1].split(), number, place))
            continue
        elif not fence and DIRECTIVE.search(line):
            raise CourseError(place, number, "a directive stands alone on its line")
        prose.append(line)
    close(len(lines) + 1)
    if fence:
        raise CourseError(place, len(lines), f"a block is never ended by {fence}")
    if not steps[0].parts:
        del steps[0]
    for each in steps:
        if not each.parts:
            raise CourseError(place, each.line, f"the step {each.heading!r} is empty")
    if not steps:
        raise CourseError(place, 1, "is empty (expected steps, each with a ## heading)")
    return steps


def _directive(words: list[str], line: int, place: str) -> Part:
    kind, arguments = (words[0], words[1:]) if words else ("", [])
    if kind == "picture" and len(arguments) <= 1:
        return Picture(line, *arguments)
    if kind == "run" and len(arguments) == 1:
        return Run(line, arguments[0])
    if kind == "ask" and len(arguments) == 1:
        return Ask(line, arguments[0])
    if kind == "code":
        guest = arguments[:1] == ["guest"]
        rest = arguments[1:] if guest else arguments
        if len(rest) in (1, 2):
            return Code(line, rest[0], rest[1] if len(rest) == 2 else "", guest)
    expected = "picture [NAME], code FILE [NAME], code guest FILE [LABEL], run NAME, ask NAME"
    raise CourseError(place, line, f"{{{{ {' '.join(words)} }}}} is no directive (expected {expected})")
