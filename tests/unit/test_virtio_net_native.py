"""The network device's data plane in C, held to the one in Python: on real sockets, with the same driver and peer.

Two devices do the same, one on each path. When everything that the peer has sent was looked at, and it has read all
that came, both guests' memory, the rings included, is the same, and so are the counts and what the peer has got.
"""

from __future__ import annotations

import os
import random
import re
import select
import socket
import time
from functools import partial
from struct import pack

import pytest

from pyvmm._native import build_rings
from pyvmm.backends.net import MIN_FRAME
from pyvmm.backends.net.stream import FrameStream
from pyvmm.backends.net.switch import SwitchPort
from pyvmm.backends.net.tap import Tap
from pyvmm.virtio import netbuffers, spec
from pyvmm.virtio.native import PROBLEM
from pyvmm.virtio.net import CONTROL, MAX_FRAME, RECEIVE, TRANSMIT, VirtioNet
from tests.support.virtiodriver import HEAP, NEXT, WRITE, Driver

pytestmark = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
STATIONS = (MAC, OTHER, GROUP, BROADCAST, bytes(6))
LENGTHS = (60, 60, 64, 98, 1514, 1518, 1519, 14, 9000)


class Wire:
    """A back-end on a socket: a stream like passt's, or packets like a tap's, with virtio's header before each."""

    def __init__(self, *, tap, buffer=0):
        self.vnet_header = tap
        ours, self.peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET if tap else socket.SOCK_STREAM)
        self.peer.setblocking(False)
        if buffer:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        os.set_blocking(ours.fileno(), False)
        self.direct = Tap("test", os.dup(ours.fileno())) if tap else FrameStream(ours)
        if tap:
            ours.close()
        self._ours = ours
        self._read = b""
        self._waiting = []
        self.heard = []  # frames that the peer has got

    def fileno(self):
        return self.direct.fileno()

    def offloads(self, *flags):
        pass

    def receive(self):
        return self.direct.receive()

    def send(self, frame):
        return self.direct.send(frame)

    def close(self):
        self.peer.close()
        if self.vnet_header:
            self.direct.close()
        self._ours.close()

    # --- The peer -----------------------------------------------------------------------------------------------------

    def say(self, data):
        """Send `data`, and what there was no room for before; True if there was any now."""
        if data:
            self._waiting.append(data)
        done = 0
        try:
            while self._waiting:
                sent = self.peer.send(self._waiting[0])
                self._waiting[0] = self._waiting[0][sent:]
                done += sent
                if not self._waiting[0]:
                    del self._waiting[0]
        except (BlockingIOError, BrokenPipeError):
            pass
        return done > 0

    def hear(self, limit=1 << 30):
        """Read what has come; True if there was something."""
        got = 0
        try:
            while got < limit and (data := self.peer.recv(min(limit - got, 1 << 18))):
                got += len(data)
                if self.vnet_header:
                    self.heard.append(data)
                else:
                    self._read += data
        except (BlockingIOError, ConnectionResetError):
            pass
        while len(self._read) >= 4 and len(self._read) >= (end := 4 + int.from_bytes(self._read[:4], "big")):
            self.heard.append(self._read[4:end])
            self._read = self._read[end:]
        return got > 0


class Guest(Driver):
    def __init__(self, native, *, tap=False, buffer=0, **settings):
        self.wire = Wire(tap=tap, buffer=buffer)
        self.said = []
        super().__init__(VirtioNet(self.wire, mac=MAC, report=self.said.append, **settings))
        self.net = self.device
        self.net.native = native

    def turn(self, now=0.0):
        """What a data plane would do now; whether there was anything."""
        done = False
        with self.net.plane:
            for fd, wanted in self.net.sources():
                poll = select.poll()
                poll.register(fd, wanted)
                for _, events in poll.poll(0):
                    self.net.guarded(partial(self.net.ready, fd, events))
                    done = True
            deadline = self.net.deadline()
            if deadline is not None and deadline <= now and self.net.live:
                self.net.guarded(lambda: self.net.tick(now))
                done = True
        return done

    def settle(self):
        """Until nothing happens any more."""
        for _ in range(10_000):
            spoken = [self.wire.say(b""), self.wire.hear(), self.net.live and self.turn()]
            if not any(spoken):
                return
        raise AssertionError("it does not come to an end")

    def state(self):
        """What both paths must agree on. A buffer that waits for a frame was taken on the one path only."""
        buffers = len(self.net._buffers)
        return {
            "heard": self.wire.heard,
            "counts": self.net.counts,
            "said": self.said,
            "status": self.status,
            "error": self.net.error,
            "positions": [(q._next_avail - (0 if q.index else buffers), q._next_used) for q in self.net.queues],
            "in flight": [q.in_flight - (0 if q.index else buffers) for q in self.net.queues],
            "held": self.net._held is not None,
            "unsent": self.net._unsent is not None,
            "memory": self.memory.read(0, self.memory.size),
        }


def both(**settings):
    return [Guest(native, **settings) for native in (False, True)]


def frame(destination, source, length, number):
    return (destination + source + pack(">HI", 0x0800, number)).ljust(length, bytes([number & 0xFF]))[:length]


class Chooser(random.Random):
    """Draws actions; each is a function of one guest, and does the same to each."""

    def __init__(self, seed, *, tap):
        super().__init__(seed)
        self.tap = tap
        self.number = 0

    def cut(self, data):
        edges = sorted(self.randrange(len(data) + 1) for _ in range(self.choice((0, 0, 0, 1, 2, 5))))
        return [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]

    def frame(self, sources=(MAC, MAC, MAC, OTHER)):
        self.number += 1
        length = self.choice((*LENGTHS, *LENGTHS, 13, MAX_FRAME))
        data = frame(self.choice(STATIONS), self.choice(sources), length, self.number)
        return data if self.random() > 0.1 else data[:12] + b"\x81\x00" + data[14:]

    def header(self):
        if self.random() > 0.1:
            return bytes(12)
        return pack("<BBHHHHH", *(self.choice((0, 0, 1, 2, 4, 0x81)) for _ in range(2)), 54, 1448, 34, 16, 9)

    def action(self):
        kinds = ("post", "post", "send", "send", "arrive", "arrive", "arrive", "command", "turn", "link", "odd", "wait")
        return getattr(self, self.choice(kinds))()

    def post(self):
        sizes = [self.choice((1526, 1526, 64, 128, 2048, 12, 11)) for _ in range(self.randrange(1, 8))]
        chains = [([b"odd"] if self.random() < 0.05 else [], self.parts(size)) for size in sizes]
        return lambda guest: self.offer(guest, RECEIVE, chains)

    def parts(self, size):
        first = self.choice((size, size, 12, 1, size // 2))
        return [part for part in (min(first, size), size - min(first, size)) if part]

    def send(self):
        frames = [self.header() + self.frame() for _ in range(self.choice((1, 2, 6, 14)))]
        if self.random() < 0.1:
            frames.append(bytes(self.choice((0, 1, 12, 25, 12 + MAX_FRAME + 1))))
        chains = [(self.cut(data), [8] if self.random() < 0.05 else []) for data in frames]
        return lambda guest: self.offer(guest, TRANSMIT, chains)

    def offer(self, guest, queue, chains):
        ring = guest.rings[queue]
        for readable, writable in chains:
            ring.used()
            # A buffer of no bytes is one that the driver may give, and means nothing.
            if len(ring.free) > len(readable) + len(writable):
                ring.add(guest.heap, readable, writable, indirect=len(readable) > 3)
        guest.kick(queue)

    def arrive(self):
        frames = [(self.header() if self.tap else b"") + self.frame((OTHER,)) for _ in range(self.choice((1, 3, 20)))]
        if self.tap:
            return lambda guest: [guest.wire.say(data) for data in frames]
        data = b"".join(len(one).to_bytes(4, "big") + one for one in frames if len(one) >= 14)
        middle = self.randrange(len(data) + 1)

        def say(guest):
            guest.wire.say(data[:middle])
            guest.turn()
            guest.wire.say(data[middle:])

        return say

    def command(self):
        mode, flag = self.randrange(6), self.randrange(2)
        table = b"".join(pack("<I", len(part)) + b"".join(part) for part in ([OTHER], [GROUP] * self.randrange(2)))
        kind, data = self.choice(((0, bytes([flag])), (0, b"\0"), (1, table), (2, self.choice((MAC, OTHER)))))

        def command(guest):
            which = (mode, spec.NET_CTRL_MAC_TABLE_SET, spec.NET_CTRL_MAC_ADDR_SET)[kind]
            self.offer(guest, CONTROL, [([bytes([min(kind, 1), which]), data], [1])])

        return command

    def turn(self):
        return lambda guest: guest.turn()

    def wait(self):
        return lambda guest: guest.turn(1e9)

    def link(self):
        up = self.random() < 0.7
        return lambda guest: guest.net.set_link(up)

    def odd(self):
        if self.random() < 0.7:
            return lambda guest: None
        queue, kind, after = self.randrange(2), self.randrange(5), self.randrange(3)

        def odd(guest):
            ring = guest.rings[queue]
            good = [([bytes(12) + frame(OTHER, MAC, 60, 1)], []), ([], [1526])][queue == RECEIVE]
            for _ in range(after):
                ring.used()
                if len(ring.free) > 4:
                    ring.add(guest.heap, *good)
            ring.used()
            if len(ring.free) > 4:
                write = WRITE if queue == RECEIVE else 0
                buffers = [
                    [(guest.memory.size - 8, 9, write)],
                    [(HEAP, 64, WRITE), (HEAP, 64, 0)],
                    [(HEAP, 64, write), (1 << 40, 1, write)],
                    [(HEAP, 64, write), (0, 0, NEXT)],
                    [(HEAP, 0xFFFFFFFF, write)],
                ][kind]
                ring.add_buffers(buffers)
            guest.kick(queue)

        return odd

    def restart(self):
        without = [bit for bit in (spec.NET_F_MRG_RXBUF, spec.F_RING_EVENT_IDX) if self.random() < 0.4]
        size = self.choice((16, 64))
        return lambda guest: guest.bring_up(without=without, size=size)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("tap", [False, True], ids=["stream", "tap"])
def test_both_paths_do_the_same(tap, seed):
    choose = Chooser(seed, tap=tap)
    guests = both(tap=tap, mtu=choose.choice((None, 1500)), spoof=choose.random() < 0.7)
    actions = [choose.restart()]
    for _ in range(60):
        actions.append(choose.action() if choose.random() > 0.03 else choose.restart())
    for number, action in enumerate(actions):
        for guest in guests:
            action(guest)
            guest.settle()
            if guest.needs_reset:
                guest.bring_up()
                guest.settle()
        python, native = (guest.state() for guest in guests)
        for name in python:
            assert native[name] == python[name], f"{name} after action {number}"
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("native", [False, True], ids=["python", "native"])
def test_a_back_end_that_is_full_gets_each_frame_whole_and_once_even_after_a_reset(native, seed):
    """What has been sent in part goes on; what has not begun is dropped with its driver."""
    choose = random.Random(seed)
    guest = Guest(native, buffer=choose.choice((1, 5000, 9001, 20000))).bring_up(size=64)
    sent, resets, number = [], 0, 0
    for _ in range(300):
        what = choose.random()
        if what < 0.05:
            guest.bring_up(size=64)
            resets += 1
        elif what < 0.6:
            ring = guest.rings[TRANSMIT]
            ring.used()
            for _ in range(min(len(ring.free) // 2, choose.randrange(6))):
                data = frame(OTHER, MAC, choose.choice((14, 60, 1514, 9000)), number)
                number += 1
                ring.add(guest.heap, [bytes(12), data], publish=False)
                sent.append(data)
            ring.publish()
            guest.kick(TRANSMIT)
        else:
            guest.wire.hear(choose.randrange(1, 12_000))
            guest.turn()
    guest.settle()
    guest.bring_up()
    works(guest)
    sent.append(guest.wire.heard[-1])
    left = iter(sent)
    assert all(one in left for one in guest.wire.heard), "a frame that was not sent, or not in that order"
    assert guest.net.counts["transmitted"] == len(guest.wire.heard) > 50
    assert resets or len(guest.wire.heard) == len(sent)
    guest.close()


def works(guest):
    heard = len(guest.wire.heard)
    data = frame(OTHER, MAC, 60, 0xFFFF)
    guest.send(TRANSMIT, [bytes(12), data])
    guest.settle()
    assert guest.wire.heard[heard:] == [data]


@pytest.mark.parametrize("buffer", [0, 5000])
def test_a_peer_that_goes_is_the_same_on_both_paths(buffer):
    """With nothing, or with a frame in hand that was sent in part."""
    guests = both(buffer=buffer)
    for guest in guests:
        guest.bring_up(size=64)
        ring = guest.rings[TRANSMIT]
        for number in range(20 if buffer else 0):
            ring.add(guest.heap, [bytes(12), frame(OTHER, MAC, 1514, number)])
        guest.kick(TRANSMIT)
        guest.offers = [guest.send(RECEIVE, [], [1526]) for _ in range(3)]
        assert (guest.net._unsent is not None) == bool(buffer)
        guest.wire.peer.close()
        guest.turn()
        guest.send(TRANSMIT, [bytes(12), frame(OTHER, MAC, 60, 1)])
        assert guest.net._unsent is None and guest.net._gone and guest.net.counts["no link"] >= 1
        assert guest.config(6, 2) == 0
    python, native = guests
    assert native.said == python.said and len(native.said) == 1
    assert native.rings[TRANSMIT].used_index == python.rings[TRANSMIT].used_index == (21 if buffer else 1)
    for guest in guests:
        guest.close()


@pytest.mark.parametrize("tap", [False, True], ids=["stream", "tap"])
def test_both_directions_full_at_once_recover(tap):
    """CVE-2020-16843: no receive buffers and a back-end that takes nothing, while both have something to say."""
    guests = both(tap=tap, buffer=5000)
    for guest in guests:
        guest.bring_up(size=64)
        plain = bytes(12) if tap else b""
        ring = guest.rings[TRANSMIT]
        for number in range(30):
            ring.add(guest.heap, [bytes(12), frame(OTHER, MAC, 1514, number)])
            data = plain + frame(MAC, OTHER, 1514, number)
            guest.wire.say(data if tap else len(data).to_bytes(4, "big") + data)
        guest.kick(TRANSMIT)
        while guest.turn():
            pass
        assert guest.net._unsent is not None and guest.net.counts["received"] == 0
        for _ in range(30):
            guest.rings[RECEIVE].add(guest.heap, [], [1526])
        guest.kick(RECEIVE)
        guest.settle()
        assert guest.net.counts["received"] == guest.net.counts["transmitted"] == 30 == len(guest.wire.heard)
    python, native = (guest.state() for guest in guests)
    assert native == python
    for guest in guests:
        guest.close()


def test_a_switch_that_moves_is_followed(tmp_path):
    """The connection, and what C reads and writes, is another one then; frames in hand go there."""
    first, second = (SwitchPort(tmp_path / "switch") for _ in range(2))
    assert first.server is not None and second.server is None
    guest = Driver(VirtioNet(second, mac=MAC)).bring_up()
    before = second.direct
    guest.send(RECEIVE, [], [1526])
    first.close()
    third = None
    until = time.monotonic() + 10
    while guest.device.counts["received"] == 0 and time.monotonic() < until:
        guest.rings[TRANSMIT].used()
        guest.send(TRANSMIT, [bytes(12) + frame(OTHER, MAC, 60, 1)])
        with guest.device.plane:
            guest.device.guarded(lambda: guest.device.ready(second.fileno(), select.POLLIN | select.POLLOUT))
        if second.direct is not before:
            third = third or SwitchPort(tmp_path / "switch")
            third.send(memoryview(frame(MAC, OTHER, 60, 2)))
    assert guest.device.counts["received"] == 1 and guest.device.counts["transmitted"] > 0
    assert guest.device._plane is not None and guest.device._plane._direct is second.direct is not before
    guest.close()
    if third is not None:
        third.close()


@pytest.mark.parametrize("at", range(64 + 4))
def test_a_frame_goes_on_where_c_has_stopped(at):
    """At each byte of it, its length included."""
    wire = Wire(tap=False)
    data = frame(OTHER, MAC, 64, 1)
    wire.direct.sent = at
    assert wire.direct.send(memoryview(data)) and wire.direct.sent == 0
    assert wire.peer.recv(100) == ((64).to_bytes(4, "big") + data)[at:]
    wire.close()


def test_c_moves_what_is_plain_and_python_sees_the_rest(monkeypatch):
    guest = Guest(True, tap=True, spoof=False).bring_up(size=64)
    seen = []
    original = VirtioNet._transmit_one
    monkeypatch.setattr(VirtioNet, "_transmit_one", lambda *given: seen.append(given) or original(*given))
    ring = guest.rings[TRANSMIT]
    for number in range(9):
        data = frame(OTHER, OTHER if number == 4 else MAC, 60, number)
        ring.add(
            guest.heap, [bytes(12) if number != 7 else pack("<BBHHHHH", 1, 0, 0, 0, 34, 16, 0), data], publish=False
        )
    ring.publish()
    guest.kick(TRANSMIT)
    guest.settle()
    assert len(seen) == 2 and len(guest.wire.heard) == guest.net.counts["transmitted"] == 8
    assert guest.net.counts["spoofed"] == 1
    guest.close()


def test_a_driver_is_told_of_the_first_frames_while_the_others_are_put():
    guest = Guest(True).bring_up(size=64)
    for _ in range(64):
        guest.rings[RECEIVE].add(guest.heap, [], [1526])
    ring = guest.rings[RECEIVE]
    ring.set_used_event(0)
    guest.kick(RECEIVE)
    seen = []
    guest.on_interrupt = lambda: seen.append(ring.used_index)
    data = b"".join((60).to_bytes(4, "big") + frame(MAC, OTHER, 60, number) for number in range(60))
    guest.wire.say(data)
    guest.settle()
    assert seen == [32] and ring.used_index == 60
    guest.acknowledge()
    ring.set_used_event(60)
    guest.wire.say((60).to_bytes(4, "big") + frame(MAC, OTHER, 60, 61))
    guest.settle()
    assert seen == [32, 61]
    guest.close()


def test_numbers_typed_in_c_are_those_of_the_specification():
    source, header = ((build_rings.HERE / f"net.{kind}").read_text() for kind in "ch")
    numbers = dict(re.findall(r"^#define (\w+) (\d+)", source + header, re.MULTILINE))
    assert int(numbers["HEADER"]) == spec.NET_HDR_LENGTH and int(numbers["NUM_BUFFERS"]) == netbuffers.NUM_BUFFERS
    assert (int(numbers["SHORTEST"]), int(numbers["LONGEST"])) == (MIN_FRAME, MAX_FRAME)
