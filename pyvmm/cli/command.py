"""`pyvmm run -- CMD`: one command in the guest, with the streams, signals and exit status of this process.

May import run, what that may, passing, and the guest's agent. Standard output is the command's. The console is kept,
and shown on standard error if the guest failed, or as it comes with `-v`.
"""

from __future__ import annotations

import errno

from pyvmm.backends.capture import CaptureConsole
from pyvmm.cli.configuration import DEFAULT_IMAGE
from pyvmm.cli.passing import NOT_FOUND, NOT_RUN, Passing, status, variables
from pyvmm.cli.progress import STDERR, log, write_all
from pyvmm.cli.run import Run
from pyvmm.errors import STATUS_VMM_ERROR, GuestAgentError, ImageError, PyvmmError, TimeLimitError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.cli.options import Arguments
    from pyvmm.cli.rootfs import GuestFiles
    from pyvmm.cli.signals import Signals
    from pyvmm.guest.process import GuestProcess
    from pyvmm.runloop import Outcome
    from pyvmm.vm import VM

AGENT_WAIT = 300.0
"""Seconds that a guest has until its agent answers, where no --timeout ends the run before."""
DRIVER_WAIT = 120.0
"""Seconds after which a guest without a driver for the agent's port is given up."""
POWER_OFF_WAIT = 15.0
"""Seconds that a guest with disks has to write back what it holds."""
BY_ITS_KERNEL = ("time-limit", "stuck", "panic")
"""How a VM may have ended before its agent came up because its kernel lacks something."""
CONSOLE_SHOWN = 4000
"""Characters of the console's end."""


def settle(settings: dict[str, Any], arguments: Arguments) -> None:
    """Make `settings` of VmConfig those of a VM that runs a command, and `arguments` have the `files` that it sees.

    Raises UsageError, ImageError.
    """
    values: dict[str, Any] = arguments.values
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
        values.setdefault("root", "/")
    values["files"] = files = guest_files(values)
    if files is not None:
        settings["shares"] = [*settings.get("shares", ()), *files.shares()]


def guest_files(values: dict[str, Any]) -> GuestFiles | None:
    """What --root, --rwdir and --modules say. Raises UsageError."""
    if not {"root", "rwdir", "modules"} & values.keys():
        return None
    from pyvmm.cli.rootfs import NONE, GuestFiles

    return GuestFiles(values.get("root", NONE), values.get("rwdir", ()), values.get("modules", ""))


def _wait_ready(vm: VM) -> None:
    try:
        vm.guest.wait_ready(DRIVER_WAIT)
    except TimeLimitError:
        from pyvmm.cli.kconfig import driverless

        if driverless(vm):
            raise
        vm.guest.wait_ready(AGENT_WAIT - DRIVER_WAIT)


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

    waits = True

    def __init__(self, arguments: Arguments, signals: Signals) -> None:
        values: dict[str, Any] = arguments.values
        self.command = arguments.command or []
        self.verbose = "verbose" in values
        self.env = variables(values.get("env", []))
        self.user: str = values.get("user", "")
        self._lacking = ""
        self.passing = Passing(signals, escape=values.get("escape"), quit=self._quit, look=self._look)
        super().__init__(arguments, signals)
        self.files: GuestFiles | None = values["files"]

    def _make_console(self, values: dict[str, Any]) -> Any:
        return super()._make_console(values) if "console" in values else KeptConsole(self.verbose)

    def _watch_console(self) -> None:
        self.signals.at_once = self.passing.restore

    # --- The command --------------------------------------------------------------------------------------------------

    def _await(self, vm: VM) -> Outcome:
        from pyvmm.runloop import Outcome

        try:
            _wait_ready(vm)
        except PyvmmError as error:
            if vm.exit is None or vm.exit.reason in BY_ITS_KERNEL:
                from pyvmm.cli.kconfig import likely_lacking

                self._lacking = likely_lacking(vm)
            return self._ended(vm, error, f": {self._lacking or 'is there one in its initramfs (docs/exec.md)?'}")
        try:
            process = self._start(vm)
        except GuestAgentError as error:
            code = NOT_FOUND if error.errno == errno.ENOENT else NOT_RUN
            vm.stop(Outcome("command", code, str(error)))
            log.error(str(error))
            return vm.wait()
        except PyvmmError as error:
            return self._ended(vm, error)
        try:
            outcome = self._through(process)
        except PyvmmError as error:
            return self._ended(vm, error)
        if vm.config.disks or not all(share.readonly for share in vm.config.shares):
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
        env, folder = dict(self.env), ""
        terminal = self.passing.terminal(env)
        if self.files is not None:
            self.files.mount(vm.guest)
            folder = self.files.folder
        return vm.guest.popen(self.command, env=env, user=self.user, cwd=folder, terminal=terminal)

    def _through(self, process: GuestProcess) -> Outcome:
        """Pass the streams through until the command has ended and its output is written."""
        from pyvmm.guest.completed import ending
        from pyvmm.runloop import Outcome

        code = self.passing.run(process)
        return Outcome("command", status(code), f"{self.command[0]} {ending(code)}")

    # --- The end ------------------------------------------------------------------------------------------------------

    def _power_off(self, vm: VM) -> None:
        try:
            vm.agent.shutdown()
            vm.wait(POWER_OFF_WAIT)
        except PyvmmError as error:
            log.warn(f"the guest was not powered off, and its disks may lack what it wrote last: {error}")

    def _tell(self, outcome: Outcome, vm: VM) -> None:
        self.passing.restore()
        failed = outcome.status and outcome.reason not in ("command", "signal", "quit")
        if failed and not self.verbose and isinstance(self.console, KeptConsole):
            shown = self.console.text[-CONSOLE_SHOWN:].replace("\r", "").strip()
            log.say("the guest's console:")
            log.say("\n".join(f"| {line}" for line in shown.splitlines()) or "| (it wrote nothing)")
        super()._tell(outcome, vm)
        if self._lacking and self._lacking not in outcome.detail:
            log.say(self._lacking)
