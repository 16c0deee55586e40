"""Where the prompt of `--shell` opens, what it reads and shows, and the time limit that does not count meanwhile."""

from __future__ import annotations

import io
import sys
import threading
import time

import pytest

from pyvmm import layout, timelimit
from pyvmm.config import VmConfig
from pyvmm.debug.shell.prompt import Leave, Prompt
from pyvmm.debug.shell.stops import Stop
from pyvmm.errors import UsageError
from pyvmm.kvm.exits import Mmio, Pio
from pyvmm.machine import Machine
from pyvmm.timelimit import TimeLimit
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.mmio import VirtioMmio
from pyvmm.vm import VM
from tests.support.cli import wait_for
from tests.support.memorydisk import MemoryDisk

THR = Pio(0x3F8, 1, 1, True, b"a")
LSR = Pio(0x3FD, 1, 1, False, b"\x60")
STATUS = Mmio(0xD0000070, 4, True, b"\1\0\0\0")
WIDE = Pio(0x3F8, 4, 1, True, b"abcd")


@pytest.fixture
def machine():
    made = Machine([(0, 1 << 20)], lambda *_: None, lambda _: None, lambda _: None)
    device = VirtioBlock(MemoryDisk(), name="blk0")
    made.mmio.attach(layout.VIRTIO_MMIO, layout.PAGE, VirtioMmio(device, lambda: None))
    return made


# --- Where it stops --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "met", "not_met"),
    [
        ("any", [THR, LSR, STATUS], []),
        ("io", [THR, LSR], []),
        ("MMIO", [STATUS], []),
        ("0x3f8", [THR, WIDE], [LSR]),
        ("1016", [THR], [LSR]),
        ("port=0x3fd", [LSR], [THR]),
        ("0xd0000070", [STATUS], []),
        ("gpa=0xd0000072", [STATUS], []),
        ("serial", [THR, LSR], []),
        ("serial:r", [LSR], [THR]),
        ("serial.THR", [THR], [LSR]),
        ("serial.thr", [THR, WIDE], [LSR]),
        ("serial.LSR", [LSR], [THR]),
        ("blk0", [STATUS], [THR]),
        ("blk0.Status:w", [STATUS], [THR]),
        ("blk0.Status:r", [], [STATUS]),
        ("any:w", [THR, STATUS], [LSR]),
    ],
)
def test_an_exit_is_meant_by_kind_place_device_or_register(machine, text, met, not_met):
    stop = Stop(text)
    stop.check(machine.ports, machine.mmio)
    machine.serial  # noqa: B018 (made, as for a guest that has used it)
    for exits, expected in ((met, True), (not_met, False)):
        for exit in exits:
            found = isinstance(exit, stop.kinds) and stop.matches(exit, machine.ports, machine.mmio)
            assert found is expected, (text, exit)


@pytest.mark.parametrize(
    ("text", "entry", "halt"), [("entry", True, False), ("hlt", False, True), ("io", False, False)]
)
def test_entry_and_halt_are_no_exits(text, entry, halt):
    stop = Stop(text)
    assert (stop.entry, stop.halt) == (entry, halt)
    assert bool(stop.kinds) is not (entry or halt)


@pytest.mark.parametrize(
    "text",
    ["", ":", ":r", "serial:x", "serial.", ".THR", "0xzz", "port=", "disk=3", "entry:r", "hlt:w", "a" * 200, "="],
)
def test_what_is_no_exit_gets_one_line(text):
    with pytest.raises(UsageError, match="is no exit to stop at") as caught:
        Stop(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize(("text", "said"), [("port=0x10000", "no port 0x10000"), ("gpa=0x10000000000000", "no gpa")])
def test_an_address_that_is_none_is_named(text, said):
    with pytest.raises(UsageError, match=said):
        Stop(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [("disk", r"no device 'disk' \(there are .*serial"), ("serial.XYZ", r"serial has no register XYZ \(it has DLL,")],
)
def test_what_the_machine_does_not_have_is_named_with_what_it_has(machine, text, said):
    with pytest.raises(UsageError, match=said):
        Stop(text).check(machine.ports, machine.mmio)


def test_checking_a_place_makes_no_other_device(machine):
    Stop("serial.THR").check(machine.ports, machine.mmio)
    made = [name for name in ("_serial", "_rtc", "_pm") if getattr(machine, name).made is not None]
    assert made == ["_serial"]


def test_there_is_no_prompt_for_a_vm_that_was_not_started():
    with pytest.raises(UsageError, match="has not been started"):
        VM(config=VmConfig("k")).shell()


# --- The prompt ------------------------------------------------------------------------------------------------------


def converse(monkeypatch, lines, namespace=None, over=lambda: False):
    """What a prompt shows to whom `lines` come from a pipe, and the prompt."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    prompt = Prompt({} if namespace is None else namespace, over)
    prompt.run("began\n")
    assert out.getvalue() == "", "standard output is the guest's"
    return err.getvalue(), prompt


def test_lines_from_a_pipe_are_done_and_their_results_shown(monkeypatch):
    shown, prompt = converse(monkeypatch, "x = 20\nx + 1\nfor i in range(2):\n    print(i)\n\nprint('end')\n")
    assert shown == "began\n21\n0\n1\nend\n"
    assert prompt.ended


def test_a_block_that_the_input_ends_in_is_done(monkeypatch):
    assert converse(monkeypatch, "for i in range(2):\n    print(i)\n")[0] == "began\n0\n1\n"


def test_errors_are_shown_and_the_next_line_is_done(monkeypatch):
    def fails():
        raise UsageError("one line")

    shown, _ = converse(monkeypatch, "1/0\nfails()\n(\n]\n'go on'\n", {"fails": fails})
    assert "ZeroDivisionError" in shown and "\none line\n" in shown and "SyntaxError" in shown
    assert shown.endswith("'go on'\n")
    assert shown.count("Traceback") == 1


def test_an_interrupt_ends_the_line_and_not_the_prompt(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    assert converse(monkeypatch, "interrupt()\n5\n", {"interrupt": interrupt})[0] == "began\ninterrupted\n5\n"


def test_leaving_leaves_lines_unread(monkeypatch):
    def leave():
        raise Leave

    with pytest.raises(Leave):
        converse(monkeypatch, "leave()\n5\n", {"leave": leave})
    assert sys.stdin.read() == "5\n"


def test_a_closed_standard_input_is_its_end(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    prompt = Prompt({}, lambda: False)
    prompt.run("")
    assert prompt.ended


# --- The time limit --------------------------------------------------------------------------------------------------


def test_a_limit_is_reached_once():
    reached = []
    TimeLimit(0.02, float, lambda: reached.append(time.monotonic())).start()
    wait_for(lambda: reached, "the limit")
    time.sleep(0.2)
    assert len(reached) == 1


def test_time_that_the_vm_stands_does_not_count(monkeypatch):
    monkeypatch.setattr(timelimit, "LOOK_AGAIN", 0.01)
    reached, began, stands = threading.Event(), time.monotonic(), True
    limit = TimeLimit(0.1, lambda: time.monotonic() - began if stands else 0.4, reached.set)
    limit.start()
    assert not reached.wait(0.4)
    stands = False
    assert reached.wait(10)
    assert time.monotonic() - began >= 0.5


def test_a_limit_that_was_cancelled_is_never_reached(monkeypatch):
    monkeypatch.setattr(timelimit, "LOOK_AGAIN", 0.01)
    reached = threading.Event()
    limit = TimeLimit(0.5, lambda: 0.1, reached.set)
    limit.start()
    limit.cancel()
    assert not reached.wait(0.9)
