"""Pictures for the lessons: boxes, arrows, layers, registers, memory maps and sequences, drawn as SVG.

Imports lettering and shapes of its own package. Lengths are pixels, x to the right, y down; the height of a drawing is
what is drawn. Colours follow the reader's choice of light or dark: by `prefers-color-scheme`, and by
`data-md-color-scheme` where mkdocs-material says it. Text is broken and shrunk until it fits; what does not fit, and
what leaves the drawing, raises ValueError when it is drawn.

    def draw():
        d = Drawing("An exit", "The guest writes to a port; KVM hands the access to user space.")
        guest = d.box(20, 20, 200, 60, "guest", kind="guest")
        vmm = d.box(420, 20, 200, 60, "pyvmm", kind="vmm")
        d.arrow(guest, vmm, "OUT 0x3f8")
        return d
"""

from __future__ import annotations

from pyvmm.course.lettering import LINE, SMALLEST, fitted, width
from pyvmm.course.shapes import KINDS, STYLE, Box, Point, between, escape, head

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pyvmm.course.shapes import Place

__all__ = ["KINDS", "Box", "Drawing", "Point"]

SIZE = 14.0
PADDING = 6.0
MARGIN = 10.0


class Drawing:
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

    # --- What is made of parts ----------------------------------------------------------------------------------------

    def layers(
        self, x: float, y: float, w: float, names: Iterable[str | tuple[str, ...]], *, h: float = 44, gap: float = 6
    ) -> list[Box]:
        """Boxes one below another; each a text, or (text, kind), or (text, kind, sub)."""
        made = []
        for name in names:
            text, kind, sub, *_ = (name, "plain", "") if isinstance(name, str) else (*name, "")
            made.append(self.box(x, y, w, h, text, kind=kind, sub=sub))
            y += h + gap
        return made

    def bits(
        self, x: float, y: float, w: float, fields: Sequence[tuple[str, int, int]], *, name: str = "", h: float = 40
    ) -> dict[str, Box]:
        """A register: fields are (name, highest bit, lowest bit), the highest first, without holes.

        Bit numbers stand above; a name too wide for its field is written upright below it. The name of a field that is
        reserved is "".
        """
        if name:
            self.label(x, y + 10, name, anchor="start", bold=True)
            y += 26
        total = fields[0][1] - fields[-1][2] + 1
        expected = fields[0][1]
        made = {}
        for text, high, low in fields:
            if high != expected or low > high:
                raise ValueError(f"field {text!r} has bits {high} to {low}, expected {expected} to ...")
            expected = low - 1
            span = (high - low + 1) * w / total
            inside = width(text, SMALLEST, mono=True) <= span - 4
            kind = "plain" if text else "reserved"
            box = self.box(x, y + 16, span, h, "", kind=kind)
            made[text] = box
            numbers = f"{high}" if high == low else f"{high}:{low}"
            self._write(box.center.x, y, [numbers], SMALLEST, "middle", mono=True, soft=True)
            if text and inside:
                lines, size = fitted(text, span - 4, h, 13, mono=True)
                self._write(box.center.x, y + 16 + (h - len(lines) * size * LINE) / 2, lines, size, "middle", mono=True)
            elif text:
                self._upright(box.center.x, y + 16 + h + 6, text)
            x += span
        return made

    def _upright(self, x: float, y: float, text: str) -> None:
        length = width(text, 11, mono=True)
        self._reach(Box(x - 7, y, 14, length), text)
        self.texts.append(Box(x - 6, y, 12, length))
        self._above.append(
            f'<text class="pv-mono" font-size="11" transform="translate({x - 4:g} {y:g}) rotate(90)">'
            f"{escape(text)}</text>"
        )

    def memory(
        self,
        x: float,
        y: float,
        w: float,
        ranges: Sequence[tuple[int, int, str] | tuple[int, int, str, str]],
        *,
        h: float = 40,
        digits: int = 0,
    ) -> dict[str, Box]:
        """A map of addresses, the highest at the top, not to scale: (first, behind the last, name[, kind]), ascending.

        Addresses stand to the left, in a column about 90 pixels wide that lies left of `x`; a hole is dashed.
        """
        made: dict[str, Box] = {}
        rows: list[tuple[int, int, str, str, bool]] = []
        end = ranges[0][0]
        for start, stop, name, *kinds in ranges:
            if start < end or stop <= start:
                raise ValueError(f"{name!r} begins at {start:#x}, expected {end:#x} or more")
            if start > end:
                rows.append((end, start, "", "reserved", True))
            rows.append((start, stop, name, kinds[0] if kinds else "memory", False))
            end = stop

        def address(value: int, at: float) -> None:
            self.label(x - 8, at, f"{value:#0{digits + 2}x}", size=11, anchor="end", mono=True, soft=True)

        address(rows[-1][1], y)
        for start, _, name, kind, hole in reversed(rows):
            height = h / 2 if hole else h
            made[name] = self.box(x, y, w, height, name, kind=kind, dashed=hole)
            y += height
            address(start, y)
        return made

    def sequence(
        self,
        x: float,
        y: float,
        w: float,
        actors: Sequence[tuple[str, str]],
        messages: Sequence[tuple[int, int, str] | tuple[int, int, str, str]],
        *,
        step: float = 40,
    ) -> None:
        """Who says what to whom, from top to bottom. Actors are (name, kind), messages (from, to, text[, "dashed"]).

        A message from an actor to itself is a note on its line.
        """
        column = w / len(actors)
        middles = [x + column * (index + 0.5) for index in range(len(actors))]
        heads = [
            self.box(middle - column * 0.4, y, column * 0.8, 36, name, kind=kind)
            for middle, (name, kind) in zip(middles, actors, strict=True)
        ]
        at = y + 36 + step * 0.8
        for start, end, text, *style in messages:
            if start == end:
                lines, size = fitted(text, column * 0.9 - 2 * PADDING, 1000, 12, bold=True)
                height = max(len(lines) * size * LINE + 8, 26)
                self.box(middles[start] - column * 0.45, at - 12, column * 0.9, height, text, kind="note", size=12)
                at += height - 12 + step * 0.6
            else:
                a, b = Point(middles[start], at), Point(middles[end], at)
                lines, _ = fitted(text, abs(a.x - b.x) - 2 * PADDING, 1000, 12)
                shift = (len(lines) - 1) * 12 * LINE
                self.arrow((a.x, at + shift), (b.x, at + shift), text, dashed="dashed" in style)
                at += step + shift
        for middle, box in zip(middles, heads, strict=True):
            self._below.insert(
                0,
                f'<line class="pv-life" x1="{middle:g}" y1="{box.bottom.y:g}" x2="{middle:g}" y2="{at - step / 2:g}"/>',
            )
        self._reach(Box(x, y, w, at - y - step / 2), "sequence")

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
