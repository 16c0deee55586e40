"""Work folders, grading and hints; learners' code that misbehaves; recordings; a lesson without a terminal."""

from __future__ import annotations

import builtins
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.course import recording, render, teach, work
from pyvmm.course.checking import OPEN, RIGHT, UNCHECKED, WRONG, Result, check
from pyvmm.course.child import run_check, run_step
from pyvmm.course.files import CourseError
from pyvmm.course.lesson import Lesson, load_from
from pyvmm.errors import BackendError, PyvmmError, UsageError
from tests.support.cli import NOT_IGNORED, environment, pyvmm, wait_for

TOML = """number = 4
title = "Ports"
minutes = 30
aims = ["say what a port is"]
guests = ["hello16"]
varies = ['took \\d+ ns', '(?m)^exits .*$']
time_limit = 20

[[exercise]]
name = "com1"
title = "COM1"
kind = "question"
prompt = "Which port?"
answer = ["0x3f8"]
hints = ["It ends in 8.", "It begins with 3."]

[[exercise]]
name = "double"
title = "Twice"
kind = "code"
hints = ["Add.", "Or multiply."]

[[exercise]]
name = "halve"
title = "Half"
kind = "code"
kvm = true
hints = ["Shift."]
"""
PAGE = (
    "Why **ports**.\n\n## First\n\n{{ code lesson.py show }}\n{{ run show }}\n{{ ask com1 }}\n\n## Second\n\nThe end.\n"
)
LESSON = "def show():\n    print('took 17 ns')\n    print('done')\n\n\ndef fail():\n    raise ValueError('no')\n"
EXERCISE = 'def double(number):\n    """Twice the number."""\n    ...\n\n\ndef halve(number):\n    ...\n'
CHECK = """
def check_double(work):
    got = work.exercise.double(4)
    return "" if got == 8 else f"double(4) is {got!r}, expected 8"


def check_halve(work):
    return "" if work.live else "not live"


def check_bad(work):
    return None
"""
RECORDING = {"format": 1, "kvm": "kvm_pvm", "steps": {"show": ["took 5 ns", "done", ""]}}


@pytest.fixture
def made(tmp_path: Path) -> Lesson:
    folder = tmp_path / "04-ports"
    folder.mkdir()
    files = {"lesson.toml": TOML, "lesson.md": PAGE, "lesson.py": LESSON, "exercise.py": EXERCISE, "check.py": CHECK}
    files["recording.json"] = json.dumps(RECORDING)
    for name, text in files.items():
        (folder / name).write_text(text)
    return load_from(folder, "04-ports")


@pytest.fixture
def folder(made: Lesson, tmp_path: Path) -> Path:
    work.start(made, str(tmp_path / "work"))
    return tmp_path / "work"


def nobody(text: str) -> None:
    """Hears what is told."""


def states(results: list[Result]) -> list[str]:
    return [result.state for result in results]


# --- Work folders -----------------------------------------------------------------------------------------------------


def test_a_work_folder_has_all_that_is_needed(made: Lesson, folder: Path) -> None:
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"README.md", "exercise.py", "answers.toml", "guests/hello16/hello16.S"} <= names
    assert (folder / "exercise.py").read_text() == EXERCISE
    assert (folder / "answers.toml").read_text() == 'lesson = 4\n\n# Which port?\ncom1 = ""\n'
    assert "pyvmm lesson check 4 ." in (folder / "README.md").read_text()


def test_nothing_is_overwritten(made: Lesson, folder: Path, tmp_path: Path) -> None:
    (folder / "exercise.py").write_text("mine")
    with pytest.raises(UsageError, match=r"work is not empty \(expected a new folder, or an empty one\)$"):
        work.start(made, str(folder))
    assert (folder / "exercise.py").read_text() == "mine"
    (tmp_path / "file").touch()
    for path in ("file", "file/below"):
        with pytest.raises(UsageError, match=f"{path} is no folder$"):
            work.start(made, str(tmp_path / path))
    (tmp_path / "empty").mkdir()
    work.start(made, str(tmp_path / "empty"))


@pytest.mark.parametrize("there", [False, True])
def test_a_work_folder_that_cannot_be_filled_is_not_begun(
    there: bool, made: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"README.md": "text", "guests/one/one.S": "text", "nowhere\0": "text"}
    monkeypatch.setattr(work, "_files", lambda lesson: given)
    opened = builtins.open

    def full(path: str, mode: str, encoding: str) -> object:
        if "\0" in path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, encoding=encoding)

    monkeypatch.setattr(builtins, "open", full)
    new = tmp_path / "new"
    if there:
        new.mkdir()
    with pytest.raises(BackendError, match="new: No space left on device"):
        work.start(made, str(new))
    monkeypatch.undo()
    assert new.exists() == there and (not there or not list(new.iterdir()))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("com1 = ", "answers.toml: Invalid value"),
        ('lesson = 4\ncom2 = "x"', "answers.toml: 'com2' is no question of this lesson (known: com1)"),
        ('lesson = 4\ncom1 = ["x"]', "answers.toml: com1 is ['x'] (expected text in quotes or a number)"),
        ("lesson = 5", "work is the work folder of lesson 5, not of 4"),
        ('lesson = "4"', "work is the work folder of lesson '4', not of 4"),
        ("\xff", "answers.toml: 'utf-8' codec"),
    ],
)
def test_what_is_wrong_with_the_answers_is_told_in_a_line(made: Lesson, folder: Path, text: str, error: str) -> None:
    (folder / "answers.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        check(made, str(folder), live=False)
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_work_folder(made: Lesson, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"is no work folder: it has no answers.toml \(pyvmm lesson start makes one\)$"
    ):
        check(made, str(tmp_path), live=False)


# --- Grading ----------------------------------------------------------------------------------------------------------


def test_a_fresh_folder_is_graded_without_hints(made: Lesson, folder: Path) -> None:
    results = check(made, str(folder), live=False)
    assert states(results) == [OPEN, WRONG, UNCHECKED]
    assert results[1].text == "double(4) is None, expected 8"
    assert [result.hints for result in results] == [(), (), ()]


def test_each_new_attempt_that_fails_brings_a_hint(made: Lesson, folder: Path) -> None:
    hints = []
    for attempt in ("2 + number", "2 + number", "3 * number", "4 * number"):
        (folder / "exercise.py").write_text(f"def double(number):\n    return {attempt}\n")
        hints.append(check(made, str(folder), live=False)[1].hints)
    assert hints == [("Add.",), ("Add.",), ("Add.", "Or multiply."), ("Add.", "Or multiply.")]
    (folder / "exercise.py").write_text("def double(number):\n    return number * 2\n")
    result = check(made, str(folder), live=False)[1]
    assert (result.state, result.hints) == (RIGHT, ())


def test_work_on_one_exercise_is_no_attempt_at_another(made: Lesson, folder: Path) -> None:
    (folder / "exercise.py").write_text(
        EXERCISE.replace("def halve(number):\n    ...", "def halve(number):\n    return 1")
    )
    assert check(made, str(folder), live=False)[1].hints == ()


def test_questions_have_hints_one_by_one(made: Lesson, folder: Path) -> None:
    hints = []
    for answer in ('"0x3f9"', "1", "2"):
        (folder / "answers.toml").write_text(f"com1 = {answer}\n")
        hints.append(len(check(made, str(folder), live=False)[0].hints))
    assert hints == [1, 2, 2]
    (folder / "answers.toml").write_text("com1 = 1016\n")
    assert check(made, str(folder), live=False)[0].state == RIGHT


def test_looking_leaves_the_folder_as_it_is(made: Lesson, folder: Path) -> None:
    (folder / "answers.toml").write_text("com1 = 1\n")
    before = sorted(folder.rglob("*"))
    assert check(made, str(folder), live=False, count=False)[0].hints == ()
    assert sorted(folder.rglob("*")) == before


def test_attempts_that_cannot_be_read_begin_again(made: Lesson, folder: Path) -> None:
    for text in ("", "[]", "{", '{"com1": 3}', '{"com1": [[]]}'):
        (folder / ".attempts.json").write_text(text)
        (folder / "answers.toml").write_text("com1 = 1\n")
        assert check(made, str(folder), live=False)[0].state == WRONG


def test_what_runs_a_guest_is_checked_with_kvm_alone(made: Lesson, folder: Path) -> None:
    assert states(check(made, str(folder), live=True))[2] == RIGHT


# --- Code that misbehaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("def double(number):\n    return 1 / 0\n", "exercise.py, line 2: ZeroDivisionError: division by zero"),
        ("def double(number)\n", "exercise.py, line 1: expected ':'"),
        ("x = \x00\n", "exercise.py: source code string cannot contain null bytes"),
        ("raise SystemExit(3)\n", "exercise.py, line 1: SystemExit: 3"),
        ("import sys\ndef double(n):\n    sys.exit()\n", "exercise.py, line 3: SystemExit"),
        ("import os\ndef double(n):\n    os._exit(5)\n", "the program that tries it ended early, with status 5"),
        ("import os\ndef double(n):\n    os.kill(0, 9)\n", "the program that tries it ended early, with signal 9"),
        ("def double(n):\n    return double(n)\n", "exercise.py, line 2: RecursionError: maximum recursion depth"),
        ("def double(n):\n    return [0] * (1 << 40)\n", "exercise.py, line 2: MemoryError"),
        ("", "what exercise.py gives cannot be used: AttributeError: "),
        ("def double():\n    return 8\n", "what exercise.py gives cannot be used: TypeError: double() takes 0"),
        ("def double(n):\n    raise ValueError('x\\ny')\n", "exercise.py, line 2: ValueError: x y"),
    ],
)  # fmt: skip
def test_what_a_learners_code_does_is_told_in_a_line(made: Lesson, folder: Path, code: str, wrong: str) -> None:
    (folder / "exercise.py").write_text(code)
    said = run_check(made, "double", str(folder), False, nobody)
    assert said.startswith(wrong), said


def test_code_that_never_ends_is_ended_with_all_it_started(made: Lesson, folder: Path) -> None:
    made.time_limit = 4.0  # time to begin
    program = (
        "import subprocess, sys\ndef double(n):\n    p = subprocess.Popen([sys.executable, '-c', 'while 1: pass'])\n"
    )
    program += f"    open({str(folder / 'pid')!r}, 'w').write(str(p.pid))\n    while True: print('x' * 1000)\n"
    (folder / "exercise.py").write_text(program)
    began = time.monotonic()
    results = check(made, str(folder), live=False)
    assert results[1].text == "it is not done after 4 seconds: does a loop never end?"
    assert len(results[1].output) == 2000
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(int((folder / "pid").read_text()), 0)
            time.sleep(0.1)


def test_what_runs_ends_with_who_runs_it(made: Lesson, folder: Path, tmp_path: Path) -> None:
    """Also by a signal that nobody can catch."""
    pid = tmp_path / "pid"
    (tmp_path / "04-ports/lesson.py").write_text(
        f"import os\ndef show():\n    open({str(pid)!r}, 'w').write(str(os.getpid()))\n    while True: pass\n"
    )
    program = (
        "from pathlib import Path; from pyvmm.course.child import run_step; from pyvmm.course.lesson import load_from;"
    )
    program += f"run_step(load_from(Path({str(tmp_path / '04-ports')!r}), '04-ports'), 'show', print)"
    parent = subprocess.Popen([sys.executable, "-c", program], env=environment())
    wait_for(lambda: pid.exists() and pid.read_text(), "the step to begin")
    os.kill(int(pid.read_text()), 0)
    parent.kill()
    parent.wait()
    wait_for(lambda: not Path(f"/proc/{pid.read_text()}").exists(), "the step to end")


@pytest.mark.parametrize("number", NOT_IGNORED)
def test_a_check_that_a_signal_ends_leaves_nothing(number: int, tmp_path: Path) -> None:
    scratch, work = tmp_path / "scratch", tmp_path / "work"
    scratch.mkdir()
    assert pyvmm("lesson", "start", "4", work).returncode == 0
    (work / "exercise.py").write_text(
        "import os\nopen(os.environ['PIDFILE'], 'w').write(str(os.getpid()))\nwhile True: pass\n"
    )
    pid = tmp_path / "pid"
    command = [sys.executable, "-m", "pyvmm", "lesson", "check", "4", str(work), "--replay"]
    variables = environment() | {"TMPDIR": str(scratch), "PIDFILE": str(pid)}
    checking = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for(lambda: pid.exists() and pid.read_text(), "the check to begin")
    checking.send_signal(number)
    said = checking.communicate(timeout=60)
    assert (checking.returncode, said) == (128 + number, (b"", b""))
    assert os.listdir(scratch) == []
    wait_for(lambda: not Path(f"/proc/{pid.read_text()}").exists(), "what was checked to end")


def test_what_a_learners_code_says_cannot_steer_a_terminal(tmp_path: Path) -> None:
    work = tmp_path / "work"
    assert pyvmm("lesson", "start", "4", work).returncode == 0
    (work / "exercise.py").write_text("print('\\x1b[2J\\tseen')\nraise Exception('\\x1b[3J')\n")
    done = pyvmm("lesson", "check", "4", work, "--replay")
    assert done.returncode == 1 and b"\x1b" not in done.stdout
    assert b"\\x1b[2J\tseen" in done.stdout and b"\\x1b[3J" in done.stdout


def test_nobody_answers_what_a_learners_code_asks(made: Lesson, folder: Path) -> None:
    (folder / "exercise.py").write_text("def double(n):\n    return input()\n")
    assert (
        run_check(made, "double", str(folder), False, nobody)
        == "exercise.py, line 2: EOFError: EOF when reading a line"
    )


def test_a_file_of_the_learners_does_not_hide_a_library(made: Lesson, folder: Path) -> None:
    (folder / "json.py").write_text("raise ImportError('mine')")
    (folder / "helper.py").write_text("def twice(n): return 2 * n")
    (folder / "exercise.py").write_text("import json\nfrom helper import twice as double\n")
    assert run_check(made, "double", str(folder), False, nobody) == ""


def test_an_exercise_that_was_deleted(made: Lesson, folder: Path) -> None:
    (folder / "exercise.py").unlink()
    assert run_check(made, "double", str(folder), False, nobody).endswith(
        "exercise.py cannot be read: No such file or directory"
    )


def test_a_fault_of_the_check_is_no_learners_fault(made: Lesson, folder: Path) -> None:
    with pytest.raises(CourseError, match=r"^docs/course/04-ports/check.py: has no check_triple$"):
        run_check(made, "triple", str(folder), False, nobody)
    with pytest.raises(CourseError, match=r"check.py:11: check_bad returns None, expected a str$"):
        run_check(made, "bad", str(folder), False, nobody)


# --- Steps and recordings ---------------------------------------------------------------------------------------------


def test_a_step_is_run_and_heard(made: Lesson) -> None:
    heard: list[str] = []
    assert run_step(made, "show", heard.append).status == 0
    assert "".join(heard) == "took 17 ns\ndone\n"
    with pytest.raises(PyvmmError, match=r"^lesson 4: the step fail ended with status 1: ValueError: no$"):
        recording.run(made, "fail", nobody)


def test_a_recording_can_be_written_and_read(made: Lesson, tmp_path: Path) -> None:
    kept = recording.make(made, nobody)
    (tmp_path / "04-ports/recording.json").write_text(kept.dump())
    assert recording.load(made).steps == kept.steps == {"show": "took 17 ns\ndone\n"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "is no recording: Expecting value"),
        ("[]", "is no recording: "),
        ('{"format": 1, "kvm": "x", "steps": {"a": 1}}', "is no recording: "),
        ('{"format": 2, "kvm": "x", "steps": {}}', "has format 2, expected 1"),
        ('{"format": 1, "kvm": "x", "steps": {}}', "lacks the step show (pyvmm lesson record 4 makes it)"),
    ],
)
def test_a_recording_that_is_none(made: Lesson, tmp_path: Path, text: str, error: str) -> None:
    (tmp_path / "04-ports/recording.json").write_text(text)
    with pytest.raises(CourseError) as caught:
        recording.load(made)
    assert str(caught.value).startswith(f"docs/course/04-ports/recording.json: {error}")


def test_only_what_is_said_to_vary_may_differ(made: Lesson) -> None:
    old = "took 17 ns\nexits     9 or 0x10\nat 7\n"
    assert recording.difference(old, "took 9876 ns\nexits 12,345 or 3\nat 7\n", made.varies) == ""
    assert (
        recording.difference(old, "took 1 ns\nexits 1 or 0x1\nat 8\n", made.varies)
        == "line 3: recorded 'at 7', printed 'at 8'"
    )
    assert recording.difference("took   17 ns, at most", "took 9876 ns, at most", [r"\d+ ns"]) == ""
    assert "printed '(nothing)'" in recording.difference(old, "took 1 ns\nexits 1 or 2\n", made.varies)
    assert "recorded 'took#ns', printed 'took#s'" in recording.difference(
        "took 1 ns\n", "took 1 s\n", [r"took \d+ n?s"]
    )


# --- Teaching ---------------------------------------------------------------------------------------------------------


def test_a_lesson_without_a_terminal_runs_straight_through(made: Lesson, capsys: pytest.CaptureFixture[str]) -> None:
    teach.Teacher(made, render.Plain(), replay=False, ask=False).teach()
    shown = capsys.readouterr().out
    order = (
        "Lesson 4: Ports",
        "Why ports.",
        "First (2 of 3)",
        "def show():",
        "took 17 ns",
        "Which port?",
        "left out",
        "The end.",
    )
    places = [shown.index(text) for text in order]
    assert places == sorted(places)
    assert "(end of lesson 4. 1 question was left out." in shown


def test_a_replay_runs_nothing(made: Lesson, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "04-ports/lesson.py").write_text("raise SystemExit\ndef show(): ...\n")
    teach.Teacher(made, render.Plain(), replay=True, ask=False).teach()
    shown = capsys.readouterr().out
    assert "(show(), as recorded on kvm_pvm)" in shown
    assert "took 5 ns" in shown


def test_keys_lead_through_a_lesson(
    made: Lesson, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = iter(["", "0x3f9", "?", "3F8h", "x", "b", "", "", "", ""])
    monkeypatch.setattr("builtins.input", lambda: next(keys))
    assert teach.Teacher(made, render.Plain(), replay=True, ask=True).teach()
    shown = capsys.readouterr().out
    assert [
        text for text in ("(no. hint: It ends in 8.)", "(hint: It begins with 3.)", "(right)") if text not in shown
    ] == []
    assert shown.count("Introduction (1 of 3)") == 2
    assert next(keys, None) is None


def test_a_learner_may_leave(made: Lesson, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("builtins.input", lambda: "q")
    assert not teach.Teacher(made, render.Plain(), replay=True, ask=True).teach()
    assert "First" not in capsys.readouterr().out


MARKDOWN = """A [link](run.md) and [another](https://example.org), **bold** `code`, long enough to be broken.

- one that goes on
  and on
- two

| a | bb |
| --- | --- |
| ccc | d |

```sh
kept   as it is, however long it may be, and beyond the width
```
"""


def test_markdown_as_plain_text() -> None:
    assert render.plain(MARKDOWN, 40) == (
        "A link and another\n(https://example.org), bold `code`, long\nenough to be broken.\n\n"
        "- one that goes on and on\n- two\n\n"
        "a    bb\nccc  d\n\n"
        "    kept   as it is, however long it may be, and beyond the width\n"
    )


def test_an_answer_file_that_is_not_writable_costs_no_grade(made: Lesson, folder: Path) -> None:
    shutil.rmtree(folder / "guests")
    (folder / "answers.toml").write_text("com1 = 1\n")
    (folder / ".attempts.json").mkdir()  # nobody can write that
    assert len(check(made, str(folder), live=False)[0].hints) == 1
