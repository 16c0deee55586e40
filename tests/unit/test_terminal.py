"""The escape key as a state machine, and raw mode on a real pseudo-terminal, entered and left."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.backends.terminal import CTRL_A, EscapeFilter, Terminal, key_name, parse_escape
from pyvmm.errors import BackendError, UsageError
from tests.support.cli import environment

IFLAG, OFLAG, CFLAG, LFLAG = range(4)


@pytest.fixture
def terminal() -> Iterator[int]:
    leader, follower = os.openpty()
    yield follower
    for fd in (leader, follower):
        try:
            os.close(fd)
        except OSError:
            pass


# --- The escape key ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "key"),
    [("^A", 1), ("^a", 1), ("^]", 0x1D), ("^@", 0), ("^?", 0x7F), ("~", 0x7E), ("^", 0x5E), ("none", None)],
)
def test_an_escape_key_is_written_with_a_caret(text, key):
    assert parse_escape(text) == key


@pytest.mark.parametrize("text", ["", "^ab", "Ctrl-A", "ä", "^ä", "^1"])
def test_anything_else_is_no_escape_key(text):
    with pytest.raises(UsageError, match="not an escape key"):
        parse_escape(text)


def test_keys_are_named_as_people_call_them():
    assert [key_name(key) for key in (1, 0x1D, 0x7F, ord("~"))] == ["Ctrl-A", "Ctrl-]", "Ctrl-?", "~"]


@pytest.mark.parametrize(
    ("typed", "passed", "commands"),
    [
        (b"plain", b"plain", ""),
        (b"\x01x", b"", "q"),
        (b"\x01X", b"", "q"),
        (b"\x01\x01", b"\x01", ""),
        (b"a\x01\x01b", b"a\x01b", ""),
        (b"\x01h\x01H\x01?", b"", "hhh"),
        (b"\x01s\x01S", b"", "ss"),
        (b"\x01r\x01P\x01m\x01T\x01d\x01I\x01l", b"", "rpmtdil"),
        (b"\x01z", b"\x01z", ""),
        (b"\x01\r", b"\x01\r", ""),
        (b"a\x01xb", b"ab", "q"),
        (b"\x03", b"\x03", ""),
    ],
)
def test_commands_are_taken_out_of_what_is_typed(typed, passed, commands):
    assert EscapeFilter().feed(typed) == (passed, commands)


def test_the_key_and_its_command_may_come_in_two_reads():
    escape = EscapeFilter()
    assert escape.feed(b"ab\x01") == (b"ab", "")
    assert escape.feed(b"xc") == (b"c", "q")


def test_another_key_makes_the_usual_one_ordinary():
    escape = EscapeFilter(0x1D)
    assert escape.feed(b"\x01x\x1dx") == (b"\x01x", "q")
    assert "Ctrl-]" in escape.help() and "Ctrl-A" not in escape.help()


@given(st.binary())
def test_without_an_escape_key_everything_passes(typed):
    assert EscapeFilter(None).feed(typed) == (typed, "")


@given(st.binary())
def test_a_doubled_key_carries_any_input(data):
    typed = data.replace(b"\x01", b"\x01\x01")
    assert EscapeFilter(CTRL_A).feed(typed) == (data, "")


@given(st.binary(), st.lists(st.integers(0, 40)))
def test_how_the_input_is_cut_makes_no_difference(data, cuts):
    whole = EscapeFilter().feed(data)
    escape, passed, commands = EscapeFilter(), b"", ""
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for begin, end in itertools.pairwise(places):
        more, letters = escape.feed(data[begin:end])
        passed += more
        commands += letters
    assert (passed, commands) == whole


# --- Raw mode ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw_output", [True, False])
def test_raw_mode_sends_every_key_on_and_is_undone(terminal, raw_output):
    before = termios.tcgetattr(terminal)
    subject = Terminal(terminal, raw_output=raw_output)
    subject.enter()
    during = termios.tcgetattr(terminal)
    assert subject.raw
    assert not during[LFLAG] & (termios.ISIG | termios.ICANON | termios.ECHO | termios.IEXTEN)
    assert not during[IFLAG] & (termios.ICRNL | termios.IXON)
    assert bool(during[OFLAG] & termios.OPOST) != raw_output
    subject.restore()
    assert not subject.raw
    assert termios.tcgetattr(terminal) == before


def test_restoring_is_final(terminal):
    before = termios.tcgetattr(terminal)
    subject = Terminal(terminal, raw_output=True)
    subject.enter()
    subject.restore()
    subject.enter()
    assert not subject.raw and termios.tcgetattr(terminal) == before


def test_entering_again_after_a_stop_keeps_the_first_settings(terminal):
    before = termios.tcgetattr(terminal)
    subject = Terminal(terminal, raw_output=True)
    subject.enter()
    raw = termios.tcgetattr(terminal)
    meddled = termios.tcgetattr(terminal)
    meddled[LFLAG] |= termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, meddled)
    subject.enter()
    assert termios.tcgetattr(terminal) == raw
    subject.restore()
    assert termios.tcgetattr(terminal) == before


def test_two_threads_that_enter_and_restore_leave_it_restored(terminal):
    before = termios.tcgetattr(terminal)
    for _ in range(50):
        subject = Terminal(terminal, raw_output=True)
        subject.enter()
        other = threading.Thread(target=subject.enter)
        other.start()
        subject.restore()
        other.join()
        assert termios.tcgetattr(terminal) == before


def test_a_terminal_that_is_gone_is_no_reason_to_fail_on_the_way_out(terminal):
    subject = Terminal(terminal, raw_output=True)
    subject.enter()
    os.close(terminal)
    subject.restore()
    with pytest.raises(BackendError, match="cannot set the terminal"):
        Terminal(terminal, raw_output=True).enter()


def test_the_interpreters_exit_restores_it(terminal):
    before = termios.tcgetattr(terminal)
    script = (
        "from pyvmm.backends.terminal import Terminal; import termios\n"
        "t = Terminal(0, raw_output=True); t.enter(); print(bool(termios.tcgetattr(0)[3] & termios.ISIG))\n"
        "raise RuntimeError"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], stdin=terminal, capture_output=True, env=environment(), timeout=30
    )
    assert process.stdout == b"False\n" and b"RuntimeError" in process.stderr
    assert termios.tcgetattr(terminal) == before


@pytest.mark.parametrize("entered", [False, True])
def test_a_process_in_the_background_leaves_the_terminal_alone(terminal, entered):
    """tcsetattr(3) from the background would stop the whole process (SIGTTOU)."""
    script = f"""
import fcntl, os, signal, termios
os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0)
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    from pyvmm.backends.terminal import Terminal
    t = Terminal(0, raw_output=True)
    os.write(ready[1], b"1"); os.read(go[0], 1)
    t.enter()
    raw = t.raw
    os.write(ready[1], b"2"); os.read(go[0], 1)
    t.restore()
    os._exit(raw)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.read(ready[0], 1)
if {entered}: os.tcsetpgrp(0, child)
os.write(go[1], b"1")
if {entered}:
    os.read(ready[0], 1)
    os.tcsetpgrp(0, os.getpgrp())
os.write(go[1], b"2")
_, status = os.waitpid(child, os.WUNTRACED)
print("stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
if os.WIFSTOPPED(status): os.kill(child, 9)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], stdin=terminal, capture_output=True, env=environment(), timeout=30
    )
    assert process.stdout == b"%d\n" % entered, process.stderr
