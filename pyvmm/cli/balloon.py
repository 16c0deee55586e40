"""`pyvmm balloon`: how much of its memory a running VM does without, and what it says of the rest.

Imports control's client and config's sizes.
"""

from __future__ import annotations

from pyvmm.config import format_size, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

HELP = "show or set how much memory a running VM gives back to the host"
COUNTS = ("major-faults", "minor-faults", "huge-allocations", "huge-failures")
"""Statistics that are no bytes."""


def main(argv: list[str]) -> int:
    """Runs `pyvmm balloon argv`. Returns 0; raises PyvmmError."""
    from pyvmm.control.client import Client

    arguments = _parser().parse_args(argv)
    size = {} if arguments.size is None else {"size": parse_size(arguments.size)}
    with Client(arguments.name) as client:
        found = client.ask("balloon", **size)
    if arguments.json:
        import json

        print(json.dumps(found, indent=2))
    elif not size:
        _show(found)
    return 0


def _parser() -> argparse.ArgumentParser:
    from pyvmm.cli.parser import Parser

    parser = Parser(prog="pyvmm balloon", description=HELP, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="what the VM is called (pyvmm run --name)")
    parser.add_argument("size", metavar="SIZE", nargs="?", help="ask for a balloon of SIZE; 0 gives all memory back")
    parser.add_argument("--json", action="store_true", help="show it as JSON, in bytes")
    return parser


def _show(found: dict[str, Any]) -> None:
    rows = [("target", format_size(found["target"])), ("actual", format_size(found["actual"]))]
    for name, value in found["statistics"].items():
        rows.append((name, str(value) if name in COUNTS else format_size(value)))
    for name, value in rows:
        print(f"{name:<17} {value}")
