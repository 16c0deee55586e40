"""The lists behind `python -m tests.conformance.run`, which takes longer: every requirement of the standard's that
applies has a test that names its section, and a mutant that can be put in its place.
"""

from __future__ import annotations

import pytest

from tests.conformance.lists import FIELDS, ROOT, Must, musts, problems, sections


def test_the_lists_are_whole():
    assert problems() == []


def test_every_reason_is_given_and_every_section_has_something_to_say():
    for section in sections():
        assert section.musts or section.inapplicable, section.number
        assert all(section.inapplicable.values())
    assert {must.section for must in musts()} == {section.number for section in sections() if section.musts}


def entry(**changes):
    fields = dict(
        zip(FIELDS, ("6.2", "version-1-offered", "it is", "tests/x.py::y", "pyvmm/errors.py", "", ""), strict=True)
    )
    return Must(**fields | {"line": "class PyvmmError", "mutant": "class Error"} | changes)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"line": "no such text"}, "occurs 0 times"),
        ({"line": "class "}, "expected once"),
        ({"line": "class\nPyvmmError"}, "more than one line"),
        ({"mutant": "class PyvmmError"}, "changes nothing"),
        ({"mutant": "klass PyvmmError"}, "is no Python"),
    ],
)
def test_a_mutant_that_cannot_be_is_told(changes, problem):
    with pytest.raises(ValueError, match=problem):
        entry(**changes).mutated()


def test_an_entry_lacks_nothing():
    with pytest.raises(ValueError, match="expected the strings section, key"):
        entry(test="")
    with pytest.raises(ValueError, match="expected the strings section, key"):
        entry(more="that")


def test_a_test_that_does_not_name_its_section_is_told(monkeypatch):
    from tests.conformance import lists

    path = "tests/unit/test_virtio_conformance.py"
    named = [
        (f"{path}::test_version_1_is_offered", ""),
        (f"{path}::test_no_such", "there is no such test"),
        ("tests/unit/test_no_such.py::test", "there is no such file"),
        (f"{path}::test_the_magic_value", "does not name 6.2"),
    ]
    for test, problem in named:
        monkeypatch.setattr(lists, "musts", lambda test=test: [entry(test=test)])
        told = [line for line in problems() if line.startswith("6.2 version-1-offered")]
        assert (problem in told[0]) if problem else told == []
    assert (ROOT / path).is_file()
