"""Commands in the tiny Linux by its agent: the API in clones, `pyvmm run -- CMD` and `pyvmm exec` in three boots."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time

import pytest

from pyvmm.errors import GuestAgentError, TimeLimitError
from tests.support.cli import PYVMM, environment, pyvmm
from tests.support.linux import LIMIT, image, release
from tests.support.session import Session

LONG = 3600
"""Seconds for 100 MiB where ring 0 is emulated."""

pytestmark = [
    pytest.mark.needs("kvm", "tiny-image"),
    pytest.mark.timeout(3 * LIMIT),
    pytest.mark.vm(timeout=3 * LIMIT),
]


@pytest.fixture
def vm(vm_snapshot):
    return vm_snapshot


def test_commands_run_and_say_how_they_ended(vm):
    assert vm.guest.own
    done = vm.exec(["uname", "-r"], timeout=LIMIT)
    assert (done.returncode, done.text, done.stderr) == (0, release() + "\n", b"")
    assert vm.exec(["sh", "-c", "echo $A; echo err >&2; exit 7"], env={"A": "b"}, timeout=LIMIT).returncode == 7
    data = random.Random(1).randbytes(10_000)
    summed = vm.exec(["sha256sum"], input=data, timeout=LIMIT)
    assert summed.text.split()[0] == hashlib.sha256(data).hexdigest()
    with pytest.raises(GuestAgentError, match="No such file or directory"):
        vm.exec(["/bin/nothing"])
    with pytest.raises(TimeLimitError):
        vm.exec(["sleep", "1000"], timeout=0.5)


def test_an_interrupt_reaches_the_command(vm):
    with vm.popen(["sh", "-c", "echo go; sleep 1000"]) as process:
        assert process.stdout.readline() == b"go\n"
        process.send_signal(2)
        assert process.wait(LIMIT) == -2


def test_a_terminal_passes_control_c_and_its_size(vm):
    with vm.popen(["sh", "-c", "stty size; sleep 1000"], terminal=(33, 101)) as process:
        assert process.stdout.readline() == b"33 101\r\n"
        process.stdin.write(b"\x03")
        assert process.wait(LIMIT) == -2


def test_files_and_the_clock(vm, tmp_path):
    data = random.Random(2).randbytes(100_001)
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(data)
    vm.push(local, "/tmp/there", timeout=LIMIT)
    vm.pull("/tmp/there", back, timeout=LIMIT)
    assert back.read_bytes() == data
    vm.agent.set_time(1_000_000_000_000_000_000)
    assert vm.exec(["date", "-u", "+%Y-%m-%d"], timeout=LIMIT).text == "2001-09-09\n"
    vm.agent.set_time()
    assert abs(vm.agent.get_time() - time.time_ns()) < 60e9
    assert [each["name"] for each in vm.agent.network_interfaces()] == ["lo"]


@pytest.mark.soak
@pytest.mark.timeout(LONG + 60)
@pytest.mark.vm(timeout=LONG)
def test_a_hundred_megabytes_pass_from_standard_input_to_output_unchanged(vm):
    data = random.Random(100).randbytes(100 << 20)
    assert vm.exec(["cat"], input=data, timeout=LONG).stdout == data


def test_the_agent_powers_it_off(vm):
    vm.agent.shutdown()
    assert vm.wait(LIMIT).reason == "power-off"


@pytest.mark.parametrize("mib", [1, pytest.param(8, marks=pytest.mark.soak)])
def test_a_command_of_pyvmm_run_has_this_processs_streams_and_status(tmp_path, mib):
    """`mib` MiB among them, unchanged."""
    line = "read -r word; cat; uname -r; sha256sum <<end\n$word\nend\necho err >&2; exit 7"
    data = random.Random(8).randbytes(mib << 20)
    (tmp_path / "given").write_bytes(b"data\n" + data)
    with (tmp_path / "given").open() as file:
        done = pyvmm("run", "--timeout", LIMIT, "--", "sh", "-c", line, stdin=file, timeout=LIMIT + 30)
    assert done.stdout[: len(data)] == data
    summed = hashlib.sha256(b"data\n").hexdigest()
    assert done.stdout[len(data) :].decode() == f"{release()}\n{summed}  -\n"
    assert (done.stderr, done.returncode) == (b"err\n", 7)


def test_control_c_on_a_terminal_is_the_commands():
    line = "trap 'echo caught; exit 5' INT; tty; while :; do :; done"
    session = Session("--timeout", LIMIT, "--", "sh", "-c", line, limit=LIMIT)
    session.see(b"/dev/pts/0\r\n")
    session.type(b"\x03")
    session.see(b"caught\r\n")
    assert session.end() == 5
    session.close()


SCRIPT = """#!/bin/sh
pwd
read -r release </proc/sys/kernel/osrelease
echo $release
for version in /lib/modules/*; do echo $version; done
echo changed >file
read -r word <file
echo $word
echo kept >out/new
echo ready
read -r word
echo $word
exit 9
"""


def test_a_kernel_runs_a_script_of_this_hosts_and_others_run_commands_beside_it(tmp_path):
    """--root, --rwdir, --modules and `pyvmm exec` in one boot, of a kernel that is named."""
    script, file, out, modules = (tmp_path / name for name in ("test.sh", "file", "out", "lib/modules/6.1.0-test"))
    script.write_text(SCRIPT)
    script.chmod(0o755)
    file.write_text("original\n")
    out.mkdir()
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    name = f"script-{os.getpid()}"
    options = ("--rwdir", "out", "--modules", ".", "--name", name, "--timeout", str(LIMIT))
    command = [*PYVMM, "run", *options, image("kernel"), "--", "./test.sh"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), **pipes)
    try:
        lines = list(iter(process.stdout.readline, b"ready\n"))
        line = "id -un; cat; pwd; exit 5"
        done = pyvmm("exec", "--user", "nobody", name, "--", "sh", "-c", line, input=b"in\n", stdin=None, timeout=LIMIT)
        assert (done.returncode, done.stdout, done.stderr) == (5, b"nobody\nin\n/\n", b"")
        assert pyvmm("exec", name, "--", "/no/such", timeout=LIMIT).returncode == 127
        rest, errors = process.communicate(b"go\n", timeout=LIMIT)
    finally:
        process.kill()
        process.communicate()
    expected = [str(tmp_path), release(), "/lib/modules/6.1.0-test", "changed"]
    assert [line.decode().rstrip() for line in lines] == expected
    assert (rest, errors, process.returncode) == (b"go\n", b"", 9)
    assert file.read_text() == "original\n"
    assert (out / "new").read_text() == "kept\n"
