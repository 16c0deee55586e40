"""How wide text is, and how it is broken and made smaller to fit into a box.

Imports nothing. Nobody knows which font a reader's browser takes, so widths are those of one of the widest sans-serif
fonts that are common (DejaVu Sans): what fits by them fits in any narrower one.
"""

from __future__ import annotations

LINE = 1.3
"""Height of a line, in font sizes."""
SMALLEST = 10.0
"""The smallest font size that text is shrunk to, in pixels."""
BOLD = 1.2
MONO = 0.61

_BY_WIDTH = {
    0.28: "'ijl", 0.29: "IJ", 0.33: " ,.", 0.34: "/:;\\|", 0.36: "f-", 0.40: "()[]t!", 0.42: "r", 0.46: '"',
    0.50: "*_`", 0.53: "sz?", 0.57: "cLFk", 0.60: "vxyP", 0.63: "TYaoeESbdghnpqu", 0.65: "$0123456789{}",
    0.69: "KAVBRXZ", 0.71: "C", 0.75: "UHN", 0.78: "DG&", 0.80: "OQ", 0.83: "w", 0.85: "#+<=>^~", 0.87: "M",
    0.99: "%mW", 1.0: "@",
}  # fmt: skip
_WIDTHS = {letter: width for width, letters in _BY_WIDTH.items() for letter in letters}


def width(text: str, size: float, bold: bool = False, mono: bool = False) -> float:
    """Pixels that `text` needs at most, at font size `size`."""
    if mono:
        return len(text) * MONO * size
    return sum(_WIDTHS.get(letter, 1.0) for letter in text) * size * (BOLD if bold else 1)


def broken(text: str, room: float, size: float, bold: bool = False, mono: bool = False) -> list[str]:
    """`text` in lines of at most `room` pixels, broken at blanks; a longer word has a line that is too long."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and width(longer, size, bold, mono) > room:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    return lines


def fitted(
    text: str, room: float, height: float, size: float, bold: bool = False, mono: bool = False
) -> tuple[list[str], float]:
    """Lines of `text`, and the font size up to `size` by which they fit into `room` by `height` pixels.

    Raises ValueError where even SMALLEST is too large.
    """
    trial = size
    while True:
        lines = broken(text, room, trial, bold, mono)
        widest = max(width(line, trial, bold, mono) for line in lines)
        if widest <= room and len(lines) * trial * LINE <= height:
            return lines, trial
        if trial <= SMALLEST:
            raise ValueError(f"{text!r} does not fit into {room:.0f} by {height:.0f} pixels")
        trial = max(trial - 0.5, SMALLEST)
