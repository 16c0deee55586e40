"""A guest's side of the socket device, packet by packet, and a host's side of real sockets, for tests."""

from __future__ import annotations

import select
import socket
from types import SimpleNamespace

from pyvmm.virtio import spec
from pyvmm.virtio.vsock import EVENT, RX, TX
from pyvmm.virtio.vsockheader import HEADER, HEADER_LENGTH
from tests.support.virtiodriver import Driver

CID = 3
ALLOC = 1 << 18
FIELDS = ("src_cid", "dst_cid", "src_port", "dst_port", "length", "type", "op", "flags", "buf_alloc", "fwd_cnt")
OPS = {name: getattr(spec, f"VSOCK_OP_{name}") for name in ("REQUEST", "RESPONSE", "RST", "SHUTDOWN", "RW")}
OPS |= {name: getattr(spec, f"VSOCK_OP_{name}") for name in ("INVALID", "CREDIT_UPDATE", "CREDIT_REQUEST")}
NAMES = {number: name for name, number in OPS.items()}


class Packet(SimpleNamespace):
    """A packet that the device has sent: the header's fields, `name` of the operation, and `data`."""

    def __init__(self, raw):
        super().__init__(**dict(zip(FIELDS, HEADER.unpack(raw[:HEADER_LENGTH]), strict=True)))
        self.name = NAMES[self.op]
        self.data = raw[HEADER_LENGTH:]
        assert len(self.data) == self.length

    @property
    def ports(self):
        return self.dst_port, self.src_port


class Guest:
    """A driver of a socket device that keeps `buffers` receive buffers of `size` bytes available."""

    def __init__(self, device, *, buffers=16, size=4096, ram=4 << 20, rings=64):
        self.driver = Driver(device, ram=ram)
        self.device = device
        self.size = size
        self.rings = rings
        self._heads = {}
        self.bring_up(buffers)

    def bring_up(self, buffers=16, **choices):
        self.driver.bring_up(size=self.rings, **choices)
        self._heads.clear()
        self.provide(buffers)

    def provide(self, count=1, size=None):
        """Make receive buffers available."""
        ring = self.driver.rings[RX]
        for _ in range(count):
            ring.add(self.driver.heap, [], [self.size if size is None else size], publish=False)
        ring.publish()
        self.driver.kick(RX)

    def raw(self, *parts):
        """A chain of the transmit queue."""
        ring = self.driver.rings[TX]
        ring.used()
        self.driver.send(TX, list(parts))

    def send(self, name, guest_port=1000, host_port=52, data=b"", **changes):
        """A packet; `changes` are fields that are not as they should be."""
        fields = {"src_cid": CID, "dst_cid": 2, "src_port": guest_port, "dst_port": host_port, "length": len(data)}
        fields |= {"type": 1, "op": OPS.get(name, name), "flags": 0, "buf_alloc": ALLOC, "fwd_cnt": 0} | changes
        self.raw(HEADER.pack(*(fields[field] for field in FIELDS)), *([data] if data else []))

    def received(self, again=True):
        """The packets that have come; their buffers are made available `again`."""
        ring = self.driver.rings[RX]
        found, heads = [], ring.used()
        for head, written in heads:
            if written:
                found.append(Packet(ring.written(head)[:written]))
        if again and heads:
            self.provide(len(heads))
        return found

    def run(self, rounds=10_000):
        """Be the data plane until nothing is due; returns how many rounds that took."""
        device = self.device
        for count in range(rounds):
            [(fd, events)] = device.sources()
            poll = select.poll()
            poll.register(fd, events)
            due = device.next_deadline()
            if poll.poll(0):
                with device.plane:
                    device.guarded(lambda fd=fd, events=events: device.ready(fd, events))
            elif due is not None and due <= self.now():
                with device.plane:
                    device.guarded(lambda: device.run_due(self.now()))
            else:
                return count
        raise AssertionError(f"something is due for ever: {device.next_deadline()}")

    @staticmethod
    def now():
        from pyvmm.virtio import vsock

        return vsock.time.monotonic()

    def get(self):
        """What has come when everything is settled."""
        found = []
        while True:
            self.run()
            packets = self.received()
            if not packets:
                return found
            found += packets

    def connect(self, guest_port=1000, host_port=52, **changes):
        """Connect to the host, which listens; the packet that answers."""
        self.send("REQUEST", guest_port, host_port, **changes)
        [answer] = [packet for packet in self.get() if packet.ports == (guest_port, host_port)]
        return answer

    def events(self, count=1, size=4):
        """Provide buffers for events."""
        for _ in range(count):
            self.driver.send(EVENT, [], [size])

    def close(self):
        self.driver.close()


def listen(path, backlog=128):
    """A host's program at `path`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    listener.settimeout(20)
    return listener


def accept(listener):
    """The next one who connects."""
    connected, _ = listener.accept()
    connected.settimeout(20)
    return connected


def call(path, port=None):
    """A host's program that connects to the VM, and asks for `port`."""
    caller = socket.socket(socket.AF_UNIX)
    caller.settimeout(20)
    caller.connect(str(path))
    if port is not None:
        caller.sendall(b"CONNECT %d\n" % port)
    return caller
