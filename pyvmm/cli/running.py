"""The verbs for VMs that run: ps, stop, kill, pause, resume, inspect, stat, logs, attach.

Imports control's client and config's sizes; `attach` what handles a terminal. Each verb is a row of RUNNING.
"""

from __future__ import annotations

import sys
import time

from pyvmm.config import format_size, parse_duration
from pyvmm.errors import BackendError, PyvmmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from pyvmm.control.client import Client

STOP_WAIT = "30s"
END_WAIT = 10.0
"""Seconds until a VM that was told to end has ended."""
PRESS_AGAIN = 0.1
"""Seconds between two looks whether the guest listens to its power button."""
PS_WAIT = 2.0
"""Seconds that `ps` waits for a VM's answer."""
COLUMNS = ("name", "pid", "state", "cpus", "mem", "up", "kernel")


class RunningVerb:
    """`run(arguments)` is the verb; what it takes beside NAME is added by `options`, by default `--json` or nothing."""

    __slots__ = ("HELP", "name", "options", "run")

    def __init__(
        self,
        name: str,
        run: Callable[[argparse.Namespace], None],
        help: str,
        *options: tuple[str, dict[str, Any]],
    ) -> None:
        self.name = name
        self.HELP = help
        self.run = run
        self.options = options

    def main(self, argv: list[str]) -> int:
        """Runs `pyvmm VERB argv`. Returns 0; raises PyvmmError."""
        from pyvmm.cli.parser import Parser

        parser = Parser(prog=f"pyvmm {self.name}", description=self.HELP, allow_abbrev=False)
        if self.name != "ps":
            parser.add_argument("name", metavar="NAME", help="what the VM is called (pyvmm ps)")
        for flag, settings in self.options:
            parser.add_argument(flag, **settings)
        self.run(parser.parse_intermixed_args(argv))
        return 0


def _client(arguments: argparse.Namespace) -> Client:
    from pyvmm.control.client import Client

    return Client(arguments.name)


def _json(found: object) -> None:
    import json

    print(json.dumps(found, indent=2))


def ps(arguments: argparse.Namespace) -> None:
    """A VM that does not answer is shown with its name alone."""
    from pyvmm.control.client import Client, running

    found = []
    for name in running():
        try:
            with Client(name, PS_WAIT) as client:
                found.append(client.ask("inspect"))
        except PyvmmError:
            if name in running():
                found.append({"name": name, "state": "does not answer"})
    if arguments.json:
        _json(found)
        return
    rows = [tuple(column.upper() for column in COLUMNS), *(_row(vm) for vm in found)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(vm: dict[str, Any]) -> tuple[str, ...]:
    cells = {name: "-" if vm.get(name) is None else str(vm[name]) for name in COLUMNS}
    if "mem" in vm:
        cells["mem"] = format_size(vm["mem"])
        cells["up"] = _duration(vm["seconds"])
    return tuple(cells.values())


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}s" if whole < 3600 else f"{whole // 3600}h{whole // 60 % 60:02}m"


def stop(arguments: argparse.Namespace) -> None:
    """The button, as soon as the guest listens; the end, when it has not switched itself off in time."""
    deadline = time.monotonic() + parse_duration(arguments.timeout)
    with _client(arguments) as client:
        pressed = False
        while not pressed and time.monotonic() < deadline:
            answer = _ask(client, "power-button")
            if answer is None:
                return
            pressed = answer["listening"]
            if client.await_end(max(0.0, deadline - time.monotonic()) if pressed else PRESS_AGAIN):
                return
    _end(arguments)


def _ask(client: Client, command: str) -> dict[str, Any] | None:
    """The answer to what may end the VM before it has answered: then None."""
    try:
        return client.ask(command)
    except BackendError:
        if client.await_end(0.0):
            return None
        raise


def _end(arguments: argparse.Namespace) -> None:
    with _client(arguments) as client:
        if _ask(client, "kill") is not None and not client.await_end(END_WAIT):
            raise BackendError(f"{arguments.name} has not ended within {END_WAIT:g} s")


def _pause(arguments: argparse.Namespace) -> None:
    with _client(arguments) as client:
        client.ask("pause")


def _resume(arguments: argparse.Namespace) -> None:
    with _client(arguments) as client:
        client.ask("resume")


def inspect(arguments: argparse.Namespace) -> None:
    """What the VM is, a line each, or a view of what is in it; or JSON."""
    if arguments.what:
        with _client(arguments) as client:
            how = {"vcpu": arguments.cpu or 0, "physical": arguments.physical, "data": arguments.json}
            sys.stdout.buffer.write(client.look(arguments.what, **how))
        sys.stdout.buffer.flush()
        return
    if arguments.cpu is not None or arguments.physical:
        raise UsageError("--cpu and --physical go with what to look at (pyvmm inspect NAME WHAT)")
    with _client(arguments) as client:
        found = client.ask("inspect")
    if arguments.json:
        _json(found)
        return
    found["mem"] = format_size(found["mem"])
    found["seconds"] = _duration(found["seconds"])
    found["devices"] = " ".join(found["devices"])
    for name, value in found.items():
        print(f"{name:<10}{'-' if value in (None, '') else value}")


def stat(arguments: argparse.Namespace) -> None:
    """A line each, or JSON."""
    with _client(arguments) as client:
        found = client.ask("stat")
    if arguments.json:
        _json(found)
        return
    exits = ", ".join(f"{name} {count}" for name, count in sorted(found["exits"].items())) or "none"
    completed = ", ".join(f"{name} {count}" for name, count in sorted(found["completed"].items()))
    print(f"exits      {sum(found['exits'].values())} ({exits})")
    if completed:
        print(f"completed  {completed}: instructions that KVM refused")
    print(f"unclaimed  {found['unclaimed']} accesses that no device answered")
    print(f"guest ran  {found['seconds']:.3f} s")
    print(f"CPU time   {found['cpu']:.3f} s")
    print(f"memory     {found['memory'] >> 20} MiB, with what the guest uses of its {found['mem'] >> 20} MiB")


def logs(arguments: argparse.Namespace) -> None:
    """Byte for byte."""
    import base64

    output, position = sys.stdout.buffer, 0
    with _client(arguments) as client:
        while data := base64.b64decode(client.ask("logs", position=position)["data"]):
            output.write(data)
            position += len(data)
    output.flush()


def attach(arguments: argparse.Namespace) -> None:
    """Until the escape key or the VM's end."""
    from pyvmm.cli.attach import Session

    with _client(arguments) as client:
        Session(*client.attach(), escape=arguments.escape, name=arguments.name).run()


VIEWS = (
    "registers [all]; paging [ADDR]: a page-table walk; memory: what lies where; tables: GDT, LDT, IDT; devices; "
    "queues; irqchip: PICs and I/O APIC; lapic [N]: vCPU N's local APIC; pit; exits; dump ADDR [LEN]; disasm [ADDR] "
    "[N]; all. ADDR is a number, a register or a symbol, as 0x1000, rip, rsp+16"
)
JSON = ("--json", {"action": "store_true", "help": "show it as JSON, in bytes and seconds"})
_TIMEOUT = {"default": STOP_WAIT, "metavar": "TIME"}
_ESCAPE = {"default": "^A", "metavar": "KEY", "help": "escape key on a terminal: ^A, ^], ... or none (default ^A)"}
RUNNING = {
    verb.name: verb
    for verb in (
        RunningVerb("ps", ps, "list this user's running VMs", JSON),
        RunningVerb(
            "stop",
            stop,
            "shut a running VM down by its power button; end it if that takes too long",
            ("--timeout", {**_TIMEOUT, "help": f"how long it has (default {STOP_WAIT})"}),
        ),
        RunningVerb("kill", _end, "end a running VM at once"),
        RunningVerb("pause", _pause, "let a running VM stand still"),
        RunningVerb("resume", _resume, "let a paused VM run on"),
        RunningVerb(
            "inspect",
            inspect,
            "show what a running VM is, or what is in it",
            ("what", {"nargs": "*", "default": [], "metavar": "WHAT", "help": VIEWS}),
            ("--cpu", {"type": int, "metavar": "N", "help": "whose registers, page tables and local APIC (default 0)"}),
            ("--physical", {"action": "store_true", "help": "with dump: ADDR is guest-physical"}),
            JSON,
        ),
        RunningVerb("stat", stat, "show a running VM's exits, time and memory", JSON),
        RunningVerb("logs", logs, "show the last 64 KiB that a running VM's console has shown"),
        RunningVerb("attach", attach, "connect this terminal to a running VM's console", ("--escape", _ESCAPE)),
    )
}
