"""Work folders: what `pyvmm lesson start` lays out, a learner's answers, and how often each exercise was tried.

Imports files and errors.
"""

from __future__ import annotations

import json
import os
import textwrap

from pyvmm.course.exercise import CODE, QUESTION
from pyvmm.course.files import guests_root, read
from pyvmm.errors import BackendError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.course.lesson import Lesson

EXERCISE = "exercise.py"
ANSWERS = "answers.toml"
ATTEMPTS = ".attempts.json"


def start(lesson: Lesson, folder: str) -> list[str]:
    """Lay out a work folder; the names of its files. Raises UsageError where there is something already."""
    files = _files(lesson)
    made: list[str] = []
    new = not os.path.exists(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        if os.listdir(folder):
            raise UsageError(f"{folder} is not empty (expected a new folder, or an empty one)")
        for name, text in files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "x", encoding="utf-8") as file:
                made.append(path)
                file.write(text)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{folder} is no folder") from None
    except OSError as error:
        for path in made:
            os.unlink(path)
        for path, _, _ in os.walk(folder, topdown=False):
            if path != folder or new:
                os.rmdir(path)
        raise BackendError(f"{folder}: {error.strerror}") from None
    return list(files)


def _files(lesson: Lesson) -> dict[str, str]:
    files = {"README.md": _readme(lesson)}
    if any(exercise.kind == CODE for exercise in lesson.exercises):
        files[EXERCISE] = read(lesson.folder.joinpath(EXERCISE), lesson.place(EXERCISE))
    files[ANSWERS] = _answers(lesson)
    for name in lesson.guests:
        for entry in guests_root().joinpath(name).iterdir():
            if entry.name.endswith((".S", ".c", ".h", ".toml", ".md")):
                files[f"guests/{name}/{entry.name}"] = read(entry, f"guest-images/{name}/{entry.name}")
    return files


def _readme(lesson: Lesson) -> str:
    number = lesson.number
    lines = [f"# Lesson {number}: {lesson.title}", "", "After it you can", ""]
    lines += [f"- {aim}" for aim in lesson.aims]
    lines += ["", "```sh", f"pyvmm lesson {number}            # the lesson, step by step"]
    lines += [f"pyvmm lesson check {number} .    # how far you are, with hints", "```", ""]
    lines += [
        f"Both take `--replay` where there is no /dev/kvm. Answer questions in `{ANSWERS}`; complete the functions in"
    ]
    lines += [f"`{EXERCISE}` as their docstrings say. The guests' sources are in `guests/`, for reading.", ""]
    for exercise in lesson.exercises:
        where = ANSWERS if exercise.kind == QUESTION else f"{EXERCISE}{', runs a guest' if exercise.kvm else ''}"
        lines += [f"- **{exercise.title}** (`{exercise.name}`, {where})"]
        lines += [f"  {exercise.prompt}"] if exercise.prompt else []
    return "\n".join(lines) + "\n"


def _answers(lesson: Lesson) -> str:
    lines = [f"lesson = {lesson.number}", ""]
    for exercise in lesson.exercises:
        if exercise.kind == QUESTION:
            lines += [f"# {line}" for line in textwrap.wrap(exercise.prompt, 100)]
            lines += [f'{exercise.name} = ""', ""]
    return "\n".join(lines)


def answers(lesson: Lesson, folder: str) -> dict[str, str]:
    """What the learner answered, by the question's name; "" where nothing yet. Raises UsageError, one line."""
    import tomllib

    path = os.path.join(folder, ANSWERS)
    names = [exercise.name for exercise in lesson.exercises if exercise.kind == QUESTION]
    try:
        with open(path, "rb") as file:
            given = tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"{folder} is no work folder: it has no {ANSWERS} (pyvmm lesson start makes one)") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error} (an answer is text in quotes or a number)") from None
    number = given.pop("lesson", lesson.number)
    if number != lesson.number:
        shown = repr(number) if isinstance(number, str) else str(number)
        raise UsageError(f"{folder} is the work folder of lesson {shown}, not of {lesson.number}")
    for name, answer in given.items():
        if name not in names:
            raise UsageError(f"{path}: {name!r} is no question of this lesson (known: {', '.join(names) or 'none'})")
        if not isinstance(answer, str | int | float):
            raise UsageError(f"{path}: {name} is {answer!r} (expected text in quotes or a number)")
    return {name: str(given.get(name, "")) for name in names}


class Attempts:
    """How many different tries of each exercise have failed, kept in the work folder where that can be written."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, ATTEMPTS)
        self._tries: dict[str, list[str]] = {}
        try:
            with open(self._path, encoding="utf-8") as file:
                kept = json.load(file)
            self._tries = {str(name): [str(one) for one in tries] for name, tries in kept.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            pass  # none yet, or somebody has written into it: hints begin again

    def failed(self, name: str, tried: str) -> int:
        """Count the failed attempt `tried`, an answer or a file's text, if it is a new one; how many there are now."""
        import hashlib

        digest = hashlib.sha256(tried.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        tries = self._tries.setdefault(name, [])
        if digest not in tries:
            tries.append(digest)
        return len(tries)

    def save(self) -> None:
        """Keep them."""
        try:
            with open(self._path, "w", encoding="utf-8") as file:
                json.dump(self._tries, file)
        except OSError:
            pass  # a folder that may only be read: every check is then the first
