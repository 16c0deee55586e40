"""The socket device when there is much of something: streams, data, packets, and buffers, or none of those."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import socket
import stat
import threading
import time

import pytest

from pyvmm.backends import vsock as sockets
from pyvmm.backends.listener import PATH_MAX
from pyvmm.backends.vsock import SUFFIX, open_vsock
from pyvmm.errors import BackendError
from pyvmm.virtio import spec, vsock
from pyvmm.virtio.plane import DataPlane
from pyvmm.virtio.vsock import BUDGET, EVENT, MAX_RESETS, RX, TX, VirtioVsock
from pyvmm.virtio.vsocktable import MAX_STREAMS
from tests.support.clock import stop_clock
from tests.support.headers import macros
from tests.support.vsockdriver import Guest, accept, call, listen

BOTH = spec.VSOCK_SHUTDOWN_RECEIVE | spec.VSOCK_SHUTDOWN_SEND


@pytest.fixture
def clock(monkeypatch):
    return stop_clock(monkeypatch, vsock, sockets)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vm.vsock"


@pytest.fixture
def guest(path, clock):
    guest = Guest(VirtioVsock(open_vsock(path)))
    yield guest
    guest.close()


@pytest.fixture
def server(path):
    with listen(f"{path}_52", backlog=2 * MAX_STREAMS) as listener:
        yield listener


def names(packets):
    return [packet.name for packet in packets]


def opened(guest, server, guest_port=1000):
    """Both ends of a new stream are connected; the host's."""
    assert guest.connect(guest_port).name == "RESPONSE"
    return accept(server)


def works(guest, server):
    with opened(guest, server, 7777) as host:
        guest.send("RW", 7777, data=b"question")
        assert host.recv(100) == b"question"
        host.sendall(b"answer")
        assert [packet.data for packet in guest.get()] == [b"answer"]
        guest.send("RST", 7777)


# --- Buffers ---------------------------------------------------------------------------------------------------------


def test_without_buffers_everything_waits_for_them(guest, server):
    host = opened(guest, server)
    guest.received(again=False)
    guest.bring_up(0)
    guest.send("REQUEST")
    host = accept(server)
    guest.run()
    host.sendall(b"hello")
    assert guest.run() < 5, "nothing is due while nothing can be done"
    assert guest.received() == []
    guest.provide(1)
    guest.run()
    assert names(guest.received(again=False)) == ["RESPONSE"]
    assert guest.run() == 0
    guest.provide(1)
    assert [packet.data for packet in guest.get()] == [b"hello"]
    host.close()


def test_packets_are_taken_while_none_can_be_sent(guest, server):
    """virtio 1.3, 5.10.6.1.2: tx MUST be processed even when rx is full, as long as there are resources."""
    guest.bring_up(0)
    guest.send("REQUEST")
    host = accept(server)
    for number in range(200):
        guest.send("RW", data=b"%03d" % number)
        guest.send("CREDIT_REQUEST")
        guest.send("REQUEST", 3000 + number, 99)
    assert host.recv(1000) == b"".join(b"%03d" % number for number in range(200))
    guest.provide(16)
    packets = guest.get()
    assert names(packets).count("RST") == 200 and names(packets).count("RESPONSE") == 1
    assert names(packets).count("CREDIT_UPDATE") <= 1
    host.close()


def test_a_driver_that_takes_no_answers_is_not_heard_for_ever(guest, server):
    """virtio 1.3, 5.10.6.1: what is held outside the queues is bounded, and it goes on when the driver does."""
    guest.bring_up(0)
    ring = guest.driver.rings[TX]
    sent = 0
    while sent - (guest.rings - len(ring.free)) < 2 * MAX_RESETS and ring.free:
        guest.send("RW", sent, 99)
        sent += 1
        ring.used()
        assert sent < 3 * MAX_RESETS, "it takes them for ever"
    assert len(guest.device._out.resets) == MAX_RESETS
    assert sent == MAX_RESETS + guest.rings and not ring.used()
    assert guest.run() == 0, "and waits quietly"
    guest.driver.kick(TX)
    assert guest.run() == 0 and not ring.used()
    guest.provide(16)
    packets = guest.get()
    assert sorted(packet.dst_port for packet in packets) == list(range(sent)) and set(names(packets)) == {"RST"}
    works(guest, server)


def test_buffers_without_room_are_given_back_empty(guest, server):
    guest.bring_up(0)
    for size in (0, 1, 43):
        guest.provide(1, size)
    guest.provide(2)
    with opened(guest, server) as host:
        assert guest.device.error == ""
        host.sendall(b"hello")
        assert [packet.data for packet in guest.get()] == [b"hello"]


def test_buffers_that_hold_a_header_alone_get_no_data(guest, server):
    guest.bring_up(0)
    guest.provide(40, 44)
    guest.send("REQUEST")
    host = accept(server)
    guest.run()
    assert names(guest.received(again=False)) == ["RESPONSE"]
    host.sendall(b"hello")
    guest.run()
    guest.provide(2)
    guest.run()
    assert [packet.data for packet in guest.received()] == [b"hello"]
    host.close()


def test_a_buffer_may_come_in_pieces(guest, server):
    guest.bring_up(0)
    ring = guest.driver.rings[RX]
    for _ in range(6):
        ring.add(guest.driver.heap, [], [10, 30, 5, 100, 1, 60])
    guest.driver.kick(RX)
    host = opened(guest, server)
    data = bytes(range(256)) * 2
    host.sendall(data)
    packets = guest.get()
    assert [packet.length for packet in packets] == [162, 162, 162, 26]
    assert b"".join(packet.data for packet in packets) == data
    host.close()


def test_buffers_of_a_queue_that_was_taken_out_of_use_are_left_alone(guest, server):
    host = opened(guest, server)
    for _ in range(3):  # it looks ahead by now
        host.sendall(bytes(60000))
        guest.get()
    guest.driver.put("QueueSel", RX)
    guest.driver.put("QueueReady", 0)
    host.sendall(b"\x01" * 60000)
    guest.send("CREDIT_REQUEST")
    guest.run()
    assert b"\x01" * 64 not in guest.driver.memory.read(0, 4 << 20)
    guest.bring_up()
    works(guest, server)
    host.close()


# --- Many streams ----------------------------------------------------------------------------------------------------


def test_a_hundred_streams_at_once(guest, server):
    """Each gets its own bytes, both ways, in order; those who wait do not hold up the others."""
    hosts = {port: opened(guest, server, port) for port in range(100)}
    chance = random.Random(5)
    said = {port: bytearray() for port in hosts}
    heard = {port: bytearray() for port in hosts}
    read = {port: bytearray() for port in hosts}
    written = {port: bytearray() for port in hosts}
    for _ in range(600):
        port = chance.randrange(100)
        data = chance.randbytes(chance.randrange(1, 3000))
        if chance.random() < 0.5:
            guest.send("RW", port, data=data, fwd_cnt=len(heard[port]))
            said[port] += data
        else:
            hosts[port].sendall(data)
            written[port] += data
        if chance.random() < 0.2:
            for packet in guest.get():
                heard[packet.dst_port] += packet.data
    for packet in guest.get():
        heard[packet.dst_port] += packet.data
    for port, host in hosts.items():
        host.settimeout(0)
        while len(read[port]) < len(said[port]):
            read[port] += host.recv(1 << 20)
        host.close()
    assert read == said and heard == written


def test_streams_are_bounded_and_too_many_are_refused(path, server, clock):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    told = []
    guest = Guest(VirtioVsock(open_vsock(path), report=told.append))
    try:
        hosts = [opened(guest, server, port) for port in range(MAX_STREAMS)]
        assert told == []
        for port in (5000, 5001):
            assert guest.connect(port).name == "RST"
        with call(path, 80) as caller:
            assert guest.get() == [] and caller.recv(10) == b""
        assert told == ["1024 streams are all that there can be: others are refused"]
        hosts.pop().close()
        guest.get()
        guest.send("RST", MAX_STREAMS - 1)
        works(guest, server)
        began = time.process_time()
        for host in hosts:
            host.sendall(b"x")
        assert len(guest.get()) == len(hosts)
        assert time.process_time() - began < 5
        for host in hosts:
            host.close()
    finally:
        guest.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_stream_that_the_process_has_no_descriptor_for_is_refused(guest, server):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    # What the test itself waits with needs none.
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        guest.send("REQUEST")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert names(guest.get()) == ["RST"]
    works(guest, server)


def test_a_caller_that_the_process_has_no_descriptor_for_waits_and_costs_nothing(guest, path, clock):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with call(path, 80) as caller:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            assert guest.run() < 5
            clock.now += sockets.FULL
            assert guest.run() < 5
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert guest.get() == []
        clock.now += sockets.FULL
        assert names(guest.get()) == ["REQUEST"]
        assert caller.fileno() >= 0


def test_a_guest_that_connects_and_sends_without_end_makes_nothing_grow(guest, path, server):
    """Known of other VMMs: requests in flight without a bound (CVE-2016-5403)."""
    device = guest.device
    with listen(f"{path}_60", backlog=0):
        for number in range(4000):
            port = number % 3000
            guest.send("REQUEST", port, 60)
            guest.send("REQUEST", port, 99)
            guest.send("RW", port, 60, data=bytes(3000))
            if number % 3:
                guest.send("RST", port, 60)
            while len(guest.driver.rings[TX].free) < 8:  # it waits for its answers to be taken
                guest.received()
                guest.run()
                guest.driver.rings[TX].used()
        assert len(device._streams.every()) <= MAX_STREAMS
        assert len(device._out.resets) <= MAX_RESETS + MAX_STREAMS
        assert len(device._timers._periods) <= len(device._streams.every())
        guest.get()
        for stream in device._streams.every():
            guest.send("RST", stream.guest_port, 60)
        guest.get()
    assert device._streams.every() == [] and not device._timers._periods and not device._out._streams
    assert device._streams._promised == 0 and device.next_deadline() is None
    assert device._sockets._streams == {}
    works(guest, server)


def test_a_long_batch_lets_others_have_their_turn(guest, server):
    """A driver that always adds packets would have the device never look at anything else."""
    guest.rings = 256
    guest.bring_up(16)
    served = []
    original = guest.device._packet

    def endless(chain):
        served.append(chain)
        original(chain)
        if len(served) < 3 * BUDGET:
            ring = guest.driver.rings[TX]
            ring.used()
            ring.add(guest.driver.heap, [bytes(10)])

    guest.device._packet = endless
    guest.raw(bytes(10))
    assert len(served) == BUDGET and guest.device.next_deadline() == 0.0
    guest.run()
    assert len(served) == 3 * BUDGET


# --- Much data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("megabytes", [6, pytest.param(64, marks=pytest.mark.soak)])
def test_much_data_both_ways_at_once(guest, server, megabytes):
    """Checksummed; the guest's room is 64 KiB, and the host is as slow as it likes."""
    size = megabytes << 20
    chance = random.Random(6)
    blocks = [chance.randbytes(48 << 10) for _ in range(7)]
    room = 64 << 10
    assert guest.connect(buf_alloc=room).name == "RESPONSE"
    host = accept(server)
    host.settimeout(0)
    sums = {name: hashlib.sha256() for name in ("said", "heard", "written", "read")}
    said = read = heard = written = fwd = 0
    [stream] = guest.device._streams.every()
    alloc, credit = stream.window, 0
    unsent = b""
    while read < size or heard < size:
        if said < size and said - credit + len(blocks[0]) <= alloc:
            block = blocks[chance.randrange(7)][: size - said]
            guest.send("RW", data=block, buf_alloc=room, fwd_cnt=fwd & 0xFFFFFFFF)
            sums["said"].update(block)
            said += len(block)
        if written < size or unsent:
            unsent = unsent or blocks[chance.randrange(7)][: size - written]
            try:
                done = host.send(unsent)
                sums["written"].update(unsent[:done])
                written += done
                unsent = b"" if written >= size else unsent[done:]
            except BlockingIOError:
                pass
        guest.run()
        for packet in guest.received():
            sums["heard"].update(packet.data)
            heard += len(packet.data)
            assert heard - fwd <= room, "more than there is room for"
            credit += (packet.fwd_cnt - credit) & 0xFFFFFFFF
        if heard - fwd > room // 2:
            fwd = heard
            guest.send("CREDIT_UPDATE", buf_alloc=room, fwd_cnt=fwd & 0xFFFFFFFF)
        if chance.random() < 0.7:
            try:
                data = host.recv(chance.choice((1000, 100_000, 1 << 20)))
                sums["read"].update(data)
                read += len(data)
            except BlockingIOError:
                pass
    assert (said, written) == (size, size)
    assert sums["said"].digest() == sums["read"].digest() and sums["written"].digest() == sums["heard"].digest()
    host.close()


def test_a_data_plane_serves_it(path, server):
    """With a thread of its own, and nobody who helps: echo by the host."""
    device = VirtioVsock(open_vsock(path))
    guest = Guest(device)
    plane = DataPlane(device, guest.driver.transport)
    plane.start()

    def echo():
        with accept(server) as host:
            while data := host.recv(1 << 16):
                host.sendall(data)

    thread = threading.Thread(target=echo)
    thread.start()
    guest.send("REQUEST")
    got, packets, sent = bytearray(), [], b""
    deadline = time.monotonic() + 20
    while len(got) < 50_000:
        assert time.monotonic() < deadline
        for packet in guest.received():
            packets.append(packet.name)
            got += packet.data
            if packet.name == "RESPONSE":
                sent = random.Random(7).randbytes(50_000)
                guest.send("RW", data=sent)
        time.sleep(0.001)
    guest.send("SHUTDOWN", flags=spec.VSOCK_SHUTDOWN_SEND)
    while "SHUTDOWN" not in packets:
        assert time.monotonic() < deadline
        packets += names(guest.received())
        time.sleep(0.001)
    thread.join(20)
    assert got == sent and not thread.is_alive()
    plane.close()
    guest.close()


# --- Resets ----------------------------------------------------------------------------------------------------------


def test_a_reset_hangs_up_on_every_host_and_nothing_lands_after_it(guest, server, path):
    hosts = [opened(guest, server, port) for port in range(5)]
    caller = call(path, 80)
    guest.get()
    hosts[0].sendall(b"hello")
    guest.driver.put("Status", 0)
    before = guest.driver.memory.read(0, 4 << 20)
    for host in (*hosts[1:], caller):
        assert host.recv(10) == b""
    assert guest.driver.memory.read(0, 4 << 20) == before
    assert guest.device._streams.every() == [] and guest.device.next_deadline() is None
    guest.bring_up()
    assert guest.get() == []
    works(guest, server)
    for host in (*hosts, caller):
        host.close()


def test_a_transport_reset_ends_all_streams_and_tells_the_driver(guest, server, path):
    """virtio 1.3, 5.10.6.7: the event's id; established connections end, the device goes on."""
    host = opened(guest, server)
    caller = call(path, 80)
    guest.get()
    guest.events()
    guest.device.transport_reset()
    ring = guest.driver.rings[EVENT]
    [(head, written)] = ring.used()
    assert written == 4 and ring.written(head) == spec.VSOCK_EVENT_TRANSPORT_RESET.to_bytes(4, "little")
    assert host.recv(10) == b"" == caller.recv(10)
    assert guest.get() == []
    works(guest, server)
    for each in (host, caller):
        each.close()


def test_an_event_waits_for_a_buffer_that_has_room_for_it(guest):
    guest.device.transport_reset()
    guest.device.transport_reset()
    guest.events(1, 3)
    ring = guest.driver.rings[EVENT]
    assert [written for _, written in ring.used()] == [0]
    guest.events(1, 8)
    assert [written for _, written in ring.used()] == [4]
    guest.events(1)
    assert ring.used() == [], "once is enough"


def test_no_event_is_kept_for_a_driver_that_is_not_there(guest):
    guest.driver.put("Status", 0)
    guest.device.transport_reset()
    guest.bring_up()
    guest.events()
    assert guest.driver.rings[EVENT].used() == []
    guest.device.transport_reset()
    assert len(guest.driver.rings[EVENT].used()) == 1


# --- The host's side -------------------------------------------------------------------------------------------------


def test_only_the_owner_may_connect_and_the_name_goes_with_the_device(path, clock):
    guest = Guest(VirtioVsock(open_vsock(path)))
    made = os.stat(path)
    assert stat.S_ISSOCK(made.st_mode) and stat.S_IMODE(made.st_mode) == 0o600
    guest.close()
    assert not path.exists()
    guest.device.close()


def test_the_name_can_be_removed_in_a_hurry(path):
    backend = open_vsock(path)
    backend.restore()
    assert not path.exists()
    backend.close()


def test_a_stale_socket_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    open_vsock(path).close()
    assert not path.exists()


def test_what_is_there_is_left_alone(path, tmp_path):
    first = open_vsock(path)
    with pytest.raises(BackendError, match="--vsock: another process listens at "):
        open_vsock(path)
    first.close()
    path.write_text("precious")
    with pytest.raises(BackendError, match="--vsock: .* exists and is not a socket"):
        open_vsock(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("folder", ["/nowhere", "/proc"])
def test_a_socket_that_cannot_be_made_is_named(folder):
    with pytest.raises(BackendError, match=f"--vsock: cannot listen at {folder}/vsock: "):
        open_vsock(f"{folder}/vsock")


def test_a_path_that_leaves_no_room_for_ports_is_said_to_be_too_long(tmp_path):
    limit = PATH_MAX - SUFFIX
    path = str(tmp_path / "x").ljust(limit, "x")
    open_vsock(path).close()
    with pytest.raises(BackendError, match=f"too long: {limit + 1} bytes, expected {limit} at most"):
        open_vsock(path + "x")


def test_a_relative_path_stays_where_it_was(tmp_path, monkeypatch, clock):
    monkeypatch.chdir(tmp_path)
    guest = Guest(VirtioVsock(open_vsock("vm")))
    monkeypatch.chdir("/")
    with listen(tmp_path / "vm_52") as listener:
        opened(guest, listener).close()
    guest.close()
    assert not (tmp_path / "vm").exists()


def test_the_highest_port_has_a_path(guest, path):
    with listen(f"{path}_4294967294") as listener:
        assert guest.connect(1, 0xFFFFFFFE).name == "RESPONSE"
        accept(listener).close()


# --- Second sources --------------------------------------------------------------------------------------------------


@pytest.mark.needs("gcc")
def test_the_numbers_are_those_of_the_system_headers(tmp_path):
    mine = {
        "VIRTIO_VSOCK_F_SEQPACKET": spec.VSOCK_F_SEQPACKET,
        "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET": spec.VSOCK_EVENT_TRANSPORT_RESET,
        "VIRTIO_VSOCK_TYPE_STREAM": spec.VSOCK_TYPE_STREAM,
        "VIRTIO_VSOCK_TYPE_SEQPACKET": spec.VSOCK_TYPE_SEQPACKET,
        "VIRTIO_VSOCK_OP_INVALID": spec.VSOCK_OP_INVALID,
        "VIRTIO_VSOCK_OP_REQUEST": spec.VSOCK_OP_REQUEST,
        "VIRTIO_VSOCK_OP_RESPONSE": spec.VSOCK_OP_RESPONSE,
        "VIRTIO_VSOCK_OP_RST": spec.VSOCK_OP_RST,
        "VIRTIO_VSOCK_OP_SHUTDOWN": spec.VSOCK_OP_SHUTDOWN,
        "VIRTIO_VSOCK_OP_RW": spec.VSOCK_OP_RW,
        "VIRTIO_VSOCK_OP_CREDIT_UPDATE": spec.VSOCK_OP_CREDIT_UPDATE,
        "VIRTIO_VSOCK_OP_CREDIT_REQUEST": spec.VSOCK_OP_CREDIT_REQUEST,
        "VIRTIO_VSOCK_SHUTDOWN_RCV": spec.VSOCK_SHUTDOWN_RECEIVE,
        "VIRTIO_VSOCK_SHUTDOWN_SEND": spec.VSOCK_SHUTDOWN_SEND,
        "sizeof(struct virtio_vsock_hdr)": vsock.HEADER_LENGTH,
    }
    assert macros(tmp_path, "linux/virtio_vsock.h", list(mine)) == mine
    ours = {"VMADDR_CID_HOST": spec.VSOCK_HOST_CID, "VMADDR_PORT_ANY": spec.VSOCK_ANY}
    assert macros(tmp_path, "linux/vm_sockets.h", list(ours)) == ours
