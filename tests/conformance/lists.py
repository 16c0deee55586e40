"""What the standard demands of our devices, and which test holds them to it: sections.toml and musts.toml, checked.

sections.toml has every normative device requirement of the sections implemented, by section and a key of our own.
musts.toml has, for each that applies here, a test that names the section and a one-line mutant of the device that the
test kills. This module reads both; `run` kills the mutants.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FIELDS = ("section", "key", "must", "test", "file", "line", "mutant")


class Must:
    """One entry of musts.toml.

    section, key   which requirement
    must           what it says, in our words
    test           the node id of the test that holds the device to it; its docstring names the section
    file           a source file, from the root of the checkout
    line           text that occurs in it exactly once, within one line
    mutant         what it is replaced by, which the test must notice
    """

    __slots__ = FIELDS
    section: str
    key: str
    must: str
    test: str
    file: str
    line: str
    mutant: str

    def __init__(self, **fields: str) -> None:
        if sorted(fields) != sorted(FIELDS) or not all(isinstance(value, str) and value for value in fields.values()):
            raise ValueError(f"musts.toml: {fields} (expected the strings {', '.join(FIELDS)})")
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def where(self) -> str:
        return f"{self.section} {self.key}"

    @property
    def module(self) -> str:
        return self.file.removesuffix(".py").replace("/", ".")

    def mutated(self) -> str:
        """The source with the mutant in its place. Raises ValueError if it cannot be put there."""
        source = (ROOT / self.file).read_text()
        if "\n" in self.line or "\n" in self.mutant:
            raise ValueError("more than one line")
        if (count := source.count(self.line)) != 1:
            raise ValueError(f"{self.line!r} occurs {count} times in {self.file} (expected once)")
        mutated = source.replace(self.line, self.mutant)
        try:
            if ast.dump(ast.parse(mutated)) == ast.dump(ast.parse(source)):
                raise ValueError(f"{self.mutant!r} changes nothing")
        except SyntaxError as error:
            raise ValueError(f"{self.mutant!r} is no Python: {error}") from None
        return mutated


class Section:
    """One section: `musts`, the keys that apply, and `inapplicable`, those that do not, with the reason of each."""

    def __init__(self, entry: Mapping[str, object]) -> None:
        self.number = str(entry["number"])
        self.title = str(entry["title"])
        self.musts = _strings(entry.get("musts", []))
        reasons = entry.get("inapplicable", {})
        assert isinstance(reasons, dict)
        self.inapplicable = {key: str(reason) for reason, keys in reasons.items() for key in _strings(keys)}


def _strings(value: object) -> list[str]:
    assert isinstance(value, list) and all(isinstance(item, str) for item in value), value
    return value


def sections() -> list[Section]:
    return [Section(entry) for entry in _toml("sections.toml")["section"]]


def musts() -> list[Must]:
    """In the order of the sections."""
    order = {(section.number, key): None for section in sections() for key in section.musts}
    places = {name: place for place, name in enumerate(order)}
    found = [Must(**entry) for entry in _toml("musts.toml")["must"]]
    return sorted(found, key=lambda must: places.get((must.section, must.key), len(places)))


def _toml(name: str) -> dict[str, list[dict[str, str]]]:
    return tomllib.loads((HERE / name).read_text())


def problems() -> list[str]:
    """What is wrong with the lists themselves, a line each."""
    found = []
    known = {(section.number, key) for section in sections() for key in section.musts}
    count = sum(len(section.musts) + len(section.inapplicable) for section in sections())
    everything = {(section.number, key) for section in sections() for key in [*section.musts, *section.inapplicable]}
    if len(everything) != count:
        found.append("sections.toml: a section has a key twice")
    entries = musts()
    for number, key in sorted(known - {(must.section, must.key) for must in entries}):
        found.append(f"{number} {key}: no entry in musts.toml")
    for must in entries:
        if (must.section, must.key) not in known:
            found.append(f"{must.where}: not in sections.toml")
        try:
            must.mutated()
        except (ValueError, OSError) as error:
            found.append(f"{must.where}: {error}")
        problem = _test_problem(must)
        if problem:
            found.append(f"{must.where}: {must.test}: {problem}")
    return found


def _test_problem(must: Must) -> str:
    """Whether the test is there and its docstring names the section."""
    path, _, name = must.test.partition("::")
    if not (ROOT / path).is_file():
        return "there is no such file"
    docstring = _docstrings(path).get(name)
    if docstring is None:
        return "there is no such test"
    if not re.search(rf"(?<![\d.]){re.escape(must.section)}(?!\.?\d)", docstring):
        return f"its docstring does not name {must.section}"
    return ""


@cache
def _docstrings(path: str) -> dict[str, str]:
    """The test functions of a file, and what their docstrings say."""
    tree = ast.parse((ROOT / path).read_text())
    return {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.FunctionDef)}
