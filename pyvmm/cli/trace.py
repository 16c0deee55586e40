"""`pyvmm trace`: what can be done with a trace that was recorded (`pyvmm run --trace`).

May import trace, each part where its verb is asked for. Each verb is a row of VERBS.
"""

from __future__ import annotations

from pyvmm.cli.progress import log
from pyvmm.errors import STATUS_USAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

HELP = "convert, compare and replay what a run has recorded"


class TraceVerb:
    """`run(arguments)` is the verb and returns the exit status; `options` are what it takes, as argparse has them."""

    __slots__ = ("help", "name", "options", "run")

    def __init__(
        self,
        name: str,
        run: Callable[[argparse.Namespace], int],
        help: str,
        *options: tuple[str, dict[str, Any]],
    ) -> None:
        self.name = name
        self.run = run
        self.help = help
        self.options = options

    def main(self, argv: list[str]) -> int:
        """Runs `pyvmm trace VERB argv`. Returns the exit status; raises PyvmmError."""
        from pyvmm.cli.parser import Parser

        description = f"{self.help[0].upper()}{self.help[1:]}."
        parser = Parser(prog=f"pyvmm trace {self.name}", description=description, allow_abbrev=False)
        for flag, settings in self.options:
            parser.add_argument(flag, **settings)
        return self.run(parser.parse_args(argv))


def convert(arguments: argparse.Namespace) -> int:
    """Nothing is said."""
    from pyvmm.trace.convert import convert

    convert(arguments.source, arguments.target)
    return 0


def diff(arguments: argparse.Namespace) -> int:
    """The exit status is that of diff(1)."""
    from pyvmm.trace.diff import compare

    found = compare(arguments.first, arguments.second, device=arguments.device)
    print(found.text(), end="")
    return int(found.different)


VERBS = {
    verb.name: verb
    for verb in (
        TraceVerb(
            "convert",
            convert,
            "write a trace in another form: JSON lines, or the trace events that Perfetto opens if TO ends in .json",
            ("source", {"metavar": "FROM", "help": "a trace in any form, of a killed run too"}),
            ("target", {"metavar": "TO", "help": "the file to write"}),
        ),
        TraceVerb(
            "diff",
            diff,
            "say where the device accesses of two traces first differ, and how their counts do; exit status 0 if they "
            "are the same, 1 if not",
            ("first", {"metavar": "A", "help": "a trace"}),
            ("second", {"metavar": "B", "help": "another one"}),
            ("--device", {"metavar": "NAME", "help": "compare accesses of this device alone", "default": ""}),
        ),
    )
}


def main(argv: list[str]) -> int:
    """Runs `pyvmm trace argv`. Returns the exit status; raises PyvmmError."""
    if argv[:1] in (["-h"], ["--help"]):
        print(_usage())
        return 0
    if not argv or argv[0] not in VERBS:
        named = f"unknown verb {argv[0]!r}" if argv else "no verb given"
        log.error(f"error: {named} (expected {', '.join(VERBS)})")
        log.error("usage: pyvmm trace VERB ... (pyvmm trace --help explains)")
        return STATUS_USAGE
    return VERBS[argv[0]].main(argv[1:])


def _usage() -> str:
    lines = ["usage: pyvmm trace VERB ...", "", f"{HELP[0].upper()}{HELP[1:]}.", "", "verbs:"]
    lines += [f"  {name:<10}{verb.help}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "pyvmm trace VERB --help explains each."])
