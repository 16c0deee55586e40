"""`pyvmm exec NAME -- CMD`: one command in the guest of a running VM, with this process's streams and exit status.

May import control's client, options, passing and signals.
"""

from __future__ import annotations

import errno

from pyvmm.cli.options import FLAG, Option, describe, parse
from pyvmm.cli.passing import NOT_FOUND, NOT_RUN, Passing, status, variables
from pyvmm.cli.progress import log
from pyvmm.cli.runoptions import escape_key
from pyvmm.cli.signals import Signals
from pyvmm.errors import STATUS_USAGE, GuestAgentError, PyvmmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HELP = "run a command in a running VM that has an agent"
USAGE_HINT = "usage: pyvmm exec [options] NAME -- CMD... (pyvmm exec --help lists the options)"
EXEC = (
    Option("env", "a variable for the command; without =VALUE its value here", metavar="NAME[=VALUE]", repeatable=True),
    Option("user", "the guest's user that it runs as, a name or number (default root)", metavar="USER"),
    Option("cwd", "the guest's folder that it starts in (default /)", metavar="DIR"),
    Option("escape", "escape key on a terminal: ^A, ^], ... or none (default ^A)", metavar="KEY", convert=escape_key),
    Option("help", "show this help", short="h", kind=FLAG),
)


def main(argv: list[str]) -> int:
    """Run one command as `argv` says; returns its exit status. Raises PyvmmError."""
    try:
        arguments = parse(EXEC, argv)
        values: dict[str, Any] = arguments.values
        if "help" in values:
            text = f"{HELP}: pyvmm exec NAME -- CMD..."
            print(describe("pyvmm exec", EXEC, "NAME", "what the VM is called (pyvmm ps)", text).format_help(), end="")
            return 0
        if len(arguments.positional) != 1:
            raise UsageError(f"one NAME expected, and then -- CMD, but there is {arguments.positional or 'none'}")
        if not arguments.command:
            raise UsageError("no command (expected NAME -- CMD...)")
        env = variables(values.get("env", []))
    except UsageError as error:
        log.error(f"error: {error}")
        log.error(USAGE_HINT)
        return STATUS_USAGE
    return _run(arguments.positional[0], arguments.command, env, values)


def _run(name: str, command: list[str], env: dict[str, str], values: dict[str, Any]) -> int:
    from pyvmm.control.client import Client

    signals, left = Signals(), False
    signals.install()
    with Client(name) as client:

        def leave() -> None:
            nonlocal left
            left = True
            client.hang_up()

        def look(key: str) -> str:
            from pyvmm.cli.ending import LOOKS

            if key not in LOOKS:
                return f"{' '.join(command)}, in {name}"
            try:
                with Client(name) as other:
                    return other.look([LOOKS[key]]).decode()
            except PyvmmError as error:
                return str(error)

        signals.on_end(lambda number: client.hang_up())
        passing = Passing(signals, escape=values.get("escape"), quit=leave, look=look)
        signals.at_once = passing.restore
        terminal = passing.terminal(env)
        try:
            process = client.popen(
                command, env=env, user=values.get("user", ""), cwd=values.get("cwd", ""), terminal=terminal
            )
            return status(passing.run(process))
        except GuestAgentError as error:
            log.error(str(error))
            return NOT_FOUND if error.errno == errno.ENOENT else NOT_RUN
        except PyvmmError:
            if signals.received:
                return 128 + signals.received
            if left:
                return 0
            raise
