"""Lessons as text for a terminal: plain, or by rich where that is installed and the output is a terminal.

Imports quote. `renderer()` chooses. Prose is Markdown, of which a plain terminal is shown paragraphs, lists and tables.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.course.draw import Drawing
    from pyvmm.course.quote import Quotation

WIDEST = 100
BULLET = re.compile(r"(\s*)([-*]|\d+\.)\s+")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]*)\)")


def renderer(rich: bool = True) -> Plain:
    """What shows a lesson on standard output; plain if not `rich`."""
    if rich and sys.stdout.isatty():
        try:
            return Rich()
        except ImportError:
            pass
    return Plain()


class Plain:
    """Text without any control sequence."""

    def __init__(self) -> None:
        self.columns = max(40, min(shutil.get_terminal_size().columns, WIDEST))

    def heading(self, text: str) -> None:
        """The title of a lesson or a step."""
        print(f"\n{text}\n{'=' * min(len(text), self.columns)}\n")

    def prose(self, markdown: str) -> None:
        """Text of the lesson."""
        print(plain(markdown, self.columns))

    def picture(self, drawing: Drawing) -> None:
        """What a picture shows, in words."""
        self.prose(f"[picture] {drawing.title}: {drawing.description}")

    def code(self, quotation: Quotation) -> None:
        """Quoted code, under the name of its file."""
        print(f"--- {quotation.source}:{quotation.line}\n")
        print(textwrap.indent(quotation.text, "    "))

    def note(self, text: str) -> None:
        """A remark that is no part of the lesson."""
        print(f"({text})\n")

    def output(self, text: str) -> None:
        """What a step prints, as it comes."""
        sys.stdout.write(text)
        sys.stdout.flush()


class Rich(Plain):
    """Text in colours. Raises ImportError where rich is not installed."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self._console: Any = Console(width=self.columns, highlight=False)

    def heading(self, text: str) -> None:
        from rich.rule import Rule
        from rich.text import Text

        self._console.print()
        self._console.print(Rule(Text(text, style="bold"), align="left"))

    def prose(self, markdown: str) -> None:
        from rich.markdown import Markdown

        self._console.print(Markdown(markdown, hyperlinks=False))
        self._console.print()

    def code(self, quotation: Quotation) -> None:
        from rich.panel import Panel
        from rich.syntax import Syntax

        text = quotation.text.rstrip("\n")
        shown = Syntax(text, quotation.language, background_color="default", word_wrap=True)
        title = f"{quotation.source}:{quotation.line}"
        self._console.print(Panel(shown, title=title, title_align="left", border_style="dim"))

    def note(self, text: str) -> None:
        self._console.print(f"({text})\n", style="dim", markup=False)


def plain(markdown: str, columns: int) -> str:
    """Markdown as plain text of at most `columns` a line, but for tables and code, which keep theirs."""
    out: list[str] = []
    for block in _blocks(markdown):
        if block[0].startswith(("```", "~~~")):
            out += [f"    {line}" for line in block[1:-1]]
        elif block[0].lstrip().startswith("|"):
            out += _table(block)
        else:
            out += _paragraph(block, columns)
        out.append("")
    return "\n".join(out)


def _blocks(markdown: str) -> list[list[str]]:
    """Paragraphs, and fenced code as one block whatever is in it."""
    blocks: list[list[str]] = [[]]
    fence = ""
    for line in markdown.splitlines():
        mark = line.lstrip()[:3]
        if fence:
            blocks[-1].append(line)
            if mark == fence:
                fence = ""
                blocks.append([])
        elif mark in ("```", "~~~"):
            fence = mark
            blocks.append([line])
        elif line.strip():
            blocks[-1].append(line)
        else:
            blocks.append([])
    return [block for block in blocks if block]


def _paragraph(lines: list[str], columns: int) -> list[str]:
    items: list[tuple[str, str]] = []  # what stands before the first line of each item, and its text
    for line in lines:
        mark = BULLET.match(line)
        if mark:
            items.append((mark[0], line[mark.end() :]))
        elif items:
            items[-1] = (items[-1][0], f"{items[-1][1]} {line.strip()}")
        else:
            items.append(("", line.strip()))
    out = []
    for before, text in items:
        text = _inline(text.lstrip("#").strip() if text.startswith("#") else text)
        indent = " " * len(before)
        out += textwrap.wrap(
            text, columns, initial_indent=before, subsequent_indent=indent, break_on_hyphens=False
        ) or [before]
    return out


def _inline(text: str) -> str:
    text = LINK.sub(lambda match: f"{match[1]} ({match[2]})" if "://" in match[2] else match[1], text)
    return re.sub(r"\*\*(.+?)\*\*", r"\1", text)


def _table(lines: list[str]) -> list[str]:
    rows = [[_inline(cell.strip()) for cell in line.strip().strip("|").split("|")] for line in lines]
    rows = [row for row in rows if not all(set(cell) <= set("-: ") and cell for cell in row)]
    widths = [max((len(row[index]) for row in rows if index < len(row)), default=0) for index in range(len(rows[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)).rstrip() for row in rows]
