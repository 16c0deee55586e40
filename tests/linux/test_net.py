"""Linux's network driver on pyvmm's networks: passt to the host and back, and a switch between two guests."""

import functools
import hashlib
import http.server
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

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


@pytest.mark.parametrize("size", SIZES)
def test_two_guests_ping_and_stream_to_each_other_over_the_switch(tmp_path, size):
    data = os.urandom(size)
    receiver = """
nc -l -p 5000 > /tmp/got
value sum $(md5sum < /tmp/got)
step send sh -c 'nc -l -p 5001 < /tmp/got'
value dropped $(cat /sys/class/net/eth0/statistics/rx_dropped)
"""
    sender = """
until ping -c 1 -W 1 10.9.0.1 >/dev/null; do sleep 1; done
step ping sh -c 'ping -c 10 -i 0.1 10.9.0.1 > /tmp/pings'
value lost $(grep -o "[0-9]*% packet loss" /tmp/pings)
until step connect nc 10.9.0.1 5000 < /data; do sleep 1; done
sleep 2
until nc 10.9.0.1 5001 > /tmp/back && [ -s /tmp/back ]; do sleep 1; done
step compare cmp /tmp/back /data
"""
    folders = [tmp_path / name for name in ("receiver", "sender")]
    for folder in folders:
        folder.mkdir()
    roots = [build(folders[0], receiver), build(folders[1], sender, files=[("/data", data)], size="96M")]
    switch = tmp_path / "switch"

    def run(number):
        address = f"ip=10.9.0.{number + 1}:::255.255.255.0::eth0:off"
        return Guest(roots[number], "--net", f"socket={switch}", append=address, limit=limit(size))

    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        guests = list(pool.map(run, range(2)))
    assert guests[0].is_well("send") and guests[1].is_well("ping", "connect", "compare"), time.monotonic() - began
    assert guests[1].values["lost"] == "0% packet loss"
    assert guests[0].values["sum"].split()[0] == hashlib.md5(data).hexdigest()
    assert not switch.exists()
