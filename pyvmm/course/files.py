"""Where the files of the course are, and the error that names a place in one.

Imports errors. Files are package data, read through importlib.resources: lessons (`pyvmm/_course`), the guests'
sources (`pyvmm/_images`) and pyvmm's own.
"""

from __future__ import annotations

import functools

from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

COURSE = "docs/course"
GUESTS = "guest-images"
"""What errors call the folders: by their names in the repository."""


class CourseError(PyvmmError):
    """A file of the course is not what it should be: `place` is its name, `line` a line of it (from 1) or 0."""

    def __init__(self, place: str, line: int, problem: str) -> None:
        super().__init__(f"{place}:{line}: {problem}" if line else f"{place}: {problem}")
        self.place = place
        self.line = line
        self.problem = problem


@functools.cache
def package() -> Traversable:
    """The folder of the package `pyvmm`."""
    from importlib.resources import files

    return files("pyvmm")


def course_root() -> Traversable:
    """The folder of all lessons. Raises CourseError where the course was not installed."""
    root = package().joinpath("_course")
    if not root.is_dir():
        raise CourseError(COURSE, 0, "the lessons are not there (is this pyvmm installed whole?)")
    return root


def guests_root() -> Traversable:
    """The folder of all guests' sources."""
    return package().joinpath("_images")


def read(path: Traversable, place: str) -> str:
    """The text of the file `path`, which errors call `place`. Raises CourseError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise CourseError(place, 0, f"cannot be read: {reason}") from None
