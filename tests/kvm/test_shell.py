"""`pyvmm run --shell` on a terminal and without one, and `vm.shell()` in a program."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm.control.client import Client
from pyvmm.errors import UsageError
from pyvmm.vm import VM
from tests.support import guests
from tests.support.cli import ECHO, LIMIT, PYVMM, environment, pyvmm, wait_for
from tests.support.session import Session

pytestmark = pytest.mark.needs("kvm")

HELLO = guests.says(b"hello", 3)
PROMPT = b"vm> "


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TERM", "dumb")
    return tmp_path


def write(folder: Path, code: bytes) -> Path:
    path = folder / "guest.bin"
    path.write_bytes(code)
    return path


@pytest.fixture
def run(folders: Path) -> Iterator[Callable[..., Session]]:
    """Starts `pyvmm run GUEST` with a terminal for all three streams."""
    sessions: list[Session] = []

    def start(code: bytes, *arguments: object, **options: Any) -> Session:
        sessions.append(Session(write(folders, code), "--timeout", "50s", *arguments, stderr=None, **options))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def talk(session: Session, line: bytes, *expected: bytes) -> None:
    """Type a line at the prompt, and see what it shows and the next prompt."""
    session.shown = b""
    session.type(line + b"\r")
    session.see(line, *expected, PROMPT)


def interrupt(session: Session, *expected: bytes) -> None:
    """Press Ctrl-C, and again if that was between a prompt and readline's wait for a key, which does not see it."""
    time.sleep(0.5)
    session.shown = b""
    patience, session.limit = session.limit, 2
    for _ in range(int(patience)):
        session.type(b"\x03")
        try:
            session.see(*expected)
            break
        except AssertionError:
            continue
    session.limit = patience


def piped(folder: Path, code: bytes, lines: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    words = [*PYVMM, "run", str(write(folder, code)), *options]
    return subprocess.run(words, input=lines.encode(), capture_output=True, timeout=LIMIT, env=environment())


# --- Without a terminal ----------------------------------------------------------------------------------------------


def test_lines_from_a_pipe_and_the_guest_has_standard_output_for_itself(folders):
    ended = piped(folders, HELLO, "hex(regs.rip)\nstep()\nuntil('serial.THR')\nexit.value\n1/0\n", "--shell")
    assert ended.returncode == 7
    assert ended.stdout == b"hello"
    shown = ended.stderr.decode()
    assert "vCPU 0, entry\n-> 0x7c00" in shown and "'0x7c00'" in shown and "\n-> 0x7c03" in shown
    assert "IO out port 0x3f8 size 1 <- 0x68, serial THR 0x68" in shown and "\n104\n" in shown
    assert "ZeroDivisionError" in shown and "vm> " not in shown


def test_every_exit_of_a_register_is_a_stop(folders):
    ended = piped(folders, HELLO, "".join("chr(exit.value)\ngo()\n" for _ in range(7)), "--shell=serial.THR")
    found = [line for line in ended.stderr.decode().splitlines() if line.startswith("'")]
    assert found == ["'h'", "'e'", "'l'", "'l'", "'o'", *(() if len(found) == 5 else found[5:])]
    assert "the run has ended: the guest wrote 0x3 to the debug-exit port" in ended.stderr.decode()
    assert ended.returncode == 7 and ended.stdout == b"hello"


def test_an_access_that_was_stepped_over_is_no_stop_of_the_next_go(folders):
    ended = piped(folders, HELLO, "step(3)\nregs.rax & 255\ngo()\nchr(exit.value)\n", "--shell=serial.THR")
    shown = ended.stderr.decode()
    assert "\n101\n" in shown and "\n'l'\n" in shown, shown


def test_the_state_of_a_guest_that_has_ended_can_be_seen(folders):
    ended = piped(folders, guests.EXIT_5, "go()\nhex(regs.rip)\nregisters()\ngo()\nstep()\nexits()\n", "--shell")
    shown = ended.stderr.decode()
    assert "its state is still here\n'0x7c04'\nvcpu 0: real mode" in shown
    assert "does not stand still" in shown and "port 0xf4" in shown
    assert ended.returncode == 11


def test_registers_and_memory_can_be_changed(folders):
    # EXIT_5 moves 5 to AL and writes it to the debug-exit port; here it writes 9.
    ended = piped(folders, guests.EXIT_5, "step()\nregs.rax = 9\nmem.read(0x7c00, 2).hex()\n", "--shell")
    assert ended.returncode == 19 and b"'b005'" in ended.stderr


def test_quit_ends_the_run_with_0(folders):
    for words in ("quit()\n", "raise SystemExit(5)\n"):
        ended = piped(folders, guests.SPIN, words + "print('not done')\n", "--shell")
        assert ended.returncode == 0 and b"not done" not in ended.stderr


def test_a_halt_is_a_stop(folders):
    ended = piped(folders, guests.HALT, "hex(regs.rip)\nquit()\n", "--shell=hlt")
    assert ended.returncode == 0 and b"'0x7c02'" in ended.stderr, ended.stderr


def test_time_at_the_prompt_does_not_count(folders):
    ended = piped(folders, guests.SPIN, "import time\ntime.sleep(3)\n'awake'\n", "--shell", "--timeout", "1s")
    assert ended.returncode == 124 and b"'awake'" in ended.stderr


def test_time_until_the_prompt_is_there_does_not_count(folders):
    program = (
        "import time; from pyvmm.cli import main; from pyvmm.vm import VM; prompt = VM.prompt\n"
        "VM.prompt = lambda *given: (time.sleep(2), prompt(*given))[1]\nmain.process()"
    )
    words = ["run", str(write(folders, guests.SPIN)), "--shell", "--timeout", "1s"]
    command = [sys.executable, "-c", program, *words]
    ended = subprocess.run(command, input=b"'here'\n", capture_output=True, timeout=LIMIT, env=environment())
    assert ended.returncode == 124 and b"'here'" in ended.stderr, ended.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--shell=serial.", b"--shell: 'serial.' is no exit to stop at"),
        ("--shell=disk0", b"there is no device 'disk0'"),
        ("--shell=serial.XYZ", b"serial has no register XYZ"),
    ],
)
def test_what_is_no_exit_is_wrong_usage(folders, option, said):
    ended = piped(folders, guests.SPIN, "", option)
    assert ended.returncode == 2 and said in ended.stderr


def test_there_is_no_prompt_beside_a_command(folders):
    ended = pyvmm("run", "--shell", "--", "true")
    assert ended.returncode == 2 and b"no prompt beside a command" in ended.stderr


def test_a_guest_that_was_saved_is_looked_into_before_it_goes_on(folders):
    with VM(write(folders, guests.SPIN), paused=True, timeout=LIMIT) as vm:
        vm.step()
        vm.snapshot(folders / "saved")
    words = [*PYVMM, "snapshot", "restore", "--shell", str(folders / "saved")]
    lines = b"hex(regs.rip)\nwalk('rip')\nvm.state\nquit()\n"
    ended = subprocess.run(words, input=lines, capture_output=True, timeout=LIMIT, env=environment())
    shown = ended.stderr.decode()
    assert ended.returncode == 0 and "'0x7c00'" in shown and "gpa 0x7c00, RAM" in shown and "'paused'" in shown, shown


# --- On a terminal ---------------------------------------------------------------------------------------------------


def test_the_prompt_and_the_guest_share_the_terminal(run):
    session = run(ECHO, "--shell")
    session.see(b"help() says", b"vCPU 0, entry", PROMPT)
    assert not session.raw()
    talk(session, b"hex(regs.rip)", b"'0x7c00'")
    session.type(b"\x04")
    wait_for(session.raw, "the guest to have the terminal")
    session.type(b"to the guest")
    session.see(b"to the guest")
    session.type(b"\x01s")
    session.see(b"vCPU 0, stopped", PROMPT)
    assert not session.raw()
    talk(session, b"6 * 7", b"42")
    session.type(b"\x04")
    wait_for(session.raw, "the guest to have it again")
    session.type(b"q")
    assert session.end() == 1


def test_stops_and_errors_on_a_terminal(run):
    session = run(HELLO, "--shell=serial.THR")
    session.see(b"serial THR 0x68", PROMPT)
    talk(session, b"1/0", b"ZeroDivisionError")
    talk(session, b"walk('nowhere')", b"is no address")
    talk(session, b"go()", b"serial THR 0x65")
    talk(session, b"until('0xf4')", b"the run has ended")
    session.type(b"\x04")
    assert session.end() == 7


def test_ctrl_c_ends_a_line_and_not_the_run(run):
    session = run(guests.SPIN, "--shell")
    session.see(PROMPT)
    session.type(b"not a finished li")
    interrupt(session, b"vm> ")
    session.type(b"while True: pass\r\r")
    interrupt(session, b"interrupted", PROMPT)
    talk(session, b"'still ' + 'here'", b"still here")
    session.type(b"step(10**9)\r")
    interrupt(session, b"interrupted", PROMPT)
    talk(session, b"step(), regs.rip", b"31744")
    session.type(b"quit()\r")
    assert session.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_though_the_prompt_waits(run, number):
    session = run(guests.SPIN, "--shell")
    session.see(PROMPT)
    session.process.send_signal(number)
    assert session.end() == 128 + number


def test_a_signal_is_seen_after_the_guest_went_on_from_the_prompt(run):
    session = run(HELLO, "--shell=serial.THR")
    session.see(PROMPT)
    talk(session, b"go()", b"serial THR 0x65")
    session.process.send_signal(signal.SIGTERM)
    assert session.end() == 128 + signal.SIGTERM


def test_a_run_that_is_ended_from_outside_leaves_the_prompt(run):
    session = run(guests.SPIN, "--shell", "--name", "web")
    session.see(PROMPT)
    with Client("web") as client:
        assert client.look(["registers"]).startswith(b"vcpu 0: real mode")
    assert pyvmm("kill", "web").returncode == 0
    assert session.end() == 137


def test_lines_are_kept_and_names_completed(run, folders):
    session = run(guests.SPIN, "--shell")
    session.see(PROMPT)
    talk(session, b"answer = 42")
    session.type(b"ans\t\r")
    session.see(b"42")
    session.type(b"quit()\r")
    assert session.end() == 0
    assert "answer = 42" in (folders / "cache" / "shell-history").read_text()


# --- In a program ----------------------------------------------------------------------------------------------------


def visit(monkeypatch: pytest.MonkeyPatch, vm: VM, lines: str) -> str:
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    monkeypatch.setattr(sys, "stderr", shown)
    vm.shell()
    monkeypatch.undo()
    return shown.getvalue()


def test_a_program_opens_the_prompt_and_the_vm_goes_on_as_it_was(folders, monkeypatch):
    with VM(write(folders, guests.SPIN), timeout=LIMIT) as vm:
        assert "31744" in visit(monkeypatch, vm, "regs.rip\nvm.state\n")
        assert vm.state == "running"
        vm.pause()
        assert "'paused'" in visit(monkeypatch, vm, "vm.state\n")
        assert vm.state == "paused"
        visit(monkeypatch, vm, "quit()\n")
        assert vm.exit is not None and vm.exit.reason == "quit"


def test_a_vcpus_own_thread_gets_no_prompt(folders):
    refused: list[str] = []

    def hook(vcpu: Any, exit: Any) -> None:
        try:
            vm.shell()
        except UsageError as error:
            refused.append(str(error))

    with VM(write(folders, guests.EXIT_5), paused=True, timeout=LIMIT) as vm:
        vm.on_exit("IO", hook)
        vm.resume()
        vm.wait()
    assert refused == ["the prompt is for a thread that waits for the VM, not for a vCPU's own"]


def test_the_prompt_works_on_any_thread_that_waits(folders, monkeypatch):
    shown: list[str] = []
    with VM(write(folders, guests.SPIN), timeout=LIMIT) as vm:
        thread = threading.Thread(target=lambda: shown.append(visit(monkeypatch, vm, "regs.rip\n")))
        thread.start()
        thread.join(LIMIT)
    assert "31744" in shown[0]
