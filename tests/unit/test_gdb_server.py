"""Where gdb connects: addresses, sockets, one client at a time, and clients that are broken, hostile, or gone."""

from __future__ import annotations

import os
import random
import socket
import stat
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pyvmm.debug.gdb import server as module
from pyvmm.debug.gdb.packets import PACKET_SIZE, encode
from pyvmm.debug.gdb.server import PORT, GdbServer, parse_where
from pyvmm.errors import BackendError, UsageError
from pyvmm.kvm.host import DebugAbilities
from pyvmm.runloop import Outcome
from tests.support.gdbrig import CODE, Machine, stepped

LIMIT = 10


class Served(Machine):
    """A machine of scripted vCPUs behind a server."""

    def __init__(self, where: str | int = 0, cpus: int = 1) -> None:
        super().__init__(cpus)
        self.said: list[str] = []
        self.server = GdbServer(where, self.said.append)
        self.server.open()
        vm = SimpleNamespace(vcpus=self.vcpus, memory=self.memory)
        self.server.begin(vm, self.control, DebugAbilities(), self.quiet.append)
        self.start(self.server.loop)
        self.server.start()

    def connect(self) -> Client:
        return Client(self.server.address)

    def finish(self, outcome: Outcome) -> None:
        """The guest ends by itself."""
        self.control.end(outcome)
        for thread in self.threads:
            thread.join(LIMIT)
        self.server.withdraw()
        self.server.ended(outcome)

    def close(self) -> None:
        self.server.close()
        self.end()


class Client:
    """A debugger by hand."""

    def __init__(self, address: str) -> None:
        if address.startswith("/"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(address)
        else:
            host, _, port = address.partition(":")
            self.socket = socket.create_connection((host, int(port)))
        self.socket.settimeout(LIMIT)
        self._rest = b""

    def send(self, payload: bytes) -> None:
        self.socket.sendall(encode(payload))

    def receive(self) -> bytes:
        """The next packet's payload; b"" alone where the server has hung up."""
        while b"#" not in self._rest or len(self._rest.partition(b"#")[2]) < 2:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:  # an acknowledgement came too late
                data = b""
            if not data:
                return b""
            self._rest += data
        frame, _, rest = self._rest.partition(b"#")
        self._rest = rest[2:]
        self.socket.sendall(b"+")
        return frame.partition(b"$")[2]

    def ask(self, payload: bytes) -> bytes:
        self.send(payload)
        return self.receive()

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.close()


def until(condition, what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


# --- Where -----------------------------------------------------------------------------------------------------------


def test_where_is_a_port_or_a_socket():
    assert parse_where(True) == (PORT, "")
    assert parse_where(0) == (0, "")
    assert parse_where("4711") == (4711, "")
    assert parse_where("unix:a b") == (0, "a b")


@pytest.mark.parametrize(
    "text", ["", "-1", "65536", "99999", "tcp:1", "0x10", "1 ", "unix:", "unix:a\0b", ":1234", "\u0661"]
)
def test_what_is_neither_is_refused_in_a_line(text):
    with pytest.raises(UsageError) as caught:
        GdbServer(text)
    assert repr(text) in str(caught.value) and "expected" in str(caught.value)


def test_a_socket_of_a_folder_that_is_not_there_or_too_long(tmp_path):
    for path, problem in (
        (tmp_path / "no" / "socket", "--gdb: cannot listen at"),
        (tmp_path / ("x" * 200), "too long"),
    ):
        with pytest.raises(BackendError, match=problem):
            GdbServer(f"unix:{path}").open()


def test_another_file_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(BackendError, match="is not a socket"):
        GdbServer(f"unix:{path}").open()
    assert path.read_text() == "mine"


def test_a_socket_is_for_its_owner_and_goes_with_the_server(tmp_path):
    path = tmp_path / "gdb"
    served = Served(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    client = served.connect()
    assert client.ask(b"?") == b"T05thread:1;"
    client.close()
    served.close()
    assert not path.exists()


def test_a_socket_that_somebody_else_has_made_meanwhile_stays(tmp_path):
    path = tmp_path / "gdb"
    served = Served(f"unix:{path}")
    path.unlink()
    path.write_text("another")
    served.close()
    assert path.exists()


def test_opening_fails_and_leaves_nothing(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(BackendError):
        GdbServer(f"unix:{tmp_path}").open()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BackendError, match="Address already in use"):
        GdbServer(taken.getsockname()[1]).open()
    assert len(os.listdir("/proc/self/fd")) == before


# --- Clients ---------------------------------------------------------------------------------------------------------


def test_the_guest_stands_until_a_debugger_lets_it_go(served):
    client = served.connect()
    assert client.ask(b"?") == b"T05thread:1;"
    assert client.ask(b"m%x,2" % CODE) == b"0001"
    served.vcpus[0].exits.append(stepped(CODE + 2))
    assert client.ask(b"vCont;s:1") == b"T05thread:1;"
    client.close()


def test_without_acknowledgements_none_are_sent(served):
    client = served.connect()
    assert client.ask(b"QStartNoAckMode") == b"OK"
    client.socket.sendall(b"$g#00" + encode(b"qC"))  # a wrong sum cannot be asked for again
    assert client.socket.recv(100) == b"$QC1#c5"
    client.close()


def test_a_lost_answer_is_sent_again_but_not_for_ever(served):
    client = served.connect()
    client.ask(b"qC")
    client.socket.sendall(b"-")
    assert client.receive() == b"QC1"
    client.socket.sendall(b"-" * 1000)
    client.send(b"qAttached")
    answers = [client.receive()]
    while answers[-1] != b"1":
        answers.append(client.receive())
    assert 1 < len(answers) < 20
    client.close()


def test_a_wrong_sum_is_asked_for_again(served):
    client = served.connect()
    client.socket.sendall(b"$qC#00")
    assert client.socket.recv(1) == b"-"
    assert client.ask(b"qC") == b"QC1"
    client.close()


def test_a_second_client_is_hung_up_on_and_the_first_one_served(served):
    first = served.connect()
    assert first.ask(b"qC") == b"QC1"
    second = served.connect()
    assert second.receive() == b""
    assert first.ask(b"qC") == b"QC1"
    first.close()
    third = served.connect()
    assert third.ask(b"qC") == b"QC1"
    third.close()


def test_an_interrupt_reaches_a_guest_that_runs(served):
    client = served.connect()
    client.send(b"vCont;c")
    until(lambda: not served.server.target.held, "it runs")
    client.send(b"qC")  # nobody answers that now
    client.socket.sendall(b"\x03")
    assert client.receive() == b"T02thread:1;"
    assert client.ask(b"qC") == b"QC1"
    client.close()


def test_the_end_of_the_run_is_told_to_who_waits_for_it(served):
    client = served.connect()
    client.send(b"vCont;c")
    until(lambda: not served.server.target.held, "it runs")
    served.finish(Outcome("debug-exit", 11))
    assert client.receive() == b"W0b"
    assert client.receive() == b""


def test_a_signal_is_told_as_one(served):
    client = served.connect()
    client.send(b"vCont;c")
    until(lambda: not served.server.target.held, "it runs")
    served.finish(Outcome("signal", 143))
    assert client.receive() == b"X0f"


def test_a_debugger_at_a_stop_is_hung_up_on_when_the_run_ends(served):
    client = served.connect()
    client.ask(b"?")
    served.finish(Outcome("quit", 0))
    assert client.receive() == b""


def test_closing_does_not_wait_for_a_debugger(served, monkeypatch):
    monkeypatch.setattr(module, "CLOSE_WAIT", 60.0)  # as long as one that would not be told
    client = served.connect()
    client.ask(b"?")
    start = time.monotonic()
    served.server.close()
    assert time.monotonic() - start < 30
    assert client.receive() == b""


def test_a_debugger_that_goes_at_a_stop_leaves_the_guest_standing_without_breakpoints(served):
    client = served.connect()
    client.ask(b"Z0,%x,1" % CODE)
    client.close()
    until(lambda: not served.server.target.connected, "it has gone")
    assert served.server.target.held
    assert served.server.target.points.planted == {}


def test_a_debugger_that_goes_while_the_guest_runs_leaves_it_running(served):
    client = served.connect()
    client.ask(b"Z0,%x,1" % (CODE + 4))
    client.send(b"vCont;c")
    until(lambda: served.memory.read_u8(CODE + 4) == 0xCC, "it runs")
    client.close()
    until(lambda: not served.server.target.connected, "it has gone")
    assert served.memory.read_u8(CODE + 4) == 4
    assert not served.server.target.held
    again = served.connect()
    assert again.ask(b"?") == b"T05thread:1;"
    again.close()


def test_a_client_that_does_not_read_is_dropped(served, monkeypatch):
    monkeypatch.setattr(module, "SLOW", 0.2)
    client = served.connect()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.socket.settimeout(0.2)
    deadline = time.monotonic() + 60  # its answers have to fill the buffers of both sides first
    while served.server.target.connected and time.monotonic() < deadline:
        try:
            client.socket.send(encode(b"m%x,4000" % CODE) * 500)
        except TimeoutError:
            pass  # the server is at it still
        except OSError:
            break
    until(lambda: not served.server.target.connected, "it is dropped")
    client.close()
    other = served.connect()
    assert other.ask(b"qC") == b"QC1"
    other.close()


def test_noise_and_clients_that_go_anywhere_harm_nothing(served):
    source = random.Random(8)
    before = served.memory.read(CODE, 64)
    words = [b"?", b"g", b"m%x,9" % CODE, b"Z0,%x,1" % (CODE + 9), b"Z1,0,1", b"qSupported", b"qRcmd,68656c70", b"Hg1",
             b"qXfer:features:read:target.xml:0,ffff", b"vCont;c", b"vCont;s:1", b"D", b"QStartNoAckMode"]  # fmt: skip
    for _ in range(60):
        client = served.connect()
        data = b"".join(encode(source.choice(words)) for _ in range(source.randrange(6)))
        data += bytes(source.choice(b"$#}*+-\x03k?gZ01,:;\xff") for _ in range(source.randrange(60)))
        data = data.replace(b"k", b"K") + b"$" * source.randrange(2) * (PACKET_SIZE // 4)
        client.socket.sendall(data[: source.randrange(len(data) + 1)])
        if source.random() < 0.5:
            client.socket.settimeout(0.01)
            try:
                client.socket.recv(100)
            except OSError:
                pass
        client.close()
    last = served.connect()
    assert last.ask(b"m%x,40" % CODE) == before.hex().encode()
    assert served.control.outcome is None
    assert served.said[1:] == []
    last.close()
