"""`pyvmm lesson`: the course in a terminal, its work folders, and their grading.

Imports course. docs/course/index.md is the course's own page.
"""

from __future__ import annotations

import os

from pyvmm.cli.orderly import end_in_order
from pyvmm.cli.progress import log
from pyvmm.errors import BackendError, KvmUnavailableError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from pyvmm.course.checking import Result
    from pyvmm.course.lesson import Lesson

HELP = "a course on virtual machines: lessons that run, and exercises that are checked"
NOT_YET = 1
EXPLAINED = """\
  pyvmm lesson                     list the lessons
  pyvmm lesson N [--replay]        teach lesson N, step by step
  pyvmm lesson start N DIR         make a work folder for its exercises
  pyvmm lesson check N [DIR]       grade the work folder DIR (default: this one), with hints
  pyvmm lesson record N            run the steps and keep what they print (for who maintains the lessons)

--replay takes recorded output for the running: no /dev/kvm is needed.
status of check: 0 all right, 1 not yet, 2 wrong usage; 126 where KVM is needed and cannot be used"""


def main(argv: list[str]) -> int:
    """Runs `pyvmm lesson argv`. Returns the exit status; raises PyvmmError."""
    end_in_order()
    verbs = {"start": _start, "check": _check, "record": _record}
    if argv[:1] and argv[0] in verbs:
        return verbs[argv[0]](argv[1:])
    parser = _parser("pyvmm lesson")
    parser.add_argument("number", nargs="?", metavar="N")
    parser.add_argument("--replay", action="store_true", help="show recorded output; needs no KVM")
    arguments = parser.parse_args(argv)
    if arguments.number is None:
        return _list()
    return _teach(_lesson(arguments.number), arguments.replay)


def _parser(prog: str) -> argparse.ArgumentParser:
    import argparse

    from pyvmm.cli.parser import Parser

    plain = argparse.RawDescriptionHelpFormatter
    return Parser(prog=prog, description=HELP, epilog=EXPLAINED, formatter_class=plain, allow_abbrev=False)


def _lesson(word: str) -> Lesson:
    from pyvmm.course import lesson, lesson_numbers

    if not word.isdecimal():
        known = f"start, check, record, or a number up to {max(lesson_numbers(), default=0)}"
        raise UsageError(f"error: {word!r} is no lesson (expected {known})")
    return lesson(int(word))


def _list() -> int:
    from pyvmm.course import lessons

    for lesson in lessons():
        print(f"{lesson.number:2}  {lesson.title}  ({lesson.minutes} minutes)")
        for aim in lesson.aims:
            print(f"      {aim}")
    return 0


def _without_kvm() -> str:
    """Why KVM cannot be used, or ""."""
    from pyvmm.kvm import Kvm

    try:
        Kvm().close()
    except KvmUnavailableError as error:
        return str(error)
    return ""


def _need_kvm(instead: str) -> None:
    if problem := _without_kvm():
        raise KvmUnavailableError(f"{problem} ({instead} --replay does without)")


def _teach(lesson: Lesson, replay: bool) -> int:
    from pyvmm.course.teach import teach

    if lesson.runs and not replay:
        _need_kvm(f"pyvmm lesson {lesson.number}")
    teach(lesson, replay=replay)
    return 0


def _start(argv: list[str]) -> int:
    from pyvmm.course.work import start

    parser = _parser("pyvmm lesson start")
    parser.add_argument("number", metavar="N")
    parser.add_argument("folder", metavar="DIR", help="a new or empty folder")
    arguments = parser.parse_args(argv)
    lesson = _lesson(arguments.number)
    for name in start(lesson, arguments.folder):
        print(os.path.join(arguments.folder, name))
    return 0


def _check(argv: list[str]) -> int:
    from pyvmm.course.checking import RIGHT, UNCHECKED, check

    parser = _parser("pyvmm lesson check")
    parser.add_argument("number", metavar="N")
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="the work folder (default: this one)")
    parser.add_argument("--replay", action="store_true", help="check what needs no KVM")
    parser.add_argument(
        "--json", action="store_true", help="print JSON; writes nothing into the folder, gives no hints"
    )
    arguments = parser.parse_args(argv)
    lesson = _lesson(arguments.number)
    if not arguments.replay and any(exercise.kvm for exercise in lesson.exercises):
        _need_kvm(f"pyvmm lesson check {lesson.number} {arguments.folder}")
    results = check(lesson, arguments.folder, live=not arguments.replay, count=not arguments.json)
    passed = all(result.state in (RIGHT, UNCHECKED) for result in results)
    if arguments.json:
        _print_json(lesson, arguments.folder, results, passed)
    else:
        _print(lesson, results)
    return 0 if passed else NOT_YET


def _print_json(lesson: Lesson, folder: str, results: list[Result], passed: bool) -> None:
    import json

    from pyvmm.course.checking import RIGHT

    head = {"lesson": lesson.number, "title": lesson.title, "folder": os.path.abspath(folder), "passed": passed}
    right = sum(result.state == RIGHT for result in results)
    counts = {"right": right, "of": len(results)}
    print(json.dumps(head | counts | {"exercises": [result.as_json() for result in results]}, ensure_ascii=False))


def _print(lesson: Lesson, results: list[Result]) -> None:
    from pyvmm.course.checking import RIGHT, UNCHECKED, WRONG

    print(f"lesson {lesson.number}: {lesson.title}")
    for result in results:
        print(f"{result.state:>11}  {result.exercise.title} ({result.exercise.name})")
        if result.text:
            _indented(result.text)
        for number, hint in enumerate(result.hints, 1):
            _indented(f"hint {number} of {len(result.exercise.hints)}: {hint}")
        if result.output.strip() and result.state == WRONG:
            print(f"{'':13}it printed:")
            print("".join(f"{'':13}| {_visible(line)}\n" for line in result.output.splitlines()), end="")
    right, unchecked = (sum(result.state == state for result in results) for state in (RIGHT, UNCHECKED))
    print(f"{right} of {len(results)} right{f', {unchecked} not checked' if unchecked else ''}")


def _visible(text: str) -> str:
    """A line of what a learner's code says, without what would steer the terminal of whoever grades it."""
    return "".join(one if one.isprintable() or one == "\t" else f"\\x{ord(one):02x}" for one in text)


def _indented(text: str) -> None:
    import shutil
    import textwrap

    text = _visible(text)
    columns = max(60, min(shutil.get_terminal_size().columns, 120))
    print(textwrap.fill(text, columns, initial_indent=" " * 13, subsequent_indent=" " * 13, break_long_words=False))


def _record(argv: list[str]) -> int:
    from pyvmm.course import recording

    parser = _parser("pyvmm lesson record")
    parser.add_argument("number", metavar="N")
    arguments = parser.parse_args(argv)
    lesson = _lesson(arguments.number)
    _need_kvm("pyvmm lesson")
    made = recording.make(lesson, lambda text: print(text, end="", flush=True))
    path = str(lesson.folder.joinpath(recording.FILE))
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(made.dump())
    except OSError as error:
        raise BackendError(f"{path}: {error.strerror}") from None
    log.say(f"lesson {lesson.number}: {len(made.steps)} steps recorded in {path}")
    return 0
