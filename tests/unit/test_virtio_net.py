"""The network device, driven by the tests' own driver, with a back-end in memory."""

import select
from functools import partial
from itertools import pairwise
from struct import pack, unpack

import pytest

from pyvmm.errors import BackendError, UsageError
from pyvmm.virtio import net as virtio_net
from pyvmm.virtio import spec
from pyvmm.virtio.faults import FaultPlan
from pyvmm.virtio.net import BUDGET, CONTROL, MAX_FRAME, PATIENCE, RECEIVE, TRANSMIT, VirtioNet
from pyvmm.virtio.netfilter import TABLE_LIMIT
from tests.support.virtiodriver import Driver

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
GROUP = bytes.fromhex("01005e000001")
BROADCAST = b"\xff" * 6
PLAIN = bytes(12)
FD = 1000
"""What the back-end in memory calls its descriptor."""

CHECKSUMS = (spec.NET_F_CSUM, spec.NET_F_GUEST_CSUM)
SEGMENTS = (
    spec.NET_F_HOST_TSO4,
    spec.NET_F_HOST_TSO6,
    spec.NET_F_HOST_ECN,
    spec.NET_F_GUEST_TSO4,
    spec.NET_F_GUEST_TSO6,
    spec.NET_F_GUEST_ECN,
)


def frame(destination=MAC, source=OTHER, length=60, fill=b"\x5a"):
    return (destination + source + b"\x08\x00").ljust(length, fill)


def header(flags=0, gso_type=0, hdr_len=0, gso_size=0, csum_start=0, csum_offset=0, num_buffers=0):
    return pack("<BBHHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers)


class Memory:
    """A back-end: `incoming` is what it has for the guest, `sent` what the guest has sent through it."""

    def __init__(self, vnet_header=False):
        self.vnet_header = vnet_header
        self.incoming = []
        self.sent = []
        self.offers = 0
        self.room = 1 << 30
        self.gone = ""
        self.taken = ()
        self.closed = 0

    def fileno(self):
        return FD

    def offloads(self, checksum, tso4, tso6, ecn):
        self.taken = (checksum, tso4, tso6, ecn)

    def receive(self):
        if self.incoming:
            return memoryview(self.incoming.pop(0))
        if self.gone:
            raise BackendError(self.gone)
        return None

    def send(self, frame):
        if self.gone:
            raise BackendError(self.gone)
        self.offers += 1
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(bytes(frame))
        return True

    def close(self):
        self.closed += 1


class Guest(Driver):
    """A driver with a network device, and what a data plane would do for it."""

    def __init__(self, backend=None, **settings):
        self.backend = backend or Memory()
        super().__init__(VirtioNet(self.backend, mac=MAC, **settings))
        self.net = self.device

    def post(self, *lengths):
        """Make receive buffers available; returns their heads."""
        heads = [self.rings[RECEIVE].add(self.heap, writable=[length]) for length in lengths]
        self.kick(RECEIVE)
        return heads

    def arrive(self, *frames):
        """Frames come in; the data plane looks after them if the device wants it to."""
        self.backend.incoming += frames
        self.turn()

    def turn(self, now=0.0):
        """One turn of the data plane."""
        with self.net.plane:
            for fd, wanted in self.net.sources():
                assert fd == FD
                events = wanted & (
                    (select.POLLIN if self.backend.incoming or self.backend.gone else 0)
                    | (select.POLLOUT if self.backend.room or self.backend.gone else 0)
                )
                if events:
                    self.net.guarded(partial(self.net.ready, FD, events))
            deadline = self.net.deadline()
            if deadline is not None and deadline <= now:
                self.net.guarded(lambda: self.net.tick(now))

    def received(self):
        """Frames that the driver has got, put together from their buffers: (header, frame)."""
        found, elements = [], self.rings[RECEIVE].used()
        while elements:
            head, written = elements.pop(0)
            data = self.rings[RECEIVE].written(head)[:written]
            if written < 12:
                found.append((data, b""))
                continue
            for _ in range(int.from_bytes(data[10:12], "little") - 1):
                head, written = elements.pop(0)
                data += self.rings[RECEIVE].written(head)[:written]
            found.append((data[:12], data[12:]))
        return found

    def transmit(self, data, head=PLAIN):
        """One frame; it is used at once, and nothing is written."""
        assert self.request(TRANSMIT, [head, data]) == (0, b"")

    def command(self, kind, command, data, without_answer=False):
        written, answer = self.request(CONTROL, [bytes([kind, command]), data], [1])
        assert written == 1
        return answer[0] == spec.NET_CTRL_OK


@pytest.fixture
def guest():
    made = Guest()
    yield made
    made.close()


@pytest.fixture
def tap():
    made = Guest(Memory(vnet_header=True))
    yield made
    made.close()


def works(guest):
    """A good frame goes each way."""
    guest.backend.sent.clear()
    guest.transmit(frame(OTHER, MAC))
    header = PLAIN if guest.backend.vnet_header else b""
    assert guest.backend.sent == [header + frame(OTHER, MAC)]
    guest.rings[RECEIVE].used()
    guest.post(1526)
    guest.arrive(header + frame())
    assert guest.received() == [(PLAIN[:10] + b"\1\0", frame())]


# --- Features and configuration (5.1.3, 5.1.4) -----------------------------------------------------------------------


def test_a_plain_back_end_gets_no_offloads_and_one_with_headers_all(guest, tap):
    """virtio 1.3, 5.1.3: only what the back-end can do is offered."""
    offloads = {1 << bit for bit in (*CHECKSUMS, *SEGMENTS)}
    assert not any(guest.offered & bit for bit in offloads)
    assert all(tap.offered & bit for bit in offloads)
    for bit in (spec.NET_F_GUEST_UFO, spec.NET_F_HOST_UFO, spec.NET_F_CTRL_VLAN, spec.NET_F_MTU):
        assert not (guest.offered | tap.offered) >> bit & 1


@pytest.mark.parametrize(
    ("feature", "required"),
    [
        (spec.NET_F_GUEST_TSO4, [spec.NET_F_GUEST_CSUM]),
        (spec.NET_F_GUEST_TSO6, [spec.NET_F_GUEST_CSUM]),
        (spec.NET_F_GUEST_ECN, [spec.NET_F_GUEST_TSO4, spec.NET_F_GUEST_TSO6]),
        (spec.NET_F_HOST_TSO4, [spec.NET_F_CSUM]),
        (spec.NET_F_HOST_TSO6, [spec.NET_F_CSUM]),
        (spec.NET_F_HOST_ECN, [spec.NET_F_HOST_TSO4, spec.NET_F_HOST_TSO6]),
        (spec.NET_F_CTRL_RX, [spec.NET_F_CTRL_VQ]),
        (spec.NET_F_CTRL_MAC_ADDR, [spec.NET_F_CTRL_VQ]),
    ],
)
def test_a_feature_without_what_it_requires_is_refused(tap, feature, required):
    """virtio 1.3, 2.2.2 with 5.1.3.1."""
    version = 1 << spec.F_VERSION_1
    assert not tap.negotiate(version | 1 << feature)
    for one in required:
        bits = version | 1 << feature | 1 << one
        if one in (spec.NET_F_GUEST_TSO4, spec.NET_F_GUEST_TSO6):
            bits |= 1 << spec.NET_F_GUEST_CSUM
        if one in (spec.NET_F_HOST_TSO4, spec.NET_F_HOST_TSO6):
            bits |= 1 << spec.NET_F_CSUM
        assert tap.negotiate(bits)


def test_the_configuration_says_address_and_link(guest):
    """virtio 1.3, 5.1.4."""
    assert bytes(guest.config(at, 1) for at in range(6)) == MAC
    assert guest.config(6, 2) == spec.NET_S_LINK_UP and guest.config(10, 2) == 0
    guest.put_config(0, 1, 0xEE)
    assert guest.config(0, 1) == MAC[0]


@pytest.mark.parametrize("mtu", [68, 1280, 65535])
def test_the_mtu_is_offered_when_given_and_stays(mtu):
    """virtio 1.3, 5.1.4.1: between 68 and 65535, and never changed."""
    guest = Guest(mtu=mtu)
    assert guest.offered >> spec.NET_F_MTU & 1 and guest.config(10, 2) == mtu
    guest.bring_up()
    guest.put_config(10, 2, 99)
    assert guest.config(10, 2) == mtu
    guest.close()


@pytest.mark.parametrize("mtu", [-1, 0, 67, 65536])
def test_no_other_mtu_can_be_given(mtu):
    """virtio 1.3, 5.1.4.1."""
    with pytest.raises(UsageError, match="68 to 65535"):
        VirtioNet(Memory(), mac=MAC, mtu=mtu)


@pytest.mark.parametrize("mac", [b"", bytes(6), GROUP, MAC + b"\0"])
def test_only_a_station_has_an_address(mac):
    with pytest.raises(UsageError, match="MAC address"):
        VirtioNet(Memory(), mac=mac)


def test_received_frames_above_the_mtu_are_not_passed_on():
    """virtio 1.3, 5.1.4.1: mtu plus Ethernet header, after MTU was negotiated and not otherwise."""
    guest = Guest(mtu=100).bring_up()
    guest.post(2000, 2000, 2000, 2000)
    tagged = (MAC + OTHER + b"\x81\x00").ljust(118, b"t")
    guest.arrive(frame(length=114), frame(length=115), tagged, tagged + b"t")
    assert [data for _, data in guest.received()] == [frame(length=114), tagged]
    assert guest.net.counts["oversize"] == 2
    guest.bring_up(without=[spec.NET_F_MTU])
    guest.post(2000)
    guest.arrive(frame(length=115))
    assert [data for _, data in guest.received()] == [frame(length=115)]
    guest.close()


def test_segments_above_the_mtu_are_passed_on():
    """virtio 1.3, 5.1.4.1: the bound is for gso_type NONE."""
    guest = Guest(Memory(vnet_header=True), mtu=100).bring_up()
    guest.post(2000)
    big = header(1, spec.NET_HDR_GSO_TCPV4, 54, 60, 34, 16)
    guest.arrive(big + frame(length=1000))
    assert len(guest.received()) == 1
    guest.close()


def test_transmitted_frames_of_the_whole_mtu_are_forwarded():
    """virtio 1.3, 5.1.4.1."""
    guest = Guest(mtu=65535).bring_up()
    guest.transmit(frame(OTHER, MAC, 65535 + 14))
    assert guest.backend.sent == [frame(OTHER, MAC, 65535 + 14)]
    guest.close()


# --- Transmission (5.1.6.2) ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("cuts", [[], [12], [5], [12, 26], [1, 2, 3, 40]])
def test_a_frame_is_sent_however_its_descriptors_lie(guest, cuts, indirect):
    """virtio 1.3, 2.7.4.1: no assumption about framing."""
    guest.bring_up()
    data = PLAIN + frame(OTHER, MAC, 300)
    edges = [0, *cuts, len(data)]
    parts = [data[start:end] for start, end in pairwise(edges)]
    assert guest.request(TRANSMIT, parts, indirect=indirect) == (0, b"")
    assert guest.backend.sent == [frame(OTHER, MAC, 300)]


BAD_FRAMES = {
    "nothing": (b"", "short"),
    "part of a header": (bytes(11), "short"),
    "a header alone": (PLAIN, "short"),
    "no type": (PLAIN + bytes(13), "short"),
    "too long": (PLAIN + bytes(MAX_FRAME + 1), "oversize"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_what_is_no_frame_is_dropped_and_given_back(guest, name):
    guest.bring_up()
    data, reason = BAD_FRAMES[name]
    assert guest.request(TRANSMIT, [data]) == (0, b"")
    assert guest.backend.sent == [] and guest.net.counts[reason] == 1
    works(guest)


def test_the_longest_and_the_shortest_frame_are_sent(guest):
    guest.bring_up()
    for length in (14, MAX_FRAME):
        guest.transmit(frame(OTHER, MAC, length))
        assert guest.backend.sent.pop() == frame(OTHER, MAC, length)


def test_a_huge_chain_is_not_copied(guest, monkeypatch):
    """All of RAM, many times over, as one frame: dropped by its length alone."""
    guest.bring_up()
    monkeypatch.setattr(virtio_net.VirtioNet, "_send", None)
    ring = guest.rings[TRANSMIT]
    ring.add_buffers([(0, 1 << 20, 0)] * 16)
    guest.kick(TRANSMIT)
    assert len(ring.used()) == 1 and guest.net.counts["oversize"] == 1


def test_writable_transmit_buffers_are_left_alone(guest):
    guest.bring_up()
    assert guest.request(TRANSMIT, [PLAIN + frame(OTHER, MAC)], [100]) == (0, b"\xa5" * 100)
    assert guest.backend.sent == [frame(OTHER, MAC)]
    assert guest.request(TRANSMIT, [], [100]) == (0, b"\xa5" * 100)
    assert guest.net.counts["short"] == 1
    works(guest)


HEADERS = {
    "checksum not negotiated": (header(1, 0, 0, 0, 34, 16), CHECKSUMS + SEGMENTS),
    "segments not negotiated": (header(1, 1, 54, 1000, 34, 16), SEGMENTS),
    "IPv6 segments not negotiated": (header(1, 4, 74, 1000, 34, 16), (spec.NET_F_HOST_TSO6,)),
    "ECN not negotiated": (header(1, 0x81, 54, 1000, 34, 16), (spec.NET_F_HOST_ECN,)),
    "UFO": (header(1, 3, 42, 1000, 34, 16), ()),
    "USO": (header(1, 5, 42, 1000, 34, 16), ()),
    "unknown type": (header(1, 2, 42, 1000, 34, 16), ()),
    "a tunnel": (header(1, 0x21, 42, 1000, 34, 16), ()),
    "two tunnels": (header(1, 0x61, 42, 1000, 34, 16), ()),
    "a tunnel's checksum without a tunnel": (header(8), ()),
    "no segment size": (header(1, 1, 54, 0, 34, 16), ()),
    "segments without checksum": (header(0, 1, 54, 1000, 34, 16), ()),
    "checksum begins beyond": (header(1, 0, 0, 0, 60, 0), ()),
    "checksum lies beyond": (header(1, 0, 0, 0, 34, 30), ()),
    "checksum half beyond": (header(1, 0, 0, 0, 34, 25), ()),
    "checksum far beyond": (header(1, 0, 0, 0, 65535, 65535), ()),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_frame_that_asks_for_what_cannot_be_is_dropped(tap, name):
    """virtio 1.3, 5.1.6.2.2, and what 5.1.6.2.1 forbids the driver."""
    bad, without = HEADERS[name]
    tap.bring_up(without=without)
    tap.transmit(frame(OTHER, MAC), bad)
    assert tap.backend.sent == [] and tap.net.counts["header"] == 1
    works(tap)


def test_without_offloads_no_header_asks_for_any(guest):
    guest.bring_up()
    guest.transmit(frame(OTHER, MAC), header(1, 0, 0, 0, 34, 16))
    assert guest.backend.sent == []
    works(guest)


def test_unknown_flags_are_ignored(guest, tap):
    """virtio 1.3, 5.1.6.2.2."""
    for each in (guest, tap):
        each.bring_up()
        each.transmit(frame(OTHER, MAC), header(0xF6 & ~8))
        assert each.backend.sent == [(PLAIN if each is tap else b"") + frame(OTHER, MAC)]


def test_without_needs_csum_its_fields_are_not_used(tap):
    """virtio 1.3, 5.1.6.2.2: nor is a checksum that the driver calls valid relied on."""
    tap.bring_up()
    tap.transmit(frame(OTHER, MAC), header(spec.NET_HDR_F_DATA_VALID, 0, 9, 9, 65535, 65535, 7))
    assert tap.backend.sent == [PLAIN + frame(OTHER, MAC)]


def test_what_was_negotiated_is_handed_to_the_host(tap):
    tap.bring_up()
    for good in (header(1, 0, 0, 0, 34, 16), header(1, 1, 54, 1000, 34, 16), header(1, 0x84, 58, 1000, 34, 24)):
        tap.transmit(frame(OTHER, MAC), good)
        assert tap.backend.sent.pop() == good + frame(OTHER, MAC)


def test_the_length_of_headers_is_no_more_than_a_hint(tap):
    """virtio 1.3, 5.1.6.2.2: the host gets none that goes beyond the frame."""
    tap.bring_up()
    tap.transmit(frame(OTHER, MAC), header(1, 1, 65535, 1000, 34, 16))
    assert tap.backend.sent == [header(1, 1, 60, 1000, 34, 16) + frame(OTHER, MAC)]


def test_the_host_is_told_what_the_driver_takes(tap):
    tap.bring_up()
    assert tap.backend.taken == (True, True, True, True)
    tap.put("Status", 0)
    assert tap.backend.taken == (False, False, False, False)
    tap.bring_up(without=[spec.NET_F_GUEST_TSO6, spec.NET_F_GUEST_ECN])
    assert tap.backend.taken == (True, True, False, False)


def test_a_false_source_address_is_dropped_where_that_is_forbidden():
    guest = Guest(spoof=False).bring_up()
    assert not guest.offered >> spec.NET_F_CTRL_MAC_ADDR & 1
    guest.transmit(frame(BROADCAST, OTHER))
    assert guest.backend.sent == [] and guest.net.counts["spoofed"] == 1
    assert not guest.command(spec.NET_CTRL_MAC, spec.NET_CTRL_MAC_ADDR_SET, OTHER)
    works(guest)
    guest.close()


def test_a_frame_waits_for_a_full_back_end_and_is_offered_again(guest):
    guest.bring_up()
    guest.backend.room = 1
    frames = [frame(OTHER, MAC, 60 + number) for number in range(5)]
    for data in frames:
        guest.send(TRANSMIT, [PLAIN + data])
    assert guest.backend.sent == frames[:1] and len(guest.rings[TRANSMIT].used()) == 1
    assert guest.net.sources() == ((FD, select.POLLOUT),)
    guest.backend.room = 2
    guest.turn()
    assert guest.backend.sent == frames[:3]
    guest.backend.room = 100
    guest.turn()
    assert guest.backend.sent == frames and len(guest.rings[TRANSMIT].used()) == 4
    assert guest.net.sources() == ()
    works(guest)


def test_a_frame_in_part_sent_is_finished_after_a_reset(guest):
    """Else whoever reads the stream loses its place; but nothing is given back for it (2.4)."""
    guest.bring_up()
    guest.backend.room = 0
    guest.send(TRANSMIT, [PLAIN + frame(OTHER, MAC)])
    guest.bring_up()
    guest.send(TRANSMIT, [PLAIN + frame(OTHER, MAC, 70)])
    guest.backend.room = 10
    guest.turn()
    assert guest.backend.sent == [frame(OTHER, MAC), frame(OTHER, MAC, 70)]
    assert len(guest.rings[TRANSMIT].used()) == 1
    works(guest)


# --- Reception (5.1.6.3, 5.1.6.4) ------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [[], [spec.NET_F_MRG_RXBUF]])
def test_a_frame_in_one_buffer_says_so(guest, without):
    """virtio 1.3, 5.1.6.3.2 and 5.1.6.4.1: num_buffers is 1; without GUEST_CSUM flags and gso_type are 0."""
    guest.bring_up(without=without)
    guest.post(1526)
    guest.arrive(frame(length=1514))
    assert guest.received() == [(header(num_buffers=1), frame(length=1514))]


def test_a_frame_is_spread_over_buffers_that_are_full_but_for_the_last(guest):
    """virtio 1.3, 5.1.6.4.1: num_buffers counts them, and all of them are used to their end before the next."""
    guest.bring_up()
    heads = guest.post(100, 50, 13, 400)
    guest.arrive(frame(length=200))
    used = guest.rings[RECEIVE].used()
    assert used == list(zip(heads, [100, 50, 13, 212 - 163], strict=True))
    data = b"".join(guest.rings[RECEIVE].written(head)[:written] for head, written in used)
    assert data == header(num_buffers=4) + frame(length=200)
    assert guest.rings[RECEIVE].written(heads[3])[49:] == b"\xa5" * 351


def test_buffers_of_one_frame_become_used_together(guest):
    """virtio 1.3, 5.1.6.4.1: whenever the driver looks, it sees all num_buffers of a frame or none."""
    guest.bring_up()
    guest.post(*[100] * 4)
    seen = []
    ring, push = guest.rings[RECEIVE], guest.net.queues[RECEIVE].__class__.push

    def watched(queue, chain, written=0, **more):
        push(queue, chain, written, **more)
        seen.append(ring.used_index)

    guest.net.queues[RECEIVE].__class__.push = watched
    try:
        guest.arrive(frame(length=350))
    finally:
        guest.net.queues[RECEIVE].__class__.push = push
    assert seen == [0, 0, 0, 4]


def test_without_mergeable_buffers_a_frame_takes_one_or_is_dropped(guest):
    """virtio 1.3, 5.1.6.3.2: only a single one may be used."""
    guest.bring_up(without=[spec.NET_F_MRG_RXBUF])
    guest.post(100, 1526)
    guest.arrive(frame(length=89))
    assert guest.received() == [] and guest.net.counts["no room"] == 1
    guest.arrive(frame(length=88), frame(length=89))
    assert [data for _, data in guest.received()] == [frame(length=88), frame(length=89)]
    works(guest)


def test_a_buffer_may_be_in_pieces_and_have_readable_ones(guest):
    """virtio 1.3, 2.7.4.1."""
    guest.bring_up(without=[spec.NET_F_MRG_RXBUF])
    head = guest.send(RECEIVE, [b"readable"], [5, 7, 1, 300])
    guest.arrive(frame(length=200))
    assert guest.rings[RECEIVE].used() == [(head, 212)]
    assert guest.rings[RECEIVE].written(head)[:212] == header(num_buffers=1) + frame(length=200)


def test_buffers_too_small_for_a_header_are_given_back(guest):
    """virtio 1.3, 5.1.6.3.1, the driver's requirement."""
    guest.bring_up()
    guest.post(11, 1)
    guest.send(RECEIVE, [b"readable"])
    guest.arrive(frame())
    assert len(guest.backend.incoming) == 1 and guest.received() == [(b"", b"")] * 3
    guest.post(12, 300)
    guest.turn()
    assert guest.received() == [(header(num_buffers=2), frame())]
    works(guest)


def test_without_buffers_frames_stay_outside(guest):
    guest.bring_up()
    guest.arrive(frame())
    assert guest.net.sources() == () and len(guest.backend.incoming) == 1
    guest.post(1526)
    assert guest.received() == [(header(num_buffers=1), frame())]
    guest.turn()
    assert guest.net.sources() == ()


def test_the_driver_tells_of_buffers_once_there_are_none(guest):
    """virtio 1.3, 2.7.10: while the device has one in hand it need not be told, afterwards it must."""
    guest.bring_up(without=[spec.F_RING_EVENT_IDX])
    assert not guest.rings[RECEIVE].no_notify
    guest.post(1526)
    assert guest.rings[RECEIVE].no_notify
    guest.arrive(frame(), frame())
    assert not guest.rings[RECEIVE].no_notify


def test_a_frame_waits_for_as_many_buffers_as_it_needs(guest):
    guest.bring_up()
    guest.post(100)
    guest.arrive(frame(length=200), frame(length=60))
    assert guest.received() == [] and guest.net.sources() == ()
    guest.post(100)
    assert guest.received() == []
    guest.post(100, 100)
    assert [data for _, data in guest.received()] == [frame(length=200), frame(length=60)]


def test_a_frame_that_will_never_fit_does_not_block_those_behind_it(guest, monkeypatch):
    """A driver may have given all the buffers that it ever will."""
    guest.bring_up()
    monkeypatch.setattr(virtio_net.time, "monotonic", lambda: 100.0)
    guest.post(100)
    guest.arrive(frame(length=200), frame(length=60))
    assert guest.net.deadline() == 100 + PATIENCE
    guest.turn(100 + PATIENCE - 0.1)
    assert guest.received() == []
    guest.turn(100 + PATIENCE)
    assert [data for _, data in guest.received()] == [frame(length=60)]
    assert guest.net.counts["no room"] == 1 and guest.net.deadline() is None


def test_a_frame_larger_than_the_whole_queue_is_dropped(guest):
    guest.bring_up(size=4)
    guest.post(*[50] * 4)
    guest.arrive(frame(length=189), frame(length=188))
    assert [data for _, data in guest.received()] == [frame(length=188)]
    assert guest.net.counts["no room"] == 1


@pytest.mark.parametrize("length", [0, 13, MAX_FRAME + 1])
def test_a_back_end_that_gives_what_is_no_frame_harms_nobody(guest, length):
    guest.bring_up()
    guest.post(*[6000] * 12)
    guest.arrive(bytes(length), frame())
    assert [data for _, data in guest.received()] == [frame()]


def test_the_host_s_header_reaches_a_driver_that_takes_it(tap):
    """virtio 1.3, 5.1.6.4.1."""
    tap.bring_up()
    for good in (header(2), header(1, 0, 0, 0, 34, 16), header(1, 0x81, 54, 1000, 34, 16)):
        tap.post(1526)
        tap.arrive(good[:10] + b"\xff\xff" + frame())
        assert tap.received() == [(good[:10] + b"\1\0", frame())]


def test_without_guest_csum_flags_are_zero(tap):
    """virtio 1.3, 5.1.6.4.1."""
    tap.bring_up(without=[spec.NET_F_GUEST_CSUM, *SEGMENTS])
    tap.post(1526)
    tap.arrive(header(spec.NET_HDR_F_DATA_VALID) + frame())
    assert tap.received() == [(header(num_buffers=1), frame())]


NOT_FOR_THE_GUEST = {
    "checksum": (header(1, 0, 0, 0, 34, 16), [spec.NET_F_GUEST_CSUM, *SEGMENTS]),
    "TSO4": (header(1, 1, 54, 1000, 34, 16), [spec.NET_F_GUEST_TSO4]),
    "TSO6": (header(1, 4, 74, 1000, 34, 16), [spec.NET_F_GUEST_TSO6]),
    "ECN": (header(1, 0x81, 54, 1000, 34, 16), [spec.NET_F_GUEST_ECN]),
    "UFO": (header(1, 3, 54, 1000, 34, 16), []),
    "USO": (header(1, 5, 54, 1000, 34, 16), []),
    "a tunnel": (header(1, 0x21, 54, 1000, 34, 16), []),
    "segments without checksum": (header(0, 1, 54, 1000, 34, 16), []),
    "segments without size": (header(1, 1, 54, 0, 34, 16), []),
    "bounds": (header(1, 0, 0, 0, 60, 0), []),
}


@pytest.mark.parametrize("name", NOT_FOR_THE_GUEST)
def test_what_the_driver_does_not_take_is_not_passed_on(tap, name):
    """virtio 1.3, 5.1.6.4.1: no gso_type and no flag that was not negotiated; segments carry size and checksum."""
    bad, without = NOT_FOR_THE_GUEST[name]
    tap.bring_up(without=without)
    tap.post(1526)
    tap.arrive(bad + frame())
    assert tap.received() == [] and tap.net.counts["header"] == 1
    works(tap)


def test_a_frame_shorter_than_its_header_is_dropped(tap):
    tap.bring_up()
    tap.post(1526)
    tap.arrive(b"", b"\1", bytes(12), bytes(25))
    assert tap.received() == [] and tap.net.counts["short"] == 4


def test_receive_queue_and_back_end_full_together_recover(guest):
    """CVE-2020-16843 of another VMM: a full receive queue and a full tap together froze the interface."""
    guest.bring_up()
    guest.post(1526)
    guest.backend.room = 0
    for _ in range(8):
        guest.send(TRANSMIT, [PLAIN + frame(OTHER, MAC)])
    guest.arrive(*[frame()] * 20)
    assert len(guest.received()) == 1 and guest.backend.sent == []
    for _ in range(3):
        guest.turn()
        assert guest.net.sources() == ((FD, select.POLLOUT),)
    guest.backend.room = 100
    guest.turn()
    assert len(guest.backend.sent) == 8 and len(guest.rings[TRANSMIT].used()) == 8
    guest.post(*[1526] * 12)
    assert len(guest.received()) == 12
    guest.post(*[1526] * 12)
    assert len(guest.received()) == 7 and guest.backend.incoming == []
    works(guest)


def test_a_turn_is_bounded_each_way_and_goes_on_at_once():
    guest = Guest().bring_up(size=256)
    guest.post(*[100] * 200)
    guest.backend.incoming += [frame()] * 200
    for _ in range(200):
        guest.rings[TRANSMIT].add(guest.heap, [PLAIN + frame(OTHER, MAC)], publish=False)
    guest.rings[TRANSMIT].publish()
    guest.kick(TRANSMIT)
    assert len(guest.backend.sent) == BUDGET and guest.net.deadline() == 0.0
    guest.turn()
    assert len(guest.backend.sent) == 2 * BUDGET
    assert BUDGET <= len(guest.received()) <= 3 * BUDGET
    for _ in range(5):
        guest.turn()
    assert len(guest.backend.sent) == 200 and guest.backend.incoming == [] and guest.net.deadline() is None
    guest.close()


# --- The back-end goes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notices", ["receiving", "sending", "waiting"])
def test_a_back_end_that_goes_takes_the_link_down(notices):
    """virtio 1.3, 5.1.4: the status says so, with a new generation and a configuration change."""
    said = []
    guest = Guest(report=said.append).bring_up()
    guest.post(1526)
    generation = guest.get("ConfigGeneration")
    if notices == "waiting":
        guest.backend.room = 0
        guest.send(TRANSMIT, [PLAIN + frame(OTHER, MAC)])
    guest.backend.gone = "it was killed"
    if notices == "sending":
        guest.transmit(frame(OTHER, MAC))
    guest.turn()
    assert guest.config(6, 2) == 0 and guest.get("ConfigGeneration") != generation
    assert guest.acknowledge() & spec.INTERRUPT_CONFIG_CHANGE
    assert said == ["the network has gone: it was killed"]
    assert len(guest.rings[TRANSMIT].used()) == (notices == "waiting")
    assert guest.net.sources() == () and not guest.needs_reset
    guest.transmit(frame(OTHER, MAC))
    guest.bring_up()
    guest.post(1526)
    guest.transmit(frame(OTHER, MAC))
    guest.turn()
    assert guest.config(6, 2) == 0 and len(said) == 1
    guest.close()


def test_closing_the_device_closes_the_back_end():
    guest = Guest()
    guest.close()
    assert guest.backend.closed == 1


# --- The control queue (5.1.6.5) -------------------------------------------------------------------------------------


def tables(unicast=(), multicast=()):
    return pack("<I", len(unicast)) + b"".join(unicast) + pack("<I", len(multicast)) + b"".join(multicast)


def passes(guest, *destinations):
    """Which of frames to `destinations` reach the driver."""
    guest.post(*[100] * len(destinations))
    guest.arrive(*(frame(destination) for destination in destinations))
    reached = {data[:6] for _, data in guest.received()}
    while guest.net._buffers:  # use up what is left
        guest.arrive(frame(MAC if not guest.net._filter.no_unicast else GROUP))
        if not guest.received():
            break
    return reached


RX, MACS = spec.NET_CTRL_RX, spec.NET_CTRL_MAC
ALL = {MAC, OTHER, GROUP, BROADCAST}


def test_everything_is_received_until_the_driver_asks_for_less(guest):
    """virtio 1.3, 5.1.6.5.1."""
    guest.bring_up()
    assert passes(guest, *ALL) == ALL


def test_promiscuous_mode_goes_before_all_others(guest):
    """virtio 1.3, 5.1.6.5.1.1."""
    guest.bring_up()
    for command in (spec.NET_CTRL_RX_NOMULTI, spec.NET_CTRL_RX_NOUNI, spec.NET_CTRL_RX_NOBCAST):
        assert guest.command(RX, command, b"\1")
    assert passes(guest, *ALL) == ALL


MODES = {
    (): {MAC, BROADCAST},
    (spec.NET_CTRL_RX_ALLMULTI,): {MAC, BROADCAST, GROUP},
    (spec.NET_CTRL_RX_ALLUNI,): {MAC, BROADCAST, OTHER},
    (spec.NET_CTRL_RX_ALLMULTI, spec.NET_CTRL_RX_NOMULTI): {MAC, BROADCAST},
    (spec.NET_CTRL_RX_ALLUNI, spec.NET_CTRL_RX_NOUNI): {BROADCAST},
    (spec.NET_CTRL_RX_ALLMULTI, spec.NET_CTRL_RX_NOBCAST): {MAC, GROUP},
    (spec.NET_CTRL_RX_NOUNI,): {BROADCAST},
}


@pytest.mark.parametrize("modes", MODES)
def test_modes_of_reception(modes):
    """virtio 1.3, 5.1.6.5.1.1: PROMISC, ALLMULTI, ALLUNI, NOMULTI, NOUNI, NOBCAST, on and off."""
    guest = Guest().bring_up()
    assert guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    for mode in modes:
        assert guest.command(RX, mode, b"\1")
    assert passes(guest, *ALL) == MODES[modes]
    guest.bring_up()
    guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    for mode in modes:
        guest.command(RX, mode, b"\1")
        assert guest.command(RX, mode, b"\0")
    assert passes(guest, *ALL) == {MAC, BROADCAST}
    guest.close()


def test_the_tables_let_in_what_they_hold(guest):
    """virtio 1.3, 5.1.6.5.2.1: before the command is consumed."""
    guest.bring_up()
    guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    assert guest.command(MACS, spec.NET_CTRL_MAC_TABLE_SET, tables([OTHER], [GROUP]))
    assert passes(guest, *ALL) == ALL
    assert guest.command(MACS, spec.NET_CTRL_MAC_TABLE_SET, tables([], [GROUP]))
    assert passes(guest, *ALL) == {MAC, GROUP, BROADCAST}
    assert guest.command(MACS, spec.NET_CTRL_MAC_TABLE_SET, tables())
    assert passes(guest, *ALL) == {MAC, BROADCAST}


def test_the_tables_are_empty_after_a_reset(guest):
    """virtio 1.3, 5.1.6.5.2.1."""
    guest.bring_up()
    guest.command(MACS, spec.NET_CTRL_MAC_TABLE_SET, tables([OTHER], [GROUP]))
    guest.bring_up()
    guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    assert passes(guest, *ALL) == {MAC, BROADCAST}


def test_more_addresses_than_are_kept_let_in_all_of_their_kind(guest):
    """virtio 1.3, 5.1.6.5.2: unwanted frames may come, wanted ones must."""
    guest.bring_up()
    guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    many = [b"\x02" + number.to_bytes(5, "big") for number in range(TABLE_LIMIT + 1)]
    assert guest.command(MACS, spec.NET_CTRL_MAC_TABLE_SET, tables(many))
    assert passes(guest, *ALL) == {MAC, OTHER, BROADCAST}


def test_the_address_is_changed_in_the_configuration_too(guest):
    """virtio 1.3, 5.1.6.5.2.1: before the command is consumed; 2.5.1: with a new generation."""
    guest.bring_up()
    generation = guest.get("ConfigGeneration")
    guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    assert guest.command(MACS, spec.NET_CTRL_MAC_ADDR_SET, OTHER)
    assert bytes(guest.config(at, 1) for at in range(6)) == OTHER
    assert guest.get("ConfigGeneration") != generation
    guest.post(100, 100)
    guest.arrive(frame(MAC), frame(OTHER))
    assert [data for _, data in guest.received()] == [frame(OTHER)]
    guest.put("Status", 0)
    assert bytes(guest.config(at, 1) for at in range(6)) == MAC


BAD_COMMANDS = {
    "nothing": b"",
    "class alone": b"\0",
    "unknown class": b"\x07\0\1",
    "unknown command": b"\0\x09\1",
    "no data": b"\0\0",
    "too much data": b"\0\0\1\1",
    "neither on nor off": b"\0\0\2",
    "table without counts": b"\1\0",
    "table without the second": b"\1\0" + pack("<I", 0),
    "count beyond the data": b"\1\0" + pack("<I", 2) + MAC,
    "huge count": b"\1\0" + pack("<I", 0xFFFFFFFF) + MAC * 4,
    "second count beyond": b"\1\0" + pack("<II", 0, 1) + MAC[:5],
    "table with a rest": b"\1\0" + tables([OTHER]) + b"\0",
    "huge": b"\1\0" + bytes(200_000),
    "short address": b"\1\1" + MAC[:5],
    "long address": b"\1\1" + MAC + b"\0",
    "a group's address": b"\1\1" + GROUP,
    "VLAN": b"\2\0\1\0",
}


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_a_bad_command_is_refused_and_changes_nothing(guest, name):
    guest.bring_up()
    guest.command(RX, spec.NET_CTRL_RX_PROMISC, b"\0")
    assert guest.request(CONTROL, [BAD_COMMANDS[name]], [1]) == (1, bytes([spec.NET_CTRL_ERR]))
    assert passes(guest, *ALL) == {MAC, BROADCAST}
    works(guest)


def test_a_turn_of_commands_is_bounded_too(guest):
    guest.bring_up(size=64)
    heads = iter(range(10_000))

    def one_more(*arguments):
        guest.rings[CONTROL].used()
        guest.rings[CONTROL].add(guest.heap, [b"\0\0\1"], [1])
        next(heads)
        return done(*arguments)

    done, guest.net._command = guest.net._command, one_more
    guest.send(CONTROL, [b"\0\0\1"], [1])
    assert next(heads) == BUDGET and guest.net.deadline() == 0.0
    guest.turn()
    assert next(heads) == 2 * BUDGET + 1


def test_a_command_without_room_for_the_answer_is_not_done(guest):
    guest.bring_up()
    assert guest.request(CONTROL, [b"\0\0\0"]) == (0, b"")
    assert passes(guest, *ALL) == ALL


def test_a_command_that_was_not_negotiated_is_refused(guest):
    guest.bring_up(without=[spec.NET_F_CTRL_RX, spec.NET_F_CTRL_RX_EXTRA, spec.NET_F_CTRL_MAC_ADDR])
    for data in (b"\0\0\0", b"\0\3\1", b"\1\0" + tables(), b"\1\1" + OTHER):
        assert guest.request(CONTROL, [data], [1]) == (1, bytes([spec.NET_CTRL_ERR]))


def test_the_answer_s_length_and_place_do_not_depend_on_descriptors(guest):
    guest.bring_up()
    written, answer = guest.request(CONTROL, [b"\0", b"\0", b"\0"], [0, 3])
    assert (written, answer) == (1, b"\0\xa5\xa5")


# --- Faults on purpose -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "sent"),
    [
        ("error,op=transmit", []),
        ("short=30,op=transmit", [frame(OTHER, MAC)[:30]]),
        ("short=13,op=transmit", []),
        ("error,op=receive", [frame(OTHER, MAC)]),
    ],
)
def test_faults_lose_and_cut_frames_that_are_sent(guest, rule, sent):
    guest.bring_up()
    guest.net.faults = FaultPlan([f"virtio-net:{rule}"])
    guest.transmit(frame(OTHER, MAC))
    assert guest.backend.sent == sent and guest.net.counts["fault"] == (not sent)
    guest.net.faults = None
    works(guest)


@pytest.mark.parametrize(
    ("rule", "got"),
    [
        ("error,op=receive,nth=2", [frame(), frame(), frame()]),
        ("short=30,op=receive,nth=2", [frame(), frame()[:30], frame(), frame()]),
        ("short=13,op=receive,nth=2", [frame(), frame(), frame()]),
        ("error,op=transmit", [frame()] * 4),
    ],
)
def test_faults_lose_and_cut_frames_that_are_received(guest, rule, got):
    guest.bring_up()
    guest.net.faults = FaultPlan([f"virtio-net:{rule}"])
    guest.post(*[100] * 4)
    guest.arrive(*[frame()] * 4)
    assert [data for _, data in guest.received()] == got
    guest.net.faults = None
    works(guest)


def test_a_lost_frame_and_one_in_several_buffers_leave_the_plan_in_step(guest):
    """Third, a frame is delayed: neither the one before that was lost nor the one that was spread."""
    guest.bring_up()
    plan = guest.net.faults = FaultPlan(
        ["virtio-net:error,op=receive,nth=1", "virtio-net:delay=3600s,op=receive,nth=3"]
    )
    guest.post(*[50] * 4, *[100] * 3)
    guest.arrive(frame(length=60, fill=b"1"), frame(length=150, fill=b"2"))
    assert [data for _, data in guest.received()] == [frame(length=150, fill=b"2")]
    guest.arrive(frame(length=60, fill=b"3"), frame(length=60, fill=b"4"))
    assert [data for _, data in guest.received()] == [frame(length=60, fill=b"4")]
    assert [hits for _, hits, _ in plan.counts] == [1, 1]


def test_a_frame_that_waits_for_buffers_meets_its_fault_once(guest):
    guest.bring_up()
    plan = guest.net.faults = FaultPlan(["virtio-net:short=100,op=receive"])
    guest.post(50)
    guest.arrive(frame(length=200))
    guest.post(100)
    guest.post(100)
    assert [data for _, data in guest.received()] == [frame(length=200)[:100]]
    assert [matched for _, _, matched in plan.counts] == [1]
    guest.net.faults = None
    works(guest)


def test_a_frame_cut_before_its_checksum_is_lost(tap):
    """virtio 1.3, 5.1.6.4.1: csum_start and csum_offset lie in the frame."""
    tap.bring_up()
    tap.net.faults = FaultPlan(["virtio-net:short=40,op=receive"])
    tap.post(100)
    tap.arrive(header(1, 0, 0, 0, 34, 16) + frame())
    assert tap.received() == [] and tap.net.counts["fault"] == 1
    tap.net.faults = None
    works(tap)


# --- Broken rings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", [RECEIVE, TRANSMIT, CONTROL])
def test_a_broken_ring_is_the_driver_s_fault_and_a_reset_mends_it(guest, queue):
    guest.bring_up()
    guest.rings[queue].make_available(99)
    guest.kick(queue)
    assert guest.needs_reset
    guest.bring_up()
    works(guest)


@pytest.mark.transport("mmio")  # the only one with a way to do that
def test_a_receive_queue_taken_out_of_use_gets_nothing_more(guest):
    guest.bring_up()
    head = guest.post(1526)[0]
    guest.put("QueueSel", RECEIVE)
    guest.put("QueueReady", 0)
    guest.arrive(frame())
    assert guest.rings[RECEIVE].written(head) == b"\xa5" * 1526 and guest.rings[RECEIVE].used() == []
    guest.bring_up()
    works(guest)


def test_a_reset_drops_buffers_in_hand(guest):
    guest.bring_up()
    head = guest.post(1526)[0]
    ring = guest.rings[RECEIVE]
    guest.put("Status", 0)
    guest.arrive(frame())
    assert ring.written(head) == b"\xa5" * 1526 and ring.used() == []
    guest.backend.incoming.clear()
    guest.bring_up()
    works(guest)


def test_the_header_is_as_long_as_the_standard_says():
    """virtio 1.3, 5.1.6."""
    assert len(unpack("<BBHHHHH", PLAIN)) == 7 and len(PLAIN) == spec.NET_HDR_LENGTH
