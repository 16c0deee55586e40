"""`pyvmm run`: options to a VM, the VM to an exit status.

May import vm, its control socket and config, options, signals, progress and the console back-ends. Standard output is
the guest's console, byte for byte; whatever pyvmm says goes to standard error.
"""

from __future__ import annotations

import errno
import gc
import os
import time

from pyvmm.cli import main as process
from pyvmm.cli.configuration import judge_outputs, make_config
from pyvmm.cli.memorylimit import memory_warning
from pyvmm.cli.options import describe, parse
from pyvmm.cli.progress import LEVELS, log
from pyvmm.cli.runoptions import RUN
from pyvmm.cli.signals import Signals
from pyvmm.errors import STATUS_USAGE, STATUS_VMM_ERROR, PyvmmError, TimeLimitError, UsageError, VcpuStuckError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.cli.ending import ReportFile
    from pyvmm.cli.options import Arguments
    from pyvmm.config import VmConfig
    from pyvmm.control.server import ControlServer
    from pyvmm.debug.shell.session import Shell
    from pyvmm.runloop import Outcome
    from pyvmm.trace.narrator import Narrator
    from pyvmm.vm import VM

HELP = "boot a kernel in a virtual machine"
USAGE_HINT = "usage: pyvmm run [options] [KERNEL] [-- CMD...] (pyvmm run --help lists the options)"
SLICE = 0.25
"""Seconds between two looks for a signal while output waits for its reader."""
GRACE = 1.0
"""Seconds without progress after which output that nobody reads is given up, where the run has been cut short."""
UNNAMED = 0.1
"""Seconds that a VM without a name runs before other programs are let in: nobody looks for it sooner."""
STATUS_SIGPIPE = 128 + 13
CUT_SHORT = ("time-limit", "signal", "quit", "killed")
AT_ONCE = ("quit", "killed")
TOLD = ("crash", "panic", "stuck", "time-limit", "error", "oops", "warn")
"""Outcomes of which the user is told at every log level."""


def main(argv: list[str]) -> int:
    """Run one VM as `argv` says; returns the exit status."""
    signals = Signals()
    signals.install()
    try:
        arguments = parse(RUN, argv)
        if "help" in arguments.values:
            text = "Boot KERNEL, or the tiny Linux, in a virtual machine; standard output is the guest's console."
            print(describe("pyvmm run", RUN, "KERNEL", "what is booted", text, needed=False).format_help(), end="")
            return 0
        if "version" in arguments.values:
            from pyvmm.cli.main import version

            print(version())
            return 0
        if arguments.command is None:
            return Run(arguments, signals).main()
        from pyvmm.cli.command import CommandRun

        return CommandRun(arguments, signals).main()
    except UsageError as error:
        log.error(f"error: {error}")
        log.error(USAGE_HINT)
        return STATUS_USAGE


class Run:
    """One run of one VM, from its arguments to its exit status. Raises UsageError for what cannot be meant."""

    waits = False
    """Whether it is the host that has the guest do something: no guest is over then before it has begun."""

    def __init__(self, arguments: Arguments, signals: Signals) -> None:
        values: dict[str, Any] = arguments.values
        if "log" in values:
            log.level = LEVELS.index(values["log"])
        self.values = values
        self.shell: str | bool | None = values.get("shell")
        if self.shell is not None and arguments.command is not None:
            raise UsageError("--shell: there is no prompt beside a command in the guest (-- CMD)")
        if self.shell is not None and "gdb" in values:
            raise UsageError("--shell and --gdb: one of the two has the guest in hand")
        self.signals = signals
        self.config = self._configure(arguments)
        judge_outputs(values, self.config)
        self.console = self._make_console(values)
        self.dry = "dry-run" in values
        self.stats = "stats" in values
        self.report: ReportFile | None = None
        if "report" in values:
            from pyvmm.cli.ending import ReportFile

            self.report = ReportFile(values["report"])
        self.trace: str | None = values.get("trace")
        self._prompt: Shell | None = None
        self._opening = 0.0
        self.narrator: Narrator | None = None
        if "explain" in values:
            from pyvmm.cli.explain import narrator, needs_lint

            self.narrator = narrator(self.config, values["explain"])
            self.config.lint |= needs_lint(values["explain"])
        self.vm: VM | None = None
        self._control: ControlServer | None = None
        self._began = time.monotonic()

    def _configure(self, arguments: Arguments) -> VmConfig:
        """What the VM is made of."""
        return make_config(arguments)

    def _make_console(self, values: dict[str, Any]) -> Any:
        from pyvmm.backends.base import CTRL_A
        from pyvmm.backends.console import make_console

        escape: int | None = CTRL_A
        if "escape" in values:
            from pyvmm.backends.terminal import parse_escape

            escape = parse_escape(values["escape"])
        return make_console(
            values.get("console", "stdio"),
            escape=escape,
            quit=self._quit,
            look=self._look,
            say=log.say,
            stdin=-1 if "shell" in values and not os.isatty(0) else 0,
        )

    def main(self) -> int:
        """Run, tell the user how it ended, write the report; returns the exit status."""
        from pyvmm.runloop import Outcome

        outcome = Outcome("error", STATUS_VMM_ERROR, "the run did not come to its end")
        try:
            outcome = self._dry_run() if self.dry else self._run()
        except Exception as error:
            status = getattr(error, "exit_status", STATUS_VMM_ERROR)
            outcome = Outcome("error", status, str(error) or type(error).__name__)
            raise
        finally:
            self._write_report(outcome)
        return outcome.status

    def _dry_run(self) -> Outcome:
        from pyvmm.cli.ending import dry_run_text
        from pyvmm.runloop import Outcome
        from pyvmm.vm import VM

        vm = VM(config=self.config)
        try:
            print(dry_run_text(vm.load(), self.config, vm.slots))
        finally:
            vm.close()
        return self._judge(Outcome("dry-run", 0, "nothing was run"))

    def _run(self) -> Outcome:
        self.vm = vm = self._make_vm()
        if self.narrator is not None:
            self.narrator.vm = vm
        self._watch_console()
        if self.signals.received:
            return self._signalled()
        if warning := memory_warning(self.config.mem):
            log.warn(warning)
        stuck = ""
        try:
            if self.config.name or self.waits:
                self._listen(vm)
            if self.shell is not None:
                vm.stands_for(self._until_open)
            vm.start(lean=process.leaving)
            if process.leaving:
                gc.freeze()
                gc.enable()
            # A signal that came while the VM started ends it here.
            self.signals.on_end(lambda number: vm.stop(self._signalled()))
            log.info(f"running {self.config.kernel}")
            try:
                outcome = self._await(vm)
            except VcpuStuckError as error:
                outcome = self._stuck(error)
                stuck = str(error)
            self._deliver(outcome)
            outcome = self._judge(outcome)
        finally:
            if self._control is not None:
                self._control.close()
            self.console.close()
        self._tell(outcome, vm)
        if stuck:
            self._leave(outcome)
        vm.close(leaving=process.leaving)
        return outcome

    def _await(self, vm: VM) -> Outcome:
        """How the run ended, when it has."""
        if self.shell is not None:
            return self._converse(vm)
        if self._control is None:
            try:
                return vm.wait(UNNAMED)
            except TimeLimitError:
                self._listen(vm)
        return vm.wait()

    def _converse(self, vm: VM) -> Outcome:
        """The same, with a prompt (`--shell`) at some moments before."""
        assert self.shell is not None and self.shell is not False
        if self._control is None:
            self._listen(vm)
        try:
            prompt = vm.prompt("entry" if self.shell is True else self.shell, self.signals.interrupts)
        except UsageError as error:
            raise UsageError(f"--shell: {error}") from None
        self._until_open()
        self._prompt = prompt
        prompt.serve()
        return vm.wait()

    def _until_open(self) -> float:
        """Seconds that the VM has stood from its start until the prompt, which takes a while to load, can be opened."""
        if self._prompt is None and self.vm is not None:
            self._opening = self.vm.stats.seconds
        return self._opening

    def _make_vm(self) -> VM:
        """The VM, which is not started yet."""
        from pyvmm.vm import VM

        return VM(
            config=self.config,
            console=self.console,
            observers=() if self.narrator is None else (self.narrator,),
            say=log.warn,
            trace=self.trace,
            gdb=self.values.get("gdb"),
            paused=self.shell is not None,
        )

    def _listen(self, vm: VM) -> None:
        """Let other programs talk to the VM. If that cannot be, it is an error where the user has given it a name."""
        from pyvmm.control.server import ControlServer

        control = ControlServer(vm, self.config.name or f"vm-{os.getpid()}")
        try:
            control.open()
            control.start()
        except PyvmmError as error:
            control.close()
            if self.config.name:
                raise
            log.info(f"nobody else can talk to this VM: {error}")
        else:
            self._control = control

    # --- While it runs -----------------------------------------------------------------------------------------------

    def _watch_console(self) -> None:
        """Let signals and the log know the console: it has the terminal, and what must not be left behind."""
        from pyvmm.backends.stdio import StdioConsole

        self.signals.at_once = self.console.restore
        if isinstance(self.console, StdioConsole):
            console = self.console
            self.signals.on_resume = console.resumed
            log.raw = lambda: console.raw
            log.leave_line = console.leave_line

    def _quit(self) -> None:
        from pyvmm.runloop import Outcome

        if self.vm is not None:
            self.vm.stop(Outcome("quit", 0, "ended by the escape key"))

    def _look(self, command: str) -> str:
        """What the escape key and a letter ask for."""
        if self._prompt is not None and command == "s":
            self._prompt.interrupt()
            return ""
        from pyvmm.cli.ending import look_text

        return look_text(self.vm, command) if self.vm is not None else "the machine does not run yet"

    # --- When it has ended -------------------------------------------------------------------------------------------

    def _deliver(self, outcome: Outcome) -> None:
        """Wait until all output is written.

        A guest that ended by itself waits for its reader as any program does, up to the time limit; a run that was
        cut short only as long as the reader still reads.
        """
        limit = self.config.timeout and self._began + self.config.timeout
        while outcome.reason not in AT_ONCE and not self.signals.received and not (limit and time.monotonic() > limit):
            if self.console.drain(SLICE):
                return
        if not self.console.drain(GRACE):
            log.warn("the end of the guest's output is lost: nobody reads it")

    def _judge(self, outcome: Outcome) -> Outcome:
        """How the process ends, which what happened outside of the guest may change."""
        from pyvmm.runloop import Outcome

        if self.signals.received:
            return self._signalled()
        failure = self.console.failure
        if failure == errno.EPIPE:
            return Outcome("signal", STATUS_SIGPIPE, "nobody reads the console's output any more")
        if failure:
            return Outcome("error", STATUS_VMM_ERROR, f"cannot write the console's output: {os.strerror(failure)}")
        return outcome

    def _signalled(self) -> Outcome:
        from pyvmm.runloop import Outcome

        number = self.signals.received
        return Outcome("signal", 128 + number, f"ended by signal {number}")

    def _stuck(self, error: VcpuStuckError) -> Outcome:
        assert self.vm is not None
        outcome = self.vm.exit
        if outcome is not None and outcome.reason in CUT_SHORT:
            return outcome
        from pyvmm.runloop import Outcome

        return Outcome("error", error.exit_status, str(error))

    def _tell(self, outcome: Outcome, vm: VM) -> None:
        report = ""
        if outcome.report is not None:
            from pyvmm.cli.ending import report_text

            report = report_text(outcome)
        if outcome.reason in TOLD and (outcome.reason == "error" or not report):
            log.error(outcome.detail)
        else:
            log.info(f"ended: {outcome.detail}")
        if report and (outcome.reason != "error" or log.debugging):
            log.say(report)
        elif outcome.reason in TOLD and vm.complaints:
            from pyvmm.cli.ending import complaints_text

            log.say(complaints_text(vm))
        if vm.findings or (self.config.lint and ("lint" in self.values or self.narrator is None)):
            from pyvmm.cli.ending import lint_text

            log.say(lint_text(vm))
        if self.stats:
            from pyvmm.cli.ending import stats_text

            log.say(stats_text(vm))

    def _write_report(self, outcome: Outcome) -> None:
        if self.report is not None:
            from pyvmm.cli.ending import summary

            self.report.write(summary(outcome, self.vm, time.monotonic() - self._began))

    def _leave(self, outcome: Outcome) -> None:
        """End the process around a vCPU that KVM does not give back: nothing may be unmapped under it."""
        log.error("a vCPU does not come back from KVM and is left behind")
        self._write_report(outcome)
        os._exit(outcome.status)
