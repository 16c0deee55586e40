"""guest.toml: what its reader accepts and refuses, and that the guests' folders are what they should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyvmm.errors import ImageError, UsageError
from pyvmm.images import Guest, guest, guest_names
from pyvmm.images.recipe import parse

ROOT = Path(__file__).parents[2]

RECIPE = """
summary = "says hi"
[build]
output = "flat"
bits = 32
address = 0x100000
sources = ["../common/start32.S", "hi.c"]
[[run]]
arguments = ["--mem", "8M"]
stdin = "in\\u0004"
stdout = "hi\\n"
status = 85
time_limit = 2.5
[[run]]
name = "other"
stdout_pattern = 'h.\\n'
status = 0
"""


def test_a_recipe_is_read() -> None:
    recipe = parse(RECIPE, "hi")
    assert (recipe.summary, recipe.output, recipe.bits, recipe.address) == ("says hi", "flat", 32, 0x100000)
    assert recipe.sources == ("common/start32.S", "hi/hi.c")
    first, second = recipe.runs
    assert (first.name, first.arguments, first.stdin) == ("default", ("--mem", "8M"), b"in\x04")
    assert (first.expect.status, first.expect.time_limit) == (85, 2.5)
    assert (second.name, second.arguments, second.stdin, second.expect.time_limit) == ("other", (), b"", 10.0)


def test_output_matches_exactly_or_as_a_whole() -> None:
    exact, pattern = (run.expect for run in parse(RECIPE, "hi").runs)
    assert exact.matches(b"hi\n")
    assert not exact.matches(b"hi\r\n")
    assert not exact.matches(b"")
    assert pattern.matches(b"ho\n")
    assert not pattern.matches(b"ho\nho\n")
    assert not pattern.matches(b"oh ho\n")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('summary = "says hi"', "", r"guest\.toml: summary is missing"),
        ('summary = "says hi"', "summary = 1", r"summary is 1"),
        ('summary = "says hi"', 'summary = "a"\ncolour = "blue"', r"colour is not known"),
        ('output = "flat"', 'output = "coff"', r"\[build\]: output is 'coff', expected 'flat' or 'elf'"),
        ("bits = 32", "bits = 31", r"bits is 31, expected 16, 32 or 64"),
        ("bits = 32", "bits = true", r"bits is True"),
        ("bits = 32", "bits = 32\nflags = []", r"\[build\]: flags is not known"),
        ("address = 0x100000", "address = 0x100000000", r"address is 0x100000000, expected one below 4 GiB"),
        ('["../common/start32.S", "hi.c"]', "[]", r"sources is empty"),
        ('["../common/start32.S", "hi.c"]', "[1]", r"expected a list of strings"),
        ('"hi.c"', '"../../../etc/passwd.c"', r"expected a \.S or \.c file below guest-images/"),
        ('"hi.c"', '"/etc/passwd.c"', r"expected a \.S or \.c file below"),
        ('"hi.c"', '"hi.py"', r"expected a \.S or \.c file below"),
        ("status = 85", "", r"\[\[run\]\] 1: status is missing"),
        ("status = 85", "status = 256", r"status is 256, expected 0 to 255"),
        ("time_limit = 2.5", "time_limit = 0", r"time_limit is 0\.0, expected seconds"),
        ('stdout = "hi\\n"', "", r"\[\[run\]\] 1: expected one of stdout and stdout_pattern"),
        ('stdout = "hi\\n"', 'stdout = ""\nstdout_pattern = ""', r"expected one of stdout and stdout_pattern"),
        ('name = "other"', "", r"\[\[run\]\] 2: name is missing"),
        ("[[run]]", "[[runs]]", r"run is missing"),
        ("[build]", "[build", r"hi/guest\.toml: "),
    ],
)
def test_a_wrong_recipe_is_named(old: str, new: str, complaint: str) -> None:
    assert old in RECIPE
    with pytest.raises(ImageError, match=complaint) as caught:
        parse(RECIPE.replace(old, new), "hi")
    assert str(caught.value).startswith("hi/guest.toml: ")
    assert "\n" not in str(caught.value)


def test_an_unknown_guest_is_a_usage_error_that_lists_the_known() -> None:
    for name in ("hello128", "common", "..", "hello16/../hello16", ""):
        with pytest.raises(UsageError, match=r"there is no image .*hello16, hello32"):
            guest(name)


@pytest.mark.parametrize("name", guest_names())
def test_each_folder_is_complete(name: str) -> None:
    folder = ROOT / "guest-images" / name
    parsed: Guest = guest(name)
    readme = (folder / "README.md").read_text()
    assert readme.startswith(f"# {name}\n")
    assert f"pyvmm image path {name})" in readme
    assert f"| [{name}](../guest-images/{name}/) | {parsed.format} |" in (ROOT / "docs/guests.md").read_text()
    built_from = {path.name for path in folder.iterdir()} - {"README.md", "guest.toml"}
    assert built_from <= {Path(source).name for source in parsed.recipe.sources}, "a source that nothing is built from"
    assert len({run.name for run in parsed.runs}) == len(parsed.runs)


def test_the_documentation_names_no_guest_that_is_not_there() -> None:
    linked = re.findall(r"\]\(\.\./guest-images/([\w-]+)/\)", (ROOT / "docs/guests.md").read_text())
    assert sorted(linked) == guest_names()
