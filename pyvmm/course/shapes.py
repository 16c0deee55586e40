"""What drawings are made of: points, boxes, arrow heads, and the style sheet with its two sets of colours.

Imports nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    Place: TypeAlias = "Box | Point | tuple[float, float]"


class Point:
    """A place in a drawing."""

    __slots__ = ("x", "y")

    def __init__(self, x: float, y: float) -> None:
        self.x = x
        self.y = y

    def __iter__(self) -> Iterator[float]:
        return iter((self.x, self.y))


class Box:
    """A rectangle; `left`, `right`, `top`, `bottom` are the middles of its sides. `kind` gives its colours."""

    __slots__ = ("h", "kind", "w", "x", "y")

    def __init__(self, x: float, y: float, w: float, h: float, kind: str = "plain") -> None:
        self.x = x
        self.y = y
        self.w = w
        self.h = h
        self.kind = kind

    def at(self, across: float, down: float) -> Point:
        """A point of it: 0, 0 is the upper left corner, 1, 1 the lower right one."""
        return Point(self.x + self.w * across, self.y + self.h * down)

    @property
    def left(self) -> Point:
        return self.at(0, 0.5)

    @property
    def right(self) -> Point:
        return self.at(1, 0.5)

    @property
    def top(self) -> Point:
        return self.at(0.5, 0)

    @property
    def bottom(self) -> Point:
        return self.at(0.5, 1)

    @property
    def center(self) -> Point:
        return self.at(0.5, 0.5)

    def meets(self, other: Box) -> bool:
        """Whether they have more than an edge in common."""
        across = min(self.x + self.w, other.x + other.w) - max(self.x, other.x)
        down = min(self.y + self.h, other.y + other.h) - max(self.y, other.y)
        return across > 0.5 and down > 0.5

    def holds(self, other: Box) -> bool:
        """Whether `other` lies wholly in it."""
        return (
            self.x - 0.5 <= other.x
            and self.y - 0.5 <= other.y
            and other.x + other.w <= self.x + self.w + 0.5
            and other.y + other.h <= self.y + self.h + 0.5
        )

    def crosses(self, other: Box) -> bool:
        """Whether they overlap, but neither holds the other."""
        return self.meets(other) and not self.holds(other) and not other.holds(self)


def between(start: Place, end: Place, via: Sequence[Point]) -> list[Point]:
    """The points of an arrow. At a box it begins or ends in the middle of the side that faces the next point."""
    first = via[0] if via else _middle(end)
    last = via[-1] if via else _middle(start)
    return [_facing(start, first), *via, _facing(end, last)]


def _middle(place: Place) -> Point:
    return place.center if isinstance(place, Box) else Point(*place)


def _facing(place: Place, other: Point) -> Point:
    if not isinstance(place, Box):
        return Point(*place)
    dx, dy = other.x - place.center.x, other.y - place.center.y
    if abs(dx) * place.h >= abs(dy) * place.w:
        return place.right if dx > 0 else place.left
    return place.bottom if dy > 0 else place.top


def head(before: Point, tip: Point) -> str:
    """The points of an arrow head at `tip`, for a line that comes from `before`."""
    dx, dy = tip.x - before.x, tip.y - before.y
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    dx, dy = dx / length, dy / length
    base = Point(tip.x - 9 * dx, tip.y - 9 * dy)
    corners = [tip, Point(base.x - 4.5 * dy, base.y + 4.5 * dx), Point(base.x + 4.5 * dy, base.y - 4.5 * dx)]
    return " ".join(f"{corner.x:.5g},{corner.y:.5g}" for corner in corners)


def escape(text: str) -> str:
    """`text` as it stands in XML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_COLOURS = {  # kind: fill and edge in light, fill and edge in dark
    "plain": ("#f4f5f7", "#8a93a0", "#2b303b", "#7d8798"),
    "guest": ("#dcebfd", "#2f6fc4", "#173457", "#6aa7f0"),
    "vmm": ("#dcf3e2", "#2c8a4b", "#163d25", "#5fc482"),
    "kvm": ("#eadffa", "#7a4fc0", "#35245a", "#ac8aea"),
    "host": ("#fdf0d5", "#b7821a", "#493612", "#dcae55"),
    "hardware": ("#e3e5e8", "#59616e", "#3a3f49", "#a3acba"),
    "memory": ("#e0f2f4", "#2b8792", "#153c42", "#5dbcc8"),
    "alarm": ("#fde0de", "#c23b32", "#541f1c", "#ee7c74"),
    "note": ("#fffbe0", "#b9a93a", "#3d3916", "#cabd5c"),
    "reserved": ("#ffffff00", "#b4bac3", "#00000000", "#5b6372"),
}
KINDS = tuple(_COLOURS)
"""The kinds of boxes, each with colours of its own."""
_LINES = {"line": ("#4b5563", "#aeb6c4"), "alarm": ("#c23b32", "#ee7c74")}
_LINES |= {kind: (_COLOURS[kind][1], _COLOURS[kind][3]) for kind in ("guest", "vmm", "kvm", "host", "memory")}
_TEXT = {"text": ("#1d232c", "#e6e9ef"), "soft": ("#4b5563", "#b3bac7"), "page": ("#ffffff", "#1e2129")}


def _variables(dark: int) -> str:
    pairs = [(f"{kind}-fill", colours[2 * dark]) for kind, colours in _COLOURS.items()]
    pairs += [(f"{kind}-edge", colours[2 * dark + 1]) for kind, colours in _COLOURS.items()]
    pairs += [(f"{kind}-line", colours[dark]) for kind, colours in _LINES.items()]
    pairs += [(name, colours[dark]) for name, colours in _TEXT.items()]
    return ";".join(f"--pv-{name}:{colour}" for name, colour in pairs)


def _style() -> str:
    light, dark = _variables(0), _variables(1)
    rules = [
        f"svg.pv{{{light};max-width:100%;height:auto;background:var(--pv-page);border-radius:6px}}",
        f"@media (prefers-color-scheme:dark){{svg.pv{{{dark}}}}}",
        f'[data-md-color-scheme="default"] svg.pv{{{light}}}',
        f'[data-md-color-scheme="slate"] svg.pv{{{dark}}}',
        'svg.pv text{fill:var(--pv-text);font-family:"Helvetica Neue",Helvetica,Arial,"DejaVu Sans",sans-serif}',
        'svg.pv text.pv-mono{font-family:"DejaVu Sans Mono",Menlo,Consolas,monospace}',
        "svg.pv text.pv-bold{font-weight:600}",
        "svg.pv text.pv-soft{fill:var(--pv-soft)}",
        "svg.pv text.pv-halo{paint-order:stroke;stroke-width:4px}",
        "svg.pv .pv-life{stroke:var(--pv-soft);stroke-dasharray:2 4}",
    ]
    rules += [
        f"svg.pv .pv-{kind}{{fill:var(--pv-{kind}-fill);stroke:var(--pv-{kind}-edge);stroke-width:1.5}}"
        for kind in KINDS
    ]
    for kind in _LINES:
        rules.append(f"svg.pv .pv-stroke-{kind}{{fill:none;stroke:var(--pv-{kind}-line);stroke-width:1.8}}")
        rules.append(f"svg.pv .pv-head-{kind}{{fill:var(--pv-{kind}-line)}}")
    return "".join(rules)


STYLE = _style()
