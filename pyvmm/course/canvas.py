"""What every drawing can do: boxes, text, arrows, and the SVG file of them; what is made of these is in draw.py.

Imports lettering and shapes. Lengths are pixels, x to the right, y down.
"""

from __future__ import annotations

from pyvmm.course.lettering import LINE, fitted, width
from pyvmm.course.shapes import KINDS, STYLE, Box, Point, between, escape, head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm.course.shapes import Place

SIZE = 14.0
PADDING = 6.0
MARGIN = 10.0


class Canvas:
    """A picture `width` wide. `title` is its name; `description` says in words what it shows, for who cannot see it."""

    def __init__(self, title: str, description: str, width: float = 720) -> None:
        self.title = title
        self.description = description
        self.width = width
        self.height = 0.0
        self.boxes: list[Box] = []
        self.texts: list[Box] = []
        """Where text stands outside of boxes: a test holds them apart."""
        self._below: list[str] = []
        self._lines: list[str] = []
        self._above: list[str] = []

    # --- The parts ----------------------------------------------------------------------------------------------------

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        text: str = "",
        *,
        sub: str = "",
        kind: str = "plain",
        top: bool = False,
        dashed: bool = False,
        mono: bool = False,
        size: float = SIZE,
    ) -> Box:
        """A box with `text` in its middle, or at its `top` left, which leaves room for boxes in it; `sub` is below it.

        `kind` is one of KINDS, which gives the colours.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} (expected {', '.join(KINDS)})")
        box = Box(x, y, w, h, kind)
        self._reach(box, text)
        self.boxes.append(box)
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._below.append(f'<rect class="pv-{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5"{dash}/>')
        if not text:
            return box
        room = w - 2 * PADDING
        below = fitted(sub, room, h / 2, size - 3) if sub else ([], 0.0)
        sub_height = len(below[0]) * below[1] * LINE
        lines, size = fitted(text, room, h - 4 - sub_height, size, bold=not mono, mono=mono)
        height = len(lines) * size * LINE + sub_height
        y0 = y + (PADDING if top else (h - height) / 2)
        x0, anchor = (x + 2 * PADDING, "start") if top else (box.center.x, "middle")
        self._write(x0, y0, lines, size, anchor, bold=not mono, mono=mono)
        self._write(x0, y0 + height - sub_height, below[0], below[1], anchor, soft=True)
        return box

    def label(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 13,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
        soft: bool = False,
        room: float = 0,
    ) -> Box:
        """Text whose middle line is at `y`; `anchor` says what `x` is: "start", "middle" or "end". Broken to `room`."""
        lines, size = fitted(text, room or self.width, 1000, size, bold, mono)
        w = max(width(line, size, bold, mono) for line in lines)
        h = len(lines) * size * LINE
        left = x - {"start": 0, "middle": w / 2, "end": w}[anchor]
        place = Box(left, y - h / 2, w, h)
        self._reach(place, text)
        self.texts.append(place)
        around = [box for box in self.boxes if box.holds(place)]
        ground = f"{min(around, key=lambda box: box.w * box.h).kind}-fill" if around else "page"
        self._write(x, place.y, lines, size, anchor, bold=bold, mono=mono, soft=soft, halo=ground)
        return place

    def arrow(
        self,
        start: Place,
        end: Place,
        text: str = "",
        *,
        both: bool = False,
        dashed: bool = False,
        via: Sequence[tuple[float, float]] = (),
        kind: str = "line",
        heads: bool = True,
        above: bool = True,
        at: float = 0.5,
        room: float = 0,
    ) -> None:
        """An arrow from a box or point to another, through the points `via`; `text` stands beside its middle part.

        Without `room` text above a level arrow is broken to the arrow's length. `above` False puts it below, or to the
        left of an upright one; `at`, 0 to 1, says how far along. `kind`, the colour, is "line" or "alarm",
        "guest", "vmm", "kvm", "host", "memory".
        """
        points = between(start, end, [Point(*one) for one in via])
        path = " ".join(f"{point.x:g},{point.y:g}" for point in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self._lines.append(f'<polyline class="pv-stroke-{kind}" points="{path}"{dash}/>')
        for point in points:
            self._reach(Box(point.x, point.y, 0, 0), text)
        if heads:
            self._lines.append(f'<polygon class="pv-head-{kind}" points="{head(points[-2], points[-1])}"/>')
        if heads and both:
            self._lines.append(f'<polygon class="pv-head-{kind}" points="{head(points[1], points[0])}"/>')
        if text:
            self._beside(points, text, above, at, room)

    def line(self, start: Place, end: Place, text: str = "", *, dashed: bool = False, kind: str = "line") -> None:
        """As an arrow, without heads."""
        self.arrow(start, end, text, dashed=dashed, kind=kind, heads=False)

    def _beside(self, points: list[Point], text: str, above: bool, at: float, room: float) -> None:
        middle = (len(points) - 1) // 2
        a, b = points[middle], points[middle + 1]
        x, y = a.x + (b.x - a.x) * at, a.y + (b.y - a.y) * at
        if abs(a.x - b.x) < abs(a.y - b.y):  # rather upright
            self.label(x + (8 if above else -8), y, text, size=12, anchor="start" if above else "end", room=room)
            return
        room = room or max(abs(a.x - b.x) - 2 * PADDING, 60)
        lines, size = fitted(text, room, 1000, 12)
        height = len(lines) * size * LINE
        slope = abs(a.y - b.y) / 2 * min(1, width(lines[0], size) / (abs(a.x - b.x) or 1))
        self.label(x, y + (height / 2 + 4 + slope) * (-1 if above else 1), text, size=size, room=room)

    # --- The file -----------------------------------------------------------------------------------------------------

    def svg(self) -> str:
        """The drawing as an SVG element that can stand in a page or, with its own style, alone."""
        name = "pv-" + "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())
        w, h = self.width, self.height + MARGIN
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" class="pv" viewBox="0 0 {w:g} {h:g}" width="{w:g}" '
                f'role="img" aria-labelledby="{name}-title {name}-description">',
                f'<title id="{name}-title">{escape(self.title)}</title>',
                f'<desc id="{name}-description">{escape(self.description)}</desc>',
                f"<style>{STYLE}</style>",
                *self._below,
                *self._lines,
                *self._above,
                "</svg>\n",
            ]
        )

    def problems(self) -> list[str]:
        """What a reader would stumble over: boxes that overlap in part, and text that crosses a box's edge or text."""
        found = [
            f"boxes at {a.x:g},{a.y:g} and {b.x:g},{b.y:g} overlap"
            for index, a in enumerate(self.boxes)
            for b in self.boxes[:index]
            if a.crosses(b)
        ]
        for index, text in enumerate(self.texts):
            others = [box for box in self.boxes if text.crosses(box)]
            others += [other for other in self.texts[:index] if text.meets(other)]
            found += [f"text at {text.x:g},{text.y:g} meets what is at {other.x:g},{other.y:g}" for other in others]
        return found

    def _write(
        self,
        x: float,
        y: float,
        lines: list[str],
        size: float,
        anchor: str,
        *,
        bold: bool = False,
        mono: bool = False,
        soft: bool = False,
        halo: str = "",
    ) -> None:
        """Lines of text from `y` down; `halo` names the colour that parts them from lines behind them."""
        words = {"pv-mono": mono, "pv-bold": bold, "pv-soft": soft, "pv-halo": halo}
        stroke = f' stroke="var(--pv-{halo})"' if halo else ""
        names = " ".join(word for word, on in words.items() if on)
        for line in lines:
            baseline = y + size * (LINE + 0.7) / 2
            self._above.append(
                f'<text class="{names}" x="{x:g}" y="{baseline:g}" font-size="{size:g}" text-anchor="{anchor}"{stroke}>'
                f"{escape(line)}</text>"
            )
            y += size * LINE

    def _reach(self, place: Box, text: str) -> None:
        if place.x < 0 or place.y < 0 or place.x + place.w > self.width + 0.5:
            raise ValueError(f"{text!r} at {place.x:g},{place.y:g} leaves the drawing, which is {self.width:g} wide")
        self.height = max(self.height, place.y + place.h)
