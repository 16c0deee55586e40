"""`pyvmm trace`: what can be done with a trace that was recorded (`pyvmm run --trace`).

May import trace, each part where its verb is asked for. Each verb is a row of VERBS.
"""

from __future__ import annotations

import os

from pyvmm.cli.orderly import end_in_order
from pyvmm.cli.progress import log
from pyvmm.errors import STATUS_USAGE, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

HELP = "sum up, look through, draw, convert and compare what a run has recorded"


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


def summary(arguments: argparse.Namespace) -> int:
    """To standard output, as text or JSON."""
    from pyvmm.trace.look import summary
    from pyvmm.trace.look.tracepoints import read_events
    from pyvmm.trace.reader import read

    trace = read(arguments.trace)
    events = read_events(arguments.kvm_events) if arguments.kvm_events else None
    figures = summary.count(trace.records())
    if arguments.json:
        import json

        print(json.dumps(summary.as_data(trace.header, figures, events), indent=2))
    else:
        print(summary.as_text(trace.header, figures, events), end="")
    return 0


def view(arguments: argparse.Namespace) -> int:
    """On the terminal, or with --print to standard output."""
    from pyvmm.trace.look.filters import FIELDS, Filter
    from pyvmm.trace.reader import read

    given = {field: getattr(arguments, field) for field in FIELDS}
    wanted = Filter({field: value for field, value in given.items() if value is not None}, tuple(arguments.text))
    trace = read(arguments.trace)
    if arguments.print:
        from pyvmm.trace.look.show import line

        for record in trace.records():
            if wanted.matches(record):
                print(line(record))
        return 0
    if not (os.isatty(0) and os.isatty(1)):
        raise UsageError("pyvmm trace view needs a terminal; --print shows records as text")
    from pyvmm.trace.look.browser import Browser
    from pyvmm.trace.look.lines import Lines
    from pyvmm.trace.look.terminal import browse

    with Lines(trace) as lines:
        browse(Browser(lines, os.path.basename(arguments.trace), wanted))
    return 0


def html(arguments: argparse.Namespace) -> int:
    """The page is there when it is whole."""
    from pyvmm.trace.look.html import write

    write(arguments.trace, arguments.page)
    return 0


def explain(arguments: argparse.Namespace) -> int:
    """To standard output."""
    from pyvmm.cli.explain import explain_trace

    return explain_trace(arguments)


TRACE = ("trace", {"metavar": "FILE", "help": "a trace in any form, of a killed run too"})


def replay(arguments: argparse.Namespace) -> int:
    """The exit status is 1 if a device differs."""
    from pyvmm.errors import UsageError
    from pyvmm.trace.devices.replay import replay
    from pyvmm.trace.devices.runs import played
    from pyvmm.trace.reader import read

    trace = read(arguments.trace)
    devices = [arguments.device] if arguments.device or "recording" in trace.header else played(trace)
    if not devices:
        raise UsageError(f"{arguments.trace}: none of its devices can be replayed")
    results = [replay(trace, device) for device in devices]
    for result in results:
        print(result)
    return int(not all(result.same for result in results))


VERBS = {
    verb.name: verb
    for verb in (
        TraceVerb(
            "summary",
            summary,
            "say what a run spent its exits on: by reason, device and register, with times, queues and phases",
            TRACE,
            ("--json", {"action": "store_true", "help": "as JSON; times in nanoseconds"}),
            ("--kvm-events", {"metavar": "TEXT", "help": "kvm:kvm_entry and kvm_exit of the run, as tracefs has them"}),
        ),
        TraceVerb(
            "view",
            view,
            "look through the records of a trace on the terminal, or with --print as text",
            TRACE,
            ("--print", {"action": "store_true", "help": "write the records as text instead"}),
            ("--device", {"metavar": "NAME", "help": "only records of this device"}),
            ("--register", {"metavar": "NAME", "help": "only accesses of this register"}),
            ("--reason", {"metavar": "NAME", "help": "only exits for this reason: IO, MMIO, HLT, ..."}),
            ("--kind", {"metavar": "KIND", "help": "only exit, queue, interrupt, lifecycle, phase, statistics, ..."}),
            ("--vcpu", {"metavar": "N", "help": "only records of this vCPU"}),
            ("--from", {"metavar": "TIME", "help": "only from this time of the trace on: 1.5s, 20ms"}),
            ("--to", {"metavar": "TIME", "help": "only up to this time"}),
            ("--text", {"metavar": "WORD", "action": "append", "default": [], "help": "only lines with this text"}),
        ),
        TraceVerb(
            "html",
            html,
            "make one page of a trace, which a browser shows without a network",
            TRACE,
            ("page", {"metavar": "OUT.html", "help": "the file to write"}),
        ),
        TraceVerb(
            "explain",
            explain,
            "say in words what happened: each access by register, bits and section of its specification",
            TRACE,
            (
                "--device",
                {
                    "metavar": "NAME",
                    "action": "append",
                    "default": [],
                    "help": "only this device, as blk0 or virtio-blk",
                },
            ),
            (
                "--symbols",
                {"metavar": "FILE", "help": "vmlinux or System.map for names (default: the kernel that ran)"},
            ),
        ),
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
        TraceVerb(
            "replay",
            replay,
            "do the recorded accesses of devices again with the device models, without KVM, and say where they differ; "
            "exit status 0 if they do not, 1 if they do",
            TRACE,
            ("--device", {"metavar": "NAME", "help": "this device alone", "default": ""}),
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
    end_in_order()
    return VERBS[argv[0]].main(argv[1:])


def _usage() -> str:
    lines = ["usage: pyvmm trace VERB ...", "", f"{HELP[0].upper()}{HELP[1:]}.", "", "verbs:"]
    lines += [f"  {name:<10}{verb.help}" for name, verb in VERBS.items()]
    return "\n".join([*lines, "", "pyvmm trace VERB --help explains each."])
