"""What a report of pytest says of a VM when its test fails: its state, its console's end, its processors.

Imports debug and errors. Nothing here raises: what cannot be had of a VM that is in a bad way is said instead.
"""

from __future__ import annotations

from pyvmm.config import format_size
from pyvmm.errors import PyvmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.vm import VM

CONSOLE_LINES = 40
LIMIT_ADVICE = "(another limit: --vm-timeout, vm_timeout in the ini file, timeout= of the mark or the call)"


def section(vm: VM) -> str:
    """The whole text."""
    parts = [_state(vm), f"console, the last lines:\n{console_tail(vm)}"]
    if vm.trace is not None:
        parts.append(f"trace: {vm.trace} (pyvmm trace summary)")
    if vm.vcpus:
        parts.append(_processors(vm))
    return "\n".join(parts)


def console_tail(vm: VM, lines: int = CONSOLE_LINES) -> str:
    """The console's last lines, each behind a bar."""
    shown = vm.console_log.decode("utf-8", "replace").splitlines()[-lines:]
    return "\n".join(f"  | {line}" for line in shown) or "  (the guest wrote nothing)"


def _state(vm: VM) -> str:
    config = vm.config
    made = f"{config.kernel}, {format_size(config.mem)}, {config.cpus} {'CPU' if config.cpus == 1 else 'CPUs'}"
    outcome, seconds = vm.exit, vm.stats.seconds
    if outcome is None:
        return f"{vm.state} for {seconds:.1f} s: {made}"
    advice = f" {LIMIT_ADVICE}" if outcome.reason == "time-limit" else ""
    return f"ended after {seconds:.1f} s by {outcome.reason}: {outcome.detail}{advice}: {made}"


def _processors(vm: VM) -> str:
    from pyvmm.debug.report import CrashReport, VcpuReport
    from pyvmm.debug.state import capture

    if vm.exit is not None and isinstance(vm.exit.report, CrashReport):
        return vm.exit.report.text()
    if vm.vcpus[0].fileno() < 0:
        return "closed: no registers any more"
    try:
        with vm.still():
            found = [
                VcpuReport(capture(vcpu), vm.memory, list(loop.history), vm.symbol)
                for vcpu, loop in zip(vm.vcpus, vm.loops, strict=True)
            ]
    except (PyvmmError, OSError, ValueError) as error:
        return f"no registers: {error}"
    return CrashReport("registers and last exits", "as the test failed", found).text()
