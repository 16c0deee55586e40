"""What `pyvmm run` shows beside the console: the dry run, the state of a running VM, statistics, the report file.

May import vm and below. Nothing of this is on the way of a plain run.
"""

from __future__ import annotations

import os

from pyvmm.errors import PyvmmError, UsageError, VcpuStuckError
from pyvmm.writing import place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.boot import LoadedKernel
    from pyvmm.config import VmConfig
    from pyvmm.runloop import Outcome
    from pyvmm.slots import Slot
    from pyvmm.vm import VM


VCPUS_SHOWN = 8


class ReportFile:
    """The file that says how the run ended, as JSON, in one piece or not at all.

    Made before anything runs, so that a path that cannot be written is an error of the command line and not of the
    run. A report of an earlier run is removed then: what stands there afterwards is about this run.
    """

    def __init__(self, path: str) -> None:
        """Raises UsageError, which names what is wrong with `path`."""
        self.path = path
        if os.path.isdir(path):
            raise UsageError(f"--report: {path} is a directory")
        try:
            self._place, self._replace = place(path)
        except OSError as error:
            raise UsageError(f"--report: cannot write {path}: {error.strerror}") from None
        if not self._replace:  # a device, a FIFO: it is written to, and no file made beside it
            return
        folder = os.path.dirname(self._place)
        if not os.path.isdir(folder):
            raise UsageError(f"--report: there is no directory {folder}")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"--report: cannot write in {folder}")
        try:
            if os.path.exists(self._place):
                os.unlink(self._place)
        except OSError as error:
            raise UsageError(f"--report: cannot write {path}: {error.strerror}") from None

    def write(self, summary: dict[str, Any]) -> None:
        """Write it. Raises PyvmmError."""
        import json

        data = (json.dumps(summary, indent=2) + "\n").encode()
        part = f"{self._place}.{os.getpid()}.part" if self._replace else self._place
        try:
            with open(part, "wb") as file:
                file.write(data)
            if self._replace:
                os.replace(part, self._place)
        except OSError as error:
            if self._replace and os.path.exists(part):
                os.unlink(part)
            raise PyvmmError(f"--report: cannot write {self.path}: {error.strerror}") from None


def summary(outcome: Outcome, vm: VM | None, duration: float) -> dict[str, Any]:
    """What the report file says. `duration` is in seconds, from the parsed command line to the end."""
    from pyvmm import __version__

    stats = None if vm is None else vm.stats
    crash = getattr(outcome.report, "as_dict", None)
    return {
        "reason": outcome.reason,
        "status": outcome.status,
        "detail": outcome.detail,
        "duration": round(duration, 6),
        "exits": {} if stats is None else stats.exits,
        "completed": {} if stats is None else stats.completed,
        "unclaimed": 0 if stats is None else stats.unclaimed,
        "report": report_text(outcome) or None,
        "crash": None if crash is None else crash(),
        "complaints": [] if vm is None else [{"kind": it.kind, "lines": it.lines} for it in vm.complaints],
        **({} if vm is None or not vm.config.lint else {"lint": [finding.as_dict() for finding in vm.findings]}),
        "kernel": None if vm is None else vm.config.kernel,
        "pyvmm": __version__,
    }


def report_text(outcome: Outcome) -> str:
    """The outcome's crash report, or the traceback of a fault of pyvmm; empty where there is neither."""
    report = outcome.report
    if report is None:
        return ""
    text = getattr(report, "text", None)
    return str(report if text is None else text())


def complaints_text(vm: VM) -> str:
    """What the guest's kernel said of its oopses and warnings."""
    return "\n".join(f"| {line}" for complaint in vm.complaints for line in complaint.lines)


def lint_text(vm: VM) -> str:
    """How the lint of the guest's drivers ended: what was found, how often, and in how much."""
    found = vm.findings
    seen = vm.judged
    looked = f"{seen[0]} accesses and {seen[1]} chains of virtio devices, all by way of Python"
    if not found:
        return f"lint: no findings in {looked}"
    lines = [f"lint: {len(found)} finding{'s' if len(found) > 1 else ''} in {looked}"]
    rows = sorted(found, key=lambda finding: -finding.count)
    return "\n".join([*lines, *(f"  x {finding.count:<6} {finding.device:<9} {finding.name}" for finding in rows)])


def stats_text(vm: VM) -> str:
    """The block of `--stats`."""
    import resource

    stats = vm.stats
    used = resource.getrusage(resource.RUSAGE_SELF)
    exits = ", ".join(f"{name} {count}" for name, count in sorted(stats.exits.items())) or "none"
    completed = ", ".join(f"{name} {count}" for name, count in sorted(stats.completed.items()))
    return "\n".join(
        (
            f"exits      {sum(stats.exits.values())} ({exits})",
            *((f"completed  {completed}: instructions that KVM refused",) if completed else ()),
            f"unclaimed  {stats.unclaimed} accesses that no device answered",
            *(f"fault      {line}" for line in (vm.faults.describe() if vm.faults is not None else ())),
            f"guest ran  {stats.seconds:.3f} s",
            f"CPU time   {used.ru_utime + used.ru_stime:.3f} s (user {used.ru_utime:.3f}, system {used.ru_stime:.3f})",
            f"memory     {used.ru_maxrss >> 10} MiB at most, with what the guest used of its {vm.config.mem >> 20} MiB",
        )
    )


def dry_run_text(loaded: LoadedKernel, config: VmConfig, found: Sequence[Slot] = ()) -> str:
    """What `--dry-run` shows: what is loaded where, and the devices the guest would find, `found` the virtio ones."""
    from pyvmm import layout
    from pyvmm.machine import Machine

    machine = Machine(layout.ram_ranges(config.mem), lambda *_: None, lambda _: None, lambda _: None)
    lines = [loaded.describe(), f"vCPUs         {config.cpus} ({config.cpu})"]
    for kind, bus, width in (("port", machine.ports, 4), ("MMIO", machine.mmio, 10)):
        for base, length, device in bus.ranges():
            last = base + length - 1
            place = f"{base:#0{width + 2}x}" + (f"-{last:#0{width + 2}x}" if length > 1 else "")
            lines.append(f"{kind + ' device':<14}{place:<25}{device.name}")
    for slot in found:
        kind, place = "virtio device", f"{slot.gpa:#012x} GSI {slot.gsi}"
        if slot.device is not None:
            kind, place = "PCI device", f"00:{slot.device:02x}.0 GSI {slot.gsi}"
        lines.append(f"{kind:<14}{place:<25}{slot.name}")
    return "\n".join(lines)


LOOKS = {
    "r": "registers", "p": "paging", "m": "memory", "t": "tables", "d": "devices", "i": "irqchip", "l": "lapic",
}  # fmt: skip
"""The views that the escape key and a letter show."""


def look_text(vm: VM, command: str) -> str:
    """What the escape key and the key of `command` show; the VM stands still for the moment that it takes to look."""
    if command not in LOOKS:
        return state_text(vm)
    from pyvmm.debug import views

    vm.symbol(0)  # reading a kernel's symbols takes its time: not while the guest waits
    try:
        with vm.still():
            return "\n".join(views.look(vm, [LOOKS[command]]))
    except PyvmmError as error:
        return str(error)


def state_text(vm: VM) -> str:
    """One screen about a VM, which stands still for the moment that it takes to look."""
    from pyvmm.debug.state import MP_STATES, capture

    try:
        with vm.still():
            states = [capture(vcpu) for vcpu in vm.vcpus]
    except VcpuStuckError as error:
        return str(error)
    lines = []
    for state in states[:VCPUS_SHOWN]:
        if not state.whole:
            lines.append(f"vCPU {state.index}  cannot be read: {'; '.join(state.unread.values())}")
            continue
        at = f"{state.reg('rip'):#x}"
        lines.append(f"vCPU {state.index}  {MP_STATES.get(state.mp_state or 0)} at {at}, {state.describe_mode()}")
    if len(states) > VCPUS_SHOWN:
        lines.append(f"... and {len(states) - VCPUS_SHOWN} more")
    first = states[0]
    if first.regs is not None:
        cells = [f"{name:>6} {value:016x}" for name, value in first.regs.items()]
        lines += ["".join(cells[at : at + 3]) for at in range(0, len(cells), 3)]
    stats = vm.stats
    exits = ", ".join(f"{name} {count}" for name, count in sorted(stats.exits.items())) or "none"
    lines.append(f"exits   {exits}; {stats.unclaimed} unclaimed; running for {stats.seconds:.1f} s")
    return "\n".join(lines)
