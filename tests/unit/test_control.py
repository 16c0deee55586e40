"""The control socket: where it is and whose, what can be asked there, and clients that do not behave."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from pyvmm.attach import VirtioDevices
from pyvmm.cli import balloon, disk, net
from pyvmm.cli.running import RUNNING, _duration
from pyvmm.config import VmConfig
from pyvmm.control import commands, server
from pyvmm.control.client import Client, running
from pyvmm.control.commands import COMMANDS, Command
from pyvmm.control.folder import LONGEST_NAME, Folder, folder_path
from pyvmm.control.lines import LINE_LIMIT
from pyvmm.control.server import MOST_CLIENTS, ControlServer
from pyvmm.errors import BackendError, UsageError
from pyvmm.virtio.balloon import VirtioBalloon
from pyvmm.virtio.block import VirtioBlock
from pyvmm.virtio.net import VirtioNet
from pyvmm.vm import VM
from tests.support.cli import environment, pyvmm, wait_for
from tests.support.memorydisk import CAPACITY, MemoryDisk
from tests.unit.test_virtio_net import MAC, Memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    path = tmp_path / "run"
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def servers():
    made = []

    def make(name="a", vm=None, start=True):
        made.append(ControlServer(vm or VM(config=VmConfig("k")), name))
        made[-1].open()
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def vm():
    """A VM with devices and nothing else."""
    made = VM(config=VmConfig("kernel"))
    devices = [
        VirtioBlock(MemoryDisk(), name="blk0"),
        VirtioNet(Memory(), mac=MAC, name="net0"),
        VirtioBalloon(name="balloon0", size=8 * MIB),
    ]
    made._virtio = VirtioDevices.__new__(VirtioDevices)
    made._virtio.devices = devices
    return made


def raw(name):
    """A connection that keeps to no rules."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with Folder() as folder:
        connection.connect(folder.address(name))
    connection.settimeout(10)
    return connection


def answer(connection):
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(1 << 16)
        if not piece:
            return None
        data += piece
    return json.loads(data)


# --- The folder ------------------------------------------------------------------------------------------------------


def test_where_it_is(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", "/somewhere")
    assert folder_path() == "/somewhere"
    monkeypatch.delenv("PYVMM_RUNTIME_DIR")
    assert folder_path() == "/run/user/7/pyvmm"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    assert folder_path() == f"/tmp/pyvmm-{os.geteuid()}"


def test_it_is_made_for_its_owner_alone(servers, folder):
    before = os.umask(0)
    try:
        servers()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [entry.name for entry in folder.iterdir()] == ["a.sock"]


def test_a_folder_that_is_open_to_others_is_refused(servers, folder):
    folder.mkdir(0o700)
    folder.chmod(0o750)
    for attempt in (servers, running, lambda: Client("a")):
        with pytest.raises(BackendError, match=r"run is open to others: mode 750 \(expected 700\)"):
            attempt()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("to", ["folder", "nothing"])
def test_a_symbolic_link_is_not_followed(servers, folder, tmp_path, to):
    (tmp_path / "folder").mkdir(0o700)
    folder.symlink_to(tmp_path / to)
    for attempt in (servers, running):
        with pytest.raises(BackendError, match="run is a symbolic link or no folder"):
            attempt()
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_file_is_no_folder(servers, folder):
    folder.write_text("")
    with pytest.raises(BackendError, match="run is a symbolic link or no folder"):
        servers()


def test_a_folder_whose_parent_is_not_there(servers, monkeypatch):
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", "/nowhere/run")
    with pytest.raises(BackendError, match="/nowhere/run cannot be made: No such file"):
        servers()
    assert running() == []


@pytest.mark.needs("root")
def test_a_folder_of_somebody_else_is_refused(servers, folder):
    folder.mkdir(0o700)
    os.chown(folder, 65534, 65534)
    for attempt in (servers, running):
        with pytest.raises(BackendError, match=f"run belongs to user 65534 \\(expected {os.geteuid()}\\)"):
            attempt()


@pytest.mark.needs("unprivileged")
def test_a_folder_that_may_not_be_made(servers, folder, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(BackendError, match="run cannot be used: Permission denied"):
            servers()
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.needs("unprivileged")
def test_root_s_folder_is_refused_to_others(servers, monkeypatch):
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", "/root")
    with pytest.raises(BackendError, match="/root (belongs to user 0|cannot be used: Permission denied)"):
        servers()


def test_a_path_longer_than_a_socket_s(servers, tmp_path, monkeypatch):
    """unix(7): 107 bytes. The socket is reached through the open folder."""
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    monkeypatch.setenv("PYVMM_RUNTIME_DIR", str(deep / "run"))
    servers("x" * LONGEST_NAME)
    with Client("x" * LONGEST_NAME) as client:
        assert client.ask("inspect")["name"] == "x" * LONGEST_NAME
    assert running() == ["x" * LONGEST_NAME]


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "-a", "a b", "é", "a\0", "a\n", "x" * (LONGEST_NAME + 1)])
def test_names_that_cannot_be(name):
    for attempt in (Client, lambda name: ControlServer(None, name)):
        with pytest.raises(UsageError, match="a VM called .* \\(expected a letter or digit"):
            attempt(name)


def test_a_name_is_taken_once(servers):
    first = servers("web.1-x_y")
    with pytest.raises(BackendError, match=r"a VM called web\.1-x_y is running already"):
        servers("web.1-x_y")
    with Client("web.1-x_y") as client:
        assert client.ask("inspect")["pid"] == os.getpid(), "the one that has it keeps it"
    first.close()
    servers("web.1-x_y")


def test_a_name_is_taken_before_anybody_is_served(servers):
    one = servers(start=False)
    connection = raw("a")
    connection.sendall(b'{"command": "inspect"}\n')
    one.start()
    assert "ok" in answer(connection)
    connection.close()


def leave_socket(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))


def test_a_dead_one_s_socket_is_replaced(servers, folder):
    folder.mkdir(0o700)
    leave_socket(folder / "a.sock")
    servers("a")
    with Client("a") as client:
        assert client.ask("inspect")["name"] == "a"


def test_dead_ones_are_not_listed_and_their_sockets_go(servers, folder):
    servers("b")
    servers("a")
    leave_socket(folder / "dead.sock")
    (folder / "file.sock").write_text("not ours to remove")
    (folder / "other").write_text("")
    assert running() == ["a", "b"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["a.sock", "b.sock", "file.sock", "other"]


def test_a_vm_that_starts_removes_what_dead_ones_have_left(servers, folder):
    """Who is alive notices nothing of it."""
    one = servers("alive")
    leave_socket(folder / "dead.sock")
    (folder / "file.sock").write_text("not ours to remove")
    servers("new")
    assert sorted(entry.name for entry in folder.iterdir()) == ["alive.sock", "file.sock", "new.sock"]
    assert one._clients == {}


def test_a_vm_that_is_killed_leaves_a_socket_until_the_next_one_starts(servers, folder):
    program = (
        "import os, signal\nfrom pyvmm.control.server import ControlServer\n"
        "one = ControlServer(None, 'a'); one.open(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=environment(), timeout=60)
    assert done.returncode == -9 and [entry.name for entry in folder.iterdir()] == ["a.sock"]
    servers("b")
    assert [entry.name for entry in folder.iterdir()] == ["b.sock"]


def test_a_vm_whose_queue_of_clients_is_full_is_alive(servers):
    one = servers("a", start=False)
    clients = []
    with Folder() as folder:
        for _ in range(MOST_CLIENTS + 1):
            clients.append(folder.connect("a", 1.0))
        with pytest.raises(BlockingIOError):
            folder.connect("a", 0.0)
        assert folder.answers("a") and folder.names() == ["a"]
    for client in clients:
        client.close()
    one.close()


def test_something_else_in_the_socket_s_place_stays(servers, folder):
    folder.mkdir(0o700)
    (folder / "a.sock").write_text("mine")
    with pytest.raises(BackendError, match="no control socket for a: Address already in use"):
        servers("a")
    assert (folder / "a.sock").read_text() == "mine"


def test_closing_removes_the_socket_and_only_its_own(servers, folder):
    one = servers()
    one.close()
    one.close()
    assert list(folder.iterdir()) == []
    two = servers()
    (folder / "a.sock").unlink()
    leave_socket(folder / "a.sock")
    two.close()
    assert [entry.name for entry in folder.iterdir()] == ["a.sock"]


def test_many_that_want_one_name_at_once(servers, folder):
    """A dead one's socket lies there, too: one gets the name, and keeps it."""
    folder.mkdir(0o700)
    leave_socket(folder / "a.sock")
    won, lost = [], []

    def attempt():
        one = ControlServer(VM(config=VmConfig("k")), "a")
        try:
            one.open()
            won.append(one)
        except BackendError as error:
            lost.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(won) == 1 and set(lost) == {"a VM called a is running already"} and len(lost) == 7
    won[0].start()
    with Client("a") as client:
        assert client.ask("inspect")["name"] == "a"
    won[0].close()


def test_a_vm_that_is_not_there(servers):
    with pytest.raises(BackendError, match=r"no running VM is called x \(none is running\)"):
        Client("x")
    servers("b")
    servers("a")
    with pytest.raises(BackendError, match=r"no running VM is called x \(running: a, b\)"):
        Client("x")


# --- Requests --------------------------------------------------------------------------------------------------------


def test_one_connection_many_requests(servers):
    servers()
    with Client("a") as client:
        for _ in range(100):
            found = client.ask("inspect")
    assert found == {
        "name": "a",
        "pid": os.getpid(),
        "state": "made",
        "seconds": 0.0,
        "kernel": "k",
        "initrd": None,
        "append": "",
        "cpus": 1,
        "mem": 128 * MIB,
        "devices": [],
    }


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"", "not a line of JSON"),
        (b"{", "not a line of JSON"),
        (b"\xff\xfe", "not a line of JSON"),
        (b"[" * 60000, "not a line of JSON"),
        (b"9" * 5000, "not a line of JSON"),
        (b"[]", 'not a request (expected an object with "command")'),
        (b"{}", 'not a request (expected an object with "command")'),
        (b'{"command": 5}', 'not a request (expected an object with "command")'),
        (b'{"command": "dance"}', "unknown command 'dance' (expected inspect, "),
        (b'{"command": "inspect", "x": 1}', "inspect: unknown argument 'x' (expected none)"),
        (b'{"command": "balloon", "SIZE": 1}', "balloon: unknown argument 'SIZE' (expected size)"),
        (b'{"command": "balloon", "size": "1"}', 'balloon: size is "1" (expected int)'),
        (b'{"command": "balloon", "size": true}', "balloon: size is true (expected int)"),
        (b'{"command": "balloon", "size": 1.5}', "balloon: size is 1.5 (expected int)"),
        (b'{"command": "balloon", "size": null}', "balloon: size is null (expected int)"),
        (b'{"command": "net-link"}', "net-link: up is missing"),
        (b'{"command": "net-link", "up": 1}', "net-link: up is 1 (expected bool)"),
        (b'{"command": "disk-resize", "size": 512}', "disk-resize: device is missing"),
    ],
)
def test_what_is_no_request_is_answered_and_the_next_one_served(servers, line, error):
    servers()
    connection = raw("a")
    connection.sendall(line + b"\n")
    found = answer(connection)
    assert found["error"].startswith(error) and found["status"] == 2
    connection.sendall(b'{"command": "inspect"}\n')
    assert "ok" in answer(connection)
    connection.close()


def test_a_line_without_end_is_cut_off(servers):
    servers()
    connection = raw("a")
    connection.sendall(b"x" * LINE_LIMIT)
    assert answer(connection) == {"error": f"a line of more than {LINE_LIMIT} bytes", "status": 2}
    assert answer(connection) is None
    connection.close()
    with Client("a") as client:
        assert client.ask("inspect")


def test_lines_that_come_in_pieces_and_together(servers):
    servers()
    connection = raw("a")
    for piece in (b'{"comm', b'and": "inspect"}', b'\n{"command": "inspect"}\n{"command"', b': "inspect"}\n'):
        connection.sendall(piece)
        time.sleep(0.002)
    data = b""
    while data.count(b"\n") < 3:
        data += connection.recv(4096)
    assert all("ok" in json.loads(line) for line in data.splitlines())
    connection.close()


def test_a_fault_of_ours_is_an_answer(servers, monkeypatch):
    monkeypatch.setitem(COMMANDS, "fail", Command(lambda server: {}["x"]))
    monkeypatch.setitem(COMMANDS, "host", Command(lambda server: os.stat("/nowhere/x")))
    servers()
    with Client("a") as client:
        with pytest.raises(BackendError, match="internal error: KeyError: 'x'"):
            client.ask("fail")
        with pytest.raises(BackendError, match="FileNotFoundError"):
            client.ask("host")
        assert client.ask("inspect")


def test_a_client_that_does_not_read_keeps_nobody_waiting(servers, monkeypatch):
    monkeypatch.setattr(server, "SLOW", 0.05)
    monkeypatch.setitem(COMMANDS, "much", Command(lambda server: {"much": "x" * 4 * MIB}))
    one = servers()
    connection = raw("a")
    connection.sendall(b'{"command": "much"}\n' * 10)
    with Client("a") as client:
        assert client.ask("inspect")
    wait_for(lambda: not one._clients, "the server to hang up")
    connection.close()


def test_a_request_that_takes_its_time_keeps_nobody_waiting(servers, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setitem(COMMANDS, "sleep", Command(lambda server: {"slept": go_on.wait(10)}))
    servers()
    connection = raw("a")
    connection.sendall(b'{"command": "sleep"}\n')
    with Client("a") as client:
        assert client.ask("inspect")
    go_on.set()
    assert answer(connection) == {"ok": {"slept": True}}
    connection.close()


def test_a_client_that_asks_for_nothing_is_hung_up_on(servers, monkeypatch):
    monkeypatch.setattr(server, "IDLE", 0.02)
    servers()
    connection = raw("a")
    assert connection.recv(1) == b""
    connection.close()


def test_only_so_many_clients_at_once(servers):
    one = servers()
    connections = [raw("a") for _ in range(MOST_CLIENTS)]
    wait_for(lambda: len(one._clients) == MOST_CLIENTS, "all of them to be served")
    with Client("a") as client, pytest.raises(BackendError, match="too many clients"):
        client.ask("inspect")
    connections.pop().close()
    wait_for(lambda: len(one._clients) < MOST_CLIENTS, "the server to notice")
    with Client("a") as client:
        assert client.ask("inspect")
    for connection in connections:
        connection.close()


def test_clients_that_come_and_go(servers):
    one = servers()
    for number in range(200):
        connection = raw("a")
        if number % 2:
            connection.sendall(b'{"command": "inspect"}\n{"comm')
        connection.close()
    wait_for(lambda: not one._clients, "the server to notice")
    with Client("a") as client:
        assert client.ask("inspect")


def test_closing_hangs_up(servers, monkeypatch):
    monkeypatch.setattr(server, "CLOSE_WAIT", 60.0)
    one = servers()
    connection = raw("a")
    wait_for(lambda: one._clients, "the client to be served")
    began = time.monotonic()
    one.close()
    assert connection.recv(1) == b"" and time.monotonic() - began < server.CLOSE_WAIT / 2
    assert not one._thread.is_alive() and running() == []
    connection.close()


def test_a_vm_that_goes_in_the_middle_of_an_answer(servers, monkeypatch):
    servers_side = servers()
    monkeypatch.setitem(COMMANDS, "go", Command(lambda server: os._exit))
    with Client("a") as client:
        client.ask("inspect")
        servers_side.close()
        with pytest.raises(BackendError, match="a: "):
            client.ask("inspect")


def test_a_vm_that_does_not_answer(servers, monkeypatch):
    servers(start=False)
    with Client("a", timeout=0.02) as client, pytest.raises(BackendError, match=r"a: no answer for 0\.02 s"):
        client.ask("inspect")


def test_a_server_that_could_not_be_opened_is_closed(monkeypatch, folder):
    folder.write_text("")
    one = ControlServer(None, "a")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError):
        one.open()
    one.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_costs_a_run_next_to_nothing():
    """What a client needs is imported when one comes."""
    program = (
        "import sys, threading\nfrom types import SimpleNamespace\n"
        "from pyvmm.control.server import ControlServer\n"
        "one = ControlServer(None, 'a'); one.open(); one.start()\n"
        "print(*sys.modules); one.close()"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, check=True, env=environment())
    found = set(done.stdout.decode().split())
    for name in ("json", "socket", "enum", "re", "typing", "selectors", "contextlib", "pyvmm.control.commands"):
        assert name not in found, name


# --- What can be asked -----------------------------------------------------------------------------------------------


def test_the_balloon(servers, vm):
    servers(vm=vm)
    with Client("a") as client:
        assert client.ask("balloon") == {"target": 8 * MIB, "actual": 0, "statistics": {}}
        assert client.ask("balloon", size=5 * MIB)["target"] == 5 * MIB == vm.balloon.target
        with pytest.raises(UsageError, match="a balloon of -1 bytes"):
            client.ask("balloon", size=-1)


def test_a_cable(servers, vm):
    servers(vm=vm)
    with Client("a") as client:
        assert client.ask("net-link", up=False) == {}
        assert not vm._virtio.devices[1].link
        client.ask("net-link", up=True, device="net0")
        assert vm._virtio.devices[1].link
        with pytest.raises(UsageError, match=r"there is no device 'net1' \(there are blk0, net0, balloon0\)"):
            client.ask("net-link", up=True, device="net1")
        with pytest.raises(UsageError, match="blk0 is no network interface"):
            client.ask("net-link", up=True, device="blk0")


def test_the_size_of_a_disk(servers, vm):
    servers(vm=vm)
    with Client("a") as client:
        assert client.ask("disk-resize", device="blk0", size=MIB) == {"size": MIB}
        with pytest.raises(UsageError, match="blk0: at 512 bytes the disk would lose its last"):
            client.ask("disk-resize", device="blk0", size=512)
        assert client.ask("disk-resize", device="blk0", size=512, shrink=True) == {"size": 512}
        with pytest.raises(UsageError, match="net0 is no disk"):
            client.ask("disk-resize", device="net0", size=512)


def test_a_vm_without_such_devices(servers):
    servers(vm=VM(config=VmConfig("kernel")))
    with Client("a") as client:
        assert client.ask("inspect")["state"] == "made"
        with pytest.raises(UsageError, match="a has no balloon"):
            client.ask("balloon")
        with pytest.raises(UsageError, match=r"there is no device 'net0' \(there is none\)"):
            client.ask("net-link", up=True)


def test_every_command_takes_what_it_says():
    """The table and the functions agree."""
    import inspect

    for command in COMMANDS.values():
        assert command.run.__doc__
        parameters = dict(list(inspect.signature(command.run).parameters.items())[1:])
        assert list(parameters) == sorted(command.arguments, key=list(parameters).index)
        needed = [name for name, parameter in parameters.items() if parameter.default is parameter.empty]
        assert sorted(needed) == sorted(command.required)
    assert commands.__doc__


# --- Attaching -------------------------------------------------------------------------------------------------------


class Typewriter:
    """A VM of a console and nothing else. It takes `room` bytes and then no more until there is room again."""

    state = "running"

    def __init__(self):
        self.typed = b""
        self.room = 1 << 20
        self.listeners = []

    def listen(self, listener):
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def type(self, data):
        taken = data[: self.room]
        self.typed += taken
        self.room -= len(taken)
        return len(taken)

    def say(self, data):
        for listener in list(self.listeners):
            listener(data)


def attached(name="a"):
    connection = raw(name)
    connection.sendall(b'{"command": "attach"}\n')
    assert answer(connection) == {"ok": {}}
    return connection


def test_a_console_for_several_clients_both_ways(servers):
    servers(vm=(vm := Typewriter()))
    one, two = attached(), attached()
    wait_for(lambda: len(vm.listeners) == 2, "both to listen")
    vm.say(b"hello")
    assert one.recv(100) == two.recv(100) == b"hello"
    one.sendall(b"ls")
    wait_for(lambda: vm.typed == b"ls", "input")
    one.close()
    wait_for(lambda: len(vm.listeners) == 1, "one to be gone")
    vm.say(b"!")
    assert two.recv(100) == b"!"
    two.close()
    wait_for(lambda: not vm.listeners, "both to be gone")


def test_what_comes_behind_the_request_is_input(servers):
    servers(vm=(vm := Typewriter()))
    connection = raw("a")
    connection.sendall(b'{"command": "attach"}\nearly')
    wait_for(lambda: vm.typed == b"early", "input")
    connection.close()


def test_input_waits_for_room_and_a_client_that_goes_meanwhile_is_noticed(servers):
    one = servers(vm=(vm := Typewriter()))
    vm.room = 2
    connection = attached()
    connection.sendall(b"abcd")
    wait_for(lambda: vm.typed == b"ab", "input")
    vm.room = 1
    wait_for(lambda: vm.typed == b"abc", "more input")
    connection.close()
    wait_for(lambda: not one._clients, "the client to be gone")
    assert vm.typed == b"abc" and not vm.listeners


def test_a_client_that_does_not_read_the_console_is_dropped(servers):
    one = servers(vm=(vm := Typewriter()))
    connection = attached()
    wait_for(lambda: vm.listeners, "the client")
    for _ in range(1000):
        vm.say(b"x" * 4096)
        if not vm.listeners:
            break
        time.sleep(0.0005)
    wait_for(lambda: not one._clients and not vm.listeners, "the client to be dropped")
    connection.close()


def test_the_end_of_the_output_reaches_a_client_before_the_vm_hangs_up(servers):
    one = servers(vm=(vm := Typewriter()))
    connection = attached()
    wait_for(lambda: vm.listeners, "the client")
    vm.say(b"y" * 30000)
    one.close()
    found = b""
    while piece := connection.recv(65536):
        found += piece
    assert found == b"y" * 30000
    connection.close()


def test_nothing_to_attach_to(servers):
    servers()
    with Client("a") as client:
        for command in ("attach", "pause", "resume", "power-button"):
            with pytest.raises(UsageError, match="a does not run: it is made"):
                client.ask(command)


def test_a_log_comes_in_pieces(servers, capfdbinary):
    text = bytes(range(256)) * 300
    made = VM(config=VmConfig("kernel"))
    made._diagnosis.console.feed(text)
    servers(vm=made)
    assert RUNNING["logs"].main(["a"]) == 0
    assert capfdbinary.readouterr().out == text


def test_a_log_has_a_bound(servers):
    made = VM(config=VmConfig("kernel"))
    for number in range(3000):
        made._output(b"%0127d\n" % number)
    assert 64 << 10 <= len(made.console_log) <= 128 << 10
    assert made.console_log.endswith(b"2999\n")


# --- The verbs -------------------------------------------------------------------------------------------------------


def test_pyvmm_balloon(servers, vm, capsys):
    servers(vm=vm)
    assert balloon.main(["a"]) == 0
    assert capsys.readouterr().out == "target            8M\nactual            0 bytes\n"
    assert balloon.main(["a", "4"]) == 0 and vm.balloon.target == 4 * MIB
    assert capsys.readouterr().out == ""
    vm.balloon.statistics = {"free": 3 * MIB, "major-faults": 1 << 20}
    balloon.main(["a"])
    assert capsys.readouterr().out.splitlines()[2:] == ["free              3M", "major-faults      1048576"]
    balloon.main(["a", "0", "--json"])
    assert json.loads(capsys.readouterr().out)["target"] == 0


def test_pyvmm_ps(servers, vm, capsys):
    assert RUNNING["ps"].main([]) == 0
    assert capsys.readouterr().out == "NAME  PID  STATE  CPUS  MEM  UP  KERNEL\n"
    assert RUNNING["ps"].main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    servers("b", vm=vm)
    servers("a", vm=VM(config=VmConfig("k", mem="64M", cpus=2)))
    RUNNING["ps"].main([])
    _, one, two = capsys.readouterr().out.splitlines()
    assert one.split() == ["a", str(os.getpid()), "made", "2", "64M", "0s", "k"] and two.split()[0] == "b"
    RUNNING["ps"].main(["--json"])
    assert [found["name"] for found in json.loads(capsys.readouterr().out)] == ["a", "b"]


def test_pyvmm_ps_shows_a_vm_that_does_not_answer(servers, capsys, monkeypatch):
    monkeypatch.setattr("pyvmm.cli.running.PS_WAIT", 0.02)
    servers("a", start=False)
    RUNNING["ps"].main([])
    assert capsys.readouterr().out.splitlines()[1].split() == ["a", "-", "does", "not", "answer", "-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.9, "0s"), (59, "59s"), (60, "1m00s"), (3599, "59m59s"), (3660, "1h01m")]
)
def test_how_long_it_has_been_up(seconds, shown):
    assert _duration(seconds) == shown


def test_pyvmm_inspect_and_stat(servers, capsys):
    servers(vm=VM(config=VmConfig("k", append="quiet")))
    RUNNING["inspect"].main(["a"])
    shown = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert (shown["name"], shown["mem"], shown["append"], shown["initrd"]) == ("a", "128M", "quiet", "-")
    RUNNING["stat"].main(["a"])
    assert capsys.readouterr().out.startswith("exits      0 (none)\nunclaimed  0 accesses")
    RUNNING["stat"].main(["a", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["mem"] == 128 * MIB and found["memory"] > 0 and found["cpu"] > 0 and found["exits"] == {}


def test_pyvmm_net(servers, vm):
    servers(vm=vm)
    assert net.main(["a", "link", "down"]) == 0 and not vm._virtio.devices[1].link
    assert net.main(["a", "link", "up", "--device", "net0"]) == 0 and vm._virtio.devices[1].link


def test_pyvmm_disk(servers, vm, capsys):
    servers(vm=vm)
    assert disk.main(["a", "resize", "blk0", "2M"]) == 0
    assert capsys.readouterr().out == "2M\n" and vm._virtio.devices[0].disk.size == 2 * MIB
    with pytest.raises(UsageError, match="would lose"):
        disk.main(["a", "resize", "blk0", "64K"])
    disk.main(["a", "resize", "blk0", "64K", "--shrink"])
    assert vm._virtio.devices[0].disk.size == 64 << 10 < CAPACITY * 512


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["balloon", "x"], 125, "pyvmm: no running VM is called x (running: a)"),
        (["net", "x", "link", "up"], 125, "pyvmm: no running VM is called x (running: a)"),
        (["disk", "x", "resize", "blk0"], 125, "pyvmm: no running VM is called x (running: a)"),
        (["stop", "x"], 125, "pyvmm: no running VM is called x (running: a)"),
        (["attach", "x"], 125, "pyvmm: no running VM is called x (running: a)"),
        (["attach", "a"], 2, "pyvmm: a does not run: it is made"),
        (["pause", "a"], 2, "pyvmm: a does not run: it is made"),
        (["kill"], 2, "pyvmm: error: the following arguments are required: NAME"),
        (["ps", "a"], 2, "pyvmm: error: unrecognized arguments: a"),
        (["stop", "a", "--timeout", "soon"], 2, "pyvmm: 'soon' is not a duration"),
        (["balloon", "a"], 2, "pyvmm: a has no balloon (pyvmm run --balloon gives it one)"),
        (["balloon", "a", "much"], 2, "pyvmm: 'much' is not a size"),
        (["balloon", "a/b"], 2, "pyvmm: a VM called 'a/b'"),
        (["balloon"], 2, "pyvmm: error: the following arguments are required: NAME"),
        (["net", "a", "link", "sideways"], 2, "pyvmm: error: argument state: invalid choice: 'sideways'"),
        (["net", "a"], 2, "pyvmm: error: the following arguments are required: VERB"),
        (["disk", "a", "resize"], 2, "pyvmm: error: the following arguments are required: DISK"),
    ],
)
def test_a_verb_that_goes_wrong_is_one_line(servers, arguments, status, message):
    servers(vm=VM(config=VmConfig("kernel")))
    done = pyvmm(*arguments)
    assert (done.returncode, done.stdout) == (status, b"")
    [line] = done.stderr.decode().splitlines()
    assert line.startswith(message)
