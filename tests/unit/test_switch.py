"""The switch that joins VMs: frames, back-pressure, who serves it and what happens when that one goes."""

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from pyvmm.backends.net import switch as switch_module
from pyvmm.backends.net import switchserver
from pyvmm.backends.net.stream import FrameStream
from pyvmm.backends.net.switch import PATH_MAX, join_switch
from pyvmm.backends.net.switchserver import PORTS, QUEUE
from pyvmm.errors import BackendError, UsageError
from pyvmm.virtio.net import RECEIVE, TRANSMIT, VirtioNet
from pyvmm.virtio.plane import DataPlane
from tests.support.cli import wait_for
from tests.support.virtiodriver import Driver

pytestmark = pytest.mark.transport("mmio")

BROADCAST = b"\xff" * 6
A, B, C = (bytes((0x52, 0x54, 0, 0, 0, number)) for number in (1, 2, 3))


def frame(destination, source, text=b"", length=60):
    return (destination + source + b"\x08\x00" + text).ljust(length, b"\0")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "switch")


@pytest.fixture
def join(path):
    """Joins the switch, any number of times."""
    joined = []

    def one():
        joined.append(join_switch(path))
        return joined[-1]

    yield one
    for port in joined:
        port.close()


def receive(port, limit=5.0):
    """The next frame of a port, or b"" if none comes in `limit` seconds."""
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        got = port.receive()
        if got is not None:
            return bytes(got)
        poll = select.poll()
        poll.register(port.fileno(), select.POLLIN)
        poll.poll(left * 1000)
    return b""


def send(port, data, limit=5.0):
    deadline = time.monotonic() + limit
    while not port.send(memoryview(data)):
        assert time.monotonic() < deadline
        poll = select.poll()
        poll.register(port.fileno(), select.POLLOUT)
        poll.poll(100)


def learn(*ports):
    """Have the switch know behind which port each address is: pairs of a port and its address."""
    for port, address in ports:
        send(port, frame(BROADCAST, address))
        for other, _ in ports:
            if other is not port:
                assert receive(other) == frame(BROADCAST, address)


# --- Frames ----------------------------------------------------------------------------------------------------------


def test_unknown_and_group_addresses_reach_all_known_ones_theirs(join):
    a, b, c = join(), join(), join()
    send(a, frame(B, A))
    assert receive(b) == receive(c) == frame(B, A)
    send(b, frame(A, B))
    assert receive(a) == frame(A, B)
    send(a, frame(B, A, b"again"))
    send(a, frame(BROADCAST, A))
    assert receive(b) == frame(B, A, b"again") and receive(b) == frame(BROADCAST, A)
    assert receive(c) == frame(BROADCAST, A)
    assert receive(a, 0.05) == b""


def test_an_address_that_moves_is_found_again(join):
    a, b, c = join(), join(), join()
    learn((a, A), (b, B), (c, C))
    send(c, frame(BROADCAST, B))
    assert receive(a) == receive(b) == frame(BROADCAST, B)
    send(a, frame(B, A))
    assert receive(c) == frame(B, A) and receive(b, 0.05) == b""


def test_a_frame_for_the_port_it_comes_from_goes_nowhere(join):
    a, b = join(), join()
    learn((a, A), (b, B))
    send(a, frame(A, A))
    send(a, frame(B, A))
    assert receive(b) == frame(B, A) and receive(a, 0.05) == b""


def test_an_address_is_forgotten_with_its_port(join):
    a, b, c = join(), join(), join()
    learn((a, A), (b, B))
    receive(c), receive(c)
    b.close()
    wait_for(lambda: a.server.ports == 2, "the switch to see that a port has gone")
    send(a, frame(B, A))
    assert receive(c) == frame(B, A)


def test_addresses_are_bounded(join, monkeypatch):
    monkeypatch.setattr(switchserver, "ADDRESSES", 4)
    a, b = join(), join()
    for number in range(10):
        send(a, frame(B, bytes((2, 0, 0, 0, 0, number))))
        receive(b)
    assert len(a.server._addresses) == 4


def test_frames_of_every_length_come_whole_and_in_order(join):
    a, b = join(), join()
    learn((a, A), (b, B))
    lengths = [14, 15, 60, 1514, 9000, 65550, 65589, 14] * 20
    sender = threading.Thread(target=lambda: [send(a, frame(B, A, b"", length)) for length in lengths])
    sender.start()
    assert [len(receive(b)) for _ in lengths] == lengths
    sender.join()


# --- Back-pressure ---------------------------------------------------------------------------------------------------


def fill(port, data):
    """Offer frames until no more are taken; how many were."""
    taken = 0
    poll = select.poll()
    poll.register(port.fileno(), select.POLLOUT)
    while True:
        while port.send(memoryview(data)):
            taken += 1
        if not poll.poll(100):
            return taken


def test_a_full_port_slows_its_senders_down_and_loses_nothing(join):
    a, b = join(), join()
    learn((a, A), (b, B))
    data = frame(B, A, b"", 1514)
    taken = fill(a, data)
    assert QUEUE // 1514 < taken < 5 * QUEUE // 1514
    for _ in range(taken):
        assert receive(b) == data
    assert receive(b, 0.01) == b"" and a.server.dropped == 0
    assert a.send(memoryview(data)), "the frame that was offered last"
    assert receive(b) == data


def test_a_full_port_does_not_stop_the_others(join):
    a, b, c = join(), join(), join()
    learn((a, A), (b, B), (c, C))
    fill(a, frame(B, A, b"", 1514))
    send(c, frame(A, C))
    assert receive(a) == frame(A, C)


def test_a_port_that_takes_nothing_loses_its_frames_after_a_while_and_only_it(join, monkeypatch):
    monkeypatch.setattr(switchserver, "PATIENCE", 0.05)
    a, b, c = join(), join(), join()
    learn((a, A), (b, B), (c, C))
    total = 1000
    for number in range(total):
        send(a, frame(B, A, number.to_bytes(4, "big"), 1514))
    send(a, frame(C, A))
    assert receive(c) == frame(C, A)
    wait_for(lambda: a.server.dropped, "frames to be dropped")
    got = []
    while data := receive(b, 0.1):
        got.append(int.from_bytes(data[14:18], "big"))
    assert got == sorted(got) and len(got) + a.server.dropped == total
    send(a, frame(B, A, b"later"))
    assert receive(b) == frame(B, A, b"later")


def test_a_host_that_slept_has_not_made_its_ports_wait(join, monkeypatch):
    a, b = join(), join()
    learn((a, A), (b, B))
    slept = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + slept, sleep=time.sleep)
    monkeypatch.setattr(switchserver, "time", clock)
    taken = fill(a, frame(B, A, b"", 1514))
    slept = 100.0
    time.sleep(0.25)
    for _ in range(taken):
        assert receive(b)
    assert a.server.dropped == 0


# --- Who serves it ---------------------------------------------------------------------------------------------------


def test_the_first_serves_and_the_file_is_its_own_alone(join, path):
    old = os.umask(0)
    try:
        a, b = join(), join()
    finally:
        os.umask(old)
    assert a.server is not None and b.server is None
    made = os.stat(path)
    assert stat.S_ISSOCK(made.st_mode) and stat.S_IMODE(made.st_mode) == 0o600
    assert os.listdir(os.path.dirname(path)) == ["switch"]


def test_nothing_is_left_behind(join, path):
    a, b = join(), join()
    b.close()
    assert os.path.exists(path)
    a.close()
    a.close()
    assert os.listdir(os.path.dirname(path)) == []
    assert a.fileno() == -1


def test_another_takes_over_when_the_server_leaves(join, path):
    a, b, c = join(), join(), join()
    learn((a, A), (b, B), (c, C))
    a.close()
    for port in (b, c):
        assert port.receive() is None
        wait_for(lambda port=port: port.receive() is None and port.fileno() >= 0, "a new switch")
    wait_for(lambda: b.receive() is None and (b.server or c.server) and (b.server or c.server).ports == 2, "both")
    send(b, frame(C, B))
    assert receive(c) == frame(C, B)
    assert (b.server is None) != (c.server is None) and os.path.exists(path)


def test_a_frame_sent_in_part_when_the_server_leaves_goes_to_the_next_whole(join):
    a, b, c = join(), join(), join()
    learn((a, A), (b, B), (c, C))
    data = frame(C, B, b"", 65000)
    fill(b, data)
    a.close()
    deadline = time.monotonic() + 5
    while c.server is None:
        assert time.monotonic() < deadline
        got = c.receive()
        assert got is None or bytes(got) == data
    send(b, data)
    assert receive(c) == data


def test_what_was_sent_before_the_server_leaves_is_still_delivered(join):
    a, b, c = join(), join(), join()
    learn((a, A), (b, B), (c, C))
    for number in range(100):
        send(b, frame(C, B, bytes([number])))
    a.close()
    assert [receive(c)[14] for _ in range(100)] == list(range(100))


SERVE = """
import sys, time
from pyvmm.backends.net.switch import join_switch
port = join_switch(sys.argv[1])
print(port.server is not None, flush=True)
time.sleep(60)
"""


def test_a_server_that_is_killed_is_replaced(join, path):
    process = subprocess.Popen([sys.executable, "-c", SERVE, path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "True\n"
        a, b = join(), join()
        assert a.server is b.server is None
        learn((a, A), (b, B))
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    wait_for(lambda: (a.receive(), b.receive()) == (None, None) and (a.server or b.server), "a new switch")
    learn((a, A), (b, B))
    assert (a.server is None) != (b.server is None)


def test_a_stale_socket_is_replaced(join, path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(path)
    stale.close()
    assert join().server is not None


def test_of_many_that_come_at_once_one_serves(path):
    ports, failures = [], []

    def one():
        try:
            ports.append(join_switch(path))
        except Exception as error:
            failures.append(error)

    callers = [threading.Thread(target=one) for _ in range(16)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert failures == [] and sum(port.server is not None for port in ports) == 1
    for port in ports:
        port.close()


def test_a_switch_that_hangs_up_again_and_again_is_no_network(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(100)

    def refuse():
        try:
            while True:
                listener.accept()[0].close()
        except OSError:
            pass

    threading.Thread(target=refuse, daemon=True).start()
    port = join_switch(path)
    with pytest.raises(BackendError, match="keeps hanging up"):
        while True:
            port.receive()
    assert port.fileno() == -1
    port.close()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.mark.needs("unprivileged")
def test_users_without_privilege_have_a_switch(join):
    a, b = join(), join()
    learn((a, A), (b, B))
    send(a, frame(B, A))
    assert receive(b) == frame(B, A)


@pytest.mark.needs("unprivileged")
def test_somebody_else_s_switch_is_not_joined(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0)
        listener.listen()
        with pytest.raises(BackendError, match="Permission denied"):
            join_switch(path)


# --- Bad peers and bad places ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 13, 65590, 0xFFFFFFFF])
def test_a_peer_that_speaks_something_else_is_hung_up_on_alone(join, path, length):
    a, b = join(), join()
    learn((a, A), (b, B))
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(path)
        bad.sendall(length.to_bytes(4, "big") + bytes(20))
        bad.settimeout(5)
        try:
            assert bad.recv(1) == b""
        except ConnectionResetError:
            pass
    send(a, frame(B, A))
    assert receive(b) == frame(B, A)


def test_a_peer_that_leaves_in_the_middle_of_a_frame_harms_nobody(join, path):
    a, b = join(), join()
    learn((a, A), (b, B))
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(path)
        bad.sendall((1000).to_bytes(4, "big") + bytes(20))
    send(a, frame(B, A))
    assert receive(b) == frame(B, A)
    wait_for(lambda: a.server.ports == 2, "the peer to be forgotten")


def test_a_peer_that_vanishes_while_its_frame_waits_costs_no_cpu(join, path):
    a, b = join(), join()
    learn((a, A), (b, B))
    with socket.socket(socket.AF_UNIX) as bad:
        bad.connect(path)
        stream = FrameStream(bad)
        fill(a, frame(B, A, b"", 1514))
        stream.send(memoryview(frame(B, C, b"", 1514)))
        time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - before < 0.05
    while receive(b, 0.1):
        pass
    wait_for(lambda: a.server.ports == 2, "the peer to be forgotten")


def test_ports_are_bounded(join, path, monkeypatch):
    monkeypatch.setattr(switchserver, "PORTS", 3)
    a, _, _ = join(), join(), join()
    wait_for(lambda: a.server.ports == 3, "three ports")
    with socket.socket(socket.AF_UNIX) as further:
        further.connect(path)
        further.settimeout(5)
        assert further.recv(1) == b""
    assert PORTS > 3


def test_bad_places_get_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path, kind, text in (
        (tmp_path / "file", BackendError, "exists and is not a socket"),
        (tmp_path / "none" / "s", BackendError, "No such file or directory"),
        (tmp_path / "file" / "s", BackendError, "Not a directory"),
        (tmp_path, BackendError, "exists and is not a socket"),
        (tmp_path / ("x" * PATH_MAX), UsageError, f"{PATH_MAX} at most"),
    ):
        with pytest.raises(kind, match=text):
            join_switch(path)
    assert (tmp_path / "file").exists()


def test_a_socket_of_another_kind_is_left_alone(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(path)
        with pytest.raises(BackendError, match="switch .*wrong type"):
            join_switch(path)
    assert os.path.exists(path)


def test_a_server_that_does_not_answer_is_named(path, monkeypatch):
    monkeypatch.setattr(switch_module, "ANSWER", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(path)
            with pytest.raises(BackendError, match="does not answer"):
                join_switch(path)


def test_nothing_of_a_switch_is_left_that_could_not_start(path, monkeypatch):
    def refuse(listener):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(switch_module, "SwitchServer", refuse)
    with pytest.raises(BackendError, match="Too many open files"):
        join_switch(path)
    assert not os.path.exists(path)


# --- Two devices -----------------------------------------------------------------------------------------------------

FRAMES = 10_000


class Machine:
    """A device on the switch, served by a data plane, and a driver for it."""

    def __init__(self, path, mac):
        self.mac = mac
        self.device = VirtioNet(join_switch(path), mac=mac)
        self.driver = Driver(self.device, ram=8 << 20)
        self.plane = DataPlane(self.device, self.driver.transport)
        self.plane.start()
        self.driver.bring_up(size=256)
        self.buffers = {}
        self.got = []

    def post(self):
        """Give the device all the receive buffers that there are."""
        ring = self.driver.rings[RECEIVE]
        while ring.free:
            ring.add(self.driver.heap, writable=[1526], publish=False)
        ring.publish()
        self.driver.kick(RECEIVE)

    def collect(self):
        ring = self.driver.rings[RECEIVE]
        for head, written in ring.used():
            self.got.append(self.driver.memory.read(ring.chains[head][1][0][0], written)[12:])

    def state(self):
        """What to know of a machine that waits for frames in vain."""
        device, server = self.device, self.device._backend.server
        rings = [(ring.avail, ring.seen, ring.used_index, len(ring.free)) for ring in self.driver.rings]
        ports = server and [(len(port.out), port.held, port.watched) for port in server._ports.values()]
        return len(self.got), device.counts, device.error, rings, device.sources(), ports, server and server.dropped

    def close(self):
        self.driver.put("Status", 0)
        self.plane.close()
        self.driver.close()


def test_two_devices_lose_none_of_ten_thousand_frames_each_way(path):
    machines = one, two = Machine(path, A), Machine(path, B)
    sent = [0, 0]
    for machine in machines:
        machine.post()
    deadline = time.monotonic() + 60
    while any(len(machine.got) < FRAMES for machine in machines):
        assert time.monotonic() < deadline, [machine.state() for machine in machines]
        for number, (machine, other) in enumerate(((one, two), (two, one))):
            ring = machine.driver.rings[TRANSMIT]
            ring.used()
            queued = 0
            while len(ring.free) and sent[number] < FRAMES and queued < 64:
                data = frame(other.mac, machine.mac, sent[number].to_bytes(4, "big"), 60 + sent[number] % 1455)
                ring.add(machine.driver.heap, [bytes(12) + data], publish=False)
                sent[number] += 1
                queued += 1
            if queued:
                ring.publish()
                machine.driver.kick(TRANSMIT)
            machine.collect()
            if len(machine.driver.rings[RECEIVE].free) > 128:
                machine.post()
        time.sleep(0)
    for machine, other in ((one, two), (two, one)):
        for number, data in enumerate(machine.got):
            assert data == frame(machine.mac, other.mac, number.to_bytes(4, "big"), 60 + number % 1455)
    assert all(not any(machine.device.counts[reason] for reason in VirtioNet.DROPS) for machine in machines)
    for machine in machines:
        machine.close()
