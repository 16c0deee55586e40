"""Chapters of the Intel SDM are numbered alike wherever they are quoted: as the page that says so has them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/course/appendix/further-reading.md"
PLACES = ("pyvmm", "guest-images", "docs", "tests")
KINDS = {".py", ".md", ".toml", ".c", ".h", ".S"}
QUOTED = re.compile(r"(?<!APM )(?:volume|SDM) (1|2[A-D]?|3[A-D]|4), (?:chapter )?(\d+)(?![\d,])")


def chapters() -> dict[str, set[str]]:
    """By volume; the parts of volume 2 together as "2"."""
    found: dict[str, set[str]] = {}
    for volume, text in re.findall(r"^\| (\d[A-D]?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE):
        found[volume] = set(re.findall(r"(?:^|, )(\d+) [A-Z0-9]", text))
    return found


def quoted(text: str) -> list[tuple[str, str]]:
    """Volume and chapter of each citation, also of one that a line's end divides."""
    return QUOTED.findall(re.sub(r"\s*\n[\s*#/|>-]*", " ", text))


def test_the_page_has_the_volumes_and_their_chapters() -> None:
    table = chapters()
    assert {"1", "2", "3A", "3B", "3C", "4"} <= set(table)
    assert {"18", "21"} == table["3B"]
    assert {"24", "25", "26", "27", "28", "29", "30"} == table["3C"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("(Intel SDM volume 3A, 21.1.1)", [("3A", "21")]),
        (" * Intel SDM volume\n * 3B, 18.2; APM volume 2, 15.5", [("3B", "18")]),
        ("SDM 3A, 11.11 and volume 4, table 2-2", [("3A", "11")]),
        ("volume 3A, chapter 4: 4.3", [("3A", "4")]),
    ],
)
def test_citations_are_found(text: str, found: list[tuple[str, str]]) -> None:
    assert quoted(text) == found


def test_every_chapter_that_is_quoted_is_in_the_volume_that_the_page_says() -> None:
    table = chapters()
    seen, wrong = 0, []
    for place in PLACES:
        for path in sorted((ROOT / place).rglob("*")):
            if path.suffix not in KINDS or path in (PAGE, Path(__file__).resolve()) or not path.is_file():
                continue
            for volume, chapter in quoted(path.read_text()):
                seen += 1
                if chapter not in table.get(volume[0] if volume[0] == "2" else volume, ()):
                    wrong.append(f"{path.relative_to(ROOT)}: volume {volume}, chapter {chapter}")
    assert not wrong, f"another number than {PAGE.name} has, or a chapter that it lacks"
    assert seen > 100
