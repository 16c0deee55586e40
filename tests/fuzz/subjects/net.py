"""The network device, on a back-end in memory or on a socket that is full, or gone, when told to."""

from __future__ import annotations

import os
import select
import socket
from struct import pack

from pyvmm.backends.net.stream import FrameStream
from pyvmm.backends.net.tap import Tap
from pyvmm.errors import BackendError
from pyvmm.virtio import net, netbuffers, netfeatures, netfilter, netheader, spec
from pyvmm.virtio.net import CONTROL, MAX_FRAME, RECEIVE, TRANSMIT, VirtioNet
from tests.fuzz.subjects.base import Subject

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
STATIONS = (MAC, OTHER, b"\xff" * 6, bytes.fromhex("01005e000001"), bytes(6), bytes.fromhex("33330000fb01"))
FD = 1000
WAITING = 200
"""Frames that wait for the guest at most."""


def asked(queue, readable, writable):
    return ("chain", queue, (readable,) if readable else (), (writable,) if writable else (), "direct", (), True)


class Wire:
    """A back-end: `incoming` is what it has for the guest, `room` how many frames it takes before it is full."""

    def __init__(self, vnet_header, kinds):
        self.vnet_header = vnet_header
        self.incoming, self.handed, self.sent = [], [], []
        self.room = 1 << 30
        self.gone = False
        self._kinds = kinds

    def fileno(self):
        return FD

    def offloads(self, checksum, tso4, tso6, ecn):
        if self.gone:
            raise BackendError("gone")

    def receive(self):
        if self.incoming:
            frame = self.incoming.pop(0)
            self.handed.append(frame[12:] if self.vnet_header else frame)
            return memoryview(frame)
        if self.gone:
            raise BackendError("gone")
        return None

    def send(self, frame):
        if self.gone:
            raise BackendError("gone")
        if not self.room:
            self._kinds.add("back-end: full")
            return False
        taken = self.take(frame)
        self.room -= taken
        return taken

    def take(self, frame):
        self.sent.append(bytes(frame))
        return True

    def close(self):
        pass

    def pending(self):
        """Whether there is something for the guest."""
        return bool(self.incoming)

    def clear(self):
        """Nothing is, any more."""
        self.incoming.clear()


class Line(Wire):
    """The same on a socket, so that C moves frames too: a stream, or packets, each with virtio's header.

    C is kept away while the room is counted, and once the other side has gone, as a back-end may do at any time.
    """

    def __init__(self, vnet_header, kinds):
        self._end, self._peer = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_SEQPACKET if vnet_header else socket.SOCK_STREAM
        )
        self._end.setblocking(False)
        self._peer.setblocking(False)
        self._inner = Tap("fuzz", os.dup(self._end.fileno())) if vnet_header else FrameStream(self._end)
        self._heard, self._rest = [], b""
        super().__init__(vnet_header, kinds)

    @property
    def direct(self):
        return self._inner if self.room > WAITING and not self.gone else None

    @property
    def sent(self):
        """What the other side has got."""
        try:
            while data := self._peer.recv(1 << 18):
                self._rest += data
                if self.vnet_header:
                    self._heard.append(data)
        except BlockingIOError:
            pass
        while not self.vnet_header and len(self._rest) >= 4:
            end = 4 + int.from_bytes(self._rest[:4], "big")
            if len(self._rest) < end:
                break
            self._heard.append(self._rest[4:end])
            self._rest = self._rest[end:]
        return self._heard

    @sent.setter
    def sent(self, frames):
        self._heard = frames

    def pending(self):
        while self.incoming:
            frame = self.incoming[0]
            if 14 <= len(frame) <= MAX_FRAME:  # no stream has another, and a tap cuts a longer one
                prefix = b"" if self.vnet_header else len(frame).to_bytes(4, "big")
                if not select.select([], [self._peer], [], 0)[1]:
                    break  # more than a quarter of the room is taken: a frame might be sent in part
                self._peer.send(prefix + frame)
                self.handed.append(frame[12:] if self.vnet_header else frame)
            del self.incoming[0]
        return bool(select.select([self._end], [], [], 0)[0])

    def clear(self):
        super().clear()
        while self._inner.receive() is not None:
            pass

    def receive(self):
        if self.gone and not self.pending():
            raise BackendError("gone")
        return self._inner.receive()

    def take(self, frame):
        assert self.sent is not None  # makes room
        return self._inner.send(frame)

    def close(self):
        self._peer.close()
        if self.vnet_header:
            self._inner.close()
        self._end.close()


class Net(Subject):
    name = "net"
    modules = (net, netbuffers, netfeatures, netfilter, netheader)
    queues = 3
    greeting = ((RECEIVE, (), (1526,)),) * 3
    seeds = (
        (*(asked(RECEIVE, b"", 64),) * 5, ("host", "frames", bytes(12), MAC + OTHER + bytes(88), 3)),
        (
            asked(RECEIVE, b"", 1526),
            ("set up", RECEIVE, 16, "", 0),
            ("host", "frames", bytes(12), MAC + OTHER + bytes(88), 3),
        ),
        (("greet",), asked(CONTROL, b"\0\0\0", 1), ("host", "frames", bytes(12), OTHER + MAC + bytes(46), 1)),
        (asked(RECEIVE, b"", 64), ("host", "frames", bytes(12), MAC + OTHER + bytes(88), 1), ("wait", 60.0)),
        (("host", "room", 0), asked(TRANSMIT, bytes(12) + OTHER + MAC + bytes(46), 0), ("host", "room", 9)),
    )
    required = (
        *(f"frames: {name}" for name in ("received", "transmitted", *VirtioNet.DROPS)),
        *("control: OK", "control: ERR", "back-end: full", "told: the network has gone"),
        *("cable: in", "cable: out"),
    )

    def __init__(self, settings, kinds):
        self.kinds = kinds
        self.wire = (Line if settings.get("native") else Wire)(settings["vnet_header"], kinds)
        self.device = VirtioNet(
            self.wire,
            mac=MAC,
            mtu=settings["mtu"],
            spoof=settings["spoof"],
            queue_size=64,
            report=lambda _: kinds.add("told: the network has gone"),
        )
        self._before = dict(self.device.counts)
        self._left = 0  # buffers of the frame that has come in part
        self._frame_so_far = b""

    def _count(self):
        for name, count in self.device.counts.items():
            if count != self._before[name]:
                self.kinds.add(f"frames: {name}", count - self._before[name])
        self._before = dict(self.device.counts)

    @staticmethod
    def settings(draw):
        return {
            "native": draw.rarely(2),
            "vnet_header": not draw.rarely(3),
            "mtu": draw.pick((None, 1500, 68)),
            "spoof": not draw.rarely(3),
        }

    @staticmethod
    def request(draw):
        queue = draw.pick((RECEIVE, TRANSMIT, CONTROL, RECEIVE, TRANSMIT, CONTROL, RECEIVE))
        if queue == RECEIVE:
            room = draw.pick((1526, 128, 64, 64, 12, 2048, 70000, 11))
            return queue, [b"odd"] if draw.rarely(16) else [], draw.cut(room)
        if queue == TRANSMIT:
            return queue, draw.cut(Net._header(draw) + Net._frame(draw)), [16] if draw.rarely(16) else []
        return queue, draw.cut(Net._command(draw)), [] if draw.rarely(12) else draw.cut(draw.pick((1, 1, 2)))

    @staticmethod
    def _header(draw):
        if not draw.rarely(3):
            return bytes(12)
        return pack(
            "<BBHHHHH",
            draw.pick((1, 1, 0, 2, 8, 255)),
            draw.pick((0, 1, 4, 0x81, 0x84, 3, 0x80, 255)),
            draw.pick((0, 54, 0xFFFF)),
            draw.pick((1448, 1, 0, 0xFFFF)),
            draw.pick((34, 0, 60, 0xFFFF)),
            draw.pick((16, 6, 0, 0xFFFF)),
            draw.pick((0, 1, 0xFFFF)),
        )

    @staticmethod
    def _frame(draw):
        start = draw.pick(STATIONS) + draw.pick((MAC, MAC, OTHER)) + draw.pick((b"\x08\x00", b"\x81\x00"))
        length = draw.pick((60, 60, 98, 1514, 14, 1518, 1519, 9000, 13, 0, MAX_FRAME, MAX_FRAME + 1))
        return start[:length] + draw.filling(max(0, length - 14))

    @staticmethod
    def _command(draw):
        kind = draw.pick((0, 0, 0, 0, 1, 1, 1, 2))
        number = draw.pick((0, 0, 0, 0, 1, 2, 3, 4, 5)) if kind == 0 else draw.pick((1, 0, 2))
        if kind == 0:
            data = bytes([draw.pick((0, 0, 1, 2))])
        elif number == 1:
            data = draw.pick(STATIONS)
        else:
            data = b""
            for _ in range(2):
                count = draw.pick((0, 1, 2, 300))
                data += pack("<I", count if not draw.rarely(8) else draw.number(4))
                data += b"".join(STATIONS[index % len(STATIONS)] for index in range(count))
        if draw.rarely(6):
            data = data[:-1] if draw.byte() & 1 else data + b"\0"
        return (bytes([kind, number]) + data)[: None if not draw.rarely(12) else draw.below(3)]

    @staticmethod
    def host(draw):
        what = draw.pick(("frames", "frames", "frames", "frames", "room", "room", "go", "cable", "cable"))
        if what == "cable":
            return (what, not draw.rarely(2))
        if what == "frames":
            return (what, Net._header(draw), Net._frame(draw), draw.pick((1, 1, 3, 100)))
        return (what, draw.pick((1 << 30, 0, 1))) if what == "room" else (what, draw.rarely(2))

    def happen(self, what, *arguments):
        wire = self.wire
        if what == "frames":
            header, frame, count = arguments
            frame = header + frame if wire.vnet_header else frame
            wire.incoming += [frame] * min(count, WAITING - len(wire.incoming))
        elif what == "room":
            wire.room = arguments[0]
        elif what == "cable":
            self.device.set_link(arguments[0])
            self.kinds.add("cable: in" if arguments[0] else "cable: out")
        elif arguments[0]:
            wire.gone = True

    def happened(self, sources):
        found = []
        for fd, events in sources:
            assert fd == FD
            seen = events & select.POLLIN if self.wire.pending() else 0
            seen |= events & select.POLLOUT if self.wire.room else 0
            seen |= select.POLLHUP if self.wire.gone else 0
            if seen:
                found.append((fd, seen))
        return found

    def prompt(self, queue):
        return queue == CONTROL or (queue == TRANSMIT and (self.wire.room > 0 or self.device._gone))

    def outcome(self, queue, request, written, answer):
        if queue == CONTROL and written:
            return "control: OK" if answer[0] == spec.NET_CTRL_OK else "control: ERR"
        if queue == TRANSMIT:
            assert not written
        elif queue == RECEIVE and written and self.ordered:
            self._received(answer[:written])
        return ""

    def _received(self, data):
        """A buffer of a frame: all of it must be one that the device was handed, and they come in order (5.1.6.4)."""
        if not self._left:
            self._left, self._frame_so_far = int.from_bytes(data[10:12], "little"), b""
            assert self._left, "a frame in no buffer"
        self._left -= 1
        self._frame_so_far += data
        if not self._left:
            handed, frame = self.wire.handed, self._frame_so_far[12:]
            while handed and handed[0] != frame:
                del handed[0]  # dropped, or delivered when nobody could judge it
            assert handed, f"a frame of {len(frame)} bytes that nobody sent"
            del handed[0]

    def resync(self):
        self._left = 0

    def calm(self):
        self._count()
        self.wire.room = 1 << 30
        self.wire.clear()
        self.device.set_link(True)

    def probe(self, driver):
        wire, frame = self.wire, MAC + MAC + bytes(46)
        header = bytes(12) if wire.vnet_header else b""
        wire.sent.clear()
        assert driver.request(TRANSMIT, [bytes(12), frame])[0] == 0
        assert wire.gone or not self.device.link or wire.sent == [header + frame]
        assert driver.request(CONTROL, [b"\0\0", b"\1"], [1])[1] == b"\0"
        if not wire.gone and self.device.link:
            head = driver.send(RECEIVE, [], [128])
            wire.incoming.append(header + frame)
            driver.run()
            assert driver.rings[RECEIVE].used() == [(head, 12 + len(frame))]
            assert driver.rings[RECEIVE].written(head)[12 : 12 + len(frame)] == frame
        self._count()
