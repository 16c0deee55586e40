"""What a lesson's steps printed once, for readers without KVM, and how a later run is held to it.

Imports child, files. docs/course/writing.md says what may differ.
"""

from __future__ import annotations

import json
import re

from pyvmm.course.child import run_step
from pyvmm.course.files import CourseError, read
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.course.lesson import Lesson

FILE = "recording.json"
FORMAT = 1
NUMBER = re.compile(r"0x[0-9a-fA-F]+|\d[\d,._]*")


class Recording:
    """`steps` has what each function printed, by its name; `kvm` names the module of KVM that it ran on."""

    __slots__ = ("kvm", "steps")

    def __init__(self, kvm: str, steps: dict[str, str]) -> None:
        self.kvm = kvm
        self.steps = steps

    def dump(self) -> str:
        """The file."""
        lines = {name: text.split("\n") for name, text in self.steps.items()}  # lines of their own: diffs can be read
        return json.dumps({"format": FORMAT, "kvm": self.kvm, "steps": lines}, indent=1, ensure_ascii=False) + "\n"


def load(lesson: Lesson) -> Recording:
    """The recording that comes with `lesson`. Raises CourseError where there is none, or one that lacks a step."""
    place = lesson.place(FILE)
    try:
        top = json.loads(read(lesson.folder.joinpath(FILE), place))
        steps = {str(name): "\n".join(lines) for name, lines in top["steps"].items()}
        recording = Recording(str(top["kvm"]), steps)
        number = top["format"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CourseError(place, 0, f"is no recording: {error}") from None
    if number != FORMAT:
        raise CourseError(place, 0, f"has format {number}, expected {FORMAT}")
    if missing := [name for name in lesson.runs if name not in steps]:
        raise CourseError(place, 0, f"lacks the step {missing[0]} (pyvmm lesson record {lesson.number} makes it)")
    return recording


def make(lesson: Lesson, tell: Callable[[str], None]) -> Recording:
    """Run all steps; `tell` gets what they print. Raises PyvmmError with the end of what a failed one printed."""
    from pyvmm.kvm.host import HostView, backing_module

    return Recording(f"kvm_{backing_module(HostView())}", {name: run(lesson, name, tell) for name in lesson.runs})


def run(lesson: Lesson, name: str, tell: Callable[[str], None]) -> str:
    """Run one step; what it printed. Raises PyvmmError where it fails or takes too long."""
    pieces: list[str] = []

    def both(text: str) -> None:
        pieces.append(text)
        tell(text)

    ended = run_step(lesson, name, both)
    if ended.late or ended.status:
        how = f"took more than {lesson.time_limit:.0f} seconds" if ended.late else f"ended with status {ended.status}"
        last = ended.output.strip().rpartition("\n")[2]
        raise PyvmmError(f"lesson {lesson.number}: the step {name} {how}{f': {last}' if last else ''}")
    return "".join(pieces)


def normalised(text: str, varies: Sequence[str]) -> str:
    """`text` with every number `#` where one of the expressions `varies` matches.

    Blanks around it go, too: they are what a column leaves of its width.
    """
    for pattern in varies:
        text = re.sub(pattern, lambda match: NUMBER.sub("#", match[0]), text)
    return re.sub(r" *# *", "#", text)


def difference(recorded: str, fresh: str, varies: Sequence[str]) -> str:
    """ "" if both say the same but for what varies, else the first line that differs."""
    old, new = (normalised(text, varies).splitlines() for text in (recorded, fresh))
    for number in range(max(len(old), len(new))):
        was = old[number] if number < len(old) else "(nothing)"
        now = new[number] if number < len(new) else "(nothing)"
        if was != now:
            return f"line {number + 1}: recorded {was!r}, printed {now!r}"
    return ""
