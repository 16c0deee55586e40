"""What page.js draws of a trace: plain data for JSON. Imports headline and timeline."""

from __future__ import annotations

from pyvmm.trace.look.headline import in_words
from pyvmm.trace.look.timeline import BINS, REST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.trace.look.figures import Figures
    from pyvmm.trace.look.timeline import Timeline

COLORS = 8
"""Kinds of exit with a colour of their own; the others share one."""
LANES = 16
"""vCPUs, and queues, that get a lane."""


def names(kinds: list[str]) -> list[str]:
    """What each colour stands for; `kinds` are all kinds of exit, the commonest first."""
    return [in_words(kind) for kind in kinds[:COLORS]] + ["all others"] * (len(kinds) > COLORS)


def color_of(kinds: Sequence[str], kind: str) -> int:
    """The number of the colour of `kind`."""
    at = kinds.index(kind) if kind in kinds[:COLORS] else COLORS
    return min(at, COLORS)


def data(figures: Figures, timeline: Timeline, kinds: list[str]) -> dict[str, Any]:
    """What page.js draws; times are nanoseconds since the trace began.

    points   parallel lists, in order of time: t, vcpu, place in `told`, run, handle, place in `rips`
    told     [number of the kind's colour, reason, register, access, place, size, words, spec, by]; names: their kinds
    bins     `width` ns each; exits and times: a list for each colour
    """
    rows = sorted(timeline.points)
    rips: dict[int, int] = {}
    points = {name: [row[at] for row in rows] for at, name in enumerate(("t", "vcpu", "told", "run", "handle"))}
    points["rip"] = [rips.setdefault(row[5], len(rips)) for row in rows]
    colors = min(len(kinds), COLORS + 1)
    told = list(timeline.told)
    depths = [(key, bins) for key, bins in timeline.depths.series.items() if any(bins)]
    depths = sorted(depths, key=lambda pair: -sum(pair[1]))[:LANES]  # the busiest
    return {
        "length": figures.length,
        "longest": max(points["handle"], default=0),
        "stride": timeline.stride,
        "kinds": names(kinds),
        "vcpus": sorted(vcpu for vcpu in figures.vcpus if vcpu >= 0)[:LANES],
        "points": points,
        "told": [[color_of(kinds, one[0]), *one[1:]] for one in told],
        "names": [one[0] for one in told],
        "rips": [f"{rip:#x}" for rip in rips],
        "bins": {
            "width": timeline.counts.width,
            "exits": _series(timeline.counts.series, kinds, colors),
            "times": _series(timeline.times.series, kinds, colors),
        },
        "phases": [{"name": phase.name, "t": phase.start} for phase in figures.phases if phase.name],
        "queues": [_queue(key, bins, timeline.depths.width) for key, bins in depths],
        "interrupts": {"width": timeline.interrupts.width, "counts": _cut(bins)}
        if (bins := timeline.interrupts.series.get(""))
        else None,
    }


def _queue(key: Any, bins: Sequence[int], width: int) -> dict[str, Any]:
    name, index = (key, 0) if key == REST else key
    return {"name": name, "index": index, "width": width, "deepest": max(bins), "depth": _cut(bins)}


def _series(series: Any, kinds: list[str], colors: int) -> list[list[int]]:
    sums = [[0] * BINS for _ in range(colors)]
    for kind, bins in series.items():
        of = sums[min(color_of(kinds, kind), colors - 1)]
        for at, value in enumerate(bins):
            of[at] += value
    return [_cut(one) for one in sums]


def _cut(bins: Sequence[int]) -> list[int]:
    """Without the zeros at the end."""
    end = max((at + 1 for at, value in enumerate(bins) if value), default=0)
    return list(bins[:end])
