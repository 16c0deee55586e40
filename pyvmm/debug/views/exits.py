"""The last exits of every vCPU, oldest first, and how many there were of each kind. Imports subject."""

from __future__ import annotations

from itertools import groupby

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.views.subject import Subject


def exits(vm: Subject) -> list[str]:
    """Counts first, then what each vCPU came out for last; the same several times in a line of its own."""
    stats = vm.stats
    counts = ", ".join(f"{name} {count}" for name, count in sorted(stats.exits.items())) or "none"
    lines = [f"exits {sum(stats.exits.values())} ({counts})"]
    if stats.completed:
        done = ", ".join(f"{name} {count}" for name, count in sorted(stats.completed.items()))
        lines.append(f"instructions that KVM refused and pyvmm completed: {done}")
    lines.append(f"accesses that no device answered: {stats.unclaimed}")
    for number, loop in enumerate(vm.loops):
        history = _history(loop)
        lines.append(f"vCPU {number}, last exits, oldest first:" if history else f"vCPU {number}: no exits")
        lines += [f"  {text}" + (f"  ({times} times)" if times > 1 else "") for text, times in history]
    return lines


def exits_data(vm: Subject) -> dict[str, Any]:
    """The same for programs."""
    stats = vm.stats
    return {
        "exits": stats.exits,
        "completed": stats.completed,
        "unclaimed": stats.unclaimed,
        "vcpus": [[{"text": text, "times": times} for text, times in _history(loop)] for loop in vm.loops],
    }


def _history(loop: Any) -> list[tuple[str, int]]:
    return [(text, len(list(same))) for text, same in groupby(exit.describe() for exit in loop.history)]
