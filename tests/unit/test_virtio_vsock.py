"""The socket device with real sockets: connections both ways, credit, half-close, and what bad drivers come to."""

from __future__ import annotations

import socket

import pytest

from pyvmm.backends import vsock as sockets
from pyvmm.backends.vsock import open_vsock
from pyvmm.errors import UsageError
from pyvmm.virtio import spec, vsock, vsocktable
from pyvmm.virtio.vsock import ASK_AGAIN, LINGER, PATIENCE, RETRY, TX, VirtioVsock
from pyvmm.virtio.vsocktable import MAX_STREAMS, SMALL_WINDOW, WINDOW
from tests.support.clock import stop_clock
from tests.support.vsockdriver import ALLOC, CID, Guest, accept, call, listen

RECEIVE, SEND = spec.VSOCK_SHUTDOWN_RECEIVE, spec.VSOCK_SHUTDOWN_SEND


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
    with listen(f"{path}_52") as listener:
        yield listener


@pytest.fixture
def host(guest, server):
    """The host's end of a stream that the guest has opened, from port 1000 to 52."""
    assert guest.connect().name == "RESPONSE"
    connected = accept(server)
    with connected:
        yield connected


def names(packets):
    return [packet.name for packet in packets]


def works(guest, server, guest_port=7777):
    """A new stream carries bytes both ways and is closed."""
    assert guest.connect(guest_port).name == "RESPONSE"
    connected = accept(server)
    with connected:
        guest.send("RW", guest_port, data=b"question")
        assert connected.recv(100) == b"question"
        connected.sendall(b"answer")
        [packet] = guest.get()
        assert (packet.name, packet.data, packet.ports) == ("RW", b"answer", (guest_port, 52))
        guest.send("SHUTDOWN", guest_port, flags=RECEIVE | SEND)
        assert names(guest.get()) == ["RST"]
        assert connected.recv(1) == b""


def told(packets, name):
    """The one packet of that name."""
    [found] = [packet for packet in packets if packet.name == name]
    return found


# --- What it is ------------------------------------------------------------------------------------------------------


def test_it_is_a_socket_device(guest):
    """virtio 1.3, 5.10.1 to 5.10.4"""
    assert guest.driver.get("DeviceID") == 19 and len(guest.device.queues) == 3
    assert (guest.driver.config(0, 4), guest.driver.config(4, 4)) == (CID, 0)
    guest.driver.put_config(0, 4, 9)
    assert guest.driver.config(0, 4) == CID


def test_streams_are_offered_and_said_not_to_be_implied(guest):
    """virtio 1.3, 5.10.3.2: the device SHOULD offer NO_IMPLIED_STREAM."""
    offered = guest.driver.offered
    assert [
        offered >> bit & 1 for bit in (spec.VSOCK_F_STREAM, spec.VSOCK_F_SEQPACKET, spec.VSOCK_F_NO_IMPLIED_STREAM)
    ] == [
        1,
        0,
        1,
    ]


def test_streams_work_without_any_feature(guest, server):
    """virtio 1.3, 5.10.3.2: without features, as if STREAM had been negotiated."""
    guest.bring_up(without=(spec.VSOCK_F_STREAM, spec.VSOCK_F_NO_IMPLIED_STREAM))
    works(guest, server)


def test_a_driver_that_wants_no_streams_wants_nothing(guest):
    assert not guest.driver.negotiate(without=[spec.VSOCK_F_STREAM])
    assert guest.driver.negotiate()


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFFFFFF, 0x100000003, 0xFFFFFFFFFFFFFFFF])
def test_a_reserved_cid_is_refused(path, cid):
    """virtio 1.3, 5.10.6.4.2: guest_cid MUST NOT contain a reserved CID."""
    backend = open_vsock(path)
    with pytest.raises(UsageError, match=f"context ID {cid} .expected 3 to 4294967294"):
        VirtioVsock(backend, cid=cid)
    backend.close()


# --- The guest connects ----------------------------------------------------------------------------------------------


def test_the_guest_connects_to_the_host(guest, server):
    answer = guest.connect(1000, 52)
    assert (answer.name, answer.src_cid, answer.dst_cid, answer.ports) == ("RESPONSE", 2, CID, (1000, 52))
    assert (answer.type, answer.buf_alloc, answer.fwd_cnt) == (1, WINDOW, 0)
    accept(server).close()
    works(guest, server)


def test_a_port_that_nobody_listens_at_is_refused(guest, path, server):
    assert guest.connect(host_port=53).name == "RST"
    (path.parent / f"{path.name}_54").write_text("no socket")
    assert guest.connect(host_port=54).name == "RST"
    works(guest, server)


def test_bytes_pass_unchanged(guest, host):
    data = bytes(range(256)) * 64
    guest.send("RW", data=data)
    assert host.recv(1 << 20) == data
    host.sendall(data)
    packets = guest.get()
    assert set(names(packets)) == {"RW"} and b"".join(packet.data for packet in packets) == data


def test_a_host_whose_queue_is_full_is_asked_again(guest, path, clock):
    with listen(f"{path}_60", backlog=0) as busy:
        ports = range(2000, 2005)
        for port in ports:
            guest.send("REQUEST", port, 60)
        answered = {packet.dst_port: packet.name for packet in guest.get()}
        assert set(answered.values()) == {"RESPONSE"} and len(answered) < len(ports)
        held = []
        while len(answered) < len(ports):
            held.append(accept(busy))
            clock.now += RETRY
            for packet in guest.get():
                answered[packet.dst_port] = packet.name
        assert set(answered.values()) == {"RESPONSE"}
        for each in held:
            each.close()


def test_a_host_whose_queue_stays_full_is_given_up(guest, path, clock):
    with listen(f"{path}_60", backlog=0):
        for port in range(2000, 2005):
            guest.send("REQUEST", port, 60)
        waiting = 5 - len(guest.get())
        assert waiting > 0
        clock.now += 1.0
        assert guest.get() == []
        for _ in range(300):
            clock.now += RETRY
            guest.run()
        assert names(guest.get()) == ["RST"] * waiting
        assert guest.device.next_deadline() is None


def test_a_guest_that_gives_up_waiting_is_forgotten(guest, path, clock):
    with listen(f"{path}_60", backlog=0):
        for port in range(2000, 2005):
            guest.send("REQUEST", port, 60)
        guest.get()
        for port in range(2000, 2005):
            guest.send("RST", port, 60)
        assert guest.get() == [] and guest.device.next_deadline() is None


# --- The host connects -----------------------------------------------------------------------------------------------


def answer_call(guest, port=80):
    """Take the host's call; returns the ports."""
    request = told(guest.get(), "REQUEST")
    assert (request.src_cid, request.dst_cid, request.dst_port, request.type) == (2, CID, port, 1)
    guest.send("RESPONSE", port, request.src_port)
    return request.ports


def test_the_host_connects_to_the_guest(guest, path):
    with call(path, 80) as caller:
        ports = answer_call(guest)
        assert ports[1] >= 1 << 30
        assert caller.recv(100) == b"OK %d\n" % ports[1]
        caller.sendall(b"question")
        assert guest.get()[0].data == b"question"
        guest.send("RW", *ports, data=b"answer")
        assert caller.recv(100) == b"answer"


def test_what_a_caller_says_before_it_is_accepted_reaches_the_guest(guest, path):
    with call(path) as caller:
        caller.sendall(b"CONNECT 80\nearly")
        ports = answer_call(guest)
        assert [packet.data for packet in guest.get()] == [b"early"]
        assert caller.recv(100) == b"OK %d\n" % ports[1]


def test_a_caller_that_leaves_at_once_has_said_what_it_has_said(guest, path):
    with call(path) as caller:
        caller.sendall(b"CONNECT 80\nlast words")
    answer_call(guest)
    packets = guest.get()
    assert b"".join(packet.data for packet in packets) == b"last words"
    assert packets[-1].name == "SHUTDOWN" and packets[-1].flags == RECEIVE | SEND


def test_a_caller_that_the_guest_refuses_is_hung_up_on(guest, path, server):
    with call(path, 80) as caller:
        request = told(guest.get(), "REQUEST")
        guest.send("RST", *request.ports)
        assert caller.recv(100) == b""
    works(guest, server)


def test_a_caller_that_the_guest_does_not_answer_is_hung_up_on(guest, path, clock, server):
    with call(path, 80) as caller:
        guest.get()
        clock.now += PATIENCE
        assert names(guest.get()) == ["RST"]
        assert caller.recv(100) == b""
    works(guest, server)


def test_calls_to_one_port_have_ports_of_their_own(guest, path):
    callers = [call(path, 80) for _ in range(5)]
    requests = guest.get()
    assert names(requests) == ["REQUEST"] * 5 and len({packet.src_port for packet in requests}) == 5
    for caller in callers:
        caller.close()


def test_host_ports_go_round_and_pass_over_those_in_use(guest, path, monkeypatch):
    guest.device._streams._next_port = 0xFFFFFFFE
    first, second = call(path, 80), call(path, 80)
    assert [packet.src_port for packet in guest.get()] == [0xFFFFFFFE, 1 << 30]
    guest.device._streams._next_port = 0xFFFFFFFE
    third = call(path, 80)
    assert [packet.src_port for packet in guest.get()] == [(1 << 30) + 1]
    for caller in (first, second, third):
        caller.close()


@pytest.mark.parametrize(
    "line",
    [
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967295\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 80 81\n",
        b"HELLO 80\n",
        b"\n",
        b"\xff\xfe\n",
        b"C" * 32,
        b"CONNECT 80" + b" " * 40 + b"\n",
    ],
)
def test_a_caller_that_asks_for_nothing_sensible_is_hung_up_on(guest, path, server, line):
    with call(path) as caller:
        caller.sendall(line)
        assert guest.get() == []
        with pytest.raises(ConnectionResetError):
            assert caller.recv(100) == b""  # or so, when it had been read
            raise ConnectionResetError
    works(guest, server)


@pytest.mark.parametrize("line", [b"CONNECT 80\n", b"connect 80\r\n", b" Connect  0080 \n"])
def test_the_line_is_read_kindly(guest, path, line):
    with call(path) as caller:
        caller.sendall(line)
        answer_call(guest)
        assert caller.recv(100).startswith(b"OK ")


def test_the_line_may_come_byte_by_byte(guest, path):
    with call(path) as caller:
        for byte in b"CONNECT 80\n":
            assert guest.get() == []
            caller.sendall(bytes([byte]))
        answer_call(guest)
        assert caller.recv(100).startswith(b"OK ")


def test_a_caller_that_sends_no_line_is_hung_up_on_after_a_while(guest, path, clock):
    with call(path) as caller:
        caller.sendall(b"CONN")
        guest.run()
        clock.now += sockets.PATIENCE
        guest.run()
        with pytest.raises(ConnectionResetError):
            caller.recv(100)
        assert guest.device.next_deadline() is None


def test_a_caller_that_ends_before_its_line_does_is_hung_up_on(guest, path):
    with call(path) as caller:
        caller.sendall(b"CONN")
        caller.shutdown(socket.SHUT_WR)
        guest.run()
        with pytest.raises(ConnectionResetError):
            caller.recv(100)


def test_callers_without_a_line_are_bounded_and_others_have_their_turn(guest, path, clock):
    silent = [call(path) for _ in range(sockets.CALLERS)]
    guest.run()
    with call(path, 80) as caller:
        assert guest.get() == []
        silent.pop().close()
        ports = answer_call(guest)
        assert caller.recv(100).startswith(b"OK ")
        guest.send("RST", *ports)
    for each in silent:
        each.close()
    guest.run()
    assert guest.device.next_deadline() is None


def test_a_call_before_the_driver_is_up_waits_for_it(path, clock):
    guest = Guest(VirtioVsock(open_vsock(path)))
    guest.driver.put("Status", 0)
    with call(path, 80) as caller:
        guest.bring_up()
        answer_call(guest)
        assert caller.recv(100).startswith(b"OK ")
    guest.close()


# --- Credit ----------------------------------------------------------------------------------------------------------


def test_no_more_is_sent_than_the_peer_has_room_for(guest, server):
    """virtio 1.3, 5.10.6.3.2: data MUST only be transmitted when the peer has sufficient free buffer space."""
    guest.connect(buf_alloc=100)
    host = accept(server)
    with host:
        host.sendall(bytes(range(256)))
        packets = guest.get()
        assert b"".join(packet.data for packet in packets) == bytes(range(100))
        assert names(packets) == ["RW", "CREDIT_REQUEST"]
        guest.send("CREDIT_UPDATE", buf_alloc=100, fwd_cnt=30)
        packets = guest.get()
        assert b"".join(packet.data for packet in packets) == bytes(range(100, 130))
        guest.send("CREDIT_UPDATE", buf_alloc=150, fwd_cnt=130)
        assert b"".join(packet.data for packet in guest.get()) == bytes(range(130, 256))


def test_a_peer_without_room_is_asked_again_now_and_then(guest, server, clock):
    guest.connect(buf_alloc=0)
    host = accept(server)
    with host:
        host.sendall(b"hello")
        assert names(guest.get()) == ["CREDIT_REQUEST"]
        guest.send("CREDIT_UPDATE", buf_alloc=0)
        assert guest.get() == []
        clock.now += ASK_AGAIN
        assert names(guest.get()) == ["CREDIT_REQUEST"]
        guest.send("CREDIT_UPDATE", buf_alloc=5)
        assert [packet.data for packet in guest.get()] == [b"hello"]


def test_counters_wrap(guest, server):
    """virtio 1.3, 5.10.6.3: they are free-running, of 32 bits."""
    guest.connect(buf_alloc=100)
    host = accept(server)
    stream = guest.device._streams.find(1000, 52)
    stream._tx_cnt = stream._fwd_cnt = stream._told_fwd = 0xFFFFFFF0
    with host:
        guest.send("CREDIT_UPDATE", buf_alloc=100, fwd_cnt=0xFFFFFFF0)
        host.sendall(bytes(200))
        assert sum(len(packet.data) for packet in guest.get()) == 100
        guest.send("CREDIT_UPDATE", buf_alloc=100, fwd_cnt=(0xFFFFFFF0 + 100) & 0xFFFFFFFF)
        assert sum(len(packet.data) for packet in guest.get()) == 100
        guest.send("RW", data=bytes(32), buf_alloc=100, fwd_cnt=(0xFFFFFFF0 + 200) & 0xFFFFFFFF)
        guest.send("CREDIT_REQUEST")
        assert told(guest.get(), "CREDIT_UPDATE").fwd_cnt == 16


@pytest.mark.parametrize("fwd_cnt", [1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_peer_that_has_read_more_than_it_got_gets_nothing(guest, server, fwd_cnt):
    guest.connect(buf_alloc=1000, fwd_cnt=fwd_cnt)
    host = accept(server)
    with host:
        host.sendall(b"hello")
        found = b"".join(packet.data for packet in guest.get())
        assert found == (b"" if fwd_cnt < 0x80000000 else b"hello")
    works(guest, server)


def test_every_packet_of_a_stream_tells_of_the_credit(guest, host):
    """virtio 1.3, 5.10.6.3.2: all packets of a flow MUST contain valid information in buf_alloc and fwd_cnt."""
    guest.send("RW", data=bytes(1000))
    host.sendall(b"hello")
    guest.send("CREDIT_REQUEST")
    host.shutdown(socket.SHUT_WR)
    packets = guest.get()
    assert set(names(packets)) == {"RW", "CREDIT_UPDATE", "SHUTDOWN"}
    guest.send("RW", data=bytes(24))
    guest.send("SHUTDOWN", flags=3)
    packets += guest.get()
    assert packets[-1].name == "RST" and packets[-1].fwd_cnt == 1024
    assert {packet.buf_alloc for packet in packets} == {WINDOW}
    assert {packet.fwd_cnt for packet in packets} == {1000, 1024}


def fill(guest, amount, chunk=32 << 10, **ports):
    """Data that nobody reads."""
    for _ in range(amount // chunk):
        guest.send("RW", data=bytes(chunk), **ports)


def test_a_host_that_does_not_read_stops_its_guest_and_nobody_else(guest, server, host):
    fill(guest, WINDOW)
    stream = guest.device._streams.find(1000, 52)
    taken = WINDOW - len(stream.backlog)
    assert 0 < taken < WINDOW
    guest.send("CREDIT_REQUEST")
    assert guest.get()[-1].fwd_cnt == taken
    works(guest, server)
    fill(guest, taken, taken)
    assert len(stream.backlog) == WINDOW
    works(guest, server)
    got = 0
    while got < WINDOW + taken:
        got += len(host.recv(1 << 20))
        guest.run()
    update = guest.get()[-1]
    assert update.name == "CREDIT_UPDATE" and WINDOW + taken - update.fwd_cnt < WINDOW // 2


def test_a_guest_that_sends_more_than_there_is_room_for_is_reset(guest, server, host):
    while names(guest.get())[-1:] != ["RST"]:
        assert guest.device._streams.find(1000, 52) is not None
        fill(guest, 32 << 10)
        assert sum(len(each.backlog) for each in guest.device._streams.every()) <= WINDOW
    works(guest, server)


def test_credit_is_told_of_in_time_and_not_more_often(guest, host):
    updates = []
    for _ in range(64):
        guest.send("RW", data=bytes(16 << 10))
        assert len(host.recv(1 << 20)) == 16 << 10
        updates += guest.get()
    assert set(names(updates)) == {"CREDIT_UPDATE"}
    assert len(updates) == (64 * 16 << 10) // (WINDOW // 2)


def test_all_streams_together_hold_a_bounded_amount(guest, path):
    """Known of other VMMs: requests in flight without a bound (CVE-2016-5403)."""
    with listen(f"{path}_60", backlog=MAX_STREAMS) as listener:
        held, windows = [], []
        for port in range(300):
            answer = guest.connect(port, 60)
            windows.append(answer.buf_alloc)
            held.append(accept(listener))
            fill(guest, answer.buf_alloc, guest_port=port, host_port=60)
        assert windows == [WINDOW] * 128 + [SMALL_WINDOW] * 172
        streams = guest.device._streams.every()
        assert sum(len(stream.backlog) for stream in streams) <= vsocktable.GENEROUS + 172 * SMALL_WINDOW
        for each in held:
            each.close()
        guest.get()
    assert sum(len(stream.backlog) for stream in streams) == 0


# --- The end ---------------------------------------------------------------------------------------------------------


def test_a_host_that_ends_its_output_can_still_be_spoken_to(guest, host):
    host.sendall(b"question")
    host.shutdown(socket.SHUT_WR)
    packets = guest.get()
    assert [(packet.name, packet.flags) for packet in packets] == [("RW", 0), ("SHUTDOWN", SEND)]
    guest.send("RW", data=b"answer")
    assert host.recv(100) == b"answer"
    guest.send("SHUTDOWN", flags=3)
    assert host.recv(100) == b""
    assert names(guest.get()) == ["RST"]


def test_a_guest_that_ends_its_output_can_still_be_spoken_to(guest, host):
    """virtio 1.3, 5.10.6.5: the hints are permanent, packets with bits clear do not reset them."""
    guest.send("RW", data=b"question")
    guest.send("SHUTDOWN", flags=SEND)
    guest.send("SHUTDOWN", flags=0)
    assert host.recv(100) == b"question" and host.recv(100) == b""
    host.sendall(b"answer")
    assert [packet.data for packet in guest.get()] == [b"answer"]
    guest.send("SHUTDOWN", flags=RECEIVE)
    assert names(guest.get()) == ["RST"]
    with pytest.raises(BrokenPipeError):
        host.sendall(b"more")


def test_a_guest_that_ends_its_input_can_still_speak(guest, host):
    guest.send("SHUTDOWN", flags=RECEIVE)
    with pytest.raises(BrokenPipeError):
        host.sendall(b"answer")
    guest.send("RW", data=b"question")
    assert host.recv(100) == b"question"
    assert guest.get() == []


def test_a_host_that_ends_its_input_is_noticed_when_it_is_written_to(guest, host):
    host.shutdown(socket.SHUT_RD)
    guest.send("RW", data=b"question")
    assert [(packet.name, packet.flags) for packet in guest.get()] == [("SHUTDOWN", RECEIVE)]
    guest.send("RW", data=b"lost")
    host.sendall(b"still here")
    assert [(packet.data, packet.fwd_cnt) for packet in guest.get()] == [(b"still here", 12)]


def test_what_waits_for_the_host_reaches_it_before_the_end_does(guest, host):
    fill(guest, WINDOW)
    guest.send("SHUTDOWN", flags=SEND)
    got = 0
    while data := host.recv(1 << 20):
        got += len(data)
        guest.run()
    assert got == WINDOW


def test_a_guest_that_closes_leaves_nothing_unsaid(guest, server, host):
    """virtio 1.3, 5.10.6.5: a clean disconnect is answered by RST; the ports are free then."""
    fill(guest, WINDOW)
    guest.get()
    guest.send("SHUTDOWN", flags=3)
    assert names(guest.get()) == ["RST"]
    assert guest.connect().name == "RESPONSE", "the same ports once more"
    got = 0
    while data := host.recv(1 << 20):
        got += len(data)
        guest.run()
    assert got == WINDOW


def test_what_a_host_never_reads_is_thrown_away_at_last(guest, host, clock):
    [stream] = guest.device._streams.every()
    stream.host._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
    fill(guest, WINDOW)
    guest.send("SHUTDOWN", flags=3)
    guest.get()
    clock.now += LINGER - 1
    before = len(stream.backlog)
    while len(stream.backlog) == before:
        host.recv(8192)
        guest.run()
    assert stream.backlog, "it had room for a part"
    clock.now += LINGER - 1
    guest.run()
    assert guest.device._streams.every() == [stream], "the time begins again with each bit of progress"
    clock.now += 1
    guest.run()
    assert guest.device._streams.every() == [] and guest.device.next_deadline() is None


def test_a_host_that_goes_while_its_stream_lingers_ends_it(guest, host):
    fill(guest, WINDOW)
    guest.send("SHUTDOWN", flags=3)
    host.close()
    guest.get()
    assert guest.device._streams.every() == []


def test_a_host_that_vanishes_is_mourned(guest, server, host):
    host.sendall(b"last words")
    host.close()
    packets = guest.get()
    assert b"".join(packet.data for packet in packets) == b"last words"
    assert packets[-1].name == "SHUTDOWN" and packets[-1].flags == 3
    guest.send("RW", data=b"too late")
    guest.send("RST")
    assert guest.get() == [] and guest.device._streams.every() == []
    works(guest, server)


def test_a_host_that_vanishes_while_data_wait_for_it_takes_them_along(guest, server, host):
    fill(guest, WINDOW)
    host.close()
    packets = guest.get()
    assert packets[-1].name == "SHUTDOWN" and packets[-1].flags == 3
    assert packets[-1].fwd_cnt == WINDOW
    works(guest, server)


def test_a_guest_that_does_not_confirm_the_end_is_reset(guest, host, clock):
    """virtio 1.3, 5.10.6.5: if no RST is received within some time, one is sent."""
    host.close()
    assert names(guest.get())[-1] == "SHUTDOWN"
    clock.now += PATIENCE - 1
    assert guest.get() == []
    clock.now += 1
    assert names(guest.get()) == ["RST"]
    assert guest.device._streams.every() == [] and guest.device.next_deadline() is None


def test_a_guest_that_resets_is_done(guest, server, host):
    guest.send("RST")
    assert host.recv(100) == b"" and guest.get() == []
    guest.send("RW", data=b"what?")
    assert names(guest.get()) == ["RST"]
    works(guest, server)


# --- Bad packets -----------------------------------------------------------------------------------------------------


def test_an_unknown_type_is_answered_by_a_reset(guest, server, host):
    """virtio 1.3, 5.10.6.4.2: an RST reply MUST be sent if a packet is received with an unknown type value."""
    for kind in (0, 2, 3, 0xFFFF):
        guest.send("REQUEST", 2000, type=kind)
        [packet] = guest.get()
        assert (packet.name, packet.ports, packet.type) == ("RST", (2000, 52), kind)
    guest.send("RW", data=b"x", type=2)
    assert names(guest.get()) == ["RST"]
    guest.send("RW", data=b"of the stream beside")
    assert host.recv(100) == b"of the stream beside"


BAD_ADDRESSES = [
    {"src_cid": 4},
    {"src_cid": 2},
    {"src_cid": CID | 1 << 32},
    {"src_cid": 0},
    {"dst_cid": 1},
    {"dst_cid": 0},
    {"dst_cid": CID},
    {"dst_cid": 0xFFFFFFFF},
    {"dst_cid": 2 | 1 << 32},
    {"src_port": 0xFFFFFFFF},
    {"dst_port": 0xFFFFFFFF},
]


@pytest.mark.parametrize("changes", BAD_ADDRESSES)
def test_a_foreign_address_is_answered_by_a_reset(guest, server, host, changes):
    for name in ("REQUEST", "RW", "SHUTDOWN", "CREDIT_REQUEST", "RESPONSE"):
        guest.send(name, **changes)
        [packet] = guest.get()
        expected = {"src_cid": CID, "dst_cid": 2, "src_port": 1000, "dst_port": 52} | changes
        assert packet.name == "RST"
        assert (packet.dst_cid, packet.src_cid) == (expected["src_cid"], expected["dst_cid"])
        assert (packet.dst_port, packet.src_port) == (expected["src_port"], expected["dst_port"])
    guest.send("RST", **changes)
    assert guest.get() == []
    guest.send("RW", data=b"good")
    assert host.recv(100) == b"good"
    works(guest, server)


@pytest.mark.parametrize(
    "name", ["INVALID", "RESPONSE", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST", 8, 0xFFFF]
)
def test_a_packet_of_no_stream_is_answered_by_a_reset(guest, server, name):
    guest.send(name, flags=3)
    [packet] = guest.get()
    assert (packet.name, packet.ports) == ("RST", (1000, 52))
    works(guest, server)


def test_a_reset_is_not_answered(guest):
    guest.send("RST")
    assert guest.get() == []


@pytest.mark.parametrize("name", ["INVALID", "REQUEST", "RESPONSE", 8, 0xFFFF])
def test_what_makes_no_sense_ends_its_stream(guest, server, host, name):
    guest.send(name)
    assert names(guest.get()) == ["RST"]
    assert host.recv(100) == b""
    works(guest, server)


@pytest.mark.parametrize("name", ["INVALID", "REQUEST", "SHUTDOWN", "RW"])
def test_data_before_the_connection_end_it(guest, server, path, name):
    with call(path, 80) as caller:
        request = told(guest.get(), "REQUEST")
        guest.send(name, *request.ports, data=b"x" if name == "RW" else b"", flags=3)
        assert names(guest.get()) == ["RST"]
        assert caller.recv(100) == b""
    works(guest, server)


def test_data_after_the_end_of_data_reset(guest, server, host):
    guest.send("SHUTDOWN", flags=SEND)
    guest.send("RW", data=b"x")
    assert names(guest.get()) == ["RST"]
    works(guest, server)


@pytest.mark.parametrize("length", [5, 4096, 0x10000, 0xFFFFFFFF])
def test_a_length_beyond_the_buffers_resets(guest, server, host, length):
    guest.send("RW", data=b"four", length=length)
    assert names(guest.get()) == ["RST"]
    assert host.recv(100) == b""
    works(guest, server)


def test_a_length_within_the_buffers_counts(guest, host):
    """virtio 1.3, 5.10.6: only the first len bytes will be used for the actual data."""
    guest.send("RW", data=b"four and more", length=4)
    guest.send("RW", data=b"nothing", length=0)
    guest.send("RW", data=b"!")
    assert host.recv(100) == b"four!"


def test_no_packet_at_all_is_given_back(guest, server):
    for length in (0, 1, 43):
        guest.raw(bytes(length))
    assert guest.get() == [] and len(guest.driver.rings[TX].used()) == 1
    works(guest, server)


def test_a_header_in_pieces_is_as_good(guest, server):
    from pyvmm.virtio.vsockheader import HEADER

    header = HEADER.pack(CID, 2, 1000, 52, 0, 1, spec.VSOCK_OP_REQUEST, 0, ALLOC, 0)
    guest.raw(*(header[at : at + 5] for at in range(0, 44, 5)))
    assert names(guest.get()) == ["RESPONSE"]
    accept(server).close()


def test_a_broken_ring_breaks_the_device_until_reset(guest, server, host):
    guest.driver.rings[TX].descriptor(0, 0x40000, 4, spec.DESC_F_NEXT, 0)
    guest.driver.rings[TX].make_available(0)
    guest.driver.kick(TX)
    assert guest.driver.needs_reset
    guest.bring_up()
    assert host.recv(100) == b""
    works(guest, server)
