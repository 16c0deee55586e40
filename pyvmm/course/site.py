"""Lessons as Markdown pages for the site: quoted code, recorded output and pictures put in where the directives stand.

Imports page, recording, exercise. Used at build time alone (scripts/site.py).
"""

from __future__ import annotations

import textwrap

from pyvmm.course import lessons, page, recording
from pyvmm.course.exercise import QUESTION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.course.draw import Drawing
    from pyvmm.course.exercise import Exercise
    from pyvmm.course.lesson import Lesson
    from pyvmm.course.quote import Quotation


def lesson_page(lesson: Lesson) -> str:
    """The page of a lesson. Raises CourseError."""
    recorded = recording.load(lesson)
    out = [f"# {lesson.number}. {lesson.title}", "", _facts(lesson)]
    for step in lesson.steps:
        if step.heading:
            out += [f"## {step.heading}", ""]
        for part in step.parts:
            out += [_part(lesson, part, recorded), ""]
    out += [_exercises(lesson)]
    return "\n".join(out)


def _facts(lesson: Lesson) -> str:
    before = ", ".join(lesson.prerequisites)
    lines = [f"*{lesson.minutes} minutes{f'; before it: {before}' if before else ''}.* After this lesson you can", ""]
    lines += [f"- {aim}" for aim in lesson.aims]
    lines += [
        "",
        f"`pyvmm lesson {lesson.number}` teaches it in a terminal, where its programs run live. With `--replay` it",
    ]
    return "\n".join([*lines, "needs no KVM.", ""])


def _part(lesson: Lesson, part: page.Part, recorded: recording.Recording) -> str:
    if isinstance(part, page.Text):
        return part.markdown
    if isinstance(part, page.Code):
        return code(lesson.code(part))
    if isinstance(part, page.Picture):
        return figure(lesson.drawing(part))
    if isinstance(part, page.Run):
        return _fenced(recorded.steps[part.name], "text", f"{part.name}() prints, recorded on {recorded.kvm}")
    assert isinstance(part, page.Ask)
    return _question(lesson.exercise(part.name))


def code(quotation: Quotation) -> str:
    """Quoted code under the name of its file."""
    return _fenced(quotation.text, quotation.language, quotation.source)


def _fenced(text: str, language: str, title: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f'{fence}{language} title="{title}"\n{text.rstrip()}\n{fence}\n'


def figure(drawing: Drawing) -> str:
    """A picture in the page itself, so that it follows the page's colours."""
    return f"<figure>\n{drawing.svg()}<figcaption>{drawing.title}</figcaption>\n</figure>\n"


def _question(question: Exercise) -> str:
    lines = [f'!!! question "{question.title}"', "", textwrap.indent(question.prompt, "    "), ""]
    for number, hint in enumerate(question.hints, 1):
        lines += [f'    ??? note "Hint {number}"', "", textwrap.indent(hint, "        "), ""]
    return "\n".join(lines)


def _exercises(lesson: Lesson) -> str:
    own = any(step.heading == "Exercises" for step in lesson.steps)
    rows = [*([] if own else ["## Exercises", ""]), "| exercise | name | what it is |", "| --- | --- | --- |"]
    for exercise in lesson.exercises:
        kind = "a question, above" if exercise.kind == QUESTION else "code"
        kind += ", tried in a guest: needs KVM" if exercise.kvm else ""
        rows.append(f"| {exercise.title} | `{exercise.name}` | {kind} |")
    number = lesson.number
    commands = [f"pyvmm lesson start {number} work     # a folder with exercise.py and a file for the answers"]
    commands += [f"pyvmm lesson check {number} work     # what is right, and hints for what is not"]
    return "\n".join([*rows, "", _fenced("\n".join(commands), "sh", "a work folder")])


def lesson_table() -> str:
    """All lessons with their aims."""
    rows = ["| | lesson | after it you can |", "| --- | --- | --- |"]
    for lesson in lessons():
        rows.append(f"| {lesson.number} | [{lesson.title}]({lesson.slug}/lesson.md) | {'; '.join(lesson.aims)} |")
    return "\n".join(rows) + "\n"


def timetable() -> str:
    """Minutes and exercises of every lesson, with the sum."""
    rows = ["| | lesson | minutes | questions | code | of it with KVM |", "| --- | --- | --: | --: | --: | --: |"]
    total = [0, 0, 0, 0]
    for lesson in lessons():
        asked = sum(exercise.kind == QUESTION for exercise in lesson.exercises)
        kvm = sum(exercise.kvm for exercise in lesson.exercises)
        numbers = [lesson.minutes, asked, len(lesson.exercises) - asked, kvm]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        rows.append(
            f"| {lesson.number} | [{lesson.title}]({lesson.slug}/lesson.md) | {' | '.join(map(str, numbers))} |"
        )
    minutes, *counts = total
    rows.append(f"| | all: {minutes // 60} h {minutes % 60} min | {minutes} | {' | '.join(map(str, counts))} |")
    return "\n".join(rows) + "\n"
