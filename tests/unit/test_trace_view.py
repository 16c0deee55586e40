"""`pyvmm trace view`: looking through a trace, by key, at any size, in a terminal and without one."""

from __future__ import annotations

import fcntl
import json
import os
import re
import struct
import termios

import pytest

from pyvmm.errors import UsageError
from pyvmm.trace.fields import kind
from pyvmm.trace.look.bits import Bits
from pyvmm.trace.look.browser import CHOSEN, SLICE, TITLE, Browser
from pyvmm.trace.look.filters import Filter, moment
from pyvmm.trace.look.lines import Lines, parse
from pyvmm.trace.look.show import details, line
from pyvmm.trace.reader import read
from pyvmm.trace.writer import write_events
from tests.support.cli import pyvmm
from tests.support.madetraces import HEADER, boot, write
from tests.support.session import Session

RECORDS = list(boot(3000))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("trace") / "boot.jsonl", RECORDS)


@pytest.fixture
def lines(path):
    with Lines(read(path)) as opened:
        yield opened


@pytest.fixture
def browser(lines):
    return Browser(lines, "boot.jsonl")


def settle(browser: Browser) -> None:
    while browser.busy:
        browser.work()


def press(browser: Browser, *keys: str) -> None:
    for key in keys:
        browser.press(key)
    settle(browser)


def typed(browser: Browser, key: str, text: str) -> None:
    press(browser, key, *text, "enter")


def chosen(browser: Browser) -> str:
    return next(text for text, look in browser.screen(40, 120) if look == CHOSEN)


# Lines.


def test_records_are_found_by_number(lines):
    assert len(lines) == len(RECORDS)
    for number in (0, 1, 17, len(RECORDS) - 1):
        assert lines[number] == RECORDS[number]


def test_a_trace_in_another_form_is_found_by_number_too(tmp_path):
    other = tmp_path / "boot.json"
    with other.open("w") as file:
        write_events(file, [HEADER, *RECORDS[:100]])
    with Lines(read(other)) as opened:
        assert len(opened) == 100 and opened[42] == RECORDS[42]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_the_end_that_a_killed_process_left_is_no_record(cut, tmp_path):
    short = write(tmp_path / "cut.jsonl", RECORDS[:20])
    short.write_bytes(short.read_bytes()[:-cut])
    with Lines(read(short)) as opened:
        assert len(opened) == (20 if cut == 1 else 19)  # without just its line end, a record is whole
        assert opened[18] == RECORDS[18]


def test_a_line_that_is_no_record_is_shown_as_damaged(tmp_path):
    assert parse(b"{")["kind"] == parse(b"[" * 100_000)["kind"] == parse(b"[]")["kind"] == "damaged"
    assert "damaged" in line(parse(b"nonsense"))


# Filters.


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("device=serial", lambda r: r.get("device") == "serial"),
        ("device=SERIAL register=thr", lambda r: r.get("register") == "THR"),
        ("device=unclaimed", lambda r: r["kind"] == "exit" and kind(r) == "unclaimed"),
        ("reason=hlt", lambda r: r.get("reason") == "HLT"),
        ("vcpu=1", lambda r: r.get("vcpu") == 1),
        ("kind=queue", lambda r: r["kind"] == "queue"),
        ("from=2ms to=3ms", lambda r: 2_000_000 <= r["t"] <= 3_000_000),
        ("vendor 0x1AF4", lambda r: "0x1af4" in r.get("words", "")),
        ("device=serial vcpu=1 thre", lambda r: r.get("vcpu") == 1 and r.get("register") == "LSR"),
        ("no such words", lambda r: False),
    ],
)
def test_a_filter_lets_through_what_it_says_and_nothing_else(text, wanted, lines):
    found = Filter.parse(text)
    expected = [number for number, record in enumerate(RECORDS) if wanted(record)]
    assert [number for number, record in enumerate(RECORDS) if found.matches(record)] == expected
    assert all(found.may_match(lines.raw(number)) for number in expected)
    assert str(found).split() == text.split() or text.isupper() or "SERIAL" in text or str(found)


@pytest.mark.parametrize("text", ["vcpu=x", "from=never", "devise=serial", "to=5parsecs", "from=-1", "from=infs"])
def test_a_filter_that_cannot_be_meant_is_refused(text):
    with pytest.raises(UsageError):
        Filter.parse(text)


@pytest.mark.parametrize(
    ("text", "at"), [("1.5s", 1_500_000_000), ("2", 2_000_000_000), ("20ms", 20_000_000), ("3us", 3000), ("7ns", 7)]
)
def test_times_are_read(text, at):
    assert moment(text) == at


# The browser.


def test_the_screen_is_full_and_fits_at_any_size(browser):
    for height in range(1, 60, 3):
        for width in (1, 10, 20, 45, 80, 200):
            for _ in range(2):
                shown = browser.screen(height, width)
                assert len(shown) <= height and all(len(text) <= width for text, _look in shown)
                browser.press("?")
    assert len(browser.screen(24, 80)) == 24


def test_it_shows_where_one_is_and_what_the_record_says(browser):
    press(browser, *["down"] * 9)
    shown = browser.screen(40, 120)
    assert shown[0][1] == TITLE and f"10 of {len(RECORDS):,}" in shown[0][0]
    assert chosen(browser).strip() == line(RECORDS[9]).strip()
    text = "\n".join(row for row, _look in shown)
    for part in details(RECORDS[9]):
        assert part in text


def test_details_have_the_bits_the_address_the_times_and_the_section():
    record = next(record for record in RECORDS if record.get("register") == "LSR")
    text = "\n".join(details(record))
    for part in (
        "LSR 0x60",
        "THRE TEMT",
        "RIP 0xffffffff8",
        "port 0x3fd",
        "handler",
        "KVM_RUN before",
        "PC16550D, 8.4",
    ):
        assert part in text


def test_details_on_a_tall_screen_have_each_bit_and_its_meaning(tmp_path):
    serial = {"name": "serial", "space": "pio", "base": 0x3F8, "length": 8, "model": "serial"}
    access = {"kind": "exit", "t": 5, "vcpu": 0, "reason": "IO", "space": "pio", "at": 0x3FD, "size": 1, "count": 1}
    access |= {"write": False, "data": "60", "device": "serial", "register": "LSR", "words": "LSR 0x60: THRE TEMT"}
    with Lines(read(write(tmp_path / "t.jsonl", [access], HEADER | {"devices": [serial]}))) as opened:
        rows = [text.split() for text, _look in Browser(opened, "t").screen(40, 120)]
    assert ["bit", "5", "THRE"] in [row[:3] for row in rows] and ["bit", "6", "TEMT"] in [row[:3] for row in rows]
    assert ["bit", "0", "DR"] not in [row[:3] for row in rows]
    assert all(len(row) > 3 for row in rows if row[:1] == ["bit"])


@pytest.mark.parametrize(
    "devices",
    [
        *(None, 5, "x", [5], [None], [{}], {"name": "serial"}),
        [{"name": "serial", "model": "no such"}],
        [{"name": "serial", "model": ["serial"]}],
        [{"name": "serial", "model": "rtc", "bank": "x"}],
        [{"name": "serial", "model": "own"}],
        [{"name": "serial", "model": "own", "registers": 7}],
        [{"name": "serial", "model": "virtio-mmio", "id": []}],
    ],
)
def test_a_header_that_makes_no_sense_tells_no_bits(devices):
    record = {"kind": "exit", "device": "serial", "register": "LSR", "data": "60", "count": 1}
    assert Bits(HEADER | {"devices": devices}).of(record) == []
    sane = Bits(HEADER | {"devices": [{"name": "serial", "model": "serial"}]})
    assert len(sane.of(record)) == 2
    for wrong in (
        {"data": "6"},
        {"data": "zz"},
        {"data": "6060"},
        {"register": "XYZ"},
        {"device": "x"},
        {"data": None},
    ):
        assert sane.of(record | wrong) == []


@pytest.mark.parametrize(
    ("keys", "number"),
    [
        (["down", "down", "up"], 1),
        (["j", "j", "k", "k", "k"], 0),
        (["end"], len(RECORDS) - 1),
        (["G", "g"], 0),
        (["G", "down", "pagedown"], len(RECORDS) - 1),
    ],
)
def test_keys_move_and_stop_at_the_ends(keys, number, browser):
    press(browser, *keys)
    assert browser.number(browser.at) == number


def test_a_page_down_and_up_is_where_one_was(browser):
    browser.screen(30, 80)
    press(browser, "pagedown", "pagedown", "pageup")
    assert 0 < browser.at < 30
    press(browser, "pageup")
    assert browser.at == 0


def test_a_filter_by_key_shows_only_what_it_lets_through(browser):
    typed(browser, "f", "device=virtio-blk0 kind=queue")
    wanted = [number for number, record in enumerate(RECORDS) if record["kind"] == "queue"]
    assert [browser.number(at) for at in range(len(browser))] == wanted
    assert f"of {len(wanted)} ({len(RECORDS):,} in all)" in browser.screen(30, 100)[0][0]
    press(browser, "x")
    assert len(browser) == len(RECORDS)


def test_a_filter_keeps_the_place_and_so_does_its_end(browser):
    press(browser, *["down"] * 1000)
    press(browser, "d")  # only what is like this record
    device = RECORDS[1000].get("device") or RECORDS[1001].get("device")
    here = browser.number(browser.at)
    assert RECORDS[here].get("device") == RECORDS[1000].get("device", device) and abs(here - 1000) < 60
    press(browser, "x")
    assert browser.number(browser.at) == here


def test_a_wrong_filter_is_told_and_changes_nothing(browser):
    typed(browser, "f", "vcpu=all")
    assert len(browser) == len(RECORDS)
    assert "vCPU 'all' (expected a number)" in browser.screen(30, 100)[-1][0]


def test_a_prompt_takes_keys_as_text_until_it_is_left(browser):
    press(browser, "f", "q", "x", "backspace")
    assert browser.prompting and browser.screen(30, 100)[-1][0].endswith("words): q")
    press(browser, "escape")
    assert not browser.prompting and not browser.over
    press(browser, "q")
    assert browser.over


def test_find_jumps_to_the_next_the_one_after_and_back(browser):
    expected = [number for number, record in enumerate(RECORDS) if record.get("words") == "nobody answers"]
    typed(browser, "/", "NOBODY")
    assert browser.number(browser.at) == expected[0]
    press(browser, "n", "n", "N")
    assert browser.number(browser.at) == expected[1]
    press(browser, "G", "n")
    assert "no other nobody" in browser.screen(30, 100)[-1][0]
    press(browser, "N")
    assert browser.number(browser.at) == expected[-1]


def test_a_time_is_gone_to(browser):
    typed(browser, "t", "5ms")
    assert RECORDS[browser.number(browser.at)]["t"] >= 5_000_000 > RECORDS[browser.number(browser.at) - 1]["t"]


def test_a_filter_works_in_slices_and_keys_go_on_meanwhile(browser):
    browser.press("f")
    for key in "device=serial":
        browser.press(key)
    browser.press("enter")
    browser.work()
    assert browser.busy and 0 < len(browser) <= SLICE
    browser.press("down")
    assert "looking" in browser.screen(30, 100)[0][0]
    settle(browser)
    assert len(browser) == sum(record.get("device") == "serial" for record in RECORDS)


def test_nothing_let_through_is_no_mishap(browser):
    typed(browser, "f", "nothing at all like this")
    press(browser, "down", "up", "end", "home", "d", "r", "n", "pagedown", "enter", "enter")
    typed(browser, "t", "1s")
    assert "0 of 0" in browser.screen(30, 100)[0][0]


@pytest.mark.parametrize("header_only", [True, False])
def test_an_empty_trace_is_shown(header_only, tmp_path):
    empty = write(tmp_path / "empty.jsonl", [] if header_only else [{"kind": "end", "t": 1}])
    with Lines(read(empty)) as opened:
        browser = Browser(opened, "empty")
        press(browser, "down", "end", "enter", "d", "r", "n")
        typed(browser, "/", "x")
        assert f"{len(opened)} of {len(opened)}" in browser.screen(30, 80)[0][0]


def test_what_a_trace_says_cannot_steer_a_terminal(tmp_path):
    evil = {"kind": "exit", "t": 1, "vcpu": "\x1b[2J", "reason": "\x1b]0;x\x07", "device": "d\ne", "register": "\x9b1m"}
    evil |= {"space": "pio", "at": 1, "words": "\x1b[31mred\r\n", "spec": "\x00", "data": "\x1b"}
    records = [evil, {"kind": "\x1b[1m", "\x1b": "\x1b"}, {"kind": "statistics", "counters": {"\x1b": "\x1b"}}]
    bad = write(tmp_path / "evil.jsonl", records, HEADER | {"kernel": "\x1b[5m"})
    with Lines(read(bad)) as opened:
        browser = Browser(opened, "a\x1b[2Jb")
        for _ in records:
            assert all(text.isprintable() for text, _look in browser.screen(40, 120))
            browser.press("down")
    done = pyvmm("trace", "view", "--print", bad)
    assert done.returncode == 0 and b"\x1b" not in done.stdout and done.stdout.count(b"\n") == 3


# The command.


def test_print_shows_the_lines_that_the_filters_let_through(path):
    done = pyvmm(
        "trace", "view", "--print", "--device", "pci", "--register=config_data", "--vcpu", "0", "--to", "5ms", path
    )
    wanted = [
        line(record)
        for record in RECORDS
        if record.get("register") == "CONFIG_DATA" and record["vcpu"] == 0 and record["t"] <= 5_000_000
    ]
    assert done.stdout.decode().splitlines() == wanted and wanted
    done = pyvmm("trace", "view", "--print", "--text", "THRE", "--text", "temt", "--kind=exit", "--reason=io", path)
    assert len(done.stdout.splitlines()) == sum(record.get("register") == "LSR" for record in RECORDS)


def resize(session: Session, rows: int, columns: int) -> None:
    fcntl.ioctl(session.leader, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@pytest.fixture(params=["xterm-256color", "vt100"])
def terminal(request, monkeypatch, path):
    monkeypatch.setenv("TERM", request.param)
    monkeypatch.setenv("LANG", "C.UTF-8")
    session = Session("view", path, verb="trace")
    resize(session, 30, 100)
    yield session
    if session.process.poll() is None:
        session.process.kill()
    session.process.wait()
    os.close(session.leader)
    os.close(session.terminal)


def test_in_a_terminal_it_filters_finds_resizes_and_leaves_it_as_it_was(terminal):
    terminal.see(b"boot.jsonl", b"q quit")
    terminal.type(b"f")
    terminal.see(b"filter")
    terminal.type(b"kind=queue\r")
    terminal.see(b"kind=queue", b"virtio-blk0")
    terminal.type(b"x/nobody\r")
    terminal.see(b"nobody answers")
    terminal.type(b"gt1\r")  # the end: all rows are full of records before it
    terminal.see(b"power-off")
    above = next(line(record).split()[0] for record in reversed(RECORDS[:-35]))
    assert above.encode() not in terminal.shown
    resize(terminal, 60, 100)
    terminal.see(above.encode())
    resize(terminal, 3, 10)
    terminal.see(b"too small")
    terminal.type(b"q")
    assert terminal.process.wait(20) == 0
    assert termios.tcgetattr(terminal.terminal) == terminal.before


def test_an_interrupt_ends_it_and_restores_the_terminal(terminal):
    terminal.see(b"boot.jsonl", b"q quit")
    terminal.type(b"\x03")
    assert terminal.process.wait(20) in (0, 130)
    assert termios.tcgetattr(terminal.terminal) == terminal.before


@pytest.mark.parametrize("name", ["", "no-such-terminal"])
def test_a_terminal_that_nobody_knows_is_said_in_a_line(name, path, monkeypatch):
    monkeypatch.setenv("TERM", name)
    session = Session("view", path, verb="trace")
    _out, error = session.process.communicate(timeout=20)
    os.close(session.leader)
    os.close(session.terminal)
    assert session.process.returncode == 2
    assert error.count(b"\n") == 1 and b"--print" in error


@pytest.mark.parametrize(
    "record",
    [
        *(RECORDS[at] for at in (0, 1, 2, 5, 20, 60)),
        {"kind": "exit", "t": 1, "reason": "IO", "space": "mmio", "at": 0xDEADBEEF, "write": True, "data": "fade"},
        {"kind": "exit", "t": 1, "reason": "IO", "space": "pio", "at": 0xFACE, "write": False, "data": "\u00e4"},
        *({"kind": "interrupt", "t": 1, "gsi": 3, "level": level} for level in (0, 1, "pulse")),
        {"kind": "lost", "t": 1, "count": 3},
        {"kind": "device", "t": 1, "attached": True, "base": None, "gone": False},
        {"kind": "statistics", "t": 1, "vcpu": None, "counters": {}},
    ],
)
def test_whatever_is_in_a_line_can_be_found_by_it(record):
    raw = json.dumps(record).encode()
    shown = line(record).lower()
    for word in {*re.findall(r"[a-z]+", shown), *re.findall(r"\S+", shown), *(shown[at : at + 3] for at in range(60))}:
        found = Filter({}, (word,))
        assert found.matches(record) and found.may_match(raw), word
