"""Linux's network driver on pyvmm's networks: passt to the host and back, and a switch between two guests."""

import functools
import hashlib
import http.server
import os
import socket
import threading
import time

import pytest

from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox"), pytest.mark.timeout(4 * LIMIT)]

SIZES = [300_000, pytest.param(5_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


def limit(size):
    return 2 * LIMIT if size < 1 << 20 else 3000


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    """An HTTP server of our own on the loopback: its folder and its port."""
    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, httpd.server_address[1]
        httpd.shutdown()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def greet(port, text, stop):
    """Send `text` to a port of the host until somebody behind it takes it; a forward is there before the guest is."""
    while not stop.wait(0.5):
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as connection:
                connection.sendall(text)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(5)
                connection.recv(1)
        except OSError:
            pass


@pytest.mark.needs("passt")
@pytest.mark.parametrize("size", SIZES)
def test_passt_gives_an_address_a_way_out_and_a_way_in(tmp_path, server, size):
    folder, port = server
    data = os.urandom(size)
    (folder / "file").write_bytes(data)
    script = f"""
value mac $(cat /sys/class/net/eth0/address)
ip -4 addr show eth0 > /tmp/address
step address grep -q "inet " /tmp/address
step resolver grep -q nameserver /proc/net/pnp
ip route > /tmp/routes
set -- $(grep default /tmp/routes)
step get wget -q -O /tmp/file http://$3:{port}/file
value sum $(md5sum < /tmp/file)
step inbound sh -c 'nc -l -p 5555 > /tmp/in'
value in $(cat /tmp/in)
"""
    root = build(tmp_path, script)
    forward = free_port()
    capture = tmp_path / "net.pcap"
    stop = threading.Event()
    caller = threading.Thread(target=greet, args=(forward, b"from the host\n", stop))
    caller.start()
    try:
        guest = Guest(
            root,
            *("--net", f"user,mac=52:54:00:12:34:56,pcap={capture}", "--publish", f"{forward}:5555"),
            append="ip=dhcp",
            limit=limit(size),
        )
    finally:
        stop.set()
        caller.join()
    assert guest.is_well("address", "resolver", "get", "inbound")
    assert guest.values["mac"] == "52:54:00:12:34:56"
    assert guest.values["sum"].split()[0] == hashlib.md5(data).hexdigest()
    assert guest.values["in"] == "from the host"
    captured = capture.read_bytes()
    assert captured[:4] == bytes.fromhex("d4c3b2a1") and len(captured) > size


@pytest.mark.vm(timeout=3000)
@pytest.mark.parametrize("size", [100_000, *SIZES[1:]])
def test_two_guests_ping_and_stream_to_each_other_over_the_switch(vm_net, size):
    receiver, sender = vm_net(2)
    address = vm_net.address(receiver)
    make = f"dd if=/dev/urandom of=/tmp/data bs=1000 count={size // 1000} 2>/dev/null; md5sum /tmp/data"
    digest = sender.exec(["sh", "-c", make], timeout=limit(size)).check().text.split()[0]
    pings = sender.exec(["ping", "-c", "10", "-i", "0.1", address], timeout=LIMIT)
    assert ", 0% packet loss\n" in pings.text
    with receiver.popen(["sh", "-c", "nc -l -p 5000 > /tmp/got; md5sum /tmp/got; nc -l -p 5001 < /tmp/got"]) as server:
        connect(sender, f"nc {address} 5000 < /tmp/data", limit(size))
        assert server.stdout.readline().split()[0].decode() == digest
        connect(sender, f"nc {address} 5001 > /tmp/back", limit(size))
        assert server.wait(LIMIT) == 0
    assert sender.exec(["cmp", "/tmp/back", "/tmp/data"], timeout=LIMIT).returncode == 0
    sender.close()
    receiver.close()
    assert not os.path.exists(vm_net.path)


def connect(vm, line, limit):
    """Try `line` until somebody listens; its standard input does not end, for a listener would then hang up."""
    deadline = time.monotonic() + limit
    while True:
        with vm.popen(["sh", "-c", line]) as client:
            if client.wait(limit) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.5)
