"""`pyvmm trace html`: one page that answers what a run spent its exits on, in any browser, without a network."""

from __future__ import annotations

import html
import html.parser
import json
import re
import struct
import zlib
from pathlib import Path

import pytest

from pyvmm.trace.fields import number
from pyvmm.trace.look.drawing import LANES
from pyvmm.trace.look.html import page
from pyvmm.trace.look.timeline import BINS, POINTS, SERIES, SLOWEST, WORDS, Bins, Timeline
from tests.support import chromium
from tests.support.madetraces import HEADER, boot, write

VOID = {"meta", "br", "rect", "link", "img", "input"}
HOSTILE = "</script><script>document.documentElement.dataset.pwned=1</script><img src=x onerror=alert(1)>\"'&\u2028<!--"


class Parsed(html.parser.HTMLParser):
    """The elements of a page, its text, and whether every element is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def data_of(source: str) -> dict[str, object]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.S)
    assert found is not None
    decoded: dict[str, object] = json.loads(found[1])
    return decoded


@pytest.fixture(scope="module")
def made() -> str:
    return page(HEADER, boot(2000))


def test_the_page_says_at_once_what_the_exits_were_spent_on(made):
    text = Parsed(made).text
    assert (
        text.index("What this run spent its exits on")
        < text.index("went to the serial port")
        < text.index("Where the exits went")
    )
    bars = text[text.index("Where the exits went") : text.index("Over time")]
    assert bars.index("the serial port") < bars.index("PCI configuration space") < bars.index("virtio-blk0")
    assert "THR write" in bars


def test_everything_that_is_drawn_is_in_tables_too(made):
    text = Parsed(made).text
    for title in (
        "Top registers",
        "Phases",
        "Longest handlers",
        "vCPUs",
        "Queues",
        "Interrupts",
        "What KVM counted itself",
    ):
        assert title in text
    for word in ("CONFIG_ADDRESS", "PC16550D, 8.4", "first output", "virtio-blk0 queue 0", "LSR 0x60: THRE TEMT"):
        assert word in text


def test_the_page_refers_to_nothing_outside_itself(made):
    for tag, attributes in Parsed(made).elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not {"src", "href", "action", "style"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    without_data = re.sub(r'<script type="application/json".*?</script>', "", made, flags=re.S)
    assert "http://" not in without_data and "https://" not in without_data and "url(" not in without_data


def test_only_the_page_s_own_style_and_script_may_run(made):
    import base64
    import hashlib

    policy = next(a["content"] for tag, a in Parsed(made).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", made, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


def hostile_records():
    where = {"space": "pio", "at": 1, "size": 1, "write": True, "by": "c", "run": 1, "handle": 9}
    for number_ in range(20):
        names = dict.fromkeys(("device", "register", "words", "spec", "reason", "data"), f"{HOSTILE}{number_}")
        yield {"kind": "exit", "t": number_ * 1000, "vcpu": 0, "rip": 5} | names | where
    yield {"kind": "phase", "t": 3000, "name": HOSTILE}
    yield {"kind": "queue", "t": 3500, "device": HOSTILE, "queue": 0, "event": HOSTILE, "depth": 3, "count": 1}
    yield {"kind": "interrupt", "t": 4000, "device": HOSTILE, "level": 1}
    yield {"kind": "statistics", "t": 1, "vcpu": 0, "counters": {HOSTILE: 1}}
    yield {"kind": "statistics", "t": 9000, "vcpu": 0, "counters": {HOSTILE: 5}}
    yield {"kind": "lifecycle", "t": 9000, "state": HOSTILE}
    yield {"kind": "end", "t": 9500, "reason": HOSTILE, "status": 0}


def hostile_header():
    return HEADER | {"kernel": HOSTILE, "kvm": HOSTILE, "pyvmm": HOSTILE, "began": HOSTILE, "append": HOSTILE}


def test_a_hostile_trace_adds_no_element_and_no_attribute():
    source = page(hostile_header(), hostile_records())
    parsed = Parsed(source)
    assert sum(tag == "script" for tag, _attributes in parsed.elements) == 2
    assert not [tag for tag, _attributes in parsed.elements if tag == "img"]
    assert "<img" in parsed.text  # it is there, as text
    assert "<!--" not in source
    assert data_of(source)["phases"][0]["name"].startswith("</script>")


def test_the_data_has_every_exit_in_order_of_time(made):
    data = data_of(made)
    times = data["points"]["t"]
    assert len(times) == 2001 and times == sorted(times) and data["stride"] == 1
    assert {len(column) for column in data["points"].values()} == {2001}
    assert max(data["points"]["told"]) < len(data["told"]) == len(data["names"])
    assert sum(map(sum, data["bins"]["exits"])) == 2001
    expected = sum(number(record, "handle") for record in boot(2000) if record["kind"] == "exit")
    assert sum(map(sum, data["bins"]["times"])) == expected == sum(data["points"]["handle"])


def test_too_many_exits_are_thinned_out_and_still_all_counted():
    timeline = Timeline()
    many = 5 * POINTS + 17
    for at in range(many):
        timeline.add(
            {"kind": "exit", "t": at * 1000, "vcpu": at % 2, "reason": f"r{at % 3}", "run": 1, "handle": at % 7}
        )
    assert timeline.stride == 8 and POINTS / 2 <= len(timeline.points) <= POINTS
    for part in range(2 * 3):  # of each vCPU and each reason as many as of the others, whatever their rhythm
        kept = sum(point[0] // 1000 % 6 == part for point in timeline.points)
        assert kept == pytest.approx(len(timeline.points) / 6, rel=0.02)
    assert sum(map(sum, timeline.counts.series.values())) == many
    assert len(timeline.slowest) == SLOWEST


def test_what_a_trace_makes_up_is_bounded():
    timeline = Timeline()
    for at in range(2 * WORDS + 2000):
        record = {
            "kind": "exit",
            "t": at,
            "reason": "IO",
            "space": "pio",
            "at": at,
            "words": f"w{at}",
            "device": f"d{at}",
        }
        timeline.add(record | {"handle": 1})
        timeline.add({"kind": "queue", "t": at, "device": f"d{at}", "queue": at, "depth": at})
    assert len(timeline.told) <= 3 * WORDS
    assert len(timeline.counts.series) <= SERIES + 1 and len(timeline.depths.series) <= SERIES + 1
    timeline.add({"kind": "exit", "t": (1 << 63) - 1, "reason": "late"})
    assert sum(map(sum, timeline.counts.series.values())) == 2 * WORDS + 2001


def test_bins_widen_without_losing_a_value():
    sums, highest = Bins(width=1), Bins(width=1, highest=True)
    for t in range(0, 10 * BINS, 3):
        sums.add("a", t, 2)
        highest.add("a", t, t)
    assert sum(sums.series["a"]) == 2 * len(range(0, 10 * BINS, 3)) and sums.width == 16
    assert max(highest.series["a"]) == 10 * BINS - 1 or max(highest.series["a"]) >= 10 * BINS - 3


def test_a_request_is_in_flight_until_it_is_complete():
    timeline = Timeline()
    queue = {"kind": "queue", "device": "d", "queue": 0}
    for t, depth in ((0, 0), (10_000, 2), (90_000, 0), (200_000, 0)):
        timeline.add(queue | {"t": t, "depth": depth})
    bins, width = timeline.depths.series[("d", 0)], timeline.depths.width
    assert all(bins[t // width] == 2 for t in range(10_000, 90_000, width))
    assert not any(bins[t // width] for t in range(90_000 + width, 200_000, width))


def test_a_trace_without_exits_has_a_page_too():
    text = Parsed(page({}, [])).text
    assert "There is not one exit in the trace." in text and "Over time" not in text


def test_as_many_lanes_as_fit_and_it_says_so():
    records = [{"kind": "exit", "t": at, "vcpu": at, "reason": "HLT"} for at in range(40)]
    source = page(HEADER, records)
    assert len(data_of(source)["vcpus"]) == LANES and f"The first {LANES} vCPUs" in Parsed(source).text


# In a browser.


def write_page(path: Path, source: str) -> Path:
    path.write_text(source, encoding="utf-8")
    return path


@pytest.mark.needs("chromium")
def test_a_browser_draws_it_without_a_network_or_an_error(made, tmp_path):
    shown, console = chromium.dom(write_page(tmp_path / "p.html", made))
    assert console == []
    root = re.search(r"<html[^>]*>", shown)[0]
    assert 'data-drawn="2001"' in root and "data-error" not in root
    assert re.search(r'id="range"[^>]*>0\S* \S+ to \S+ ms<', shown)


PROBE = """
window.requestAnimationFrame = (done) => setTimeout(done, 16);  // without a screen there are no frames
const canvas = document.getElementById("canvas"), root = document.documentElement, box = canvas.getBoundingClientRect();
const text = (id) => document.getElementById(id).innerText;
const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
const move = (x, y) => canvas.dispatchEvent(
  new PointerEvent("pointermove", { clientX: box.left + x, clientY: box.top + y, bubbles: true }));
const key = (key) => canvas.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
(async () => {
  const tips = new Set();
  for (let y = 30; y < box.height; y += 9) { move(box.width / 2, y); tips.add(text("tip")); }
  root.dataset.tips = [...tips].join(" | ");
  root.dataset.all = text("range");
  for (let n = 0; n < 6; n++) key("+");
  key("ArrowRight");
  await frame();
  root.dataset.zoomed = text("range");
  for (let n = 0; n < 40; n++) key("+");
  key("."); key("."); key(",");
  root.dataset.chosen = text("chosen");
  await frame();
  document.querySelector("[data-kind='0']").click();
  key("0");
  document.getElementById("measure").value = "times";
  document.getElementById("measure").dispatchEvent(new Event("change"));
  canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -9, ctrlKey: true, clientX: box.left + 9, cancelable: true }));
  await frame();
  root.dataset.last = text("range");
  root.dataset.done = "yes";
})();
"""


def attribute(shown: str, name: str) -> str:
    found = re.search(rf' data-{name}="([^"]*)"', shown.partition("<head>")[0])
    assert found is not None, f"no data-{name}"
    return html.unescape(found[1])


@pytest.mark.needs("chromium")
def test_in_a_browser_one_may_point_zoom_and_go_from_exit_to_exit(made, tmp_path):
    # The probe is no script of the page's own, so the policy that would stop it has to go.
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made)
    source = source.replace("</body>", f"<script>{PROBE}</script></body>")
    shown, console = chromium.dom(write_page(tmp_path / "p.html", source))
    assert console == [] and attribute(shown, "done") == "yes"
    tips = attribute(shown, "tips")
    for told in ("vCPU 0, RIP 0xffffffff81", "handler ", "the serial port: ", "in flight at", "interrupt"):
        assert told in tips, tips
    assert "LSR 0x60: THRE TEMT" in tips or "THR 0x41" in tips
    assert attribute(shown, "all").startswith("0.")
    assert len({attribute(shown, name) for name in ("all", "zoomed", "last")}) == 3
    assert re.search(r"(read|write) of 1 byte at .* RIP 0xf+81", attribute(shown, "chosen"))


@pytest.mark.needs("chromium")
def test_a_policy_that_stops_scripts_of_others_is_in_force(made, tmp_path):
    source = made.replace("</body>", "<script>document.documentElement.dataset.pwned = 1</script></body>")
    shown, console = chromium.dom(write_page(tmp_path / "p.html", source))
    assert "data-pwned" not in shown and "Content Security Policy" in " ".join(console)


@pytest.mark.needs("chromium")
def test_a_hostile_trace_runs_nothing_in_a_browser(tmp_path):
    shown, console = chromium.dom(write_page(tmp_path / "p.html", page(hostile_header(), hostile_records())))
    root = re.search(r"<html[^>]*>", shown)[0]
    assert console == [] and "pwned" not in root and 'data-drawn="20"' in root


ODD = {
    "nothing": [],
    "one exit at 0": [{"kind": "exit", "t": 0, "reason": "HLT"}],
    "far away": [
        {"kind": "exit", "t": (1 << 63) - 1, "vcpu": 1 << 60, "reason": "HLT", "run": 1 << 62, "handle": 1 << 62}
    ],
    "a queue alone": [{"kind": "queue", "t": 5, "device": "d", "queue": 1, "depth": 1 << 60, "event": "take"}],
    "shapes": [
        {"kind": "exit", "t": "x", "vcpu": [], "words": {}, "space": 3, "rip": -4},
        {"kind": "phase", "name": 5},
    ],
}


@pytest.mark.needs("chromium")
def test_odd_traces_are_drawn_without_an_error(tmp_path):
    for name, records in ODD.items():
        shown, console = chromium.dom(write_page(tmp_path / "p.html", page(HEADER, records)))
        assert console == [] and "data-error" not in re.search(r"<html[^>]*>", shown)[0], name


def pixels(png: bytes) -> tuple[int, int, list[bytes]]:
    """Width, height and rows of RGB or RGBA bytes of a PNG as Chromium writes it (PNG, third edition, 9 and 11)."""
    at, packed = 8, b""
    width = height = channels = 0
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, _depth, color = struct.unpack_from(">IIBB", body)
            channels = {2: 3, 6: 4}[color]
        elif kind == b"IDAT":
            packed += body
        at += 12 + length
    raw, stride, rows = zlib.decompress(packed), width * channels, []
    before = bytearray(stride)
    for row in range(height):
        start = row * (stride + 1)
        method, line = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride) if method else ():
            left = line[i - channels] if i >= channels else 0
            up, corner = before[i], before[i - channels] if i >= channels else 0
            if method == 4:
                guess = left + up - corner
                to = abs(guess - left), abs(guess - up), abs(guess - corner)
                add = left if to[0] <= to[1] and to[0] <= to[2] else up if to[1] <= to[2] else corner
            else:
                add = (0, left, up, (left + up) // 2)[method]
            line[i] = (line[i] + add) & 0xFF
        rows.append(bytes(line))
        before = line
    return width, height, rows


@pytest.mark.needs("chromium")
@pytest.mark.parametrize(("scheme", "background"), [(chromium.LIGHT, 0xF7), (chromium.DARK, 0x13)])
def test_the_picture_has_the_colours_of_the_scheme_and_of_the_bars(scheme, background, made, tmp_path):
    made_at = write_page(tmp_path / "p.html", made)
    width, height, rows = pixels(chromium.picture(made_at, tmp_path / "p.png", width=480, height=1000, scheme=scheme))
    assert (width, height) == (480, 1000)
    assert rows[1][3] == background
    channels = len(rows[0]) // width
    blue = (0x2A, 0x78, 0xD6) if scheme == chromium.LIGHT else (0x39, 0x87, 0xE5)
    found = sum(tuple(row[i : i + 3]) == blue for row in rows for i in range(0, len(row), channels))
    assert found > 1000


@pytest.mark.needs("chromium")
def test_a_phone_needs_no_sideways_scrolling_of_the_page(made, tmp_path):
    probe = "<script>document.documentElement.dataset.wide=document.documentElement.scrollWidth-innerWidth</script>"
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made).replace("</body>", probe + "</body>")
    shown, _console = chromium.dom(write_page(tmp_path / "p.html", source))
    assert 'data-wide="0"' in re.search(r"<html[^>]*>", shown)[0]


def test_the_command_writes_the_page(tmp_path):
    from tests.support.cli import pyvmm

    trace = write(tmp_path / "t.jsonl", boot(50))
    done = pyvmm("trace", "html", trace, tmp_path / "p.html")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert "went to the serial port" in Parsed((tmp_path / "p.html").read_text("utf-8")).text
