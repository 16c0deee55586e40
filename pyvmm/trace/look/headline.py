"""What a run spent its exits on, in a sentence or two. Imports fields and figures."""

from __future__ import annotations

from pyvmm.trace.fields import duration, grouped
from pyvmm.trace.look.figures import OTHERS, by_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.trace.look.figures import Figures, Tally

WORDS = {
    "serial": "the serial port",
    "rtc": "the CMOS clock and memory",
    "i8042": "the keyboard controller",
    "acpi-pm": "ACPI's power management",
    "pci": "PCI configuration space",
    "debugcon": "the debug console",
    "firmware-debugcon": "the firmware's debug console",
    "debugexit": "the debug-exit port",
    "pvpanic": "the panic device",
    "resetcontrol": "the reset control register",
    "unclaimed": "addresses that no device claims",
    "HLT": "halts",
    "INTR": "interruptions of KVM_RUN",
    "INTERNAL_ERROR": "instructions that KVM could not emulate",
    OTHERS: "many others",
}
"""What devices and exit reasons are in a sentence; others are called by their name."""
TOLD = 3
"""Kinds that the headline names."""
WORTH = 0.02
"""Share of all exits from which on a kind but the first is worth naming."""


def in_words(kind: str) -> str:
    """A device or exit reason as it stands in a sentence."""
    return WORDS.get(kind, kind)


def headline(figures: Figures) -> str:
    """One sentence on the exits, and one on the time."""
    return f"{exits(figures)} {times(figures)}".rstrip()


def exits(figures: Figures) -> str:
    """What the exits went to."""
    total = figures.total.count
    if not total:
        return "There is not one exit in the trace."
    ranked = by_count(figures.kinds)
    told = [pair for at, pair in enumerate(ranked[:TOLD]) if not at or pair[1].count >= WORTH * total]
    parts = [f"{_share(cost, total)} {_object(figures, kind)}" for kind, cost in told]
    listed = ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1]
    return f"Of {grouped(total)} exits, {listed}." if total > 1 else f"The only exit: {in_words(ranked[0][0])}."


def _share(cost: Tally, total: int) -> str:
    share = 100 * cost.count / total
    return "all" if cost.count == total else f"{share:.0f} %" if share >= 1 else "under 1 %"


def _object(figures: Figures, kind: str) -> str:
    registers = [(key, cost) for key, cost in by_count(figures.registers) if key[0] == kind]
    if not registers:
        return f"were {in_words(kind)}"
    all_of_it = figures.kinds[kind].count
    most = [f"{register} {access}s" for (_, register, access), cost in registers[:2] if cost.count >= all_of_it / 4]
    return f"went to {in_words(kind)}" + (f" (mostly {' and '.join(most)})" if most else "")


def times(figures: Figures) -> str:
    """Where the time went; "" where there is none."""
    cpus = max(1, len(figures.vcpus))
    spent = figures.length * cpus
    if not spent or not figures.total.count:
        return ""
    of = f"{cpus} x {duration(figures.length)}" if cpus > 1 else duration(figures.length)
    run, handle = figures.total.run, figures.total.handle
    return (
        f"Of {of}, {duration(run)} ({_percent(run, spent)}) passed inside KVM_RUN"
        f" and {duration(handle)} ({_percent(handle, spent)}) in exit handlers."
    )


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 9.95 or not part else f"{share:.1f} %" if share >= 0.05 else "under 0.1 %"
