"""The course: its format and what is said of mistakes in it, quoting, and every lesson that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.course import lesson, lesson_numbers, quote, recording, work
from pyvmm.course.child import run_check
from pyvmm.course.exercise import Exercise
from pyvmm.course.files import CourseError, course_root, guests_root
from pyvmm.course.lesson import Lesson, load_from
from pyvmm.course.page import Ask, Code, Picture, Run, Text, parse
from pyvmm.errors import UsageError

TOML = """number = 4
title = "Ports"
minutes = 30
aims = ["say what a port is"]
guests = ["hello16"]

[[exercise]]
name = "com1"
title = "COM1"
kind = "question"
prompt = "Which port?"
answer = ["0x3f8"]

[[exercise]]
name = "divisor"
title = "The divisor"
kind = "code"
hints = ["Divide."]
"""
PAGE = """Why ports.

## First

Text.

{{ code guest hello16.S }}
{{ run show }}

## Second

{{ ask com1 }}
"""
PYTHON = "def show():\n    print('shown')\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "04-ports"
    made.mkdir()
    (made / "lesson.toml").write_text(TOML)
    (made / "lesson.md").write_text(PAGE)
    (made / "lesson.py").write_text(PYTHON)
    return made


def fails(folder: Path, text: str) -> None:
    with pytest.raises(CourseError) as caught:
        load_from(folder, "04-ports")
    assert str(caught.value) == text


# --- The format -------------------------------------------------------------------------------------------------------


def test_a_lesson_is_read(folder: Path) -> None:
    made = load_from(folder, "04-ports")
    assert (made.number, made.title, made.minutes, made.guests, made.runs) == (4, "Ports", 30, ["hello16"], ["show"])
    assert [step.heading for step in made.steps] == ["", "First", "Second"]
    assert [type(part) for part in made.steps[1].parts] == [Text, Code, Run]
    assert [type(part) for part in made.steps[2].parts] == [Ask]
    assert [exercise.kind for exercise in made.exercises] == ["question", "code"]


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("minutes = 30\n", "", ": minutes is missing"),
        ("minutes = 30", 'minutes = "30"', ":3: minutes is '30'"),
        ("minutes = 30", "minutes = true", ":3: minutes is True"),
        ("minutes = 30", "minutes = 30\ncolour = 1", ":4: colour is not known"),
        ("number = 4", "number = 5", ":1: number is 5, but the folder is called 04-ports"),
        (
            'guests = ["hello16"]',
            'guests = ["hello17"]',
            ":5: guests has 'hello17', which is no guest of guest-images/",
        ),
        ('kind = "code"', 'kind = "essay"', ":17: kind is 'essay', expected 'question' or 'code'"),
        ('prompt = "Which port?"\n', "", ":7: prompt is missing"),
        ('name = "divisor"', 'name = "com1"', ": name 'com1' is given twice"),
        ('name = "divisor"', 'name = "the divisor"', ":15: name is 'the divisor', expected a name in small letters"),
        ('hints = ["Divide."]', "hints = [1]", ":18: hints is [1], expected a list of strings"),
        ("aims = [", 'varies = ["("]\naims = [', ":4: varies has '(', which is no regular expression"),
        ("aims = [", "aims = [[", ":"),
        ("minutes = 30", "minutes = ?", ":3: "),
        ('answer = ["0x3f8"]', "answer = []", ":12: answer is empty"),
    ],
)
def test_what_is_wrong_with_a_lesson_toml_is_named_with_its_line(folder: Path, old: str, new: str, error: str) -> None:
    assert old in TOML
    (folder / "lesson.toml").write_text(TOML.replace(old, new))
    with pytest.raises(CourseError) as caught:
        load_from(folder, "04-ports")
    assert str(caught.value).startswith(f"docs/course/04-ports/lesson.toml{error}"), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "line", "error"),
    [
        ("{{ run show }}", "{{ run hide }}", 8, "docs/course/04-ports/lesson.py: has no function hide"),
        ("{{ run show }}", "{{ picture }}", 8, "docs/course/04-ports/picture.py: cannot be read"),
        ("{{ ask com1 }}", "{{ ask divisor }}", 12, "docs/course/04-ports/lesson.toml: has no question 'divisor'"),
        ("hello16.S }}", "hello17.S }}", 7, "guest-images/hello16/hello17.S: is not there"),
        ("hello16.S }}", "hello16.S loop }}", 7, "guest-images/hello16/hello16.S: has no part [loop]"),
        ("{{ run show }}", "{{ code lesson.py hide }}", 8, "docs/course/04-ports/lesson.py: has no hide"),
        ("{{ run show }}", "{{ code ../x.py }}", 8, "docs/course/04-ports/../x.py: is not in the lesson's folder"),
        ("{{ run show }}", "{{ code pyvmm/../x.py }}", 8, "pyvmm/../x.py: is no file of pyvmm's"),
        ("{{ run show }}", "{{ jump }}", 8, "{{ jump }} is no directive (expected picture"),
        ("Text.", "Text {{ run show }}", 5, "a directive stands alone on its line"),
        ("Text.", "# Title", 5, "the title comes from lesson.toml"),
        ("Text.", "```\nText.", 13, "a block is never ended by ```"),
        ("{{ ask com1 }}", "", 10, "the step 'Second' is empty"),
    ],
)
def test_what_is_wrong_with_a_lesson_md_is_named_with_its_line(
    folder: Path, old: str, new: str, line: int, error: str
) -> None:
    assert old in PAGE
    (folder / "lesson.md").write_text(PAGE.replace(old, new))
    with pytest.raises(CourseError) as caught:
        load_from(folder, "04-ports")
    assert str(caught.value).startswith(f"docs/course/04-ports/lesson.md:{line}: {error}"), caught.value


def test_files_that_are_missing_or_no_text(folder: Path) -> None:
    (folder / "lesson.md").write_bytes(b"\xff")
    fails(folder, "docs/course/04-ports/lesson.md: cannot be read: it is not UTF-8")
    (folder / "lesson.md").unlink()
    fails(folder, "docs/course/04-ports/lesson.md: cannot be read: No such file or directory")
    (folder / "lesson.md").write_text("")
    fails(folder, "docs/course/04-ports/lesson.md:1: is empty (expected steps, each with a ## heading)")


def test_directives_within_a_block_are_text() -> None:
    (step,) = parse("## A\n```\n{{ run x }}\n## B\n```\n", "x")
    assert [type(part) for part in step.parts] == [Text]


def test_a_lesson_that_is_not_there() -> None:
    with pytest.raises(UsageError, match=r"there is no lesson 99 \(known: "):
        lesson(99)


# --- Quoting ----------------------------------------------------------------------------------------------------------

SOURCE = '''"""Module."""

# Why it is three.
LIMIT: int = 3
"""In metres."""
PAIR, OTHER = 1, 2


class Box:
    @property
    def size(self):
        return 1


if LIMIT:
    def inner(): ...
'''


@pytest.mark.parametrize(
    ("name", "line", "text"),
    [
        ("LIMIT", 3, '# Why it is three.\nLIMIT: int = 3\n"""In metres."""\n'),
        ("OTHER", 6, "PAIR, OTHER = 1, 2\n"),
        ("Box.size", 10, "@property\ndef size(self):\n    return 1\n"),
        ("inner", 16, "def inner(): ...\n"),
        ("", 1, SOURCE),
    ],
)
def test_python_is_quoted_by_name(tmp_path: Path, name: str, line: int, text: str) -> None:
    (tmp_path / "x.py").write_text(SOURCE)
    quoted = quote.python(tmp_path / "x.py", "x.py", name)
    assert (quoted.line, quoted.text, quoted.language) == (line, text, "python")


def test_what_python_does_not_have_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(SOURCE)
    for name in ("nothing", "Box.nothing", "LIMIT.x"):
        with pytest.raises(CourseError, match=f"^x.py: has no {name}$"):
            quote.python(tmp_path / "x.py", "x.py", name)
    (tmp_path / "x.py").write_text("x = \n")
    with pytest.raises(CourseError, match="^x.py:1: is no Python: "):
        quote.python(tmp_path / "x.py", "x.py", "x")


def test_parts_of_a_guest_are_quoted_by_label(tmp_path: Path) -> None:
    path = tmp_path / "x.S"
    path.write_text(
        "start:\n  # [one]\n  nop\n    # [two]\n    hlt\n    # [/two]\n  # [/one]\n/* [three] */\n// [/three]\n"
    )
    assert quote.labelled(path, "x.S", "one").text == "nop\n  hlt\n"
    assert quote.labelled(path, "x.S", "two").text == "hlt\n"
    assert quote.labelled(path, "x.S", "two").line == 5
    assert quote.labelled(path, "x.S").text == "start:\n  nop\n    hlt\n"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("# [a]\n", r"x.S:1: \[a\] is never ended by \[/a\]"),
        ("# [/a]\n", r"x.S:1: \[/a\] stands where it cannot"),
        ("# [a]\n# [a]\n", r"x.S:2: \[a\] stands where it cannot"),
        ("# a\n", r"x.S: has no part \[a\]"),
    ],
)
def test_labels_that_do_not_match(tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "x.S").write_text(text)
    with pytest.raises(CourseError, match=f"^{error}$"):
        quote.labelled(tmp_path / "x.S", "x.S", "a")


def test_pyvmms_own_sources_are_quoted() -> None:
    assert quote.own("pyvmm/kvm/vcpu.py", "VcpuFd.kick").text.startswith("def kick(self)")
    assert quote.own("pyvmm/_native/run_loop.c").language == "c"


# --- Answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["0x3f8", "0X3F8", "1016", " 1016 ", "3f8h", "1,016", "01016"])
def test_a_number_is_compared_by_value(answer: str) -> None:
    assert Exercise("x", "x", "question", (), answers=("0x3f8",)).accepts(answer)


@pytest.mark.parametrize("answer", ["", "3f8", "0x3f9", "ten", "0x"])
def test_another_number_is_wrong(answer: str) -> None:
    assert not Exercise("x", "x", "question", (), answers=("0x3f8",)).accepts(answer)


def test_words_are_compared_without_case_and_blanks() -> None:
    question = Exercise("x", "x", "question", (), answers=("vm exit", "exit"))
    assert all(map(question.accepts, ("VM exit", "VMexit", " Exit", "exit.")))
    assert not any(map(question.accepts, ("vm-entry", "")))


# --- Every lesson -----------------------------------------------------------------------------------------------------

every_lesson = pytest.mark.parametrize("number", lesson_numbers())


def guest_sources(made: Lesson) -> dict[str, str]:
    found = {}
    for name in made.guests:
        for entry in guests_root().joinpath(name).iterdir():
            if entry.name.endswith((".S", ".c")):
                found[f"{name}/{entry.name}"] = entry.read_text()
    return found


@every_lesson
def test_a_lesson_loads_and_keeps_its_bounds(number: int) -> None:
    made = lesson(number)
    assert 10 <= made.minutes <= 120
    python = made.folder.joinpath("lesson.py").read_text()
    assert quote.code_lines(python, "python") < 60
    for name, text in guest_sources(made).items():
        if name.startswith("lesson"):
            assert quote.code_lines(text, "c" if name.endswith(".c") else "gas") < 40, name
    assert made.exercises, "a lesson has exercises"


@every_lesson
def test_a_lessons_pictures_can_be_drawn_and_nothing_in_them_overlaps(number: int) -> None:
    made = lesson(number)
    pictures = [part for step in made.steps for part in step.parts if isinstance(part, Picture)]
    assert pictures, "a lesson has a picture"
    for part in pictures:
        drawing = made.drawing(part)
        assert drawing.problems() == []
        assert len(drawing.description) > 40, "who cannot see it reads this"


@every_lesson
def test_a_lesson_has_a_recording_of_all_it_runs(number: int) -> None:
    made = lesson(number)
    steps = recording.load(made).steps
    assert sorted(steps) == sorted(made.runs), "pyvmm lesson record makes it anew"
    assert all(text.strip() for text in steps.values())


@every_lesson
def test_what_varies_is_in_the_recording(number: int) -> None:
    """An expression that matches nothing is a leftover, or mistaken."""
    made = lesson(number)
    said = "".join(recording.load(made).steps.values())
    for pattern in made.varies:
        assert recording.normalised(said, [pattern]) != said, pattern


CODE = [
    pytest.param(number, exercise.name, id=f"{number}-{exercise.name}")
    for number in lesson_numbers()
    for exercise in lesson(number).exercises
    if exercise.kind == "code" and not exercise.kvm
]


def work_folder(number: int, folder: Path, solved: bool) -> str:
    made = lesson(number)
    work.start(made, str(folder))
    if solved:
        solution = course_root().joinpath("solutions").joinpath(made.slug).joinpath("exercise.py")
        (folder / "exercise.py").write_bytes(solution.read_bytes())
    return str(folder)


@pytest.mark.parametrize(("number", "name"), CODE)
def test_an_exercise_left_as_it_is_fails_and_says_why(number: int, name: str, tmp_path: Path) -> None:
    wrong = run_check(lesson(number), name, work_folder(number, tmp_path, False), False, lambda text: None)
    assert wrong.strip()
    assert "\n" not in wrong
    assert "ended early" not in wrong


@pytest.mark.parametrize(("number", "name"), CODE)
def test_the_solution_of_an_exercise_passes(number: int, name: str, tmp_path: Path) -> None:
    assert run_check(lesson(number), name, work_folder(number, tmp_path, True), False, lambda text: None) == ""


@every_lesson
def test_solutions_are_apart_from_what_learners_are_given(number: int) -> None:
    made = lesson(number)
    if any(exercise.kind == "code" for exercise in made.exercises):
        given = made.folder.joinpath("exercise.py").read_text()
        assert course_root().joinpath("solutions").joinpath(made.slug).joinpath("exercise.py").read_text() != given
        assert "..." in given or '""' in given
    for exercise in made.exercises:
        assert exercise.hints, f"{exercise.name} has no hint"
