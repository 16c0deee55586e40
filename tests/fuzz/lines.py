"""Which lines of the device models were run, so that a case that runs a new one is kept.

Looks on as a trace function (sys.settrace), which costs little once most lines have been seen.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path


class Lines:
    """The lines inside functions of `modules`. `fresh` is set when one is run for the first time."""

    def __init__(self, modules):
        self.fresh = False
        self._missing: dict[tuple[str, int], set[int]] = {}
        for module in modules:
            tree = ast.parse(Path(module.__file__).read_text())
            tree.body = [node for node in tree.body if not isinstance(node, ast.If)]  # TYPE_CHECKING
            self._add(compile(tree, module.__file__, "exec"), outermost=True)

    def _add(self, code, outermost=False):
        if not outermost and "__qualname__" not in code.co_names:  # not the body of a class
            lines = {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
            self._missing.setdefault((code.co_filename, code.co_firstlineno), set()).update(lines)
        for constant in code.co_consts:
            if hasattr(constant, "co_code"):
                self._add(constant)

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._call)

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _call(self, frame, event, argument):
        code = frame.f_code
        return self._line if self._missing.get((code.co_filename, code.co_firstlineno)) else None

    def _line(self, frame, event, argument):
        if event == "line":
            code = frame.f_code
            missing = self._missing[code.co_filename, code.co_firstlineno]
            if frame.f_lineno in missing:
                missing.discard(frame.f_lineno)
                self.fresh = True
        return self._line

    def missing(self):
        """Lines never run, as text, one line a file."""
        files: dict[str, set[int]] = {}
        for (name, _), lines in self._missing.items():
            if lines:
                files.setdefault(Path(name).name, set()).update(lines)
        return [f"{name}: {', '.join(map(str, sorted(lines)))}" for name, lines in sorted(files.items())]
