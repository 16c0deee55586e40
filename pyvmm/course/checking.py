"""Grades a work folder: questions by their answers, code by the lesson's check.py.

Imports child, work, exercise.
"""

from __future__ import annotations

from pathlib import Path

from pyvmm.course.child import run_check
from pyvmm.course.exercise import QUESTION
from pyvmm.course.files import CourseError
from pyvmm.course.quote import python
from pyvmm.course.work import EXERCISE, Attempts, answers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable
    from typing import Any

    from pyvmm.course.exercise import Exercise
    from pyvmm.course.lesson import Lesson

RIGHT, WRONG, OPEN, UNCHECKED = "right", "wrong", "open", "not checked"
"""What an exercise is found to be: OPEN is a question without an answer, UNCHECKED one that needs KVM."""
OUTPUT = 2000
"""Characters of what a learner's code prints that are shown: the last ones."""


class Result:
    """How one exercise stands: `state`, what is wrong in a sentence (`text`), and the hints that are due."""

    __slots__ = ("exercise", "hints", "output", "state", "text")

    def __init__(self, exercise: Exercise, state: str, text: str = "", output: str = "") -> None:
        self.exercise = exercise
        self.state = state
        self.text = text
        self.hints: tuple[str, ...] = ()
        self.output = output

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        exercise = self.exercise
        head = {"name": exercise.name, "title": exercise.title, "kind": exercise.kind, "state": self.state}
        return head | {"text": self.text, "hints": list(self.hints)}


def check(lesson: Lesson, folder: str, *, live: bool, count: bool = True) -> list[Result]:
    """How each exercise in the work folder `folder` stands.

    `live` says whether KVM may be used; what needs it is not checked otherwise. `count` False leaves the folder as it
    is: then no hints are due. Raises UsageError, CourseError.
    """
    given = answers(lesson, folder)
    attempts = Attempts(folder) if count else None
    results = []
    for exercise in lesson.exercises:
        if exercise.kind == QUESTION:
            tried = given[exercise.name]
            result = _question(exercise, tried)
        else:
            tried = _tried(lesson, exercise, folder)
            result = _code(lesson, exercise, folder, live)
        if result.state == WRONG and attempts and tried:
            result.hints = exercise.hints[: attempts.failed(exercise.name, tried)]
        results.append(result)
    if attempts:
        attempts.save()
    return results


def _question(exercise: Exercise, answer: str) -> Result:
    if not answer.strip():
        return Result(exercise, OPEN, "not answered yet")
    if exercise.accepts(answer):
        return Result(exercise, RIGHT)
    return Result(exercise, WRONG, f"{answer!r} is not it")


def _code(lesson: Lesson, exercise: Exercise, folder: str, live: bool) -> Result:
    if exercise.kvm and not live:
        return Result(exercise, UNCHECKED, "it runs a guest: that needs /dev/kvm")
    output = ""

    def tell(text: str) -> None:
        nonlocal output
        output = (output + text)[-OUTPUT:]

    wrong = run_check(lesson, exercise.name, folder, live, tell)
    return Result(exercise, WRONG if wrong else RIGHT, wrong, output)


def _tried(lesson: Lesson, exercise: Exercise, folder: str) -> str:
    """What the learner wrote for this exercise; "" where it is still as it was given.

    A function or constant of the exercise's name, so that work on one exercise is no attempt at another; where there is
    none, the whole file.
    """
    given, written = (_part(path, exercise.name) for path in (lesson.folder, Path(folder)))
    return "" if written == given else written


def _part(folder: Traversable, name: str) -> str:
    path = folder.joinpath(EXERCISE)
    for one in (name, name.upper(), ""):
        try:
            return python(path, EXERCISE, one).text
        except CourseError:
            pass
    return ""
