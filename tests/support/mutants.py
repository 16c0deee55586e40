"""Mutants of a device's module, generated from its source, and what a replay of the device's recording says of each.

    python -m tests.support.mutants serial --count 20 --seed 1

A mutant differs in one place of one function: an operator, a constant, a condition, a statement left out. Places that a
recording does not reach are no test of replay, and are left out: `reached` lines are traced in a replay of the module
as it is. What a mutant does in a replay is "found" with the access where it begins, or "survived".
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from pyvmm.trace.devices.replay import replay
from tests.support.recordings import MAKERS

LONGER = 8
"""How many times as long as that of the device as it is a replay may take, and SECONDS more: some mutants never end."""
SECONDS = 2.0
MEMORY = 2 << 30
NOT_MEANT = ("save", "restore", "restored", "close", "__repr__")
"""Functions that no access comes to."""
NUMBERS = ("value", "offset", "size", "bits", "index", "number")
"""What numbers are called in the devices: these and constants are mutated too."""
MADE = "differs at access 0, where the host calls the device to be made"

_COMPARE: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
_BINARY: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}


class _Places(ast.NodeVisitor):
    """The nodes that may be mutated: in the functions of the module, where something can come of it."""

    def __init__(self) -> None:
        self.found: list[ast.AST] = []
        self._inside = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name in NOT_MEANT:
            return
        before, self._inside = self._inside, True
        body = node.body[1:] if ast.get_docstring(node) is not None else node.body
        for statement in body:
            self.visit(statement)
        self._inside = before

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if all(isinstance(one, ast.Raise) for one in node.body):
            return  # it refuses a configuration
        self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass  # for people

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def generic_visit(self, node: ast.AST) -> None:
        if self._inside:
            self.found.append(node)
        super().generic_visit(node)


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What may stand in the place of `node`."""
    match node:
        case ast.Compare(ops=[op], left=left, comparators=comparators):
            for kind in _COMPARE.get(type(op), ()):
                yield f"{type(op).__name__} -> {kind.__name__}", ast.Compare(left, [kind()], comparators)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            other_op = _BINARY[type(op)]
            yield f"{type(op).__name__} -> {other_op.__name__}", ast.BinOp(left, other_op(), right)
        case ast.AugAssign(target=target, op=op, value=value) if type(op) in _BINARY:
            other_op = _BINARY[type(op)]
            yield f"{type(op).__name__}= -> {other_op.__name__}=", ast.AugAssign(target, other_op(), value)
            yield "statement left out", ast.Pass()
        case ast.BoolOp(op=op, values=values):
            other_bool = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield f"{type(op).__name__} -> {type(other_bool).__name__}", ast.BoolOp(other_bool, values)
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub() as op, operand=operand):
            yield f"{type(op).__name__} left out", operand
        case ast.Constant(value=bool() as value):
            yield f"{value} -> {not value}", ast.Constant(not value)
        case ast.Constant(value=int() as number):
            for other in (number + 1, number - 1, number ^ 0x10, number ^ 0x80):
                yield f"{number} -> {other}", ast.Constant(other)
        case ast.If(test=test, body=body, orelse=orelse):
            yield "condition negated", ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.IfExp(test=test, body=then, orelse=otherwise):
            yield "condition negated", ast.IfExp(ast.UnaryOp(ast.Not(), test), then, otherwise)
        case ast.Expr(value=ast.Call()) | ast.Assign():
            yield "statement left out", ast.Pass()
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant | ast.Tuple | ast.List):
            yield "returns nothing", ast.Return(None)
        case ast.Name(id=name, ctx=ast.Load()) if name in NUMBERS or (name.isupper() and len(name) > 1):
            for op, by in (
                (ast.Add(), 1),
                (ast.BitXor(), 1),
                (ast.Sub(), 2),
                (ast.BitXor(), 4),
                (ast.BitXor(), 0x80),
                (ast.Mult(), 2),
            ):
                other_name = ast.BinOp(ast.Name(name, ast.Load()), op, ast.Constant(by))
                yield f"{name} -> {name} {type(op).__name__} {by:#x}", other_name


class Mutant:
    """`tree` is the module with `what` at `line`."""

    def __init__(self, line: int, what: str, tree: ast.Module) -> None:
        self.line = line
        self.what = what
        self.tree = tree


def mutants(source: str, reached: set[int], seed: int) -> Iterator[Mutant]:
    """All mutants at lines that are reached, in an order that `seed` decides."""
    original = ast.parse(source)
    places = _Places()
    places.visit(original)
    choices = [
        (number, variant)
        for number, node in enumerate(places.found)
        if getattr(node, "lineno", 0) in reached
        for variant in range(len(list(_variants(node))))
    ]
    random.Random(seed).shuffle(choices)
    for number, variant in choices:
        tree = copy.deepcopy(original)
        again = _Places()
        again.visit(tree)
        node = again.found[number]
        what, replacement = list(_variants(node))[variant]
        _replace(tree, node, ast.copy_location(replacement, node))
        yield Mutant(node.lineno, what, ast.fix_missing_locations(tree))  # type: ignore[attr-defined]


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
                return
            if isinstance(value, list) and any(one is old for one in value):
                setattr(parent, field, [new if one is old else one for one in value])
                return


class Hang(BaseException):
    """The time of a replay is over."""


def _alarm(*_: object) -> None:
    raise Hang


class Judge:
    """Replays mutants of the device called `name`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.module, make = MAKERS[name]
        self.path = folder / "recording.jsonl"
        recorded = make()
        recorded.save(str(self.path))
        recorded.close()
        file = import_module(self.module).__file__
        assert file is not None
        self.source = Path(file).read_text()
        self.limit = 300.0
        began = time.monotonic()
        self.replay(None)
        self.limit = SECONDS + LONGER * (time.monotonic() - began)

    def replay(self, tree: ast.Module | None) -> str:
        """What a replay says of the module of `tree`; "" if that nothing differs. None is the module as it is."""
        other: ModuleType | None = None

        def load(name: str) -> Any:
            return other if other is not None and name == self.module else import_module(name)

        signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, self.limit)
        try:
            if tree is not None:
                other = ModuleType(self.module)
                other.__file__ = "mutant"
                exec(compile(tree, "mutant", "exec"), other.__dict__)
            result = replay(self.path, load=load)
            return "" if result.same else str(result)
        except Hang:
            return "it does not end"
        except Exception as error:
            return f"the module cannot be used: {type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def reached(self) -> set[int]:
        """The lines of the module that a replay comes to."""
        lines: set[int] = set()

        def inside(frame: FrameType, event: str, _: Any) -> Any:
            lines.add(frame.f_lineno)
            return inside

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            return inside if frame.f_code.co_filename == "mutant" else None

        sys.settrace(trace)
        limit, self.limit = self.limit, 300.0
        try:
            said = self.replay(ast.parse(self.source))
        finally:
            sys.settrace(None)
            self.limit = limit
        if said:
            raise SystemExit(f"the module as it is differs from its own recording: {said}")
        return lines

    def run(self, count: int, seed: int) -> dict[str, Any]:
        """Mutants until `count` are found: {"found": [...], "survived": [...]}, each (line, what, said)."""
        found: list[tuple[int, str, str]] = []
        survived: list[tuple[int, str, str]] = []
        for mutant in mutants(self.source, self.reached(), seed):
            said = self.replay(mutant.tree)
            if MADE in said or said.startswith("the module cannot"):
                continue  # there is no device that could differ
            (found if said else survived).append((mutant.line, mutant.what, said))
            if len(found) == count:
                break
        return {"found": found, "survived": survived}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.mutants")
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(Judge(options.name, Path(folder)).run(options.count, options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
