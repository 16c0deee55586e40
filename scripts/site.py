"""The hooks by which mkdocs makes the site (mkdocs.yml): lessons put together, and sources that pages link to shown.

`make docs` builds it. A link to a file or folder of the repository outside docs/, as pages have them for whoever reads
them beside the source, leads to a page made here: a guest's README with its sources, a folder's modules with what each
is for, or the file itself.
"""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from pyvmm.course import lessons, site
from pyvmm.course.quote import LANGUAGES, Quotation

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCED = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
GENERATED = {"lessons": site.lesson_table, "timetable": site.timetable}
"""Directives of ordinary pages: `{{ lessons }}`, `{{ timetable }}`."""


def on_config(config: Any) -> Any:
    """Put the lessons, and pages that mkdocs.yml does not name, into the navigation."""
    listed = {entry for section in config.nav for entry in _leaves(section)}
    for section in config.nav:
        if "Course" in section:
            first, *rest = section["Course"]
            made = [{f"{one.number}. {one.title}": f"course/{one.slug}/index.md"} for one in lessons()]
            named = {"writing.md", "teachers.md", "index.md"}
            more = [f"course/{path.name}" for path in sorted((DOCS / "course").glob("*.md")) if path.name not in named]
            section["Course"] = [first, *made, *(page for page in more if page not in listed), *rest]
        if "Reference" in section:
            section["Reference"] += sorted({path.name for path in DOCS.glob("*.md")} - listed)
    return config


def _leaves(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for inner in entry.values() if isinstance(entry, dict) else entry:
            yield from _leaves(inner)


def on_files(files: Files, config: Any) -> Files:
    """Put a page in the place of each lesson's files, and add one for each source that a page links to."""
    for lesson in lessons():
        old = files.get_file_from_path(f"course/{lesson.slug}/lesson.md")
        if old:
            files.remove(old)
        files.append(File.generated(config, f"course/{lesson.slug}/index.md", content=site.lesson_page(lesson)))
    known: set[str] = set()
    found = {target for file in files.documentation_pages() for target in _outside(file.src_uri, file.content_string)}
    while found:  # a source's page has links, too
        target = found.pop()
        known.add(target)
        content = _source(target)
        files.append(File.generated(config, _source_page(target), content=content))
        found |= set(_outside(_source_page(target), content)) - known
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is generated, and turn links to what is outside of docs/ into links to its page."""
    for name, make in GENERATED.items():
        if f"{{{{ {name} }}}}" in markdown:
            markdown = markdown.replace(f"{{{{ {name} }}}}", make())
    here = posixpath.dirname(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        target = _resolved(page.file.src_uri, match[2])
        if target is None:
            return match[0]
        if target.startswith("docs/course/") and target.endswith("/lesson.md"):
            new = target.removeprefix("docs/").replace("/lesson.md", "/index.md")
        elif target.startswith("docs/") and page.file.src_uri.startswith("source/"):
            new = target.removeprefix("docs/")
        elif not target.startswith("docs/") and (ROOT / target).exists():
            new = _source_page(target)
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(new, here or '.')}{match[3]}"

    return _outside_fences(markdown, lambda text: LINK.sub(turned, text))


def _outside_fences(markdown: str, change: Any) -> str:
    out, at = [], 0
    for fence in FENCED.finditer(markdown):
        out += [change(markdown[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*out, change(markdown[at:])])


def _resolved(uri: str, target: str) -> str | None:
    """What a link of the page `uri` leads to, relative to the repository; None for another host's."""
    if "://" in target or target.startswith(("mailto:", "/")):
        return None
    folder = posixpath.dirname(f"docs/{uri}")
    if uri.startswith("source/"):  # a page of a folder is its index.md, one of a file is in the file's folder
        folder = folder.removeprefix("docs/source/")
    path = posixpath.normpath(posixpath.join(folder, target))
    return None if path.startswith("..") else path


def _outside(uri: str, markdown: str) -> Iterator[str]:
    """What a page links to in the repository that is not in docs/."""
    for match in LINK.finditer(FENCED.sub("", markdown)):
        target = _resolved(uri, match[2])
        if target and not target.startswith("docs/") and (ROOT / target).exists():
            yield target


def _source_page(target: str) -> str:
    return f"source/{target}/index.md" if (ROOT / target).is_dir() else f"source/{target}.md"


def _source(target: str) -> str:
    path = ROOT / target
    head = "---\nsearch:\n  boost: 0.5\n---\n\n"
    if path.is_file():
        if path.suffix == ".md":
            return head + path.read_text()
        return f"{head}# {target}\n\n{site.code(Quotation(target, 1, path.read_text()))}"
    if target.startswith("guest-images/") and (path / "README.md").exists():
        shown = [
            path / "README.md",
            *sorted(one for one in path.iterdir() if one.suffix in LANGUAGES and one.is_file()),
        ]
        parts = [shown[0].read_text()]
        for one in shown[1:]:
            parts.append(site.code(Quotation(str(one.relative_to(ROOT)), 1, one.read_text())))
        return head + "\n".join(parts)
    rows = [f"# {target}", "", "| module | what it is for |", "| --- | --- |"]
    for one in sorted(path.glob("*.py")):
        said = ast.get_docstring(ast.parse(one.read_text())) or ""
        first = " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")
        rows.append(f"| `{one.name}` | {first} |")
    return head + "\n".join(rows) + "\n"
