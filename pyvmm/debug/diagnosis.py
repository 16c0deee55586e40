"""One VM's diagnosis: reading along on its console, watching its progress, naming what it sees, and judging the end.

Imports the rest of debug, which costs time to load, only when there is something to read or to look into.
`vm` feeds it and asks it; see docs/diagnosis.md for the rules as a user meets them.
"""

from __future__ import annotations

import threading

from pyvmm import layout, threads
from pyvmm.debug import OOPS, PANIC, WARN
from pyvmm.errors import STATUS_PANIC, STATUS_STUCK, KvmError, VcpuStuckError
from pyvmm.kvm.exits import Interrupted
from pyvmm.runloop import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeVar

    from pyvmm.boot import LoadedKernel
    from pyvmm.config import VmConfig
    from pyvmm.debug.consolewatch import Complaint, ConsoleWatch
    from pyvmm.debug.evidence import Reason
    from pyvmm.debug.report import CrashReport
    from pyvmm.debug.state import VcpuState
    from pyvmm.debug.symbols import Source, Symbols
    from pyvmm.debug.watch import Sample, Watch
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.machine import Machine
    from pyvmm.memory import GuestMemory
    from pyvmm.runloop import VcpuLoop
    from pyvmm.steering import Control

    T = TypeVar("T")

CONSOLE_WORD = "console=ttyS0"
CONSOLE_WORDS = (CONSOLE_WORD, "console=hvc0", "earlyprintk=ttyS0", "earlyprintk=serial")
"""Words by which Linux prints to a console that pyvmm shows."""
LINUX = ("linux", "bzimage", "pvh")
"""Formats of kernels whose command line Linux reads."""
WITH_SYMBOLS = ("linux", "pvh", "elf", "multiboot")
"""Formats that may be ELF files with symbols of their own."""
FAILING = {"oops": OOPS, "warn": WARN}
"""What --fail-on takes, and which complaint it means."""
ENDED_WELL = ("power-off", "reboot", "debug-exit", "quit", "stopped")
"""How a run may have ended for --fail-on to make a failure of it; the other ways are one already."""
AT_FIRST = 0.05
"""Seconds that a guest runs before anybody looks on."""
STOP_WAIT = 4.0
"""Seconds that `stop()` waits for who looks on."""
VCPUS_TOLD = 4
REPORT_LINES = 64


class Diagnosis:
    """What is known about how one VM fares. `say(text)` tells the user; it may block, and is called from any thread."""

    def __init__(self, config: VmConfig, say: Callable[[str], None] | None) -> None:
        self._console: ConsoleWatch | None = None
        self._first = threading.Lock()
        self._config = config
        self._say = say or (lambda text: None)
        self._panicked = ""
        self._told_silent = False
        self._source: Source | None = None
        self._loaded: LoadedKernel | None = None
        self._watch: Watch | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def console(self) -> ConsoleWatch:
        """What the console has told; made for the first output, or for whoever asks before."""
        if self._console is None:
            from pyvmm.debug.consolewatch import ConsoleWatch

            with self._first:
                self._console = self._console or ConsoleWatch()
        return self._console

    def open(self) -> None:
        """See that what the user named is there. Raises LoadError."""
        if self._config.symbols is not None and self._source is None:
            from pyvmm.debug.symbols import Source

            self._source = Source(self._config.symbols, required=True)

    def begin(
        self,
        loaded: LoadedKernel,
        control: Control,
        loops: Sequence[VcpuLoop],
        vcpus: Sequence[VcpuFd],
        fd: VmFd,
        machine: Machine,
        memory: GuestMemory,
    ) -> None:
        """Watch a VM whose vCPUs are about to run. `stop()` ends it, before the VM is closed."""
        self._loaded = loaded
        self._control = control
        self._loops = loops
        self._vcpus = vcpus
        self._fd = fd
        self._machine = machine
        self._memory = memory
        self._thread = threads.start(threading.Thread(target=self._look_on, name="watch"))

    def _look_on(self) -> None:
        if self._over.wait(AT_FIRST):
            return
        from pyvmm.debug.watch import Watch

        control = self._control
        self._watch = Watch(
            self.console,
            look=self._look,
            progress=self._progress,
            standing=lambda: control.attention,
            limit=self._limit,
            on_stuck=self._stuck,
            on_moving=lambda: self._say("the guest makes progress again"),
            on_panic=self._text_panic,
            on_waiting=self._waiting,
            on_silent=self._silent,
        )
        self._watch.run(self._over)

    def stop(self) -> None:
        """Return with nobody looking on (or, should the VM not let go of who does, with that thread left behind)."""
        self._over.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_WAIT)

    # --- Panics --------------------------------------------------------------------------------------------------

    def guest_ends(self, outcome: Outcome) -> None:
        """A device says that the guest ends the run so. Called under the device's lock, on a vCPU's thread."""
        if outcome.reason == PANIC:
            self._panic("it said so at the pvpanic port")
        else:
            self._control.end(outcome)

    def _panic(self, detail: str) -> None:
        self._panicked = self._panicked or detail
        if self._config.on_panic == "exit":
            self._control.end(Outcome("panic", STATUS_PANIC, detail))
            return
        text = f"the guest's kernel panicked ({detail}); "
        if self._config.on_panic == "pause":
            self._control.pause_soon()
            text += "its vCPUs stand still (--on-panic pause)"
        else:
            text += "it goes on (--on-panic wait)"
        # A handler may not wait for whoever reads standard error.
        threading.Thread(target=self._say, args=(text,), daemon=True).start()

    def _text_panic(self) -> None:
        if not self._panicked:
            self._panic("its console says so, and it has stopped")

    def _panic_text(self) -> str:
        panics = [complaint.text for complaint in self.console.complaints if complaint.kind == PANIC]
        return panics[-1] if panics else ""

    # --- At the end ----------------------------------------------------------------------------------------------

    def judge(self, outcome: Outcome) -> Outcome:
        """How the run ended in the light of what the guest said. Every vCPU stands still."""
        panic: Complaint | None = None
        counts: dict[str, int] = {}
        if self._console is not None:
            self._console.scan(end=True)
            panic, counts = self._console.panic, self._console.counts
        if outcome.reason in ("reboot", "crash") and (self._panicked or panic is not None):
            said = self._panic_text() or self._panicked
            return Outcome("panic", STATUS_PANIC, f"{said}; then {outcome.detail}")
        if outcome.reason == "panic" and self._panic_text():
            return Outcome("panic", STATUS_PANIC, f"{self._panic_text()} ({outcome.detail})")
        if outcome.reason in ENDED_WELL:
            self._silent()  # there is no report to say it in
            for name in self._config.fail_on:
                if counts.get(FAILING[name]):
                    first = next(found.text for found in self.console.complaints if found.kind == FAILING[name])
                    detail = f"the guest's kernel complained (--fail-on {name}): {first}; then {outcome.detail}"
                    return Outcome(name, STATUS_PANIC, detail)
        return outcome

    def hints(self) -> list[Reason]:
        """What the console makes likely, in words."""
        from pyvmm.debug.evidence import Reason

        said: dict[str, list[str]] = {}
        for hint, line in list(self.console.hints):
            said.setdefault(hint.advice, []).append(f"the kernel said: {line}")
        console = self._about_console()
        return [Reason(advice, lines) for advice, lines in said.items()] + ([Reason(console)] if console else [])

    def lines(self) -> list[str]:
        """What the kernel said about its panic, oopses and warnings: REPORT_LINES at most, a panic's first."""
        complaints = sorted(self.console.complaints, key=lambda complaint: complaint.kind != PANIC)
        return [line for complaint in complaints for line in complaint.lines][:REPORT_LINES]

    def report(self, outcome: Outcome, *, stands: bool = False) -> CrashReport:
        """The crash report. Every vCPU stands still; `stands`: for a debugger, and did already before the end."""
        from pyvmm.debug.evidence import Reason
        from pyvmm.debug.report import build

        waits = stands and outcome.reason == "time-limit"

        return build(
            outcome.reason,
            outcome.detail,
            self._vcpus,
            self._memory,
            [list(loop.history) for loop in self._loops],
            self._watch.samples if self._watch is not None else (),
            [self._armed(vcpu) for vcpu in self._vcpus] if outcome.reason != "crash" else (),
            [Reason("the guest stands for a debugger (--gdb), and none is connected")] if waits else self.hints(),
            self.lines(),
            self.name,
            guess=not waits,
        )

    def name(self, address: int) -> str:
        """The function at a linear address, as `panic+0x1a0/0x2f0`; "" where that is not known."""
        symbols = self._symbols()
        return "" if symbols is None else symbols.describe(address)

    def address(self, name: str) -> int | None:
        """The linear address of the function called `name`, or None."""
        symbols = self._symbols()
        return None if symbols is None else symbols.address(name)

    def _symbols(self) -> Symbols | None:
        if self._source is None:
            if self._loaded is None:
                return None
            from pyvmm.debug.symbols import Source

            path = self._loaded.path if self._loaded.format in WITH_SYMBOLS else ""
            self._source = Source(path, required=False)
        symbols = self._source.get()
        if symbols is not None:
            symbols.slide = self.console.kernel_offset
        return symbols

    # --- What the watch asks -------------------------------------------------------------------------------------

    def _progress(self) -> int:
        # A kick is no progress, and the looks are what kicks.
        return sum(
            count for loop in self._loops for kind, count in list(loop.counts.items()) if kind is not Interrupted
        )

    def _limit(self) -> float | None:
        if self._config.stuck is not None:
            return self._config.stuck
        return None if self.console.user_space else self._config.stuck_at_boot

    def _look(self) -> list[Sample] | None:
        found = self._hold(lambda: [self._sample(state, vcpu) for state, vcpu in self._states()])
        return found if found and None not in found else None  # type: ignore[return-value]

    def _hold(self, look: Callable[[], T]) -> T | None:
        """`look()` with every vCPU standing still; None where that cannot be had any more."""
        try:
            self._control.hold_still()
        except VcpuStuckError:
            return None
        try:
            return look() if self._control.outcome is None else None
        except KvmError:
            return None
        finally:
            self._control.release()

    def _states(self) -> list[tuple[VcpuState, VcpuFd]]:
        from pyvmm.debug.state import capture

        return [(capture(vcpu), vcpu) for vcpu in self._vcpus]

    def _sample(self, state: VcpuState, vcpu: VcpuFd) -> Sample | None:
        from pyvmm.cpubits import RFLAGS_IF
        from pyvmm.debug.watch import Sample
        from pyvmm.kvm.constants import KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED

        if not state.whole or state.regs is None:
            return None
        halted = state.mp_state == KVM_MP_STATE_HALTED
        interrupts = bool(state.reg("rflags") & RFLAGS_IF)
        return Sample(
            state.linear_rip,
            tuple(value for name, value in state.regs.items() if name not in ("rip", "rflags")),
            off=state.mp_state in (KVM_MP_STATE_UNINITIALIZED, KVM_MP_STATE_INIT_RECEIVED),
            halted=halted,
            interrupts=interrupts,
            ring=state.cpl,
            code=state.code(self._memory, 3),
            armed=(self._armed(vcpu) or ()) if halted and interrupts else (),
        )

    def _armed(self, vcpu: VcpuFd) -> tuple[str, ...] | None:
        from pyvmm.debug.wakeups import armed

        lines = {layout.SERIAL_IRQ: self._machine.serial.listening, layout.SCI_IRQ: self._machine.pm.listening}
        try:
            return armed(vcpu, self._fd, lines)
        except KvmError:
            return ("what cannot be told",)

    # --- What the watch tells ------------------------------------------------------------------------------------

    def _stuck(self, seconds: float, samples: list[list[Sample]], final: bool) -> None:
        told = self._explain(samples)
        if final:
            detail = f"the guest has made no progress for {seconds:.0f} s" + (f": {told[0]}" if told else "")
            self._control.end(Outcome("stuck", STATUS_STUCK, detail))
            return
        lines = [f"the guest has made no progress for {seconds:.0f} s (no exit); it is left running", *told]
        for hint in self.hints():
            lines += [f"likely: {hint.text}", *(f"  {line}" for line in hint.detail)]
        self._say("\n".join(lines))

    def _explain(self, samples: list[list[Sample]]) -> list[str]:
        """Where each vCPU is and why, a line each."""
        from pyvmm.debug.evidence import Evidence
        from pyvmm.debug.stalls import stall
        from pyvmm.debug.watch import OFF, verdict

        def lines() -> list[str]:
            found = []
            for (state, vcpu), seen in zip(self._states(), samples, strict=True):
                if not state.whole or verdict(seen) == OFF:
                    continue
                rips = [sample.rip for sample in seen]
                evidence = Evidence(state, self._memory, (), rips, self._armed(vcpu))
                place = self.name(state.linear_rip)
                where = f"{state.linear_rip:#x}" + (f" ({place})" if place else "")
                found.append(f"vCPU {state.index} is at {where}, likely: {stall(evidence)[0].text}")
            return found

        found = self._hold(lines) or []
        if len(found) > VCPUS_TOLD:
            found[VCPUS_TOLD:] = [f"... and {len(found) - VCPUS_TOLD} more"]
        return found

    def _waiting(self, seconds: float, final: bool) -> None:
        if self.console.waiting is None:
            return
        hint, line = self.console.waiting
        if final:
            detail = f"it has waited for {seconds:.0f} s, and last said: {line}"
            self._control.end(Outcome("stuck", STATUS_STUCK, detail))
        else:
            self._say(f"the guest has waited for {seconds:.0f} s, and last said: {line}\nlikely: {hint.advice}")

    def _silent(self) -> None:
        if self._told_silent:
            return
        if self._loaded is not None and not _names_console(self._loaded.command_line or ""):
            text = self._about_console()
            if text:
                self._told_silent = True
                self._say(text)

    def _about_console(self) -> str:
        """Why nothing may have been printed; "" where something has, or no Linux kernel is expected to."""
        loaded = self._loaded
        if loaded is None or loaded.format not in LINUX or loaded.command_line is None or self.console.size:
            return ""
        if not _names_console(loaded.command_line):
            return (
                f"nothing was printed, and the kernel's command line has no {CONSOLE_WORD}: what it says goes to "
                f"another console; add --append {CONSOLE_WORD}"
            )
        return (
            "nothing was printed: the kernel stopped before its console was up, or has no driver for a serial console "
            "(CONFIG_SERIAL_8250_CONSOLE); --append earlyprintk=ttyS0 shows what it says before"
        )


def _names_console(command_line: str) -> bool:
    """Whether Linux would print to the serial port or the virtio console."""
    words = command_line.split()
    return any(word.partition(",")[0] in CONSOLE_WORDS for word in words)
