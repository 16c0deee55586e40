"""Code quoted by name: what a lesson shows is taken from the files when it is shown, never pasted.

Imports files. From Python a function, class, method (`Class.method`) or constant, found by `ast`; from the sources of a
guest the lines between the comments `[LABEL]` and `[/LABEL]`, or all but these comments.
"""

from __future__ import annotations

import ast
import re
import textwrap

from pyvmm.course.files import CourseError, guests_root, package, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

LABEL = re.compile(r"\s*(?://|/\*|#|;|\*)\s*\[(/?)([\w-]+)\]\s*(?:\*/)?\s*")
"""A comment line that begins or ends a part of an assembly or C source."""
LANGUAGES = {".py": "python", ".S": "gas", ".s": "gas", ".c": "c", ".h": "c", ".toml": "toml", ".sh": "shell"}


class Quotation:
    """Lines of a file: `text` without common indentation, ending in a newline; `source` is the file, `line` its first.

    `source` is relative to the repository. `language` is its name for a highlighter.
    """

    __slots__ = ("line", "source", "text")

    def __init__(self, source: str, line: int, text: str) -> None:
        self.source = source
        self.line = line
        self.text = textwrap.dedent(text).strip("\n") + "\n"

    @property
    def language(self) -> str:
        dot = self.source.rfind(".")
        return LANGUAGES.get(self.source[dot:], "text")


def python(path: Traversable, place: str, name: str = "") -> Quotation:
    """What is called `name` in a Python file, or the whole file. Raises CourseError.

    Decorators and the comment right above belong to it, and so does the string right below a constant.
    """
    text = read(path, place)
    if not name:
        return Quotation(place, 1, text)
    lines = text.splitlines()
    body: list[ast.stmt] = _parse(text, place).body
    found = None
    for word in name.split("."):
        found = _named(body, word)
        if found is None:
            raise CourseError(place, 0, f"has no {name}")
        body = getattr(found[0], "body", [])
    assert found is not None
    first, last = found
    start = min([first.lineno, *(node.lineno for node in getattr(first, "decorator_list", ()))])
    while start > 1 and lines[start - 2].lstrip().startswith("#"):
        start -= 1
    return Quotation(place, start, "\n".join(lines[start - 1 : last.end_lineno]))


def _parse(text: str, place: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise CourseError(place, error.lineno or 0, f"is no Python: {error.msg}") from None


def _named(body: list[ast.stmt], name: str) -> tuple[ast.stmt, ast.stmt] | None:
    """The statement that defines `name` and the last one that belongs to it."""
    for index, node in enumerate(body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name == name:
                return node, node
            continue
        if isinstance(node, ast.If | ast.Try):  # `if TYPE_CHECKING`, a fallback
            inner = _named([*node.body, *node.orelse], name)
            if inner:
                return inner
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names = {leaf.id for target in targets if target for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
        if isinstance(node, ast.Assign | ast.AnnAssign) and name in names:
            following = body[index + 1 : index + 2]
            return node, following[0] if following and _is_docstring(following[0]) else node
    return None


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def names_in(path: Traversable, place: str) -> set[str]:
    """The functions that a Python file defines. Raises CourseError."""
    return {node.name for node in _parse(read(path, place), place).body if isinstance(node, ast.FunctionDef)}


def own(path: str, name: str = "") -> Quotation:
    """What is called `name` in one of pyvmm's own files: `pyvmm/devices/serial.py`. Raises CourseError."""
    inside = path.removeprefix("pyvmm/")
    if ".." in inside.split("/") or not path.startswith("pyvmm/"):
        raise CourseError(path, 0, "is no file of pyvmm's (expected pyvmm/...)")
    if not path.endswith(".py"):
        return labelled(package().joinpath(inside), path, name)
    return python(package().joinpath(inside), path, name)


def guest(guests: list[str], file: str, label: str = "") -> Quotation:
    """The part `label` of the source `file` of one of `guests`, or the whole file. Raises CourseError."""
    for name in guests:
        path = guests_root().joinpath(name).joinpath(file)
        if path.is_file():
            return labelled(path, f"guest-images/{name}/{file}", label)
    raise CourseError(f"guest-images/{guests[0] if guests else '?'}/{file}", 0, "is not there")


def labelled(path: Traversable, place: str, label: str = "") -> Quotation:
    """The lines of `path` between `[label]` and `[/label]`, or all but such lines. Raises CourseError."""
    kept: list[str] = []
    start = last = 0
    inside = not label
    for number, line in enumerate(read(path, place).splitlines(), 1):
        mark = LABEL.fullmatch(line)
        if mark and mark[2] == label:
            if bool(mark[1]) != inside:
                raise CourseError(place, number, f"[{mark[1]}{label}] stands where it cannot")
            inside = not inside
            last = number
        elif inside and not mark:
            kept.append(line)
            start = start or number
    if label and not last:
        raise CourseError(place, 0, f"has no part [{label}]")
    if label and inside:
        raise CourseError(place, last, f"[{label}] is never ended by [/{label}]")
    return Quotation(place, start, "\n".join(kept))


def code_lines(text: str, language: str) -> int:
    """Lines of `text` that are neither empty nor comment alone."""
    if language == "python":
        return sum(1 for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    bare = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    comment = ("//",) if language == "c" else ("#", "//")
    lines = (line.strip() for line in bare.splitlines())
    return sum(1 for line in lines if line and (not line.startswith(comment) or line.startswith(("#include", "#def"))))
