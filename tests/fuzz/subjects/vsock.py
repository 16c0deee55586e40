"""The socket device, on a host in memory whose programs are slow, full, or gone, when told to."""

from __future__ import annotations

import select
from struct import pack_into

from pyvmm.virtio import timers, vsock, vsockfeed, vsockheader, vsockstream, vsocktable
from pyvmm.virtio.vsock import EVENT, RX, TX, VirtioVsock
from pyvmm.virtio.vsockheader import HEADER, HEADER_LENGTH
from tests.fuzz.subjects.base import Subject

CID, FD = 3, 1000
CALLS = 1 << 30
"""The host's port of its first call."""
NAMES = dict(enumerate(("INVALID", "REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW", "CREDIT_UPDATE", "CREDIT_REQUEST")))
REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, CREDIT = range(1, 8)
TOLD = (REQUEST, RESPONSE, RST, SHUTDOWN, RW, UPDATE, CREDIT)


def packet(op, guest_port=1, host_port=52, data=b"", **changes):
    fields = {"src_cid": CID, "dst_cid": 2, "src_port": guest_port, "dst_port": host_port, "length": len(data)}
    fields |= {"type": 1, "op": op, "flags": 0, "buf_alloc": 1 << 18, "fwd_cnt": 0} | changes
    return HEADER.pack(*fields.values()) + data


def sent(op, *arguments, **changes):
    return "chain", TX, (packet(op, *arguments, **changes),), (), "direct", (), True


class End:
    """A program of the host's. What it says is a count that goes on, so that each byte can be judged."""

    def __init__(self, wire):
        self.owner = None
        self.incoming = self.said = 0
        self.room = wire.room
        self.ended = self.deaf = self.lost = self.closed = self.noticed = False
        self.events = select.POLLIN
        self._kinds = wire.kinds

    def read(self, buffers):
        assert not self.closed and sum(map(len, buffers)), "a read of nothing"
        if not self.incoming:
            if self.ended or self.lost:
                return 0
            raise BlockingIOError
        count = 0
        for buffer in buffers:
            part = min(len(buffer), self.incoming)
            buffer[:part] = bytes((self.said + at) & 0xFF for at in range(part))
            self.said += part
            self.incoming -= part
            count += part
        return count

    def write(self, buffers):
        assert not self.closed
        if self.lost or self.deaf:
            self._kinds.add("host: reads no more")
            raise BrokenPipeError
        if not self.room:
            self._kinds.add("host: full")
            raise BlockingIOError
        count = min(self.room, sum(map(len, buffers)))
        self.room -= count
        return count

    def notice_room(self, wanted):
        assert not self.closed
        self.noticed = wanted
        if wanted and self.room:
            self.events |= select.POLLOUT

    def end_input(self):
        assert not self.closed
        self._kinds.add("guest: ends its input")

    def end_output(self):
        assert not self.closed
        assert not self.owner.backlog, "the end before what comes before it"
        self._kinds.add("guest: ends its output")

    def accept(self, port):
        assert not self.closed
        if self.lost:
            raise BrokenPipeError
        self._kinds.add("host: accepted")

    def close(self):
        assert not self.closed, "closed twice"
        self.closed = True


class Wire:
    """A host: `mode` says what becomes of connections, `room` how much a new program takes."""

    def __init__(self, kinds):
        self.kinds = kinds
        self.ends = []
        self.mode, self.room = "open", 1 << 30
        self.on_call = None

    def fileno(self):
        return FD

    def live(self):
        self.ends = [end for end in self.ends if not end.closed]
        return self.ends

    def poll(self):
        for end in self.live():
            events, end.events = end.events, 0
            if events and not end.closed:
                yield end, events

    def connect(self, port):
        self.kinds.add(f"connection: {self.mode}")
        if self.mode == "busy":
            raise BlockingIOError
        if self.mode == "refused":
            raise ConnectionRefusedError
        self.ends.append(End(self))
        return self.ends[-1]

    def deadline(self):
        return None

    def tick(self, now):
        pass

    def close(self):
        pass


class Vsock(Subject):
    name = "vsock"
    modules = (vsock, vsockfeed, vsockheader, vsockstream, vsocktable, timers)
    queues = 3
    greeting = (
        *((RX, (), (4096,)),) * 4,
        (EVENT, (), (4,)),
        (TX, (packet(REQUEST),), ()),
        *((RX, (), (512,)),) * 4,
    )
    seeds = (
        (("greet",), ("host", "room", 0, 0), sent(RW, data=bytes(9000)), sent(SHUTDOWN, flags=3)),
        (("greet",), ("host", "room", 0, 0), sent(RW, data=bytes(9000)), ("host", "room", 0, 1 << 30)),
        (("greet",), ("host", "room", 0, 0), sent(RW, data=bytes(9000)), ("host", "lose", 0, 0), sent(RW, data=b"x")),
        (("greet",), ("host", "lose", 0, 0)),
        (("greet",), ("host", "deaf", 0, 0), sent(RW, data=b"x"), sent(RW, data=b"y")),
        (("greet",), sent(SHUTDOWN, flags=1), sent(SHUTDOWN, flags=2)),
        (("greet",), sent(SHUTDOWN, flags=2), sent(RW, data=b"x")),
        (("greet",), sent(UPDATE, buf_alloc=100), ("host", "data", 0, 5000), ("wait", 3.0), sent(UPDATE)),
        (("greet",), ("host", "call", 80, 0), sent(RESPONSE, 80, CALLS), sent(RW, 80, CALLS, b"x")),
        (("greet",), ("host", "call", 80, 0), ("wait", 60.0)),
        (("greet",), ("host", "event", 0, 0)),
        (("host", "event", 0, 0), ("chain", EVENT, (), (3,), "direct", (), True), ("greet",)),
        (("host", "mode", "busy", 0), ("greet",), ("wait", 0.5), ("host", "mode", "open", 0), ("wait", 0.5)),
        (("host", "mode", "refused", 0), ("greet",)),
        (("chain", RX, (), (43,), "direct", (), True), ("greet",)),
        (*((("chain", RX, (), (44,), "direct", (), True),) * 3), ("greet",), ("host", "data", 0, 5000)),
    )
    required = (
        *(f"driver: {name}" for name in (*NAMES.values(), "another op", "foreign", "too long", "no packet")),
        *(f"device: {NAMES[op]}" for op in TOLD),
        *("connection: open", "connection: busy", "connection: refused"),
        *("host: full", "host: reads no more", "host: accepted", "guest: ends its input", "guest: ends its output"),
        *("device: no room for a packet", "device: no room for data", "event: transport reset", "event: no room"),
        *("stream: lingering", "stream: calling", "stream: connecting", "stream: starved", "stream: closing"),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.wire = Wire(kinds)
        self.device = VirtioVsock(self.wire, cid=CID)
        self._ports = 7000
        self._heard = {}  # the host's end and how much of it the guest has, by ports

    @staticmethod
    def request(draw):
        queue = draw.pick((TX, TX, TX, RX, RX, TX, TX, EVENT, TX, RX))
        if queue == EVENT:
            return queue, [], draw.cut(draw.pick((4, 8, 3, 0)))
        if queue == RX:
            return queue, [b"odd"] if draw.rarely(16) else [], draw.cut(draw.pick((4096, 512, 64, 44, 43, 0)))
        op = draw.pick((RW, REQUEST, RESPONSE, SHUTDOWN, UPDATE, CREDIT, RST, RW, REQUEST, SHUTDOWN, 0, 8))
        data = draw.filling(draw.pick((10, 0, 4000, 9000))) if op == RW else b""
        ports = draw.pick(((1, 52), (1, 52), (2, 52), (1, 53), (80, CALLS), (80, CALLS + 1), (0xFFFFFFFF, 52)))
        made = bytearray(packet(op, *ports, data, flags=draw.pick((3, 2, 1, 0, 0xFFFFFFFF))))
        if draw.rarely(3):
            pack_into("<II", made, 36, draw.pick((100, 0, 1 << 18, 0xFFFFFFFF)), draw.pick((0, 100, 5000, 0xFFFFFFFF)))
        if draw.rarely(8):
            at, values = draw.pick(((0, (2, 4, 0)), (8, (CID, 1)), (28, (2, 0)), (24, (1, 10000, 0xFFFFFFFF))))
            pack_into("<H" if at == 28 else "<I", made, at, draw.pick(values))
        if draw.rarely(16):
            del made[draw.below(HEADER_LENGTH) :]
        return queue, draw.cut(bytes(made)), [8] if draw.rarely(16) else []

    @staticmethod
    def host(draw):
        what = draw.pick(("data", "data", "room", "call", "end", "lose", "mode", "event", "deaf", "room"))
        if what == "mode":
            return (what, draw.pick(("open", "busy", "refused")), 0)
        if what == "call":
            return (what, draw.pick((80, 80, 1)), 0)
        return (what, draw.below(4), draw.pick((10, 1 << 30, 0, 5000, 60000)))

    def happen(self, what, which, amount):
        wire = self.wire
        if what == "mode":
            wire.mode = which
        elif what == "event":
            self.device.transport_reset()
        elif what == "call":
            if self.device.live and len(wire.live()) < 8:
                end = End(wire)
                wire.ends.append(end)
                with self.device.plane:
                    wire.on_call(which, end)
        elif wire.live():
            end = wire.ends[which % len(wire.ends)]
            if what == "data" and not end.ended and not end.lost:
                end.incoming += min(amount, 60000)
                end.events |= select.POLLIN
            elif what == "room":
                end.room = wire.room = amount
                end.events |= select.POLLOUT if amount and end.noticed else 0
            elif what == "end":
                end.ended = True
                end.events |= select.POLLIN
            elif what == "deaf":
                end.deaf = True
            elif what == "lose":
                end.lost = True
                end.events |= select.POLLIN | select.POLLHUP

    def happened(self, sources):
        for stream in self.device._streams.every():
            self.kinds.add(f"stream: {'closing' if stream.closing else stream.state}")
            if stream.starved:
                self.kinds.add("stream: starved")
            assert len(stream.backlog) <= stream.window
        return [(FD, select.POLLIN)] if any(end.events for end in self.wire.live()) else []

    def prompt(self, queue):
        return queue == TX

    def outcome(self, queue, request, written, answer):
        if queue == TX:
            assert not written
            return f"driver: {self._said(request)}"
        if queue == EVENT:
            assert answer[:written] == bytes(written) and written in (0, 4)
            return "event: transport reset" if written else "event: no room"
        if not written:
            return "device: no room for a packet" if len(answer) < HEADER_LENGTH else "device: no room for data"
        assert written >= HEADER_LENGTH
        return self._told(HEADER.unpack(answer[:HEADER_LENGTH]), answer[HEADER_LENGTH:written])

    @staticmethod
    def _said(request):
        if len(request) < HEADER_LENGTH:
            return "no packet"
        src, dst, guest_port, _, length, kind, op, *_ = HEADER.unpack(request[:HEADER_LENGTH])
        if (src, dst, kind) != (CID, 2, 1) or guest_port == 0xFFFFFFFF:
            return "foreign"
        return "too long" if length > len(request) - HEADER_LENGTH else NAMES.get(op, "another op")

    def _told(self, fields, data):
        src, dst, host_port, guest_port, length, kind, op, flags, window, _ = fields
        assert length == len(data)
        if op != RST:
            assert (src, dst, kind) == (2, CID, 1) and window and (flags == 0 or op == SHUTDOWN)
        ports = guest_port, host_port
        if op in (REQUEST, RESPONSE):
            self._heard[ports] = 0
        elif op == RW:
            assert data, "a packet of no data"
            if self.ordered and ports in self._heard:
                begin = self._heard[ports]
                assert data == bytes((begin + at) & 0xFF for at in range(length)), "data out of order"
                self._heard[ports] = begin + length
        return f"device: {NAMES[op]}"

    def resync(self):
        self._heard.clear()

    def calm(self):
        self.wire.mode, self.wire.room = "open", 1 << 30
        for end in self.wire.live():
            end.incoming, end.room = 0, 1 << 30

    def probe(self, driver):
        self._ports += 1
        for _ in range(6):
            driver.send(RX, [], [512])
        driver.request(TX, [packet(REQUEST, self._ports)])
        driver.run()
        [end] = self.wire.live()
        room = end.room
        driver.request(TX, [packet(RW, self._ports, 52, b"question")])
        assert end.room == room - 8, "not all of it has arrived"
        end.incoming, end.events = 3, select.POLLIN
        driver.run()
        ring = driver.rings[RX]
        heard = [ring.written(head)[:written] for head, written in ring.used()]
        assert HEADER.unpack(heard[0])[6] == RESPONSE and heard[-1][HEADER_LENGTH:] == b"\0\1\2"
