"""Streams of the socket device, several at a time, in any order of events, against a model of what each end sees."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from pyvmm.backends.vsock import open_vsock
from pyvmm.virtio import spec
from pyvmm.virtio.vsock import VirtioVsock
from tests.support.vsockdriver import Guest, accept, call, listen

RECEIVE, SEND = spec.VSOCK_SHUTDOWN_RECEIVE, spec.VSOCK_SHUTDOWN_SEND
SIZES = st.sampled_from((40_000, 1, 3000, 40_000, 100))

PATTERN = bytes(range(251)) * 1100


def pattern(begin, count):
    return PATTERN[begin % 251 : begin % 251 + count]


class Ends:
    """A stream as its two ends know it."""

    def __init__(self, ports, host, window, alloc):
        self.ports, self.host, self.window, self.alloc = ports, host, window, alloc
        self.said = self.read = 0  # bytes from the guest: sent, and read by the host
        self.written = self.heard = 0  # bytes from the host: taken by the socket, and come to the guest
        self.freed = 0  # of those, what the guest has made room for again
        self.credit = 0  # of what the guest has sent, what the device has told to be forwarded
        self.guest_ended = self.host_ended = self.told = 0
        host.settimeout(0)


class Machine(RuleBasedStateMachine):
    streams = Bundle("streams")

    @initialize(size=st.sampled_from((600, 4096)))
    def bring_up(self, size):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "vm"
        self.listener = listen(f"{self.path}_52")
        self.guest = Guest(VirtioVsock(open_vsock(self.path)), buffers=16, size=size)
        self.streams_by_ports = {}
        self.port = 1000

    def teardown(self):
        if hasattr(self, "guest"):
            for ends in list(self.streams_by_ports.values()):
                self.finish(ends)
            self.guest.close()
            self.listener.close()
            self.folder.cleanup()

    # --- What both ends do --------------------------------------------------------------------------------------------

    @rule(target=streams, alloc=st.sampled_from((0, 50, 5000, 1 << 18)))
    def guest_connects(self, alloc):
        self.port += 1
        self.settle()
        answer = self.guest.connect(self.port, 52, buf_alloc=alloc)
        assert answer.name == "RESPONSE"
        return self.opened((self.port, 52), accept(self.listener), answer, alloc)

    @rule(target=streams, alloc=st.sampled_from((0, 50, 5000, 1 << 18)))
    def host_connects(self, alloc):
        self.settle()
        host = call(self.path, 80)
        [request] = [packet for packet in self.guest.get() if packet.name == "REQUEST"]
        self.guest.send("RESPONSE", *request.ports, buf_alloc=alloc)
        assert host.recv(100) == b"OK %d\n" % request.src_port
        return self.opened(request.ports, host, request, alloc)

    def opened(self, ports, host, packet, alloc):
        stream = self.guest.device._streams.find(*ports)
        stream.host._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # it is full soon
        ends = self.streams_by_ports[ports] = Ends(ports, host, packet.buf_alloc, alloc)
        return ends

    def send(self, ends, name, **changes):
        self.guest.send(name, *ends.ports, buf_alloc=ends.alloc, fwd_cnt=ends.freed, **changes)

    @rule(ends=streams, count=SIZES)
    def guest_says(self, ends, count):
        count = min(count, ends.window - (ends.said - ends.credit))
        if count and not ends.guest_ended & SEND and not ends.told & RECEIVE:
            self.send(ends, "RW", data=pattern(ends.said, count))
            ends.said += count

    @rule(ends=streams, count=SIZES)
    def host_says(self, ends, count):
        if not ends.host_ended & SEND:
            try:
                ends.written += ends.host.send(pattern(ends.written, count))
            except BlockingIOError:
                pass
            except BrokenPipeError:
                assert ends.guest_ended & RECEIVE

    @rule(ends=streams, count=SIZES)
    def host_reads(self, ends, count):
        self.take(ends, count)

    @rule(ends=streams, alloc=st.sampled_from((50, 5000, 1 << 18)))
    def guest_makes_room(self, ends, alloc):
        ends.freed = ends.heard
        ends.alloc = max(ends.alloc, alloc)
        self.send(ends, "CREDIT_UPDATE")

    @rule(ends=streams)
    def guest_asks(self, ends):
        self.send(ends, "CREDIT_REQUEST")

    @rule(ends=streams, flag=st.sampled_from((RECEIVE, SEND)))
    def guest_ends_one_way(self, ends, flag):
        if not ends.guest_ended:
            ends.guest_ended = flag
            self.send(ends, "SHUTDOWN", flags=flag)

    @rule(ends=streams)
    def host_ends_its_output(self, ends):
        if not ends.host_ended:
            ends.host_ended = SEND
            ends.host.shutdown(socket.SHUT_WR)

    @rule(ends=consumes(streams))
    def both_finish(self, ends):
        self.finish(ends)

    @rule(ends=consumes(streams), how=st.sampled_from(("guest resets", "host vanishes")))
    def one_is_gone(self, ends, how):
        self.settle()
        del self.streams_by_ports[ends.ports]
        if how == "guest resets":
            self.send(ends, "RST")
        else:
            ends.host.close()
            self.settle()
            self.send(ends, "RST")
        self.settle()
        assert self.guest.device._streams.find(*ends.ports) is None
        ends.host.close()

    @rule(target=streams)
    def time_goes_by(self):
        self.settle()
        return multiple()

    # --- What must hold -----------------------------------------------------------------------------------------------

    def take(self, ends, count=1 << 20):
        """Read at the host's end; False at the end."""
        try:
            data = ends.host.recv(count)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            assert ends.heard < ends.written, "nothing was left unread"
            return False
        assert data == pattern(ends.read, len(data)), "the host reads what the guest has not said"
        ends.read += len(data)
        return bool(data)

    def settle(self):
        for packet in self.guest.get():
            ends = self.streams_by_ports.get(packet.ports)
            if ends is None:
                continue
            assert packet.name in ("RW", "SHUTDOWN", "CREDIT_UPDATE", "CREDIT_REQUEST", "RESPONSE"), packet
            assert packet.buf_alloc == ends.window
            assert ends.credit <= packet.fwd_cnt <= ends.said, "credit for what was not sent"
            ends.credit = packet.fwd_cnt
            if packet.name == "RW":
                assert not ends.told & SEND and not ends.guest_ended & RECEIVE
                assert packet.data == pattern(ends.heard, packet.length), "the guest hears what the host has not said"
                ends.heard += packet.length
                assert ends.heard - ends.freed <= ends.alloc, "more than there is room for"
            elif packet.name == "SHUTDOWN":
                assert packet.flags & ends.told == ends.told
                ends.told = packet.flags
                assert not packet.flags & SEND or (ends.host_ended and ends.heard == ends.written)

    def finish(self, ends):
        """Everything that was said arrives; then the guest closes, and the host comes to the end."""
        if not ends.guest_ended & RECEIVE:
            for _ in range(2 + ends.written // 1000):
                ends.freed, ends.alloc = ends.heard, 1 << 18
                self.send(ends, "CREDIT_UPDATE")
                self.settle()
                if ends.heard == ends.written:
                    break
            assert ends.heard == ends.written
        for _ in range(1000):
            self.settle()
            if not self.take(ends) or (ends.read == ends.said and not ends.guest_ended & SEND):
                break
        else:
            raise AssertionError("the host waits for ever")
        self.send(ends, "CREDIT_REQUEST")
        self.settle()
        assert ends.credit == ends.said, "what the host has is not told to the guest"
        del self.streams_by_ports[ends.ports]
        self.send(ends, "SHUTDOWN", flags=RECEIVE | SEND)
        for _ in range(1000):
            self.settle()
            if not self.take(ends):
                break
        assert ends.read == ends.said
        self.settle()
        assert self.guest.device._streams.find(*ends.ports) is None
        ends.host.close()

    @invariant()
    def what_waits_is_bounded(self):
        if hasattr(self, "guest"):
            for stream in self.guest.device._streams.every():
                assert len(stream.backlog) <= stream.window
            assert not self.guest.driver.needs_reset


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestMachine = Machine.TestCase
