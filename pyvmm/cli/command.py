"""`pyvmm run -- CMD`: one command in the guest, with the streams, signals and exit status of this process.

May import run, what that may, and the guest's agent. Standard output is the command's. The console is kept, and shown
on standard error if the guest failed, or as it comes with `-v`. On a terminal the command has one too, and every key is
its own but for the escape key.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from pyvmm.backends.capture import CaptureConsole
from pyvmm.cli.progress import STDERR, log, write_all
from pyvmm.cli.run import DEFAULT_IMAGE, Run
from pyvmm.cli.signals import SAME
from pyvmm.errors import STATUS_VMM_ERROR, GuestAgentError, ImageError, PyvmmError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from typing import Any

    from pyvmm.backends.terminal import Terminal
    from pyvmm.cli.options import Arguments
    from pyvmm.cli.signals import Signals
    from pyvmm.guest.process import GuestProcess
    from pyvmm.runloop import Outcome
    from pyvmm.vm import VM

STDIN, STDOUT = 0, 1
PIECE = 16 << 10
AGENT_WAIT = 300.0
"""Seconds that a guest has until its agent answers, where no --timeout ends the run before."""
QUIET_TAIL = 2.0
"""Seconds after the command's end in which some other program that has its output may stay silent."""
POWER_OFF_WAIT = 15.0
"""Seconds that a guest with disks has to write back what it holds."""
PATIENCE = 3
"""Signals that ask to end, to a command that does not: the next one ends the run."""
SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTERM = 1, 2, 3, 13, 15
NOT_FOUND, NOT_RUN = 127, 126
"""What a shell's status is for a command that is not there, and for one that cannot be run."""
CONSOLE_SHOWN = 4000
"""Characters of the console's end."""


def settle(settings: dict[str, Any], arguments: Arguments) -> None:
    """Make `settings` of VmConfig those of a VM that runs a command. Raises UsageError, ImageError."""
    values = arguments.values
    if not arguments.command:
        raise UsageError("no command after --")
    if values.get("console") == "stdio":
        raise UsageError("--console stdio: standard input and output are the command's")
    words = ["pyvmm.agent"] if "verbose" in values else ["quiet", "pyvmm.agent"]
    settings["append"] = " ".join(filter(None, [*words, settings.get("append", "")]))
    settings["agent"] = True
    settings.pop("stuck_at_boot", None)  # a command may be silent
    if arguments.positional and "initrd" not in settings:
        from pyvmm.images import image

        try:
            settings["initrd"] = image(DEFAULT_IMAGE).initrd
        except ImageError as error:
            raise ImageError(f"a command in the guest needs an initramfs with the agent, and {error}") from error


def variables(given: list[str]) -> dict[str, str]:
    """What --env says: NAME=VALUE, or NAME for the value that it has here. Raises UsageError."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name:
            raise UsageError(f"--env: {text!r} has no name (expected NAME=VALUE)")
        if not equals and name not in os.environ:
            raise UsageError(f"--env: {name} has no value here (expected NAME=VALUE)")
        found[name] = value if equals else os.environ[name]
    return found


class KeptConsole(CaptureConsole):
    """The console in memory and, if `shown`, on standard error as well."""

    def __init__(self, shown: bool) -> None:
        super().__init__()
        self._shown = shown

    def write(self, data: bytes) -> None:
        """Output of the guest."""
        super().write(data)
        if self._shown:
            try:
                write_all(STDERR, data)
            except OSError:
                self._shown = False

    def restore(self) -> None:
        """There is nothing to put back."""


class CommandRun(Run):
    """One run of one VM for one command."""

    def __init__(self, arguments: Arguments, signals: Signals) -> None:
        values: dict[str, Any] = arguments.values
        self.command = arguments.command or []
        self.verbose = "verbose" in values
        self.env = variables(values.get("env", []))
        self.user: str = values.get("user", "")
        self._terminal: Terminal | None = None
        self._process: GuestProcess | None = None
        self._asked = 0
        self._asked_at = 0.0
        super().__init__(arguments, signals)

    def _make_console(self, values: dict[str, Any]) -> Any:
        return super()._make_console(values) if "console" in values else KeptConsole(self.verbose)

    def _watch_console(self) -> None:
        self.signals.at_once = self._restore

    # --- The command --------------------------------------------------------------------------------------------------

    def _await(self, vm: VM) -> Outcome:
        from pyvmm.runloop import Outcome

        try:
            vm.guest.wait_ready(AGENT_WAIT)
        except PyvmmError as error:
            return self._ended(vm, error, ": is there one in its initramfs (docs/exec.md)?")
        try:
            process = self._start(vm)
        except GuestAgentError as error:
            code = NOT_FOUND if error.errno == errno.ENOENT else NOT_RUN
            vm.stop(Outcome("command", code, str(error)))
            log.error(str(error))
            return vm.wait()
        except PyvmmError as error:
            return self._ended(vm, error)
        self._process = process
        self.signals.forward = self._forward
        try:
            outcome = self._through(process)
        except PyvmmError as error:
            return self._ended(vm, error)
        finally:
            self.signals.forward = None
            self._restore()
        if vm.config.disks or vm.config.shares:
            self._power_off(vm)
        vm.stop(outcome)
        vm.wait()
        return outcome if vm.exit is None or vm.exit.reason in ("command", "power-off") else vm.exit

    def _ended(self, vm: VM, error: PyvmmError, hint: str = "") -> Outcome:
        """The VM has ended, and knows itself how; or it is no use any more, because of `error`."""
        from pyvmm.runloop import Outcome

        vm.stop(Outcome("error", STATUS_VMM_ERROR, f"{error}{hint}"))  # nothing, if it has ended
        return vm.wait()

    def _start(self, vm: VM) -> GuestProcess:
        terminal = None
        env = dict(self.env)
        if os.isatty(STDIN) and os.isatty(STDOUT):
            from pyvmm.backends.terminal import Terminal

            size = os.get_terminal_size(STDIN)
            terminal = size.lines, size.columns
            if "TERM" in os.environ:
                env.setdefault("TERM", os.environ["TERM"])
            self._terminal = Terminal(STDIN, raw_output=True)
        process = vm.guest.popen(self.command, env=env, user=self.user, terminal=terminal)
        if self._terminal is not None:
            self._terminal.enter()
            log.raw = lambda: self._terminal is not None and self._terminal.raw
            self.signals.on_resume = self._terminal.enter
            self.signals.watch_size(lambda: self._resize(process))
        return process

    def _through(self, process: GuestProcess) -> Outcome:
        """Pass the streams through until the command has ended and its output is written."""
        from pyvmm.guest.completed import ending
        from pyvmm.runloop import Outcome

        self._moved = time.monotonic()
        outputs = [
            threading.Thread(target=self._pump, args=(process, process.stdout, STDOUT), daemon=True),
            threading.Thread(target=self._pump, args=(process, process.stderr, STDERR), daemon=True),
        ]
        threading.Thread(target=self._feed, args=(process,), name="command-input", daemon=True).start()
        for thread in outputs:
            thread.start()
        code = process.wait()
        self._moved = time.monotonic()
        while any(thread.is_alive() for thread in outputs) and time.monotonic() - self._moved < QUIET_TAIL:
            for thread in outputs:
                thread.join(0.05)
        process.close()
        return Outcome("command", 128 - code if code < 0 else code, f"{self.command[0]} {ending(code)}")

    def _pump(self, process: GuestProcess, source: io.BufferedReader, fd: int) -> None:
        try:
            while data := source.read1(PIECE):
                write_all(fd, data)
                self._moved = time.monotonic()
        except PyvmmError:
            pass  # the VM has ended
        except OSError:  # nobody reads it: the command learns of that as it would have without us
            process.send_signal(SIGPIPE)

    def _feed(self, process: GuestProcess) -> None:
        from pyvmm.backends.terminal import CTRL_A, EscapeFilter, parse_escape

        escape = self.values.get("escape")
        keys = EscapeFilter(CTRL_A if escape is None else parse_escape(escape))
        try:
            while data := self._read():
                commands = ""
                if self._terminal is not None:
                    data, commands = keys.feed(data)
                process.stdin.write(data)
                for command in commands:
                    if command == "q":
                        self._quit()
                    else:
                        log.say(keys.help() if command == "h" else self._state())
            process.stdin.close()
        except (PyvmmError, BrokenPipeError):
            pass  # it does not want it all, or has ended

    def _read(self) -> bytes:
        try:
            return os.read(STDIN, PIECE)
        except OSError:
            return b""  # closed, or the terminal has gone

    def _forward(self, number: int) -> bool:
        """A signal is the command's, unless it does not end by those that ask it to."""
        process, now = self._process, time.monotonic()
        if number in (SIGHUP, SIGINT, SIGQUIT, SIGTERM) and now - self._asked_at >= SAME:
            self._asked_at = now
            self._asked += 1
        if process is None or process.returncode is not None or self._asked > PATIENCE:
            return False
        self._aside(lambda: process.send_signal(number))
        return True

    def _resize(self, process: GuestProcess) -> None:
        size = os.get_terminal_size(STDIN)
        self._aside(lambda: process.resize(size.lines, size.columns))

    def _aside(self, send: Callable[[], None]) -> None:
        """Send on a thread of its own: who watches for signals goes on watching."""

        def run() -> None:
            try:
                send()
            except PyvmmError:
                pass  # the VM has ended

        threading.Thread(target=run, daemon=True).start()

    # --- The end ------------------------------------------------------------------------------------------------------

    def _power_off(self, vm: VM) -> None:
        try:
            vm.agent.shutdown()
            vm.wait(POWER_OFF_WAIT)
        except PyvmmError as error:
            log.warn(f"the guest was not powered off, and its disks may lack what it wrote last: {error}")

    def _restore(self) -> None:
        if self._terminal is not None:
            self._terminal.restore()

    def _tell(self, outcome: Outcome, vm: VM) -> None:
        self._restore()
        failed = outcome.status and outcome.reason not in ("command", "signal", "quit")
        if failed and not self.verbose and isinstance(self.console, KeptConsole):
            shown = self.console.text[-CONSOLE_SHOWN:].replace("\r", "").strip()
            log.say("the guest's console:")
            log.say("\n".join(f"| {line}" for line in shown.splitlines()) or "| (it wrote nothing)")
        super()._tell(outcome, vm)
