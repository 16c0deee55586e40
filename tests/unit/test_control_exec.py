"""`pyvmm exec`: commands by the control socket of a VM whose guest is pyvmm-agent on this host."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
from types import SimpleNamespace

import pytest

from pyvmm.control import executed
from pyvmm.control.client import Client
from pyvmm.control.folder import Folder
from pyvmm.control.lines import LINE_LIMIT
from pyvmm.control.server import ControlServer
from pyvmm.errors import BackendError, GuestAgentError, PyvmmError, UsageError
from pyvmm.guest import frames
from pyvmm.guest.session import Guest
from tests.support.agent import HostAgent, remove
from tests.support.cli import PYVMM, environment, pyvmm, wait_for
from tests.support.session import Session

pytestmark = pytest.mark.needs("gcc")


@pytest.fixture(scope="module", autouse=True)
def cleaned():
    yield
    remove()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(tmp_path / "run"))


@pytest.fixture
def vm():
    agent = HostAgent()
    guest = Guest(agent.agent, agent.exec)
    yield SimpleNamespace(state="running", config=SimpleNamespace(agent=True), guest=guest, host=agent)
    agent.close()


@pytest.fixture
def server(vm):
    made = ControlServer(vm, "a")
    made.open()
    made.start()
    yield made
    made.close()


def running(vm):
    return vm.guest._channel._processes


def run(words, **settings):
    with Client("a") as client:
        return client.popen(words, **settings).communicate(timeout=20)


def test_a_command_has_streams_variables_folder_user_and_a_status(server, vm):
    done = run(["sh", "-c", "pwd; echo $A; echo err >&2; exit 7"], env={"A": "\udcff b"}, cwd="/usr", user="0")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"/usr\n\xff b\n", b"err\n")
    assert run(["sh", "-c", "kill -9 $$"]).returncode == -9
    wait_for(lambda: not running(vm), "the commands to be forgotten")


def test_megabytes_pass_both_ways_unchanged(server):
    data = random.Random(1).randbytes(3 << 20)
    with Client("a") as client:
        assert client.popen(["cat"]).communicate(data, timeout=60).stdout == data


def test_one_that_nobody_reads_holds_up_no_other_and_is_bounded(server, vm):
    with Client("a") as client:
        flood = client.popen(["sh", "-c", "while :; do echo flood; done"])
        assert flood.stdout.read(6) == b"flood\n"
        assert run(["echo", "still here"]).stdout == b"still here\n"
        relayed = next(iter(running(vm).values()))
        assert len(relayed._kept) < 2 * frames.OUTPUT_CREDIT
        flood.kill()
        assert flood.wait(10) == -9


def test_signals_and_a_terminal_pass(server):
    with Client("a") as client:
        process = client.popen(["sh", "-c", "stty size; read x; stty size; sleep 100"], terminal=(33, 101))
        assert process.stdout.readline() == b"33 101\r\n"
        process.resize(44, 55)
        process.stdin.write(b"x\n")
        assert process.stdout.readline() + process.stdout.readline() == b"x\r\n44 55\r\n"
        process.terminate()
        assert process.wait(10) == -15


def test_a_client_that_goes_takes_its_command_along(server, vm):
    with Client("a") as client:
        process = client.popen(["sleep", "100"])
        assert len(running(vm)) == 1
        os.kill(process.pid, 0)
    wait_for(lambda: not running(vm), "the command to be forgotten")
    wait_for(lambda: not alive(process.pid), "the command to be killed")


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_the_vms_end_ends_a_command_with_a_reason(server, vm):
    with Client("a") as client:
        process = client.popen(["sleep", "100"])
        vm.host.exec.end.shutdown(socket.SHUT_RDWR)
        with pytest.raises(PyvmmError, match="the VM ended before the command in the guest did"):
            process.wait(10)
    vm.host.process.wait(10)


def test_a_server_that_closes_ends_its_commands(server, vm):
    with Client("a") as client:
        process = client.popen(["sleep", "100"])
        server.close()
        with pytest.raises(PyvmmError, match="a ended before the command in it did"):
            process.wait(10)
        with pytest.raises(PyvmmError, match="a ended before"):
            process.stdin.write(b"x")
    wait_for(lambda: not running(vm), "the command to be forgotten")


def test_what_cannot_be_run_says_why_and_the_connection_goes_on(server, vm):
    with Client("a") as client:
        with pytest.raises(GuestAgentError, match="No such file") as caught:
            client.popen(["/no/such"])
        assert caught.value.errno == 2
        with pytest.raises(UsageError, match="a list of words"):
            client.popen([])
        with pytest.raises(UsageError, match="expected strings"):
            client.ask("exec", args=[1])
        with pytest.raises(UsageError, match="expected strings"):
            client.ask("exec", args=["ls"], env={"A": None})
        with pytest.raises(UsageError, match=f"exec: a request of .* bytes \\({LINE_LIMIT} at most\\)"):
            client.popen(["x" * LINE_LIMIT])
        vm.state = "paused"
        with pytest.raises(UsageError, match="a is paused"):
            client.popen(["ls"])
        vm.state = "ended"
        with pytest.raises(UsageError, match="a does not run: it is ended"):
            client.popen(["ls"])
        vm.state, vm.config.agent = "running", False
        with pytest.raises(UsageError, match=r"a has no ports for an agent \(pyvmm run --agent"):
            client.popen(["ls"])
        vm.config.agent = True
        assert client.popen(["echo", "x"]).communicate(timeout=20).stdout == b"x\n"


def test_a_guest_whose_agent_does_not_come_is_one_line(server, vm, monkeypatch):
    monkeypatch.setattr(executed, "AGENT_WAIT", 0.05)
    vm.host.agent.opened.clear()
    with Client("a") as client, pytest.raises(BackendError, match="no agent came up in the guest within"):
        client.popen(["ls"])
    vm.host.agent.opened.set()


def raw(request):
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with Folder() as folder:
        connection.connect(folder.address("a"))
    connection.settimeout(10)
    connection.sendall(json.dumps(request).encode() + b"\n")
    return connection


@pytest.mark.parametrize(
    "data",
    [
        frames.HEADER.pack(frames.DATA, 0, 0, 1 << 30),
        os.urandom(200),
        frames.frame(frames.DATA, 0, bytes(100_000)),
        frames.frame(frames.START, 0, b"x") + frames.frame(frames.MOUNT, 0, b"x"),
        frames.frame(frames.CREDIT, 0, b"") + frames.frame(frames.SIGNAL, 0, b"\xff\xff\xff\xff"),
    ],
)
def test_a_client_that_keeps_to_no_rules_harms_itself_alone(server, vm, data):
    connection = raw({"command": "exec", "args": ["cat"]})
    assert connection.recv(1000).startswith(b'{"ok"')
    connection.sendall(data)
    connection.close()
    wait_for(lambda: not running(vm), "its command to be forgotten")
    assert run(["echo", "x"]).stdout == b"x\n"


def test_a_client_that_allows_more_than_it_reads_is_dropped(server, vm):
    connection = raw({"command": "exec", "args": ["sh", "-c", "while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyy; done"]})
    assert connection.recv(100).startswith(b'{"ok"') and running(vm)
    connection.sendall(frames.frame(frames.CREDIT, 0, frames.NUMBER.pack(0xFFFFFF), 1))
    wait_for(lambda: not running(vm), "its command to be dropped", 60)
    connection.close()


# --- The verb ---------------------------------------------------------------------------------------------------------


def test_the_verb_has_this_processs_streams_and_status(server):
    words = ["exec", "--env", "A=b", "--cwd", "/usr", "a", "--"]
    done = pyvmm(*words, "sh", "-c", "cat; pwd; echo $A; echo err >&2; exit 7", input=b"data\n", stdin=None)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"data\n/usr\nb\n", b"err\n")


def test_signals_are_the_commands_and_the_fourth_is_the_verbs(server):
    line = "trap 'echo caught' INT; echo go; while :; do sleep 0.05; done"
    process = subprocess.Popen(
        [*PYVMM, "exec", "a", "--", "sh", "-c", line], stdout=subprocess.PIPE, env=environment(), start_new_session=True
    )
    assert process.stdout.readline() == b"go\n"
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"caught\n"
        wait_a_moment()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + 15
    process.stdout.close()


def wait_a_moment():
    """Until a signal is not the same as the last one any more."""
    import time

    from pyvmm.cli.signals import SAME

    time.sleep(SAME * 1.2)


def test_on_a_terminal_the_command_has_one_and_the_escape_key_leaves(server, vm):
    session = Session("a", "--", "sh", "-c", "tty; echo go; cat", verb="exec", limit=30)
    session.see(b"/dev/pts/", b"go\r\n")
    session.type(b"x\r")
    session.see(b"x\r\nx\r\n")
    session.type(b"\x01x")
    assert session.end() == 0
    session.close()
    wait_for(lambda: not running(vm), "the command to be forgotten")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["x", "--", "ls"], 125, "pyvmm: no running VM is called x (running: a)"),
        (["a"], 2, "pyvmm: error: no command (expected NAME -- CMD...)"),
        (["a", "--"], 2, "pyvmm: error: no command"),
        (["--", "ls"], 2, "pyvmm: error: one NAME expected"),
        (["a", "b", "--", "ls"], 2, "pyvmm: error: one NAME expected"),
        (["a/b", "--", "ls"], 2, "pyvmm: a VM called 'a/b'"),
        (["--env", "=x", "a", "--", "ls"], 2, "pyvmm: error: --env: '=x' has no name"),
        (["--what", "a", "--", "ls"], 2, "pyvmm: error: unknown option --what"),
        (["a", "--", "/no/such"], 127, "pyvmm: /no/such: the guest could not have the program: No such file"),
        (["a", "--", "/"], 126, "pyvmm: /: the guest could not have the program: Permission denied"),
        (["--user", "nobody-of-it", "a", "--", "ls"], 127, "pyvmm: ls: the guest could not have its user"),
    ],
)
def test_a_verb_that_goes_wrong_is_one_line(server, words, status, said):
    done = pyvmm("exec", *words)
    assert (done.returncode, done.stdout) == (status, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[0].startswith(said)
    assert len(lines) == (2 if "error:" in said else 1)


def test_the_verb_says_what_it_takes(server):
    done = pyvmm("exec", "--help")
    assert done.returncode == 0 and b"--env" in done.stdout and b"NAME" in done.stdout
