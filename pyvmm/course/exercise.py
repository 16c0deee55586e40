"""Exercises: questions, which are answered in a word, and code, which is written in a work folder.

Imports nothing. Whether an answer is right is judged here; whether code is, in checking.py.
"""

from __future__ import annotations

QUESTION = "question"
CODE = "code"


class Exercise:
    """An exercise of a lesson: `kind` is QUESTION or CODE; the hints are given one by one, as attempts fail.

    A question has its `prompt` and the accepted `answers`; code says with `kvm` whether its check runs a guest.
    """

    __slots__ = ("answers", "hints", "kind", "kvm", "name", "prompt", "title")

    def __init__(
        self,
        name: str,
        title: str,
        kind: str,
        hints: tuple[str, ...],
        *,
        kvm: bool = False,
        prompt: str = "",
        answers: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.title = title
        self.kind = kind
        self.hints = hints
        self.kvm = kvm
        self.prompt = prompt
        self.answers = answers

    def accepts(self, answer: str) -> bool:
        """Whether `answer` is one of those accepted: case and blanks do not count, numbers count by their value."""
        return _plain(answer) in map(_plain, self.answers)


def _plain(answer: str) -> str | int:
    text = "".join(answer.split()).casefold().rstrip(".")
    number = text.replace(",", "") if text.replace(",", "").isdigit() else text.replace("_", "")
    try:
        if number.isdecimal():
            return int(number)  # int() with base 0 refuses leading zeroes
        if number.endswith("h") and number[:1].isdigit():
            return int(number[:-1], 16)
        return int(number, 0)
    except ValueError:
        return text
