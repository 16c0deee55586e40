"""`pyvmm run` alone: the tiny Linux's shell on a terminal works as a person expects. One boot for all of it."""

from __future__ import annotations

import hashlib
import os
import random
import select
import time
from collections.abc import Iterator

import pytest

from tests.support.linux import GREETING, LIMIT, PROMPT, Shell, release

pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.timeout(2 * LIMIT)]

LEFT, UP, BACKSPACE, CONTROL_C, CONTROL_D, CONTROL_U = b"\x1b[D", b"\x1b[A", b"\x7f", b"\x03", b"\x04", b"\x15"

SLOW = 3600
"""Seconds for 700 KB of output, each byte of it an exit, where ring 0 is emulated."""


@pytest.fixture(scope="module")
def booted() -> Iterator[Shell]:
    shell = Shell("--append", "quiet")
    yield shell
    shell.close()


@pytest.fixture
def shell(booted: Shell) -> Shell:
    assert booted.process.poll() is None, "the guest has ended"
    return booted


def test_it_greets_and_gives_a_shell(shell):
    if not GREETING.search(shell.shown.decode()):  # another test came first
        assert "Linux version" in shell.command("dmesg")
    assert shell.command("uname -r") == release() + "\n"
    assert shell.command("echo $((6 * 7)) $HOME") == "42 /root\n"


def test_control_c_reaches_the_guest(shell):
    shell.forget()
    shell.type(b"sleep 1000\r")
    shell.see(b"sleep 1000\r\n")
    time.sleep(2)  # until it runs
    shell.type(CONTROL_C)
    shell.see(b"^C\r\n", PROMPT)
    assert shell.command("echo $?") == "130\n"


def test_lines_can_be_edited_and_come_back(shell):
    shell.forget()
    shell.type(b"nothing of this" + CONTROL_U + b"echo a-xb" + BACKSPACE + b"c" + LEFT * 2 + BACKSPACE + b"\r")
    shell.see(b"\r\naxc\r\n", PROMPT)
    shell.forget()
    shell.type(UP + b"; echo again\r")
    shell.see(b"\r\naxc\r\nagain\r\n", PROMPT)


def test_a_paste_of_64_kib_loses_nothing(shell):
    letters = random.Random(1).choices(b"abcdefghijklmnopqrstuvwxyz0123456789", k=1 << 16)
    lines = [bytes(letters[at : at + 79]) for at in range(0, len(letters), 79)]
    pasted = b"\r".join(lines) + b"\r"
    shell.forget()
    shell.type(b"stty -echo; echo rea'dy'; cat > /tmp/pasted\r")
    shell.see(b"ready\r\n")
    os.set_blocking(shell.leader, False)
    rest = pasted + CONTROL_D
    deadline = time.monotonic() + LIMIT
    while rest:
        assert time.monotonic() < deadline, f"{len(rest)} bytes left"
        readable, writable, _ = select.select([shell.leader], [shell.leader], [], 1)
        if readable:
            shell.shown += os.read(shell.leader, 65536)
        if writable:
            rest = rest[os.write(shell.leader, rest[:1000]) :]
    os.set_blocking(shell.leader, True)
    shell.see(PROMPT)
    shell.command("stty echo")
    digest = hashlib.md5(pasted.replace(b"\r", b"\n")).hexdigest()
    assert shell.command("md5sum < /tmp/pasted; wc -l < /tmp/pasted").split() == [digest, "-", str(len(lines))]


@pytest.mark.parametrize(
    "count", [2000, pytest.param(100000, marks=[pytest.mark.soak, pytest.mark.timeout(SLOW + 60)])]
)
def test_much_output_is_complete(shell, count, monkeypatch):
    monkeypatch.setattr(shell, "limit", SLOW)
    assert shell.command(f"seq {count}") == "".join(f"{number}\n" for number in range(1, count + 1))


def test_the_terminals_size_can_be_told(shell):
    assert shell.command("stty rows 33 columns 101; stty size") == "33 101\n"
    shell.command("stty rows 24 columns 999")


@pytest.mark.soak
@pytest.mark.timeout(900 + LIMIT)
def test_an_idle_shell_is_left_alone_and_costs_little(shell):
    def ticks() -> int:
        with open(f"/proc/{shell.process.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    before = ticks()
    shell.forget()
    time.sleep(600)
    used = (ticks() - before) / os.sysconf("SC_CLK_TCK")
    assert shell.process.poll() is None
    assert used < 0.02 * 600, f"{used} s of CPU in ten minutes"
    assert shell.command("echo still here") == "still here\n"


def test_poweroff_ends_it_with_0_and_restores_the_terminal(shell):
    shell.type(b"poweroff\r")
    assert shell.end() == 0
    assert shell.errors() == ""
