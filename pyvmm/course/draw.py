"""Pictures for the lessons: boxes, arrows, layers, registers, memory maps and sequences, drawn as SVG.

Imports canvas, lettering and shapes. Lengths are pixels, x to the right, y down; the height of a drawing is
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

from pyvmm.course.canvas import PADDING, Canvas
from pyvmm.course.lettering import LINE, SMALLEST, fitted, width
from pyvmm.course.shapes import KINDS, Box, Point, escape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["KINDS", "Box", "Drawing", "Point"]


class Drawing(Canvas):
    """A picture: boxes, arrows and labels (Canvas), and what is made of them."""

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
