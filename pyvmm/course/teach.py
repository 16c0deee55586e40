"""One lesson in a terminal, step by step; straight through where there is none.

Imports page, recording, render. What a step runs is a process of its own (child.py); with `replay` the recording is
shown in its place.
"""

from __future__ import annotations

import sys

from pyvmm.course import page, recording
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.course.exercise import Exercise
    from pyvmm.course.lesson import Lesson
    from pyvmm.course.render import Plain

NEXT, BACK, QUIT = "", "b", "q"


class Teacher:
    """Teaches `lesson`. `ask` says whether somebody is there to press keys and to answer."""

    def __init__(self, lesson: Lesson, show: Plain, *, replay: bool, ask: bool) -> None:
        self._lesson = lesson
        self._show = show
        self._ask = ask
        self._recording = recording.load(lesson) if replay else None
        self._left_out = 0

    def teach(self) -> bool:
        """The whole lesson; False where the learner left before its end. Raises PyvmmError where a step fails."""
        lesson, show = self._lesson, self._show
        show.heading(f"Lesson {lesson.number}: {lesson.title}")
        aims = "".join(f"- {aim}\n" for aim in lesson.aims)
        before = f"\n\nBefore it: {', '.join(lesson.prerequisites)}." if lesson.prerequisites else ""
        show.prose(f"About {lesson.minutes} minutes. After it you can\n\n{aims}{before}")
        index = 0
        while index < len(lesson.steps):
            self._step(index)
            if not self._ask:
                index += 1
                continue
            key = self._key(index)
            if key == QUIT:
                return False
            index = max(index - 1, 0) if key == BACK else index + 1
        self._end()
        return True

    def _step(self, index: int) -> None:
        step, count = self._lesson.steps[index], len(self._lesson.steps)
        self._show.heading(f"{step.heading or 'Introduction'} ({index + 1} of {count})")
        for part in step.parts:
            if isinstance(part, page.Text):
                self._show.prose(part.markdown)
            elif isinstance(part, page.Code):
                self._show.code(self._lesson.code(part))
            elif isinstance(part, page.Picture):
                self._show.picture(self._lesson.drawing(part))
            elif isinstance(part, page.Run):
                self._run(part.name)
            elif isinstance(part, page.Ask):
                self._question(self._lesson.exercise(part.name))

    def _run(self, name: str) -> None:
        show = self._show
        if self._recording:
            show.note(f"{name}(), as recorded on {self._recording.kvm}")
            show.output(self._recording.steps[name])
            print()
            return
        show.note(f"running {name}()")
        try:
            recording.run(self._lesson, name, show.output)
        except KeyboardInterrupt:
            if not self._ask:
                raise
            print()
            show.note("stopped")
        except PyvmmError as error:
            if not self._ask:
                raise
            show.note(str(error))
        print()

    def _question(self, question: Exercise) -> None:
        self._show.prose(f"**Question.** {question.prompt}")
        if not self._ask:
            self._left_out += 1
            self._show.note("left out: there is no terminal to answer at")
            return
        hints = list(question.hints)
        while True:
            answer = self._line("answer (? for a hint, Enter to leave it): ")
            if not answer.strip():
                return
            if answer.strip() != "?" and question.accepts(answer):
                self._show.note("right")
                return
            said = "" if answer.strip() == "?" else "no. "
            self._show.note(said + (f"hint: {hints.pop(0)}" if hints else "there is no further hint"))

    def _end(self) -> None:
        lesson = self._lesson
        skipped = f"{self._left_out} questions were left out. " if self._left_out > 1 else ""
        skipped = "1 question was left out. " if self._left_out == 1 else skipped
        start = f"pyvmm lesson start {lesson.number} DIR makes a work folder with its exercises."
        self._show.note(f"end of lesson {lesson.number}. {skipped}{start}")

    def _key(self, index: int) -> str:
        last = index + 1 == len(self._lesson.steps)
        while True:
            key = self._line(
                f"[{index + 1}/{len(self._lesson.steps)}] Enter {'ends' if last else 'goes on'}, b back, q leaves: "
            )
            if key.strip().lower() in (NEXT, BACK, QUIT):
                return key.strip().lower()

    def _line(self, prompt: str) -> str:
        """What is typed; at the end of input, as if the learner left."""
        print(prompt, end="", flush=True)  # input() would show it on standard error, which is for what goes wrong
        try:
            return input()
        except EOFError:
            print()
            raise Left from None


class Left(Exception):
    """The learner has gone: the end of input."""


def teach(lesson: Lesson, *, replay: bool) -> None:
    """Teach `lesson` on standard input and output. Raises PyvmmError."""
    from pyvmm.course.render import renderer

    ask = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    try:
        Teacher(lesson, renderer(), replay=replay, ask=ask).teach()
    except Left:
        pass
