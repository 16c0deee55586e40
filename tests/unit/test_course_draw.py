"""Drawings: text stays in its box, what cannot be drawn is refused, and the file is sound and can be read aloud."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from pyvmm.course.draw import KINDS, Drawing
from pyvmm.course.lettering import SMALLEST, fitted, width

SVG = "{http://www.w3.org/2000/svg}"


def drawing() -> Drawing:
    return Drawing("A <title>", "What & why.")


def test_text_is_broken_and_shrunk_until_it_fits() -> None:
    lines, size = fitted("one two three four five six", 90, 40, 14)
    assert len(lines) > 1
    assert size < 14
    assert all(width(line, size) <= 90 for line in lines)
    assert fitted("one two", 400, 40, 14) == (["one two"], 14)


def test_text_that_cannot_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="'unbreakable' does not fit into 28 by 36 pixels"):
        drawing().box(0, 0, 40, 40, "unbreakable")


def test_all_text_in_a_box_is_inside_of_it() -> None:
    made = drawing()
    box = made.box(100, 50, 120, 60, "a name that has to be broken", sub="and more below")
    root = ElementTree.fromstring(made.svg())
    for text in root.iter(f"{SVG}text"):
        size = float(text.attrib["font-size"])
        half = width(text.text or "", size, "pv-bold" in text.attrib["class"]) / 2
        assert size >= SMALLEST
        assert box.x <= float(text.attrib["x"]) - half <= float(text.attrib["x"]) + half <= box.x + box.w
        assert box.y <= float(text.attrib["y"]) - size * 0.75 < float(text.attrib["y"]) <= box.y + box.h


def test_what_leaves_the_drawing_is_refused() -> None:
    for x, y in ((-1, 0), (700, 0), (0, -1)):
        with pytest.raises(ValueError, match="leaves the drawing, which is 720 wide"):
            drawing().box(x, y, 40, 40)
    with pytest.raises(ValueError, match="leaves the drawing"):
        drawing().arrow((0, 0), (721, 0))


def test_the_file_is_xml_with_a_title_and_a_description() -> None:
    made = drawing()
    made.label(100, 20, 'a < b & "c"')
    root = ElementTree.fromstring(made.svg())
    assert root.attrib["role"] == "img"
    named = {element.attrib["id"]: element.text for element in root if "id" in element.attrib}
    assert [named[name] for name in root.attrib["aria-labelledby"].split()] == ["A <title>", "What & why."]
    assert [text.text for text in root.iter(f"{SVG}text")] == ['a < b & "c"']
    assert float(root.attrib["viewBox"].split()[3]) == pytest.approx(made.height + 10)


def test_every_kind_has_colours_for_light_and_dark() -> None:
    made = drawing()
    for index, kind in enumerate(KINDS):
        made.box(0, index * 20, 100, 18, kind=kind)
    text = made.svg()
    assert text.count("prefers-color-scheme:dark") == 1
    for kind in KINDS:
        assert text.count(f"--pv-{kind}-fill:") == 4  # by itself and by the page's word, light and dark
    with pytest.raises(ValueError, match="kind 'pink'"):
        made.box(0, 0, 10, 10, kind="pink")


def test_arrows_run_between_the_sides_that_face_each_other() -> None:
    made = drawing()
    a, b, c = made.box(0, 0, 100, 40), made.box(300, 0, 100, 40), made.box(0, 200, 100, 40)
    made.arrow(a, b, "to b")
    made.arrow(a, c, "to c", both=True)
    lines = [element.attrib["points"] for element in ElementTree.fromstring(made.svg()).iter(f"{SVG}polyline")]
    assert lines == ["100,20 300,20", "50,40 50,200"]
    assert made.svg().count("<polygon") == 3
    assert made.problems() == []


def test_a_register_has_all_its_bits() -> None:
    made = drawing()
    boxes = made.bits(20, 20, 640, [("DLAB", 7, 7), ("", 6, 2), ("WLS", 1, 0)], name="LCR")
    assert (boxes["DLAB"].w, boxes["WLS"].w) == (80, 160)
    for fields in ([("A", 7, 6), ("B", 4, 0)], [("A", 7, 4), ("B", 4, 0)], [("A", 0, 7)]):
        with pytest.raises(ValueError, match="has bits"):
            made.bits(20, 120, 640, fields)


def test_the_name_of_a_narrow_field_stands_below_it() -> None:
    made = drawing()
    made.bits(20, 20, 640, [(f"BIT{bit}", bit, bit) for bit in range(31, -1, -1)])
    assert made.svg().count("rotate(90)") == 32
    assert made.problems() == []


def test_a_memory_map_is_drawn_from_the_top_down_with_its_holes() -> None:
    made = drawing()
    boxes = made.memory(200, 20, 200, [(0, 0x1000, "low"), (0x2000, 0x3000, "high", "alarm")])
    assert boxes["high"].y < boxes[""].y < boxes["low"].y
    assert [f">{address}<" in made.svg() for address in ("0x0", "0x1000", "0x2000", "0x3000")] == [True] * 4
    with pytest.raises(ValueError, match="'b' begins at 0x800, expected 0x1000 or more"):
        made.memory(200, 20, 200, [(0, 0x1000, "a"), (0x800, 0x2000, "b")])


def test_a_sequence_goes_down() -> None:
    made = drawing()
    actors = [("guest", "guest"), ("KVM", "kvm")]
    made.sequence(20, 20, 400, actors, [(0, 1, "OUT"), (1, 1, "looks who wants it"), (1, 0, "back", "dashed")])
    lines = [element.attrib["points"] for element in ElementTree.fromstring(made.svg()).iter(f"{SVG}polyline")]
    heights = [float(line.split(",")[-1]) for line in lines]
    assert heights == sorted(heights)
    assert made.problems() == []


def test_what_overlaps_is_found() -> None:
    made = drawing()
    made.box(0, 0, 100, 40, "a")
    made.box(10, 5, 30, 30)  # inside: meant
    assert made.problems() == []
    made.box(90, 20, 100, 40, "b")
    made.label(100, 60, "across an edge")
    assert len(made.problems()) == 2
