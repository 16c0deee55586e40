"""`pyvmm doctor`: can this machine run guests, and if not, which line mends it? What does its KVM offer, and cost?

May import kvm and progress. Works without the compiled module and without KVM: it then says what is missing. The
report goes to standard output; its parts and the JSON are described in docs/doctor.md.
"""

from __future__ import annotations

import os
import sys

from pyvmm.cli.progress import log
from pyvmm.errors import STATUS_NO_KVM, PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.cli.probe import Cost
    from pyvmm.kvm.host import HostView
    from pyvmm.kvm.hostvirt import Problem

    Report = dict[str, Any]

HELP = "say whether KVM is usable here, what it can do, and what mends it if not"

SCHEMA = 1
"""Version of the JSON: it grows when a field changes its meaning or goes, not when one is added."""


def main(argv: list[str]) -> int:
    """Runs `pyvmm doctor argv`. Returns 0 where guests can run, 126 where not. Raises UsageError."""
    from pyvmm.cli.parser import Parser

    parser = Parser(prog="pyvmm doctor", description=HELP, allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print the report as JSON (docs/doctor.md)")
    parser.add_argument("--all", action="store_true", help="list the capabilities that pyvmm does not use, too")
    parser.add_argument("--no-measure", action="store_true", help="run no guests to measure what exits cost")
    arguments = parser.parse_args(argv)
    report = examine(measure=not arguments.no_measure)
    if arguments.json:
        import json

        print(json.dumps(report, indent=2))
    else:
        print("\n".join(lines(report, everything=arguments.all)))
    return 0 if report["usable"] else STATUS_NO_KVM


def examine(view: HostView | None = None, *, measure: bool = True) -> Report:
    """All that there is to say about a host, in the form of the JSON."""
    from pyvmm.kvm import native
    from pyvmm.kvm.host import Host, HostView
    from pyvmm.kvm.hostcheck import diagnose
    from pyvmm.kvm.hostvirt import Problem

    view = view or HostView()
    host = Host(view)
    problem = diagnose(view)
    kvm = {"usable": problem is None, **_kvm(view), "module": host.module, "nested": host.nested}
    if problem is None and native.PROBLEM:
        problem = Problem("not-built", native.PROBLEM, "pip install .")
    report: Report = {
        "schema": SCHEMA,
        "usable": problem is None,
        "problem": _problem(problem),
        "compiled": not native.PROBLEM,
        "machine": {
            "system": view.uname.sysname,
            "release": view.uname.release,
            "architecture": view.uname.machine,
            "processor": view.cpuinfo("model name"),
        },
        "kvm": kvm,
        "quirks": dict(host.quirks),
        "features_hidden": list(host.without),
        "costs": None,
        "costs_missing": "not asked for",
        "debug": None,
    }
    if problem is not None:
        report["costs_missing"] = "KVM is not usable"
    elif measure:
        _measure(report)
        _try_debugging(report)
    return report


def _kvm(view: HostView) -> Report:
    """What /dev/kvm says of itself, as far as it can be opened."""
    from pyvmm.kvm.caps import CAPABILITIES
    from pyvmm.kvm.host import DEVICE
    from pyvmm.kvm.hostcheck import BareKvm

    said: Report = {"api_version": None, "capabilities": []}
    try:
        fd = view.open(DEVICE, os.O_RDWR)
    except OSError:
        return said
    try:
        bare = BareKvm(view, fd)
        said["api_version"] = bare.api_version()
        said["capabilities"] = [
            {
                "number": row.number,
                "name": row.name,
                "value": bare.check_extension(row.number),
                "required": row.required,
                "since": row.since,
                "use": row.use,
            }
            for row in CAPABILITIES
        ]
    except OSError:  # it is no KVM, as the diagnosis says
        pass
    finally:
        os.close(fd)
    return said


def _problem(problem: Problem | None) -> Report | None:
    if problem is None:
        return None
    return {"cause": problem.cause, "line": problem.line, "mend": problem.mend, "then": problem.then}


def _measure(report: Report) -> None:
    from pyvmm.cli.probe import EXITS, LOOPS, ROUNDS, measure

    try:
        costs = measure(log.say if os.isatty(2) else lambda _: None)
    except PyvmmError as error:
        report["costs_missing"] = str(error)
        return

    def numbers(cost: Cost) -> Report:
        return {"median_ns": round(cost.median, 1), "least_ns": round(cost.least, 1), "most_ns": round(cost.most, 1)}

    report["costs_missing"] = ""
    report["costs"] = {
        "rounds": ROUNDS,
        "exits_a_round": EXITS,
        "instructions_a_round": 2 * LOOPS,
        "exit_ring0": numbers(costs.exit_ring0),
        "exit_ring3": numbers(costs.exit_ring3),
        "instruction_ring0": numbers(costs.instruction_ring0),
        "ring0_emulated": costs.ring0_emulated,
    }


def _try_debugging(report: Report) -> None:
    from pyvmm.cli.debugprobe import abilities

    try:
        report["debug"] = abilities()
    except PyvmmError:  # what is wrong is told with the costs
        report["debug"] = None


# --- The report as text --------------------------------------------------------------------------------------------


def lines(report: Report, *, everything: bool = False) -> list[str]:
    """The report for people; `everything` lists capabilities that pyvmm has no use for, too."""
    machine, kvm, problem = report["machine"], report["kvm"], report["problem"]
    text = ["KVM is usable: pyvmm can run guests here." if report["usable"] else "pyvmm cannot run guests here."]
    if problem:
        text += ["", f"  problem      {problem['line']}", f"  to mend it   {problem['mend']}"]
        text += [f"  then         {problem['then']}"] if problem["then"] else []
    text += [
        "",
        f"  machine      {machine['processor'] or machine['architecture']}, {machine['system']} {machine['release']}",
        f"  API version  {kvm['api_version'] or 'unknown'}",
        f"  module       {_module(kvm)}",
        f"  compiled     {'yes' if report['compiled'] else 'no'}",
    ]
    if not kvm["usable"]:
        return text
    text += _costs(report)
    if report["debug"] is not None:
        text += _debugging(report["debug"])
    if report["quirks"]:
        text += ["", "What is different on this host", ""]
        for sentence in report["quirks"].values():
            text += _wrap(sentence)
    if report["features_hidden"]:
        hidden = ", ".join(report["features_hidden"])
        text += _wrap(f"Guests are not shown these CPU features unless --cpu asks for them: {hidden}.")
    return text + _capabilities(kvm["capabilities"], everything)


def _module(kvm: Report) -> str:
    name = f"kvm_{kvm['module']}" if kvm["module"] else "unknown"
    return name + (", nested: this machine is itself a virtual machine" if kvm["nested"] else "")


def _costs(report: Report) -> list[str]:
    costs = report["costs"]
    if costs is None:
        return ["", f"Costs were not measured: {report['costs_missing']}."]
    rows = [
        ("one exit from ring 0", costs["exit_ring0"], ""),
        ("one exit from ring 3", costs["exit_ring3"], ""),
        (
            "one instruction in ring 0",
            costs["instruction_ring0"],
            "emulated" if costs["ring0_emulated"] else "run by the processor",
        ),
    ]
    text = ["", f"Costs: median of {costs['rounds']} rounds, least and most; an exit's with Python's share of it", ""]
    for name, cost, remark in rows:
        numbers = "  ".join(f"{_time(cost[key]):>8}" for key in ("median_ns", "least_ns", "most_ns"))
        text.append(f"  {name:<26} {numbers}  {remark}".rstrip())
    return text


def _debugging(debug: dict[str, list[int]]) -> list[str]:
    rows = (
        ("single steps", debug["step"]),
        ("planted breakpoints", debug["planted"]),
        ("hardware breakpoints", debug["hardware"]),
        ("hardware watchpoints", debug["watch"]),
    )
    text = ["", "Debugging with gdb (docs/debugging.md), tried out: where it works", ""]
    return text + [f"  {name:<26} {_where(rings)}" for name, rings in rows]


def _where(rings: list[int]) -> str:
    return {(): "nowhere", (0,): "in kernels alone", (3,): "in programs alone"}.get(
        tuple(rings), "in kernels and programs"
    )


def _time(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.1f} µs" if nanoseconds >= 1000 else f"{nanoseconds:.3g} ns"


def _capabilities(rows: list[Report], everything: bool) -> list[str]:
    used = [row for row in rows if row["use"]]
    others = [row for row in rows if not row["use"]]
    if not rows:
        return []
    there = sum(1 for row in used if row["value"])
    text = ["", f"Capabilities: {there} of {len(used)} that pyvmm uses (! marks those it needs)", ""]
    text += [_capability(row) for row in used]
    if everything:
        text += ["", "Capabilities that pyvmm does not use", ""] + [_capability(row) for row in others]
    else:
        text += ["", f"{len(others)} more that pyvmm does not use: pyvmm doctor --all"]
    return text


def _capability(row: Report) -> str:
    value = "no" if not row["value"] else "yes" if row["value"] == 1 else str(row["value"])
    name = row["name"].removeprefix("KVM_CAP_").lower() + ("!" if row["required"] else "")
    remark = row["use"] if row["value"] else f"{row['use']} (since Linux {row['since']})".strip()
    return f"  {value:>5}  {name:<28} {remark}".rstrip()


def _wrap(sentence: str) -> list[str]:
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size((100, 24)).columns, 100) if sys.stdout.isatty() else 100
    return textwrap.wrap(
        sentence, max(width, 40), initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
    )
