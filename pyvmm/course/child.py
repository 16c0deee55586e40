"""Runs code of a lesson, or of a learner, in a process of its own with a time limit.

Imports errors and files. The parent's side is `run_step` and `run_check`; the child's is this module as a program. A
guest can spin in the kernel for ever and a learner's loop may never end: what is killed is the whole process group.
"""

from __future__ import annotations

import os
import sys

from pyvmm.course.files import CourseError, package
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen
    from types import ModuleType, TracebackType
    from typing import Any

    from pyvmm.course.lesson import Lesson

KEPT = 4000
"""Characters of the output that are kept."""
MEMORY = 4 << 30
"""Bytes of address space that a learner's code may have, guests included."""


class Ended:
    """How a child ended: its `status` (negative: the signal), or `late`; `output` is the end of what it printed."""

    __slots__ = ("late", "output", "status")

    def __init__(self, status: int, late: bool, output: str) -> None:
        self.status = status
        self.late = late
        self.output = output


def run_step(lesson: Lesson, name: str, tell: Callable[[str], None]) -> Ended:
    """Call `name()` of lesson.py. `tell` gets what it prints, as it comes."""
    return _run(["step", str(lesson.folder), lesson.slug, name], lesson.time_limit, tell)


def run_check(lesson: Lesson, name: str, folder: str, live: bool, tell: Callable[[str], None]) -> str:
    """What check.py says to the exercise `name` in the work folder `folder`: "" if it is right, else what is wrong.

    `tell` gets what the learner's code prints. Raises CourseError where the check itself is at fault.
    """
    import json
    import tempfile

    with tempfile.TemporaryDirectory(prefix="pyvmm-check-") as scratch:
        result = os.path.join(scratch, "result.json")
        arguments = ["check", str(lesson.folder), lesson.slug, name, os.path.abspath(folder), str(int(live)), result]
        ended = _run(arguments, lesson.time_limit, tell)
        try:
            with open(result, encoding="utf-8") as file:
                said = json.load(file)
        except (OSError, ValueError):
            said = None
    if ended.late:
        return f"it is not done after {lesson.time_limit:.0f} seconds: does a loop never end?"
    if said is None:
        how = f"signal {-ended.status}" if ended.status < 0 else f"status {ended.status}"
        return f"the program that tries it ended early, with {how}"
    if "fault" in said:
        raise CourseError(lesson.place("check.py"), said["line"], said["fault"])
    return str(said["wrong"])


def _run(arguments: list[str], limit: float, tell: Callable[[str], None]) -> Ended:
    import codecs
    import subprocess
    import threading

    paths = [os.path.dirname(str(package())), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    process = subprocess.Popen(
        [sys.executable or "python3", "-P", "-m", "pyvmm.course.child", *arguments],
        env=environment,
        stdin=subprocess.PIPE,  # nothing is written: it ends when this process does, in whatever way
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    late = threading.Event()

    def stop() -> None:
        late.set()
        _kill(process)

    timer = threading.Timer(limit, stop)
    timer.daemon = True
    timer.start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    output = ""
    try:
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            text = decoder.decode(chunk)
            output = (output + text)[-KEPT:]
            tell(text)
        status = process.wait()
    finally:
        timer.cancel()
        _kill(process)  # what it started and left behind, and itself where this ends early
        process.wait()
        process.stdout.close()
        process.stdin.close()
    return Ended(status, late.is_set(), output)


def _kill(process: Popen[bytes]) -> None:
    import signal

    try:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass


# --- The child --------------------------------------------------------------------------------------------------------


class Work:
    """What a check is given: the learner's module, the work folder, and whether KVM may be used."""

    __slots__ = ("exercise", "folder", "live")

    def __init__(self, exercise: ModuleType, folder: str, live: bool) -> None:
        self.exercise = exercise
        self.folder = folder
        self.live = live


def _module(path: str, place: str, name: str) -> ModuleType:
    from types import ModuleType

    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    with open(path, "rb") as file:
        exec(compile(file.read(), place, "exec"), module.__dict__)
    return module


def _step(folder: str, slug: str, name: str) -> int:
    try:
        getattr(_module(os.path.join(folder, "lesson.py"), f"docs/course/{slug}/lesson.py", "lesson"), name)()
    except PyvmmError as error:
        print(f"pyvmm: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def _check(folder: str, slug: str, name: str, work: str, live: str, result: str) -> int:
    import json

    try:
        said: dict[str, Any] = {"wrong": _judge(folder, name, work, live == "1")}
    except _FaultyCheck as error:
        said = {"fault": str(error), "line": error.line}
    with open(result, "w", encoding="utf-8") as file:
        json.dump(said, file)
    return 0


class _FaultyCheck(Exception):
    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def _judge(folder: str, name: str, work: str, live: bool) -> str:
    path = os.path.join(work, "exercise.py")
    sys.path.append(work)  # behind everything else: a learner's json.py shall not be the library's
    try:
        exercise = _module(path, "exercise.py", "exercise")
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        return f"{error.filename or 'exercise.py'}{where}: {error.msg}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except BaseException as error:
        return _raised(error)
    checks = _module(os.path.join(folder, "check.py"), "check.py", "check")
    check = getattr(checks, f"check_{name}", None)
    if check is None:
        raise _FaultyCheck(0, f"has no check_{name}")
    try:
        wrong = check(Work(exercise, work, live))
    except BaseException as error:
        return _raised(error)
    if not isinstance(wrong, str):
        raise _FaultyCheck(check.__code__.co_firstlineno, f"check_{name} returns {wrong!r}, expected a str")
    return wrong


def _raised(error: BaseException) -> str:
    """What came of the learner's code, with the line of it that was reached last."""
    said = " ".join(str(error).split())
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    line = 0
    trace: TracebackType | None = error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == "exercise.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    if line:
        return f"exercise.py, line {line}: {text}"
    return f"what exercise.py gives cannot be used: {text}"


def _main(kind: str, *arguments: str) -> int:
    _end_with_parent()
    if kind == "step":
        return _step(*arguments)
    _bound_memory()
    return _check(*arguments)


def _end_with_parent() -> None:
    """A parent that is killed cannot kill this process, whose guest may spin for ever: watch the pipe from it."""
    import threading

    lifeline = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)

    def watch() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _bound_memory() -> None:
    """A learner's endless list shall end in a MemoryError and not take the machine along."""
    try:
        import resource
    except ImportError:  # not on every platform
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY if hard < 0 else min(MEMORY, hard), hard))


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
