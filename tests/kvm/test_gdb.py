"""gdb sessions on tiny guests in all modes: stops, steps, registers, memory, threads, the ways out."""

from __future__ import annotations

import re
import signal
import socket
import stat
import time
from pathlib import Path

import pytest

from pyvmm import VM
from pyvmm.cli.ending import report_text
from pyvmm.images import guest
from pyvmm.kvm.host import Host
from tests.support.cli import ECHO, cpu_ticks, pyvmm, wait_for
from tests.support.gdb import Debugged, Interactive, gdb, number

pytestmark = [pytest.mark.needs("kvm", "gdb"), pytest.mark.timeout(180)]


def path(name: str) -> str:
    return str(guest(name).path())


def test_break_step_and_change_a_64_bit_guest_to_its_end() -> None:
    file = path("hello64")
    with Debugged(file) as run:
        text = run.gdb(
            "info registers rip cr0 efer",
            "break *0x100011",  # outb
            "continue",
            "p/c $al",
            "set $al = 'J'",
            "set {char}0x10001f = '!'",
            "x/2bx 0x100011",
            "delete",
            "stepi",
            "info registers rip",
            "stepi",
            "stepi",
            "info registers rip",
            "continue",
            file=file,
        )
        assert run.wait() == 0, text
        assert run.output == "Jell! from 64-bit long mode!\n"
        assert "target remote" in run.errors
    assert "Breakpoint 1, 0x0000000000100011 in _start ()" in text
    assert "$1 = 72 'H'" in text
    assert "[ PE" in text and "LMA" in text
    assert re.search(r"0x100011 <_start\+17>:\s+0xee\s+0xeb", text)  # out, and no int3
    assert re.findall(r"^rip\s+(0x\w+)", text, re.MULTILINE) == ["0x100000", "0x100012", "0x10000d"]
    assert "exited normally" in text


def test_a_32_bit_guest() -> None:
    with Debugged(path("hello32"), "--flat-mode", "protected") as run:
        text = run.gdb(
            "show architecture",
            "x/i $pc",
            "hbreak *0x100010",
            "continue",
            "info registers eip eax edx",
            "delete",
            "continue",
        )
        assert run.wait() == 0, text
        assert run.output == "Hello from 32-bit protected mode!\n"
    assert '"i386")' in text
    assert re.search(r"=> 0x100000:\s+mov +\$0x\w+,%esi", text)
    assert (number(text, "eip"), number(text, "eax"), number(text, "edx")) == (0x100010, ord("H"), 0x3F8)


def test_a_16_bit_guest() -> None:
    with Debugged(path("hello16")) as run:
        text = run.gdb(
            "show architecture",
            "x/5i $pc",
            "break *0x7c10",
            "continue",
            "info registers eip eax",
            "set $eax = 'J'",
            "stepi",
            "delete",
            "continue",
        )
        assert run.wait() == 0, text
        assert run.output == "Jello from 16-bit real mode!\n"
    assert '"i8086")' in text
    assert re.search(r"=> 0x7c00:\s+xor +%ax,%ax", text)
    assert (number(text, "eip"), number(text, "eax") & 0xFF) == (0x7C10, ord("H"))


def test_a_watchpoint_finds_who_writes() -> None:
    file = path("paging")
    with Debugged(file) as run:
        text = run.gdb(
            "break guest_main",
            "continue",
            "watch *(long *)&level3",
            "continue",
            "x/i $pc",
            "delete",
            "continue",
            file=file,
        )
        assert run.wait() == 0, text
        assert "there after all" in run.output
    assert "Hardware watchpoint 2" in text
    assert re.search(r"Old value = 0\s+New value = \d+", text), text
    if not Host().debug.watch:
        assert "this host's KVM has no watchpoints" in text


def test_processors_are_threads_and_each_can_be_broken_into() -> None:
    file = path("smp")
    with Debugged(file, "--cpus", 2, "--append", 2) as run:
        text = run.gdb(
            "info threads",
            "hbreak count",
            "continue",
            "continue",
            "thread",
            "info threads",
            "delete",
            "stepi",
            "thread apply all p $pc",
            "continue",
            file=file,
        )
        assert run.wait() == 0, text
        assert "2 CPUs, together 2000" in run.output
    assert "Thread 2 (vCPU 1" in text
    assert len(re.findall(r"hit Breakpoint 1|Breakpoint 1,", text)) == 2, text


def test_a_status_reaches_gdb_and_a_crash_can_be_looked_at() -> None:
    with Debugged(path("triple-fault"), "--flat-mode", "protected") as run:
        text = run.gdb("continue", "info registers", "continue")
        assert run.wait() == 121
    assert "SIGABRT" in text
    assert "triple fault" in text
    assert "exited with code 0171" in text  # 121


def test_interrupt_detach_connect_again_and_kill(tmp_path: Path) -> None:
    echo = tmp_path / "echo.bin"
    echo.write_bytes(ECHO)
    with Debugged(echo) as run:
        with Interactive(run, "echo GO\\n", "continue", "info registers eip", "echo THERE\\n", "detach") as session:
            session.see("GO")
            before = cpu_ticks(run.process)
            wait_for(lambda: cpu_ticks(run.process) > before + 20, "the guest to run")
            session.process.send_signal(signal.SIGINT)
            text = session.see("THERE")
            assert session.process.wait(30) == 0
        assert "SIGINT" in text, text
        assert 0x7C00 <= number(text, "eip") < 0x7C40, text
        text = run.gdb("info registers eip", "kill")
        assert 0x7C00 <= number(text, "eip") < 0x7C40
        assert run.wait() == 137


def test_a_debugger_that_dies_leaves_the_guest_as_it_was(tmp_path: Path) -> None:
    with Debugged(path("hello64")) as run:
        with Interactive(run, "break *0x100011", "continue", "python import time; time.sleep(99)") as session:
            session.see("Breakpoint 1, ")
            session.process.kill()
        text = run.gdb("info registers rip", "x/bx 0x100011", "continue")
        assert number(text, "rip") == 0x100011, text
        assert "0xee" in text
        assert run.wait() == 0
        assert run.output == "Hello from 64-bit long mode!\n"


def test_a_second_debugger_is_hung_up_on() -> None:
    with (
        Debugged(path("hello64")) as run,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as other,
    ):
        first.connect(str(run.socket))
        first.sendall(b"$?#3f")
        first.settimeout(20)
        assert first.recv(100).startswith(b"+")
        other.connect(str(run.socket))
        other.settimeout(20)
        assert other.recv(1) == b""
        first.sendall(b"$k#6b")
        assert run.wait() == 137


def test_the_socket_is_its_owners_and_a_stale_one_is_taken_over(tmp_path: Path) -> None:
    place = tmp_path / "gdb"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(place))
    with VM(path("hello64"), gdb=f"unix:{place}", timeout=30) as vm:
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        with pytest.raises(OSError, match="another process listens"):
            VM(path("hello64"), gdb=f"unix:{place}").start()
        vm.kill()
    assert not place.exists()


def test_port_0_is_any_that_is_free_and_a_taken_one_is_an_error_in_a_line() -> None:
    with VM(path("hello64"), gdb=0, timeout=30) as vm:
        assert vm.gdb is not None
        host, _, port = vm.gdb.address.partition(":")
        assert host == "127.0.0.1" and int(port) > 0
        done = pyvmm("run", path("hello64"), f"--gdb={port}")
        assert done.returncode == 125
        assert f"127.0.0.1:{port}".encode() in done.stderr and len(done.stderr.splitlines()) == 1
        assert "exited normally" in gdb(f"target remote {vm.gdb.address}", "continue")
        assert vm.wait(30).status == 0


def test_a_time_limit_does_not_count_at_a_stop_but_does_without_a_debugger() -> None:
    with VM(path("hello64"), gdb=0, timeout=3.0) as vm, socket.socket() as client:
        assert vm.gdb is not None
        host, _, port = vm.gdb.address.partition(":")
        client.connect((host, int(port)))
        time.sleep(4)
        assert vm.exit is None
        client.close()
        outcome = vm.wait(60)
    assert outcome.reason == "time-limit"
    told = report_text(outcome)
    assert "likely: the guest stands for a debugger (--gdb), and none is connected" in told
    assert "computes without" not in told


def test_a_snapshot_of_a_guest_that_stands_or_runs_has_no_int3(tmp_path: Path) -> None:
    echo = tmp_path / "echo.bin"
    echo.write_bytes(ECHO)
    with VM(echo, gdb=0, mem="1M", timeout=60) as vm, socket.socket() as client:
        assert vm.gdb is not None
        host, _, port = vm.gdb.address.partition(":")
        client.connect((host, int(port)))
        client.settimeout(20)

        def send(text: bytes) -> bytes:
            client.sendall(b"$%b#%02x" % (text, sum(text) & 0xFF))
            answer = b""
            while not re.search(rb"\$.*#..", answer):
                answer += client.recv(4096)
            client.sendall(b"+")
            return answer

        far = 0x7C00 + ECHO.index(b"\xb0\x00")  # met when `q` comes
        assert b"OK" in send(b"Z0,%x,1" % far)
        assert vm.memory.read(0x7C00, len(ECHO)) == ECHO
        client.sendall(b"$vCont;c#a8")
        deadline = time.monotonic() + 20
        while vm.memory.read_u8(far) != Host().debug.real_trap:
            assert time.monotonic() < deadline
        vm.snapshot(tmp_path / "saved")
        with VM.restore(tmp_path / "saved", paused=True) as other:
            assert other.memory.read(0x7C00, len(ECHO)) == ECHO
        vm.kill()
        assert vm.memory.read(0x7C00, len(ECHO)) == ECHO
