"""The site: built as `make docs` builds it, every link followed, every lesson on its page whole."""

from __future__ import annotations

import html
import json
import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pyvmm.course import lesson, lesson_numbers, page, recording

pytestmark = [pytest.mark.needs("mkdocs"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
TAGS = re.compile(r"<[^>]+>")


def build(folder: Path, docs: Path = ROOT / "docs", settings: str = "") -> subprocess.CompletedProcess[str]:
    configuration = f"INHERIT: {ROOT / 'mkdocs.yml'}\ndocs_dir: {docs}\nhooks: [{ROOT / 'scripts/site.py'}]\n{settings}"
    (folder.parent / "mkdocs.yml").write_text(configuration)
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "-f",
            str(folder.parent / "mkdocs.yml"),
            "-d",
            str(folder),
        ],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    result = build(folder)
    assert result.returncode == 0, result.stderr
    return folder


class Page(HTMLParser):
    """The links, the ids and what is loaded of an HTML page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            assert values["id"] not in self.ids, f"id {values['id']} is there twice"
            self.ids.add(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif "src" in values or (tag == "link" and "href" in values):
            self.loads.append(values.get("src") or values["href"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    """Every page by its path, but for the one whose links are absolute, for it is shown anywhere."""
    return {str(path.relative_to(site)): Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


def plain(path: Path) -> str:
    """The text of a page, without the tags that a highlighter puts in."""
    return html.unescape(TAGS.sub("", path.read_text()))


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path, pages: dict[str, Page]) -> None:
    assert len(pages) > 30
    broken = []
    for name, one in pages.items():
        for link in [*one.links, *one.loads]:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if (site / target).is_dir():
                target = posixpath.normpath(posixpath.join(target, "index.html"))
            if not (site / target).is_file() or (anchor and anchor not in pages[target].ids and anchor != "__skip"):
                broken.append((name, link))
    assert broken == []


def test_a_page_loads_nothing_from_another_host(site: Path, pages: dict[str, Page]) -> None:
    for name, one in pages.items():
        assert not [load for load in one.loads if "//" in load], name
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style


def test_every_page_of_docs_is_in_the_navigation(pages: dict[str, Page]) -> None:
    links = {link for name, page in pages.items() if name.count("/") == 1 for link in page.links}
    for path in (ROOT / "docs").glob("*.md"):
        assert path.stem == "index" or f"../{path.stem}/" in links, path.name


def test_solutions_and_the_files_of_lessons_are_not_on_the_site(site: Path) -> None:
    names = [path for path in site.rglob("*") if path.is_file()]
    assert not [path for path in names if path.suffix in (".py", ".toml", ".S") or "solutions" in path.parts]


def test_the_search_knows_the_lessons(site: Path) -> None:
    index = json.loads((site / "search/search_index.json").read_text())
    titles = {entry["title"] for entry in index["docs"]}
    for number in lesson_numbers():
        assert f"{number}. {lesson(number).title}" in titles


@pytest.mark.parametrize("number", lesson_numbers())
def test_a_lessons_page_has_its_code_its_output_its_picture_and_its_questions(site: Path, number: int) -> None:
    made = lesson(number)
    path = site / "course" / made.slug / "index.html"
    source, text = path.read_text(), plain(path)
    steps = recording.load(made).steps
    assert "{{" not in source
    for part in (part for step in made.steps for part in step.parts):
        if isinstance(part, page.Code):
            assert made.code(part).text.rstrip() in text
        elif isinstance(part, page.Run):
            assert steps[part.name].rstrip() in text
        elif isinstance(part, page.Picture):
            assert made.drawing(part).svg().strip() in source
        elif isinstance(part, page.Ask):
            assert made.exercise(part.name).title in text
            assert all(f"Hint {n}" in text for n in range(1, len(made.exercise(part.name).hints) + 1))


def test_a_link_to_a_source_leads_to_a_page_with_it(site: Path, pages: dict[str, Page]) -> None:
    assert "../source/guest-images/hello64/" in pages["guests/index.html"].links
    assert "Hello from 64-bit long mode!" in plain(site / "source/guest-images/hello64/index.html")
    assert "serial.py" in plain(site / "source/pyvmm/devices/index.html")


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """Strict: a page that leads nowhere, a place that is not there."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for path in (ROOT / "docs").iterdir():
        if path.name != "index.md":
            (docs / path.name).symlink_to(path)
    (docs / "index.md").write_text("# Home\n\n[run](run.md#nothing-of-the-kind) [not there](nowhere.md)\n")
    result = build(tmp_path / "site", docs, "plugins: []\n")
    assert result.returncode == 1
    assert "nowhere.md" in result.stderr
    assert "nothing-of-the-kind" in result.stderr
