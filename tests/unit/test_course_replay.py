"""The course where pyvmm was not built and /dev/kvm may not even be opened: taught and checked by recordings."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.course import lesson, lesson_numbers
from pyvmm.course.files import course_root
from tests.support.cli import ROOT, environment

GUARD = """
import sys


def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith("/dev/kvm"):
        raise RuntimeError("/dev/kvm was opened")


sys.addaudithook(hook)
"""


@pytest.fixture(scope="module")
def unbuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package as it is before anything is compiled."""
    folder = tmp_path_factory.mktemp("unbuilt")
    left_out = shutil.ignore_patterns("__pycache__", "*.so", "*.c", "*.h")
    shutil.copytree(ROOT / "pyvmm", folder / "pyvmm", ignore=left_out)
    for source in (ROOT / "guest-images").glob("*/*.[ch]"):  # what pyvmm/_images has of these belongs to guests
        shutil.copy(source, folder / "pyvmm/_images" / source.parent.name)
    (folder / "sitecustomize.py").write_text(GUARD)
    return folder


def pyvmm(unbuilt: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pyvmm", *map(str, arguments)],
        cwd=unbuilt,
        env=environment(PYTHONPATH=str(unbuilt)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_the_copy_is_what_it_is_meant_to_be(unbuilt: Path) -> None:
    assert not list(unbuilt.rglob("*.so"))
    result = subprocess.run(
        [sys.executable, "-c", "import pyvmm; print(pyvmm.__file__); open('/dev/kvm')"],
        cwd=unbuilt,
        env=environment(PYTHONPATH=str(unbuilt)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.startswith(str(unbuilt))
    assert "/dev/kvm was opened" in result.stderr


@pytest.mark.parametrize("number", [number for number in lesson_numbers() if number <= 13])
def test_a_lesson_is_taught_and_checked_by_replay(unbuilt: Path, number: int, tmp_path: Path) -> None:
    made = lesson(number)
    taught = pyvmm(unbuilt, "lesson", number, "--replay")
    assert (taught.returncode, taught.stderr) == (0, "")
    for step in made.steps:
        assert step.heading in taught.stdout
    assert taught.stdout.count(", as recorded on ") == sum(
        type(part).__name__ == "Run" for step in made.steps for part in step.parts
    )

    folder = tmp_path / "work"
    assert pyvmm(unbuilt, "lesson", "start", number, folder).returncode == 0
    assert pyvmm(unbuilt, "lesson", "check", number, folder, "--replay").returncode == 1
    solution = course_root().joinpath("solutions").joinpath(made.slug).joinpath("exercise.py")
    if solution.is_file():
        (folder / "exercise.py").write_bytes(solution.read_bytes())
    answers = "".join(f"{one.name} = {json.dumps(one.answers[0])}\n" for one in made.exercises if one.answers)
    (folder / "answers.toml").write_text(answers)
    graded = pyvmm(unbuilt, "lesson", "check", number, folder, "--replay", "--json")
    assert (graded.returncode, graded.stderr) == (0, ""), graded.stdout
    states = {exercise["name"]: exercise["state"] for exercise in json.loads(graded.stdout)["exercises"]}
    assert states == {one.name: "not checked" if one.kvm else "right" for one in made.exercises}
    assert len([state for state in states.values() if state == "right"]) >= 2, "hardly anything is left of it"


@pytest.mark.parametrize(
    ("arguments", "status", "error"),
    [
        (("2",), 126, r"(pyvmm lesson 2 --replay does without)"),
        (("check", "2", "{}"), 126, r"--replay does without)"),
        (("record", "2"), 126, "pyvmm"),
        (("99",), 2, "there is no lesson 99 (known: 1, 2"),
        (("two",), 2, "'two' is no lesson (expected start, check, record, or a number up to"),
        (("-1",), 2, "error: "),
        (("2", "3"), 2, "error: unrecognized arguments: 3"),
        (("start", "2"), 2, "error: the following arguments are required: DIR"),
        (("start", "2", "/proc/x"), 125, "/proc/x: No such file or directory"),
        (("check", "2", "/nowhere", "--replay"), 2, "/nowhere is no work folder"),
        (("2", "--replai"), 2, "error: unrecognized arguments: --replai"),
    ],
)
def test_mistakes_are_told_in_a_line(
    unbuilt: Path, arguments: tuple[str, ...], status: int, error: str, tmp_path: Path
) -> None:
    result = pyvmm(unbuilt, "lesson", *(word.format(tmp_path) for word in arguments))
    assert (result.returncode, result.stdout) == (status, "")
    assert error in result.stderr
    assert result.stderr.startswith("pyvmm: ")
    assert result.stderr.count("\n") == 1


def test_help_shows_every_form(unbuilt: Path) -> None:
    shown = pyvmm(unbuilt, "lesson", "--help").stdout
    for form in ("lesson N [--replay]", "lesson start N DIR", "lesson check N [DIR]", "lesson record N"):
        assert form in shown


def test_the_list_needs_nothing(unbuilt: Path) -> None:
    result = pyvmm(unbuilt, "lesson")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(" minutes)\n") == len(lesson_numbers())


def test_the_loop_of_the_teachers_page_grades_every_folder(unbuilt: Path, tmp_path: Path) -> None:
    """The commands are taken from the page, with another folder for /srv/course."""
    page = (ROOT / "docs/course/teachers.md").read_text()
    (loop,) = re.findall(r"```sh\n(for folder in .*?)```", page, re.DOTALL)
    for pupil in ("ada", "bob"):
        assert pyvmm(unbuilt, "lesson", "start", 2, tmp_path / pupil / "lesson02").returncode == 0
    (tmp_path / "bob/lesson02/answers.toml").write_text("exits = 31\nrflags = 1\n")
    before = sorted(tmp_path.rglob("*"))
    script = loop.replace("/srv/course", str(tmp_path)).replace("pyvmm lesson", f"{sys.executable} -m pyvmm lesson")
    environment_ = environment(PYTHONPATH=str(unbuilt))
    result = subprocess.run(
        ["sh", "-c", script], cwd=unbuilt, env=environment_, capture_output=True, text=True, timeout=100
    )
    assert result.stderr == ""
    (made,) = unbuilt.glob("lesson02.jsonl")
    lines = [json.loads(line) for line in made.read_text().splitlines()]
    assert [(line["folder"], line["right"], line["of"], line["passed"]) for line in lines] == [
        (str(tmp_path / "ada/lesson02"), 0, 6, False),
        (str(tmp_path / "bob/lesson02"), 2, 6, False),
    ]
    assert sorted(tmp_path.rglob("*")) == before
