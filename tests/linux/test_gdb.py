"""One gdb session on a Linux kernel: from its entry to its first program. One boot serves all tests here."""

from __future__ import annotations

import re

import pytest

from tests.support.gdb import Debugged
from tests.support.linux import LIMIT, image

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "gdb"), pytest.mark.timeout(2 * LIMIT)]


class Session:
    """What gdb printed, command by command, and how the guest ended."""

    def __init__(self) -> None:
        words = ("--initrd", image("initrd"), "--append", "pyvmm.poweroff pyvmm.greeting=debugged")
        commands = (
            "info registers rip",
            "break start_kernel",  # its page is not mapped yet
            "continue",
            "delete",
            "hbreak start_kernel",
            "continue",
            "backtrace",
            "x/i $pc",
            "stepi",
            "delete",
            "break setup_arch",
            "continue",
            "finish",
            "delete",
            "break rest_init",
            "continue",
            "backtrace",
            "monitor paging rip",
            "monitor disasm rip 1",
            "delete",
            "stepi 20",
            "hbreak free_initmem",
            "continue",
            "delete",
            "continue",
        )
        with Debugged(image("kernel"), *words, limit=LIMIT) as run:
            script: list[str] = []
            for number, command in enumerate(commands):
                script += [f"echo @{number}\\n", command]
            self.text = run.gdb(*script, file=image("kernel"))
            self.status = run.wait()
            self.console = run.output
            self.errors = run.errors
        self._commands = commands
        self._parts = re.split(r"^@\d+\n", self.text, flags=re.MULTILINE)[1:]

    def said(self, command: str, which: int = 0) -> str:
        """What gdb said to `command`, the `which`-th of those that are the same."""
        places = [at for at, one in enumerate(self._commands) if one == command]
        return self._parts[places[which]]


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


def test_it_stands_at_its_entry(session):
    assert re.search(r"rip +0x1000000 ", session.said("info registers rip"))


def test_a_planted_breakpoint_needs_its_page_and_says_so(session):
    assert "Cannot insert breakpoint 1" in session.said("continue")
    assert "hbreak needs no memory" in session.said("continue", 1)  # gdb shows it when the guest next goes on


def test_a_hardware_breakpoint_stops_at_start_kernel_and_there_is_a_way_back(session):
    assert re.search(r"Breakpoint 2, 0x\w+ in start_kernel \(\)", session.said("continue", 1))
    assert re.search(r"#0 .* in start_kernel \(\)\n#1 .* in secondary_startup_64 ", session.said("backtrace"))
    assert "<start_kernel" in session.said("x/i $pc")
    assert "in start_kernel ()" in session.said("stepi")


def test_a_planted_breakpoint_stops_once_there_are_page_tables(session):
    assert "in rest_init ()" in session.said("continue", 3)
    assert re.search(r"rest_init \(\)\n#1 .*arch_call_rest_init \(\)\n#2 .*start_kernel ", session.said("backtrace", 1))


def test_monitor_walks_page_tables_and_knows_the_kernels_symbols(session):
    assert "PML4E [511]" in session.said("monitor paging rip")
    assert "rest_init" in session.said("monitor disasm rip 1")


def test_finish_comes_back_to_the_caller(session):
    assert "in setup_arch ()" in session.said("continue", 2)
    assert "in start_kernel ()" in session.said("finish")


def test_it_goes_on_to_user_space_and_to_its_end(session):
    assert "in free_initmem ()" in session.said("continue", 4)
    assert "pyvmm: greeting=debugged" in session.console
    assert session.status == 0, session.console[-3000:] + session.errors
    assert "exited normally" in session.said("continue", 5)
