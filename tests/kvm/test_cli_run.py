"""`pyvmm run` from the outside: the same bytes whatever its descriptors are, and a status for every way to end."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm.vm import LATER
from tests.support import guests
from tests.support.cli import ECHO, LIMIT, PYVMM, environment, pyvmm, wait_for, wait_until_still

pytestmark = pytest.mark.needs("kvm")

GREETING = b"hello\n\x00\xff\r\n" + bytes(range(256)) + b"no newline at the end"
DENIED = {
    *("argparse", "ast", "asyncio", "contextlib", "ctypes", "dataclasses", "enum", "inspect", "json", "logging"),
    *("pathlib", "re", "shutil", "signal", "socket", "subprocess", "tempfile", "tomllib", "traceback", "typing"),
}
"""What a plain run may not import: each costs milliseconds (DESIGN of the command line: under 50 ms of CPU)."""

NOT_YET = {"_socket", "pyvmm.boot.commandline", "pyvmm.cli.ending", "pyvmm.control.server", *LATER}
"""What a guest that says nothing and is over at once has no use for."""


@pytest.fixture
def guest(tmp_path: Path) -> Callable[..., Path]:
    def write(code: bytes, name: str = "guest.bin") -> Path:
        path = tmp_path / name
        path.write_bytes(code)
        return path

    return write


@pytest.fixture
def hello(guest):
    return guest(guests.says(GREETING, 3))


@pytest.fixture
def spin(guest):
    return guest(guests.SPIN)


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run `script` with bash; `$PYVMM` is the command, `$1`... are `arguments`, PIPESTATUS[0] is the status."""
    return subprocess.run(
        ["bash", "-c", f"PYVMM='{' '.join(PYVMM)}'; {script}", "bash", *map(str, arguments)],
        capture_output=True,
        timeout=LIMIT,
        env=environment(),
    )


# --- The guest's bytes, and nothing else ------------------------------------------------------------------------


def test_standard_output_is_the_console_byte_for_byte(hello):
    done = pyvmm("run", hello)
    assert (done.returncode, done.stdout, done.stderr) == (7, GREETING, b"")


def test_into_a_file(hello, tmp_path):
    with open(tmp_path / "out", "wb") as out:
        done = pyvmm("run", hello, stdout=out)
    assert done.returncode == 7 and (tmp_path / "out").read_bytes() == GREETING


def test_appended_to_a_file(hello, tmp_path):
    done = shell("cd $(dirname $1); echo before > out; $PYVMM run $1 >> out; cat out", hello)
    assert done.stdout == b"before\n" + GREETING


@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("$PYVMM run $1 | cat", 7),
        ("$PYVMM run $1 <&- | cat", 7),
        ("$PYVMM run $1 </dev/null | cat", 7),
        ("yes | $PYVMM run $1 | cat; exit ${PIPESTATUS[1]}", 7),
        ("$PYVMM run $1 2>&- | cat", 7),
        ("nohup $PYVMM run $1 2>/dev/null | cat", 7),
        ("$PYVMM run $1 | (sleep 0.3; cat)", 7),
    ],
)
def test_whatever_its_neighbours_are(hello, how, status):
    done = shell(how if "PIPESTATUS" in how else f"{how}; exit ${{PIPESTATUS[0]}}", hello)
    assert (done.returncode, done.stdout, done.stderr) == (status, GREETING, b"")


def test_a_guest_that_ended_waits_for_its_reader(guest):
    """100 KiB are more than a pipe holds: the rest waits in the process, and nothing is lost."""
    block = bytes(range(256)) * 4
    # mov $100, %bx; 2: mov $text, %si; mov $1024, %cx; mov $0x3f8, %dx; 1: lodsb; out; loop 1b; dec %bx; jnz 2b; ...
    code = bytes.fromhex("bb6400 be1e7c b90004 baf803 ac ee e2fc 4b 75f0 b000 e6f4 f4")
    code += bytes(0x1E - len(code)) + block
    done = shell("$PYVMM run $1 | (sleep 5; cat); exit ${PIPESTATUS[0]}", guest(code))
    assert (done.returncode, done.stderr) == (1, b"")
    assert done.stdout == block * 100


def test_output_of_a_guest_that_crashes_comes_first(guest):
    # Print `x`, load an empty IDT, fld1, int3. KVM does not emulate fld1; where it need not, int3 is a triple fault.
    done = pyvmm("run", guest(bytes.fromhex("b078 baf803 ee 0f011e107c d9e8 cc 0000 000000000000")))
    assert done.returncode == 121 and done.stdout == b"x"
    lines = done.stderr.decode().splitlines()
    assert lines and all(line.startswith("pyvmm:") for line in lines)


# --- Statuses ---------------------------------------------------------------------------------------------------


def test_a_time_limit_reports_where_the_guest_was(spin):
    done = pyvmm("run", spin, "--timeout", "500ms")
    assert done.returncode == 124 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert "time limit of 0.5 s" in lines[0]
    assert all(line.startswith("pyvmm:") for line in lines)
    assert any("rip 00007c00" in line for line in lines)


def test_closed_output_ends_the_run_as_sigpipe_would(guest):
    done = shell("$PYVMM run $1 --timeout 20s | head -c 5; exit ${PIPESTATUS[0]}", guest(guests.CHATTER))
    assert (done.returncode, done.stdout, done.stderr) == (141, b"xxxxx", b"")


def test_a_reader_that_went_before_the_end_is_noticed(hello):
    done = shell("(sleep 0.5; exec $PYVMM run $1) | true; exit ${PIPESTATUS[0]}", hello)
    assert (done.returncode, done.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_said_to_be(hello):
    for target, why in (("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")):
        done = shell(f"$PYVMM run $1 --timeout 20s >{target}", hello)
        assert done.returncode == 125
        assert done.stderr.decode() == f"pyvmm: cannot write the console's output: {why}\n"


def test_a_guest_that_says_nothing_may_have_its_output_closed(guest):
    assert shell("$PYVMM run $1 >&-", guest(guests.EXIT_5)).returncode == 11


def test_a_blocked_reader_does_not_outlive_the_time_limit(guest):
    process = subprocess.Popen(
        [*PYVMM, "run", guest(guests.CHATTER), "--timeout", "2s"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pipesize=4096,  # is full long before the limit, however slow the host
        env=environment(),
    )
    assert process.stderr is not None and process.stdout is not None
    assert process.wait(LIMIT) == 124
    errors = process.stderr.read()
    assert b"time limit" in errors and b"the end of the guest's output is lost" in errors
    assert set(process.stdout.read()) == {ord("x")}
    process.stdout.close()
    process.stderr.close()


def test_a_blocked_reader_costs_no_cpu(guest):
    """The vCPU waits outside the guest: nothing spins."""
    process = subprocess.Popen(
        [*PYVMM, "run", guest(guests.CHATTER), "--timeout", "40s"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    try:
        assert process.stdout is not None and process.stdout.read(1) == b"x"
        wait_until_still(process)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("path", ["nothing", "."])
def test_what_cannot_be_loaded_is_127(tmp_path, path):
    done = pyvmm("run", tmp_path / path)
    assert done.returncode == 127 and done.stdout == b""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"pyvmm: {tmp_path / path}".encode())


def test_unknown_cpu_features_are_wrong_usage(hello):
    done = pyvmm("run", hello, "--cpu", "host,-flux-capacitor")
    assert done.returncode == 2 and b"flux-capacitor" in done.stderr


@pytest.mark.parametrize("vcpu", [0, 2])
def test_a_host_without_room_for_a_thread_is_one_line(spin, vcpu):
    script = (
        "import sys, threading\nfrom pyvmm.cli.main import main\nstart = threading.Thread.start\n"
        "def refuse(thread):\n"
        f"    if thread.name == 'vcpu{vcpu}': raise RuntimeError(\"can't start new thread\")\n"
        "    start(thread)\n"
        f"threading.Thread.start = refuse\nsys.exit(main(['run', {str(spin)!r}, '--cpus', '3']))"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=LIMIT, env=environment())
    message = f"can't start new thread (vcpu{vcpu}): the host has no room (a pids cgroup, ulimit -u)"
    assert (done.returncode, done.stderr.decode()) == (125, f"pyvmm: {message}\n")
    assert time.monotonic() - began < 5, "close() waits for a thread that was never there"


@pytest.mark.parametrize("descriptors", [6, 8, 9])
def test_a_process_out_of_descriptors_is_one_line(hello, descriptors):
    done = shell(f"ulimit -n {descriptors}; exec $PYVMM run $1", hello)
    assert (done.returncode, done.stdout) == (125, b"")
    assert len(done.stderr.splitlines()) == 1 and b"Too many open files" in done.stderr


def test_more_memory_than_the_process_may_map_is_one_line(hello):
    done = shell("ulimit -v 400000; exec $PYVMM run $1 --mem 512M", hello)
    assert (done.returncode, done.stdout) == (125, b"")
    assert len(done.stderr.splitlines()) == 1 and b"cannot map 512 MiB of guest RAM" in done.stderr


# --- Input ------------------------------------------------------------------------------------------------------


def test_input_reaches_the_guest(guest):
    done = pyvmm("run", guest(ECHO), "--timeout", "40s", stdin=None, input=b"\x01xyz\x00\xffq")
    assert (done.returncode, done.stdout, done.stderr) == (1, b"\x01xyz\x00\xff", b"")


def test_64_kib_of_input_lose_nothing(guest):
    pasted = os.urandom(64 << 10).replace(b"q", b"Q")
    done = pyvmm("run", guest(ECHO), "--timeout", "50s", stdin=None, input=pasted + b"q")
    assert done.returncode == 1 and done.stdout == pasted


def test_a_file_as_input(guest, tmp_path):
    (tmp_path / "in").write_bytes(b"from a file" * 100 + b"q")
    with open(tmp_path / "in", "rb") as stdin:
        done = pyvmm("run", guest(ECHO), "--timeout", "40s", stdin=stdin)
    assert done.returncode == 1 and done.stdout == b"from a file" * 100


# --- Other consoles ---------------------------------------------------------------------------------------------


def test_console_in_a_file(hello, tmp_path):
    path = tmp_path / "console,log"
    done = pyvmm("run", hello, "--console", f"file:{str(path).replace(',', ',,')}")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")
    assert path.read_bytes() == GREETING


def test_console_on_a_socket(guest, tmp_path):
    path = tmp_path / "console"
    process = subprocess.Popen(
        [*PYVMM, "run", guest(ECHO), "--console", f"unix:{path}", "--timeout", "40s"],
        stdout=subprocess.PIPE,
        env=environment(),
    )
    wait_for(path.exists, "the socket")
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(LIMIT)
        wait_for(lambda: client.connect_ex(str(path)) == 0, "the socket to listen")
        client.sendall(b"ping")
        data = b""
        while len(data) < 4:
            data += client.recv(100)
        assert data == b"ping"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"q")
        out, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 1 and out == b"" and not path.exists()


def test_console_on_a_pseudo_terminal(guest):
    process = subprocess.Popen(
        [*PYVMM, "run", guest(ECHO), "--console", "pty", "--timeout", "40s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert line.startswith("pyvmm: console on /dev/pts/")
    fd = os.open(line.split()[-1], os.O_RDWR | os.O_NOCTTY)
    os.write(fd, b"ping")
    data = b""
    while len(data) < 4:
        assert select.select([fd], [], [], LIMIT)[0]
        data += os.read(fd, 100)
    os.write(fd, b"q")
    out, errors = process.communicate(timeout=LIMIT)
    os.close(fd)
    assert (process.returncode, out, errors, data) == (1, b"", b"", b"ping")


@pytest.mark.parametrize(
    ("console", "message"),
    [
        ("file:/nowhere/console", "--console: cannot write /nowhere/console: No such file or directory"),
        ("unix:/nowhere/console", "--console: cannot listen at /nowhere/console: No such file or directory"),
        (f"unix:/tmp/{'x' * 200}", "--console: the socket's path is too long: 205 bytes, expected 107 at most"),
    ],
)
def test_a_console_that_cannot_be_had_is_one_line(hello, console, message):
    done = pyvmm("run", hello, "--console", console)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (125, b"", f"pyvmm: {message}\n")


# --- What is told beside it -------------------------------------------------------------------------------------


def test_a_report_says_how_it_ended(hello, tmp_path):
    report = tmp_path / "report.json"
    done = pyvmm("run", hello, "--report", report)
    found = json.loads(report.read_text())
    assert done.returncode == found["status"] == 7
    assert found["reason"] == "debug-exit" and found["report"] is None and 0 < found["duration"] < LIMIT
    assert found["exits"]["IO"] > len(GREETING)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["guest.bin", "report.json"]


def test_a_report_of_a_time_limit_has_the_crash_report(spin, tmp_path):
    pyvmm("run", spin, "--report", tmp_path / "r", "--timeout", "300ms")
    found = json.loads((tmp_path / "r").read_text())
    assert (found["reason"], found["status"]) == ("time-limit", 124) and "rip" in found["report"]


def test_a_report_on_a_full_disk_is_one_line(hello):
    done = pyvmm("run", hello, "--report", "/dev/full")
    assert done.returncode == 125 and done.stdout == GREETING
    assert done.stderr == b"pyvmm: --report: cannot write /dev/full: No space left on device\n"


def test_statistics_are_one_block_on_standard_error(hello):
    done = pyvmm("run", hello, "--stats")
    assert done.returncode == 7 and done.stdout == GREETING
    lines = done.stderr.decode().splitlines()
    assert [line.split()[1] for line in lines] == ["exits", "unclaimed", "guest", "CPU", "memory"]
    assert f"(IO {len(GREETING) + 1})" in lines[0]


def test_log_levels(hello):
    quiet, chatty = (pyvmm("run", hello, "--log", level).stderr.decode() for level in ("warn", "info"))
    assert quiet == ""
    assert "running" in chatty and "ended: the guest wrote 0x3 to the debug-exit port" in chatty


def test_works_from_a_directory_that_is_gone(hello, tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell('cd "$2" && rmdir "$2" && exec $PYVMM run "$1"', hello, tmp_path / "gone")
    assert (done.returncode, done.stdout) == (7, GREETING)


def imported_by_running(kernel: Path) -> tuple[bytes, set[str]]:
    """What the guest writes, and the modules that a plain run of it imports."""
    script = (
        "import sys\nbefore = set(sys.modules)\nfrom pyvmm.cli import main\nmain.leaving = True\n"
        f"main.main(['run', {str(kernel)!r}])\nprint(*(set(sys.modules) - before), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        timeout=LIMIT,
        env=environment(PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry)),
    )
    return done.stdout, set(done.stderr.decode().split())


def test_a_plain_run_imports_little(hello):
    written, imported = imported_by_running(hello)
    assert written == GREETING and "pyvmm.vm" in imported
    assert not imported & DENIED


def test_what_a_guest_does_not_use_is_not_imported(guest):
    written, imported = imported_by_running(guest(guests.EXIT_5))
    assert written == b"" and "pyvmm.vm" in imported
    assert not imported & NOT_YET


def test_in_somebody_elses_process_nothing_is_imported_behind_their_back(guest):
    """A vCPU's thread that imports meets whatever its host does at that moment; pytest's own imports, for one."""
    script = (
        f"import sys\nfrom pyvmm import VM\nvm = VM({str(guest(guests.SPIN))!r}, paused=True)\nvm.start()\n"
        "before = set(sys.modules)\nvm.resume()\nvm.machine.serial, vm.machine.rtc, vm.machine.pm\nvm.pause()\n"
        "print(*(set(sys.modules) - before))\nvm.close()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=LIMIT, env=environment())
    assert done.stdout.decode().split() == [] and done.stderr == b""
