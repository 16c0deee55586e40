"""A trace as one page of HTML that needs nothing else: no network, no other file, and no mouse.

Imports drawing, convert, reader and what figures are made with; its style and script are files of the folder `page`.
Nothing of a trace is believed: text is escaped, in the script's data too, and the page's content security policy lets
nothing run or load but its own style and script (Content Security Policy Level 3, 6.7.3: by their hashes).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from html import escape
from importlib.resources import files

from pyvmm.errors import UsageError
from pyvmm.trace.convert import whole
from pyvmm.trace.fields import duration, grouped, percent, text
from pyvmm.trace.look.drawing import COLORS, LANES, data, names
from pyvmm.trace.look.figures import Figures, by_count
from pyvmm.trace.look.headline import exits, in_words, times
from pyvmm.trace.look.summary import COUNTERS, PERCENTILES, counted, ended, inside, machine
from pyvmm.trace.look.timeline import Timeline
from pyvmm.trace.reader import read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm.trace.fields import Record
    from pyvmm.trace.look.figures import Tally
    from pyvmm.trace.look.histogram import Histogram

ROWS = 100
"""Rows of a table; what is beyond is counted in its caption."""
KEYS = (
    *(("+", "zoom in"), ("-", "zoom out"), ("ArrowLeft", "←"), ("ArrowRight", "→"), ("0", "all")),
    *((",", "previous exit"), (".", "next exit")),
)
"""Keys of the timeline, and the buttons that do the same."""


def page(header: Record, records: Iterable[Record]) -> str:
    """The page of a trace, in one pass over its records."""
    figures, timeline = Figures(), Timeline()
    for record in records:
        figures.add(record)
        timeline.add(record)
    kinds = [name for name, _cost in by_count(figures.kinds)]
    style, script = (files(__package__).joinpath("page", name).read_text("utf-8") for name in ("page.css", "page.js"))
    drawn = json.dumps(data(figures, timeline, kinds), separators=(",", ":"))
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    body = [_top(header, figures), _bars(figures, kinds), _timeline(figures, timeline, kinds), _registers(figures)]
    body += [
        _phases(figures),
        _slowest(timeline),
        _vcpus(figures),
        _queues(figures),
        _interrupts(figures),
        _kvm(figures),
    ]
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Trace of {escape(text(header, 'kernel') or 'a run')}</title>\n<style>{style}</style>",
            "</head>\n<body>\n<main>",
            *filter(None, body),
            f'</main>\n<script type="application/json" id="data">{_inert(drawn)}</script>\n<script>{script}</script>',
            "</body>\n</html>\n",
        ]
    )


def write(source: str, target: str) -> None:
    """Make the page `target` of the trace in the file `source`; it appears, or is replaced, when it is whole.

    Raises LoadError for what is no trace, UsageError where the two are one file, BackendError where the host cannot
    write it.
    """
    trace = read(source)
    if os.path.exists(target) and os.path.samefile(source, target):
        raise UsageError(f"{target}: would overwrite the trace that it is made from")
    whole(target, lambda file: file.write(page(trace.header, trace.records())))


def _hash(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _inert(data: str) -> str:
    """JSON in which nothing can end the script element or begin a comment (HTML Standard, 4.12.1.3)."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _top(header: Record, figures: Figures) -> str:
    total, spent = figures.total, figures.length * max(1, len(figures.vcpus))
    facts = [
        ("exits to user space", grouped(total.count), ""),
        ("length of the run", duration(figures.length), ""),
        ("inside KVM_RUN", duration(total.run), percent(total.run, spent)),
        ("in exit handlers", duration(total.handle), percent(total.handle, spent)),
        ("dealt with in C", grouped(total.by_c), percent(total.by_c, total.count)),
        ("interrupts raised", grouped(sum(figures.interrupts.values())), ""),
    ]
    tiles = "".join(f"<div><dt>{name}</dt><dd>{value} <small>{more}</small></dd></div>" for name, value, more in facts)
    return (
        f'<h1>What this run spent its exits on</h1>\n<p class="headline">{escape(exits(figures))}</p>\n'
        f'<p class="second">{escape(times(figures))}</p>\n'
        f'<p class="about">{escape(machine(header))}</p>\n<p class="about">{escape(ended(figures))}</p>\n'
        f'<dl class="facts">{tiles}</dl>'
    )


def _bars(figures: Figures, kinds: list[str]) -> str:
    ranked = by_count(figures.kinds)
    if not ranked:
        return ""
    bars = [(in_words(kind), _mostly(figures, kind), cost.count, cost.handle) for kind, cost in ranked[:COLORS]]
    if rest := ranked[COLORS:]:
        listed = ", ".join(in_words(kind) for kind, _cost in rest[:4]) + (", ..." if len(rest) > 4 else "")
        handle = sum(cost.handle for _kind, cost in rest)
        bars.append(("all others", listed, sum(cost.count for _kind, cost in rest), handle))
    most = max(count for _name, _also, count, _handle in bars)
    longest = max(handle for _name, _also, _count, handle in bars) or 1
    rows = []
    for color, (name, also, count, handle) in enumerate(bars):
        rows.append(
            f'<tr><th scope="row" class="l name">{_key(color)}{escape(name)}<small>{escape(also)}</small></th>'
            f'<td class="bar">{_bar(count / most, color)}</td><td>{grouped(count)}</td>'
            f"<td>{percent(count, figures.total.count)}</td>"
            f'<td class="bar time">{_bar(handle / longest, color)}</td>'
            f'<td class="time">{duration(handle)}</td></tr>'
        )
    head = '<th class="l">went to</th><th class="l" colspan="2">exits</th><th>share</th>'
    head += '<th class="l time" colspan="2">time in handlers</th>'
    table = f'<table class="bars"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _section("Where the exits went", f'<div class="scroll">{table}</div>')


def _mostly(figures: Figures, kind: str) -> str:
    """The registers that most of a device's exits went to."""
    found = [(key, cost) for key, cost in by_count(figures.registers) if key[0] == kind][:3]
    shares = [(key, cost.count, figures.kinds[kind].count) for key, cost in found]
    told = (f"{key[1]} {key[2]} {percent(part, whole)}" for key, part, whole in shares if part >= whole / 10)
    return ", ".join(one.replace(" ", "\N{NO-BREAK SPACE}") for one in told)


def _bar(share: float, color: int) -> str:
    long = max(0.4, 100 * share)
    return (
        '<svg aria-hidden="true"><rect class="track" width="100%" height="18" rx="3"/>'
        f'<rect class="k{color}" width="{long:.2f}%" height="18" rx="3"/></svg>'
    )


def _key(color: int) -> str:
    return f'<svg class="key" aria-hidden="true"><rect class="k{color}" rx="2"/></svg>'


def _timeline(figures: Figures, timeline: Timeline, kinds: list[str]) -> str:
    if not (figures.total.count or figures.queues or figures.interrupts):
        return ""
    legend = "".join(
        f'<button type="button" data-kind="{at}" aria-pressed="true">{_key(at)}{escape(name)}</button>'
        for at, name in enumerate(names(kinds))
    )
    buttons = "".join(f'<button type="button" data-key="{escape(key)}">{name}</button>' for key, name in KEYS)
    notes = []
    if timeline.stride > 1:
        notes.append(
            f"There are {grouped(timeline.exits)} exits: the lanes of the vCPUs show one in {timeline.stride}."
            f" The chart and all tables count every one, the chart in columns of {duration(timeline.counts.width)} or"
            " more."
        )
    if len(figures.vcpus) > LANES or len(figures.queues) > LANES:
        notes.append(f"The first {LANES} vCPUs and the busiest {LANES} queues have lanes; the tables have all.")
    notes.append(
        "Drag to move; double click, Ctrl + wheel or the buttons to zoom. With the timeline focused: arrow keys, + - 0,"
        " and , . from exit to exit. A block is as long as its handler ran."
    )
    return _section(
        "Over time",
        f'<noscript><p class="note">The timeline needs JavaScript; the tables do not.</p></noscript>'
        f'<div class="tools" id="tools" hidden><select id="measure" aria-label="what the chart shows">'
        f'<option value="exits">exits</option><option value="times">handler time</option></select>{buttons}'
        f'<span id="range" class="note"></span></div><div id="timeline"><canvas id="canvas" tabindex="0" role="img"'
        f' aria-label="Exits over time; the tables below have the same figures"></canvas>'
        f'<div id="tip" hidden></div></div>'
        f'<div class="legend">{legend}</div><p id="chosen" aria-live="polite"></p>'
        + "".join(f'<p class="note">{escape(note)}</p>' for note in notes),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], left: int, caption: str = "", mono: bool = False) -> str:
    """A table whose first `left` columns are text; every cell is escaped here."""
    if not rows:
        return ""
    kinds = [' class="l"'] * left + [""] * (len(head) - left)
    tops = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, head, strict=True))
    body = []
    for row in rows[:ROWS]:
        cells = (
            f'<td class="{"w" if at < left else ""}{" m" if mono and at == left - 1 else ""}">{escape(cell)}</td>'
            for at, cell in enumerate(row)
        )
        body.append(f"<tr>{''.join(cells)}</tr>")
    more = f" The first {ROWS} of {grouped(len(rows))}." if len(rows) > ROWS else ""
    said = f"<caption>{escape(caption + more)}</caption>" if caption or more else ""
    return (
        f'<div class="scroll"><table>{said}<thead><tr>{tops}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>" if content else ""


def _latency(histogram: Histogram) -> list[str]:
    return [*(duration(histogram.percentile(share)) for share in PERCENTILES), duration(histogram.largest)]


def _registers(figures: Figures) -> str:
    rows = [
        [
            name,
            register,
            access,
            cost.spec,
            grouped(cost.count),
            percent(cost.count, figures.total.count),
            duration(cost.handle),
            grouped(cost.by_c),
            *_latency(cost.latency),
        ]
        for (name, register, access), cost in by_count(figures.registers)
    ]
    head = [
        "device",
        "register",
        "access",
        "specified in",
        "exits",
        "share",
        "in handlers",
        "by C",
        "p50",
        "p90",
        "p99",
        "max",
    ]
    caption = "p50 to max: time in one handler; percentiles are within 3.2 %."
    return _section("Top registers", _table(head, rows, 4, caption))


def _phases(figures: Figures) -> str:
    rows = []
    for phase, length in figures.stages:
        most = ", ".join(f"{in_words(name)} {grouped(count)}" for name, count in phase.most())
        rows.append([phase.name or "(start)", most, duration(phase.start), duration(length), grouped(phase.exits)])
    return _section("Phases", _table(["phase", "most exits", "began at", "lasted", "exits"], rows, 2))


def _slowest(timeline: Timeline) -> str:
    told = list(timeline.told)
    rows = []
    for handle, _number, point in sorted(timeline.slowest, reverse=True):
        one = told[point[2]]
        what = " ".join(part for part in (one[0], one[2], one[3]) if part)
        rows.append(
            [what, one[6] or one[4], duration(point[0]), str(point[1]), f"{point[5]:#x}", one[8], duration(handle)]
        )
    head = ["exit", "in words", "at", "vCPU", "RIP", "by", "handler"]
    return _section("Longest handlers", _table(head, rows, 2))


def _cells(cost: Tally, whole: int) -> list[str]:
    rest = max(0, whole - cost.run - cost.handle)
    return [cell for part in (cost.run, cost.handle, rest) for cell in (duration(part), percent(part, whole))]


def _vcpus(figures: Figures) -> str:
    rows = [
        ["others" if vcpu < 0 else f"vCPU {vcpu}", grouped(cost.count), *_cells(cost, figures.length)]
        for vcpu, cost in sorted(figures.vcpus.items())
    ]
    head = ["", "exits", "in KVM_RUN", "", "in handlers", "", "rest", ""]
    return _section("vCPUs", _table(head, rows, 1))


def _queues(figures: Figures) -> str:
    rows = [
        [
            f"{name} queue {index}",
            grouped(queue.events.get("notify", 0)),
            grouped(queue.requests),
            str(queue.deepest),
            grouped(queue.events.get("interrupt", 0)),
            *_latency(queue.latency),
        ]
        for (name, index), queue in sorted(figures.queues.items())
    ]
    head = ["queue", "notifications", "requests", "deepest", "interrupts", "p50", "p90", "p99", "max"]
    return _section("Queues", _table(head, rows, 1))


def _interrupts(figures: Figures) -> str:
    ranked = sorted(figures.interrupts.items(), key=lambda item: -item[1])
    return _section("Interrupts", _table(["source", "times"], [[name, grouped(many)] for name, many in ranked], 1))


def _kvm(figures: Figures) -> str:
    rows = [[name, COUNTERS.get(name, ""), grouped(many)] for name, many in counted(figures)]
    caption = inside(figures)
    return _section("What KVM counted itself", _table(["counter", "what", "grew by"], rows, 2, caption))
