"""`pyvmm snapshot`: save a running VM, go on from what was saved, look at it.

May import vm and snapshot, the control socket's client, and what `pyvmm run` is made of: a VM that is restored is run
as one that boots.
"""

from __future__ import annotations

import os
import time

from pyvmm.cli.options import describe, parse
from pyvmm.cli.progress import log
from pyvmm.cli.run import Run
from pyvmm.cli.runoptions import RUN
from pyvmm.cli.signals import Signals
from pyvmm.config import format_size
from pyvmm.errors import STATUS_USAGE, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from pyvmm.cli.options import Arguments
    from pyvmm.config import VmConfig
    from pyvmm.vm import VM

HELP = "save a running VM and go on from there, as often as one likes"
USAGE = """usage: pyvmm snapshot create [--base PATH] NAME PATH
       pyvmm snapshot restore [options] PATH
       pyvmm snapshot inspect [--verify] [--json] PATH"""
WORDS = {
    *(
        "console",
        "disk",
        "escape",
        "help",
        "lint",
        "log",
        "name",
        "net",
        "report",
        "shell",
        "stats",
        "stuck",
        "timeout",
        "trace",
        "vsock",
    ),
}
RESTORE = [option for option in RUN if option.name in WORDS]
"""Options of `pyvmm run` that have a meaning for a VM that has booted long since."""
SETTINGS = {name: name for name in ("lint", "name", "net", "stuck", "timeout", "vsock")} | {"disk": "disks"}
"""Which of them are settings of the VM's in place of those that were saved."""
CREATE_LIMIT = 600.0
"""Seconds for a snapshot: a large guest's memory takes its time."""


def main(argv: list[str]) -> int:
    """Runs `pyvmm snapshot argv`. Returns the exit status; raises PyvmmError."""
    verbs = {"create": create, "restore": restore, "inspect": inspect}
    if argv[:1] in (["-h"], ["--help"]):
        print(f"{USAGE}\n\n{HELP[0].upper()}{HELP[1:]}.")
        return 0
    if not argv or argv[0] not in verbs:
        named = f"unknown verb {argv[0]!r}" if argv else "no verb given"
        log.error(f"error: {named} (expected {', '.join(verbs)})")
        log.error(USAGE.partition("\n")[0])
        return STATUS_USAGE
    return verbs[argv[0]](argv[1:])


def create(argv: list[str]) -> int:
    """Have a running VM saved; it goes on."""
    from pyvmm.control.client import Client

    parser = _parser("create", "save a running VM to a folder; it goes on")
    parser.add_argument("name", metavar="NAME", help="what the VM is called (pyvmm run --name)")
    parser.add_argument("path", metavar="PATH", help="the folder; a snapshot that is there already is replaced")
    parser.add_argument("--base", metavar="PATH", help="another snapshot of it: save just the memory that has changed")
    arguments = parser.parse_args(argv)
    base = os.path.abspath(arguments.base) if arguments.base else ""
    with Client(arguments.name, CREATE_LIMIT) as client:
        client.ask("snapshot", path=os.path.abspath(arguments.path), base=base)
    return 0


def restore(argv: list[str]) -> int:
    """Run a new VM from where a snapshot was made."""
    signals = Signals()
    signals.install()
    arguments = parse(RESTORE, argv)
    if "help" in arguments.values:
        text = "Go on from the snapshot in the folder PATH, in a new VM; standard output is the guest's console."
        print(describe("pyvmm snapshot restore", RESTORE, "PATH", "the snapshot's folder", text).format_help(), end="")
        return 0
    return Restored(arguments, signals).main()


class Restored(Run):
    """One run of a VM that was saved."""

    def _configure(self, arguments: Arguments) -> VmConfig:
        from pyvmm.vm import VM

        values: dict[str, Any] = arguments.values
        if len(arguments.positional) != 1 or arguments.command is not None:
            raise UsageError(f"one PATH expected, but there are {len(arguments.positional)}")
        others = {SETTINGS[name]: value for name, value in values.items() if name in SETTINGS}
        if "net" in values:
            from pyvmm.cli.devices import networks

            others["net"] = networks(values["net"], [])
        self._restored = VM.restore(arguments.positional[0], say=log.warn, paused="shell" in values, **others)
        folder = os.path.dirname(os.path.realpath(values.get("trace", "/")))
        if any(folder == os.path.realpath(source) for source in self._restored.sources):
            raise UsageError(f"--trace: {values['trace']} is among the files of the snapshot")
        return self._restored.config

    def _make_vm(self) -> VM:
        self._restored.console = self.console
        self._restored.trace = self.trace
        return self._restored


def inspect(argv: list[str]) -> int:
    """Show what a snapshot is of, and with --verify read all of it."""
    from pyvmm.snapshot.inspect import inspect as look

    parser = _parser("inspect", "show what a snapshot is of")
    parser.add_argument("path", metavar="PATH", help="the folder")
    parser.add_argument("--verify", action="store_true", help="read all of it, and compare its checksums")
    parser.add_argument("--json", action="store_true", help="show it as JSON, in bytes and seconds")
    arguments = parser.parse_args(argv)
    found = look(arguments.path, verify=arguments.verify)
    if arguments.json:
        import json

        print(json.dumps(found, indent=2))
        return 0
    shown = {
        **found,
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["time"])),
        "mem": format_size(found["mem"]),
        "memory": f"{found['memory'] >> 10} KiB on the disk",
        "devices": ", ".join(found["devices"]) or "none",
        "disks": ", ".join(found["disks"]) or "none",
        "bases": ", ".join(found["bases"]) or "none",
        "verified": "every checksum is right" if arguments.verify else "not asked for (--verify)",
    }
    for name, value in shown.items():
        print(f"{name:<12} {value}")
    return 0


def _parser(verb: str, text: str) -> argparse.ArgumentParser:
    from pyvmm.cli.parser import Parser

    return Parser(prog=f"pyvmm snapshot {verb}", description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False)
