"""The course on the real thing: every step runs as recorded, solutions that run guests pass, a lesson at a terminal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.course import lesson, lesson_numbers, recording, work
from pyvmm.course.child import run_check
from pyvmm.course.files import course_root
from pyvmm.course.page import Ask, Run
from tests.support import needs
from tests.support.cli import pyvmm
from tests.support.session import Session

pytestmark = [pytest.mark.needs("kvm", "gcc"), pytest.mark.timeout(400)]

STEPS = [
    pytest.param(number, name, id=f"{number}-{name}") for number in lesson_numbers() for name in lesson(number).runs
]
CODE = [
    pytest.param(number, exercise.name, id=f"{number}-{exercise.name}")
    for number in lesson_numbers()
    for exercise in lesson(number).exercises
    if exercise.kind == "code" and exercise.kvm
]


def nobody(text: str) -> None:
    """Hears what is told."""


def needs_linux(text: str) -> None:
    if 'image("' in text and needs.missing("tiny-image"):
        pytest.skip(f"needs tiny-image: {needs.missing('tiny-image')}")


@pytest.mark.parametrize(("number", "name"), STEPS)
def test_a_step_prints_what_is_recorded_of_it(number: int, name: str) -> None:
    made = lesson(number)
    needs_linux(made.folder.joinpath("lesson.py").read_text())
    made.time_limit *= 3  # the machine may be busy
    fresh = recording.run(made, name, nobody)
    assert recording.difference(recording.load(made).steps[name], fresh, made.varies) == ""


@pytest.mark.parametrize(("number", "name"), CODE)
def test_an_exercise_with_a_guest_fails_as_given_and_passes_solved(number: int, name: str, tmp_path: Path) -> None:
    made = lesson(number)
    needs_linux(made.folder.joinpath("check.py").read_text() + made.folder.joinpath("exercise.py").read_text())
    made.time_limit *= 3
    work.start(made, str(tmp_path))
    assert run_check(made, name, str(tmp_path), True, nobody).strip()
    solution = course_root().joinpath("solutions").joinpath(made.slug).joinpath("exercise.py")
    (tmp_path / "exercise.py").write_bytes(solution.read_bytes())
    assert run_check(made, name, str(tmp_path), True, nobody) == ""


# --- At a terminal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_terminal() -> Iterator[Any]:
    sessions: list[Session] = []

    def start(*arguments: object) -> Session:
        sessions.append(Session(*arguments, verb="lesson", limit=60))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def go_on(session: Session) -> None:
    time.sleep(0.05)
    session.type(b"\n")


def test_lesson_1_to_its_end(at_terminal) -> None:
    """Every step's heading comes, what runs runs, each question is answered, and the last Enter ends it."""
    made = lesson(1)
    session = at_terminal(1)
    for index, step in enumerate(made.steps, 1):
        for part in step.parts:
            if isinstance(part, Run):
                session.see(recording.load(made).steps[part.name].splitlines()[-1].encode())
            elif isinstance(part, Ask):
                session.see(b"Enter to leave it): ")
                session.shown = b""
                session.type(made.exercise(part.name).answers[0].encode() + b"\n")
                session.see(b"(right)")
        session.see(f"[{index}/{len(made.steps)}]".encode())
        session.shown = b""
        go_on(session)
    session.see(b"end of lesson 1")
    assert session.end() == 0
    assert session.errors() == ""


def test_hints_back_and_leaving(at_terminal) -> None:
    session = at_terminal(2)
    session.see(b"[1/")
    session.type(b"b\n")
    session.see(b"[1/", b"[1/")
    session.type(b"\n")
    session.see(b"[2/")
    session.type(b"what\n")
    session.see(b"[2/", b"[2/")
    session.type(b"b\n")
    session.see(b"[2/", b"[1/")
    session.type(b"\x04")  # the end of input leaves, too
    assert session.end() == 0
    assert session.errors() == ""


def test_ctrl_c_ends_a_lesson(at_terminal) -> None:
    session = at_terminal(1)
    session.see(b"[1/")
    session.type(b"\x03")
    assert session.end() == 130


# --- Commands ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_started_and_graded(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    started = pyvmm("lesson", "start", 2, folder)
    assert (started.returncode, started.stderr) == (0, b"")
    graded = pyvmm("lesson", "check", 2, folder)
    assert graded.returncode == 1
    assert b"0 of 6 right" in graded.stdout
    solution = course_root().joinpath("solutions").joinpath(lesson(2).slug).joinpath("exercise.py")
    (folder / "exercise.py").write_bytes(solution.read_bytes())
    answers = "".join(f"{one.name} = {one.answers[0]!r}\n" for one in lesson(2).exercises if one.answers)
    (folder / "answers.toml").write_text(answers)
    graded = pyvmm("lesson", "check", 2, "--json", cwd=folder)
    assert graded.returncode == 0, graded.stdout
    said = json.loads(graded.stdout)
    assert (said["lesson"], said["passed"], said["right"], said["of"], said["folder"]) == (2, True, 6, 6, str(folder))
    assert {exercise["state"] for exercise in said["exercises"]} == {"right"}


def test_the_list_has_every_lesson_with_its_minutes() -> None:
    listed = pyvmm("lesson").stdout.decode()
    for number in lesson_numbers():
        made = lesson(number)
        assert re.search(rf"^ ?{number}  {re.escape(made.title)}  \({made.minutes} minutes\)$", listed, re.MULTILINE)


def test_a_recording_is_made_by_the_command_as_by_hand(tmp_path: Path) -> None:
    """In a copy of the package: the lesson's own file stays as it is."""
    import shutil

    from tests.support.cli import ROOT, environment

    package = tmp_path / "pyvmm"
    shutil.copytree(ROOT / "pyvmm", package, ignore=shutil.ignore_patterns("__pycache__", "tiny"))
    path = package / "_course" / lesson(2).slug / "recording.json"
    path.unlink()
    result = pyvmm("lesson", "record", 2, env=environment(PYTHONPATH=str(tmp_path)), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.decode() == f"pyvmm: lesson 2: 2 steps recorded in {path}\n"
    made = json.loads(path.read_text())
    assert made["steps"] == json.loads(lesson(2).folder.joinpath("recording.json").read_text())["steps"]
