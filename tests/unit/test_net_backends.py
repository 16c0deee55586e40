"""Addresses, frames over a stream, taps and captures."""

import errno
import os
import resource
import socket
import struct
import subprocess
import sys
import time

import pytest

from pyvmm.backends.net import MAX_FRAME, MIN_FRAME, parse_mac, random_mac, tap
from pyvmm.backends.net.pcap import Capture
from pyvmm.backends.net.stream import BUFFER, FrameStream
from pyvmm.backends.net.tap import open_tap
from pyvmm.errors import BackendError, UsageError
from tests.support.headers import macros

pytestmark = pytest.mark.transport("mmio")

# --- Addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["52:54:00:12:34:56", "52-54-00-12-34-56", "52:54:0:12:34:56", "52:54:00:12:34:5A"])
def test_an_address_is_read(text):
    assert parse_mac(text).hex().startswith("5254001234")


@pytest.mark.parametrize(
    "text",
    ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52:54:00:12:34:5g", "52:54:00:12:34:+5", "525400123456", "::::::"]
    + ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", "52:54:00:12:34:\u0665"],
)
def test_what_is_no_station_s_address_is_refused(text):
    with pytest.raises(UsageError, match="MAC address .* \\(expected"):
        parse_mac(text)


def test_addresses_at_random_are_local_and_differ():
    addresses = {random_mac() for _ in range(50)}
    assert len(addresses) > 45
    assert all(len(mac) == 6 and mac[:3] == b"\x52\x54\x00" and mac[0] & 3 == 2 for mac in addresses)


# --- Frames over a stream --------------------------------------------------------------------------------------------


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    yield FrameStream(ours), theirs
    ours.close()
    theirs.close()


def framed(*frames):
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


def test_frames_arrive_whole_however_the_stream_is_cut(pair):
    stream, other = pair
    frames = [bytes([number]) * (14 + number) for number in range(20)]
    data = framed(*frames)
    for cut in (1, 3, 4, 7, 50, len(data)):
        got = []
        for at in range(0, len(data), cut):
            other.sendall(data[at : at + cut])
            while (frame := stream.receive()) is not None:
                got.append(bytes(frame))
        assert got == frames, cut


def test_the_read_ahead_goes_round(pair):
    stream, other = pair
    frame = os.urandom(60_000)
    for _ in range(3 * BUFFER // len(frame)):
        other.settimeout(5)
        data = framed(frame, frame[:33])
        other.sendall(data[:70_000])
        got = []
        while len(got) < 2:
            if (received := stream.receive()) is not None:
                got.append(bytes(received))
        assert got == [frame, frame[:33]]


@pytest.mark.parametrize("length", [0, MIN_FRAME - 1, MAX_FRAME + 1, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_ends_the_stream(pair, length):
    stream, other = pair
    other.sendall(length.to_bytes(4, "big"))
    with pytest.raises(BackendError, match=f"frame of {length} bytes"):
        stream.receive()


def test_frames_that_came_before_the_end_are_still_read(pair):
    stream, other = pair
    other.sendall(framed(bytes(60), bytes(70)) + b"\0\0")
    other.close()
    assert len(stream.receive()) == 60 and len(stream.receive()) == 70
    with pytest.raises(BackendError, match="has gone"):
        stream.receive()
    with pytest.raises(BackendError, match="has gone"):
        stream.send(memoryview(bytes(60)))


def test_a_full_stream_takes_up_a_frame_where_it_left_it(pair):
    stream, other = pair
    frames = [number.to_bytes(4, "big") * 500 for number in range(300)]
    sent, refused, data = 0, 0, b""
    while sent < len(frames):
        if stream.send(memoryview(frames[sent])):
            sent += 1
        else:
            refused += 1
            data += other.recv(777)
    other.settimeout(0.05)
    while len(data) < len(framed(*frames)):
        data += other.recv(65536)
    assert data == framed(*frames) and refused


# --- Taps ------------------------------------------------------------------------------------------------------------


@pytest.mark.needs("gcc")
def test_numbers_of_taps_are_linux_s(tmp_path):
    for header, names in (
        ("linux/if_tun.h", ["TUNSETIFF", "TUNGETIFF", "TUNSETOFFLOAD", "TUNSETVNETHDRSZ"]),
        ("linux/if_tun.h", ["IFF_TAP", "IFF_NO_PI", "IFF_VNET_HDR"]),
        ("linux/if_tun.h", ["TUN_F_CSUM", "TUN_F_TSO4", "TUN_F_TSO6", "TUN_F_TSO_ECN"]),
        ("linux/sockios.h", ["SIOCGIFFLAGS", "SIOCSIFFLAGS", "SIOCSIFMTU"]),
        ("linux/if.h", ["IFF_UP", "IFNAMSIZ"]),
    ):
        assert macros(tmp_path, header, names) == {name: getattr(tap, name) for name in names}


@pytest.mark.parametrize("name", ["x" * 16, "a/b", "a b", "tap%d", "a:1", ".", "..", "a\n", "\u00e9" * 8])
def test_a_name_that_no_interface_has_is_refused(name):
    with pytest.raises(UsageError, match="expected the name of an interface"):
        open_tap(name)


def test_a_descriptor_that_is_no_tap_is_refused():
    with open(os.devnull) as file, pytest.raises(BackendError, match="is no tap"):
        open_tap(fd=file.fileno())


SCRIPT = """
import fcntl, json, os, select, socket, struct, subprocess, sys, time
from pyvmm.backends.net import tap
from pyvmm.backends.net.tap import open_tap
from pyvmm.errors import BackendError, PyvmmError

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

def attempt(work):
    before = descriptors()
    try:
        work()
    except PyvmmError as error:
        assert descriptors() == before
        return str(error)
    raise AssertionError("nothing was raised")

def receive(port, wanted):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        frame = port.receive()
        if frame is None:
            poll = select.poll()
            poll.register(port.fileno(), select.POLLIN)
            poll.poll(100)
        elif bytes(frame[24:26]) == wanted:
            return bytes(frame)
    raise AssertionError("nothing came")

def link(name):
    links = json.loads(subprocess.check_output(["ip", "-json", "link", "show"]))
    return next((link for link in links if link.get("ifname") == name), None)

def host(name):
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    packets.bind((name, 0x88B5))
    packets.settimeout(5)
    return packets

OURS = bytes.fromhex("525400123456")
FRAME = b"\\xff" * 6 + OURS + b"\\x88\\xb5" + b"x" * 50
"""


def in_namespace(script):
    """Run `script` as root of a user and network namespace of its own."""
    result = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", SCRIPT + script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.needs("tap")
def test_frames_go_through_a_tap_that_is_made_and_brought_up():
    in_namespace("""
port = open_tap("pyvmm0", mtu=9000)
assert port.name == "pyvmm0" and port.vnet_header
assert link("pyvmm0")["mtu"] == 9000 and "UP" in link("pyvmm0")["flags"]
end = host("pyvmm0")
assert port.send(memoryview(bytes(12) + FRAME))
assert end.recv(2000) == FRAME
end.send(FRAME)
assert receive(port, b"\\x88\\xb5")[12:] == FRAME
big = FRAME.ljust(9014, b"y")
end.send(big)
assert receive(port, b"\\x88\\xb5")[12:] == big
port.close()
port.close()
assert port.fileno() == -1 and link("pyvmm0") is None
""")


@pytest.mark.needs("tap")
def test_a_tap_without_a_name_gets_one():
    in_namespace("""
first, second = open_tap(), open_tap("")
assert (first.name, second.name) == ("tap0", "tap1")
""")


@pytest.mark.needs("tap")
def test_the_host_does_what_is_left_to_it():
    """An open checksum is filled in on the way to the host, and stays open on the way back if that is taken."""
    in_namespace("""
port = open_tap("pyvmm0")
subprocess.run(["ip", "addr", "add", "10.9.8.1/24", "dev", "pyvmm0"], check=True)
mac = bytes.fromhex(link("pyvmm0")["address"].replace(":", ""))
subprocess.run(["ip", "neigh", "add", "10.9.8.2", "lladdr", OURS.hex(":"), "dev", "pyvmm0"], check=True)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("10.9.8.1", 7))
server.settimeout(5)

def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total

addresses = bytes((10, 9, 8, 2)) + bytes((10, 9, 8, 1))
payload = b"question"
pseudo = checksum(addresses + struct.pack(">HH", 17, 8 + len(payload)))
udp = struct.pack(">HHHH", 9, 7, 8 + len(payload), pseudo) + payload
head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses
head = head[:10] + (0xFFFF ^ checksum(head)).to_bytes(2, "big") + head[12:]
frame = mac + OURS + b"\\x08\\x00" + head + udp
header = struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0)
assert port.send(memoryview(header + frame))
data, sender = server.recvfrom(100)
assert data == payload and sender == ("10.9.8.2", 9)

port.offloads(True, True, True, True)
server.sendto(b"answer", sender)
answer = receive(port, b"\\x08\\x00")
assert answer[0] & 1 and struct.unpack_from("<HH", answer, 6) == (34, 6)
port.offloads(False, False, False, False)
server.sendto(b"answer", sender)
answer = receive(port, b"\\x08\\x00")
assert not answer[0] & 1
covered = answer[12 + 26 : 12 + 34] + struct.pack(">HH", 17, 14) + answer[12 + 34 : 12 + 48]
assert checksum(covered) == 0xFFFF
""")


@pytest.mark.needs("tap")
def test_what_the_host_does_not_take_is_dropped_and_the_tap_goes_on():
    in_namespace("""
port = open_tap("pyvmm0")
end = host("pyvmm0")
headers = [(1, 0, 0, 0, 60000, 6, 0), (1, 77, 0, 100, 34, 6, 0), (1, 1, 0, 0, 34, 6, 0)]
for bad in [bytes(12), bytes(12 + 13)] + [struct.pack("<BBHHHHH", *header) + FRAME for header in headers]:
    assert port.send(memoryview(bad))
end.close()
os.system("ip link set pyvmm0 down")
assert port.send(memoryview(bytes(12) + FRAME))
while port.receive() is not None:
    pass
os.system("ip link set pyvmm0 up")
end = host("pyvmm0")
assert port.send(memoryview(bytes(12) + FRAME)) and end.recv(2000) == FRAME
""")


@pytest.mark.needs("tap")
def test_a_tap_that_is_taken_away_is_reported():
    in_namespace("""
port = open_tap("pyvmm0")
assert os.system("ip link del pyvmm0") == 0
assert attempt(port.receive).startswith("tap pyvmm0: ")
assert attempt(lambda: port.send(memoryview(bytes(12) + FRAME))).startswith("tap pyvmm0: ")
assert attempt(lambda: port.offloads(False, False, False, False)).startswith("tap pyvmm0: ")
""")


@pytest.mark.needs("tap")
def test_a_tap_in_use_and_an_interface_that_is_none_are_named():
    in_namespace("""
port = open_tap("pyvmm0")
assert attempt(lambda: open_tap("pyvmm0")) == "tap pyvmm0: in use by another process"
assert attempt(lambda: open_tap("lo")) == "tap lo: is no tap, or one with several queues"
assert attempt(lambda: open_tap("pyvmm1", mtu=1)).startswith("tap pyvmm1: cannot set it up: ")
assert link("pyvmm1") is None
""")


@pytest.mark.needs("tap")
def test_a_tap_opened_by_somebody_else_can_be_given():
    in_namespace("""
def opened(flags):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, tap.TUNSETIFF, struct.pack("16sh22x", b"", flags))
    return fd

port = open_tap(fd=opened(tap.IFF_TAP | tap.IFF_NO_PI | tap.IFF_VNET_HDR))
assert port.name == "tap0" and port.vnet_header and port.receive() is None
assert not os.get_inheritable(port.fileno())
plain = open_tap(fd=opened(tap.IFF_TAP | tap.IFF_NO_PI))
assert plain.name == "tap1" and not plain.vnet_header
os.system("ip link set tap1 up")
end = host("tap1")
assert plain.send(memoryview(FRAME)) and end.recv(2000) == FRAME
tun = opened(1 | tap.IFF_NO_PI)
assert "tun0: expected one made with IFF_TAP" in attempt(lambda: open_tap(fd=tun))
""")


@pytest.mark.needs("tap")
def test_without_privilege_the_line_says_what_is_needed():
    said = in_namespace(
        """
subprocess.run(["ip", "tuntap", "add", "dev", "own0", "mode", "tap", "user", "0"], check=True)
subprocess.run(["ip", "tuntap", "add", "dev", "own1", "mode", "tap", "user", "0"], check=True)
subprocess.run(["ip", "link", "set", "own1", "up"], check=True)
program = [sys.executable, "-c", '''
from pyvmm.backends.net.tap import open_tap
from pyvmm.errors import BackendError
for name in ("new0", "", "own0", "own1"):
    try:
        print(open_tap(name).name, "opened")
    except BackendError as error:
        print(error)
''']
subprocess.run(["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", *program], check=True)
"""
    ).splitlines()
    assert said[0] == (
        "tap new0: needs CAP_NET_ADMIN, or a tap that is yours: sudo ip tuntap add dev new0 mode tap user $(id -un); "
        "a user network, `--net user`, needs no privilege"
    )
    assert said[1].startswith("tap (new): needs CAP_NET_ADMIN")
    assert said[2] == "tap own0: setting it up needs CAP_NET_ADMIN: sudo ip link set own0 up"
    assert said[3] == "own1 opened"


@pytest.mark.needs("unprivileged")
def test_a_user_without_privilege_is_told_what_a_tap_needs():
    with pytest.raises(BackendError, match="CAP_NET_ADMIN.*|needs no privilege|--device /dev/net/tun"):
        open_tap("pyvmm0")


# --- Captures --------------------------------------------------------------------------------------------------------


class Network:
    """What a capture is put around."""

    def __init__(self, vnet_header=False):
        self.vnet_header = vnet_header
        self.incoming = []
        self.sent = []
        self.full = False
        self.closed = 0
        self.taken = ()

    def fileno(self):
        return 99

    def offloads(self, checksum, tso4, tso6, ecn):
        self.taken = (checksum, tso4, tso6, ecn)

    def receive(self):
        return memoryview(self.incoming.pop(0)) if self.incoming else None

    def send(self, frame):
        if not self.full:
            self.sent.append(bytes(frame))
        return not self.full

    def close(self):
        self.closed += 1


def read_capture(path):
    """The records of a capture: (seconds, frame)."""
    data = path.read_bytes()
    assert struct.unpack_from("<IHHiIII", data) == (0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    found, at = [], 24
    while at < len(data):
        seconds, micros, kept, length = struct.unpack_from("<IIII", data, at)
        assert kept == length and micros < 1_000_000
        found.append((seconds + micros / 1e6, data[at + 16 : at + 16 + kept]))
        assert len(found[-1][1]) == kept
        at += 16 + kept
    return found


@pytest.mark.parametrize("vnet_header", [False, True])
def test_a_capture_has_every_frame_each_way_at_once(tmp_path, vnet_header):
    network, path = Network(vnet_header), tmp_path / "c.pcap"
    path.write_bytes(b"old" * 1000)
    capture = Capture(network, path)
    header = b"\1" * 12 if vnet_header else b""
    assert capture.vnet_header == vnet_header and capture.fileno() == 99
    capture.offloads(True, False, True, False)
    assert network.taken == (True, False, True, False)
    assert read_capture(path) == [] and capture.receive() is None
    frames = [b"in" * 30, b"out" * 30, b"big" * 20_000]
    network.incoming += [header + frames[0]]
    before = time.time()
    assert bytes(capture.receive()) == header + frames[0]
    assert [frame for _, frame in read_capture(path)] == frames[:1]
    for frame in frames[1:]:
        assert capture.send(memoryview(header + frame))
    assert network.sent == [header + frame for frame in frames[1:]]
    assert [frame for _, frame in read_capture(path)] == frames
    assert all(before - 1 < at < time.time() + 1 for at, _ in read_capture(path))
    capture.close()
    assert network.closed == 1


def test_a_frame_that_is_offered_again_is_captured_once(tmp_path):
    network = Network()
    capture = Capture(network, tmp_path / "c.pcap")
    network.full = True
    for _ in range(3):
        assert not capture.send(memoryview(bytes(60)))
    network.full = False
    assert capture.send(memoryview(bytes(60)))
    assert len(read_capture(tmp_path / "c.pcap")) == 1
    capture.close()


def test_a_capture_that_cannot_be_made_is_an_error(tmp_path):
    for path, text in ((tmp_path, "Is a directory"), (tmp_path / "no" / "c.pcap", "No such file")):
        network = Network()
        with pytest.raises(BackendError, match=f"capture {path}: {text}"):
            Capture(network, path)
        assert not network.closed


def test_a_full_disk_ends_the_capture_at_a_whole_record_and_not_the_network(tmp_path):
    """Limited by the process's file size, which write(2) meets as it does a full disk: in part, then not at all."""
    said, network, path = [], Network(), tmp_path / "c.pcap"
    capture = Capture(network, path, report=said.append)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (24 + 3 * 76 + 10, hard))
    try:
        for number in range(10):
            assert capture.send(memoryview(bytes([number]) * 60))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(network.sent) == 10 and said == [f"capture {path} ends here: {os.strerror(errno.EFBIG)}"]
    assert [frame[0] for _, frame in read_capture(path)] == [0, 1, 2]
    capture.close()


def test_a_full_device_is_reported_once_and_before_any_frame():
    said, network = [], Network()
    capture = Capture(network, "/dev/full", report=said.append)
    assert said == [f"capture /dev/full ends here: {os.strerror(errno.ENOSPC)}"]
    assert capture.send(memoryview(bytes(60))) and len(said) == 1
    capture.close()


def test_a_pipe_may_be_captured_to_and_its_reader_may_go(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    said, network = [], Network()
    capture = Capture(network, path, report=said.append)
    capture.send(memoryview(bytes(60)))
    assert len(os.read(reader, 1000)) == 24 + 76
    os.close(reader)
    assert capture.send(memoryview(bytes(60))) and len(said) == 1 and len(network.sent) == 2
    capture.close()


def test_the_device_and_a_capture_go_together(tmp_path):
    from pyvmm.virtio.net import VirtioNet
    from tests.support.virtiodriver import Driver

    network = Network()
    driver = Driver(VirtioNet(Capture(network, tmp_path / "c.pcap"), mac=random_mac())).bring_up()
    frame = bytes(6) + bytes(range(54))
    assert driver.request(1, [bytes(12) + frame]) == (0, b"")
    assert [data for _, data in read_capture(tmp_path / "c.pcap")] == [frame] == network.sent
    driver.close()
