"""The course: lessons with pictures, guests, code, questions and exercises, and all that teaches and checks them.

Pure Python: works without /dev/kvm and without the compiled module, but for the steps that run a guest. May import
errors, images, pyvmm's pure parts and its own package. Lessons are package data (`pyvmm/_course`; docs/course/ in the
repository); docs/course/writing.md describes their format.

    from pyvmm.course import lesson
    lesson(2).title              # 'The first VM in thirty lines'
    lesson(2).steps[0].parts     # what the terminal and the site show, in order
"""

from __future__ import annotations

import functools

from pyvmm.course.files import course_root
from pyvmm.course.lesson import Lesson, load
from pyvmm.errors import UsageError

__all__ = ["Lesson", "lesson", "lesson_numbers", "lessons"]


@functools.cache
def _folders() -> dict[int, str]:
    """Number and folder of each lesson: a folder called NN-slug."""
    names = [entry.name for entry in course_root().iterdir() if entry.is_dir()]
    return {int(name[:2]): name for name in sorted(names) if name[:2].isdigit() and name[2:3] == "-"}


def lesson_numbers() -> list[int]:
    """The numbers of all lessons, in order."""
    return list(_folders())


def lesson(number: int) -> Lesson:
    """The lesson with this number. Raises UsageError, which says what there is; CourseError where it is damaged."""
    folder = _folders().get(number)
    if folder is None:
        raise UsageError(f"there is no lesson {number} (known: {', '.join(map(str, lesson_numbers())) or 'none'})")
    return load(folder)


def lessons() -> list[Lesson]:
    """All lessons, in order. Raises CourseError."""
    return [lesson(number) for number in lesson_numbers()]
