"""Port forwards as people write them, and passt: started, spoken to, watched, and its refusals named.

The real passt where it is installed; programs of the tests' own stand in for one that misbehaves.
"""

import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pyvmm.backends.net.forward import Forward, parse_forward, parse_publish
from pyvmm.backends.net.passt import Passt
from pyvmm.errors import BackendError, UsageError

MAC = bytes.fromhex("525400123456")

# --- Forwards --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp::2222-:22", Forward("tcp", 2222, 22)),
        ("::2222-:22", Forward("tcp", 2222, 22)),
        ("udp:0.0.0.0:5353-:53", Forward("udp", 5353, 53, "0.0.0.0")),
        ("tcp:127.0.0.1:1-:65535", Forward("tcp", 1, 65535)),
        ("tcp:[::1]:80-:8080", Forward("tcp", 80, 8080, "::1")),
    ],
)
def test_qemu_s_way_of_writing_a_forward(text, expected):
    assert parse_forward(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", Forward("tcp", 8080, 80)),
        ("8080:80/tcp", Forward("tcp", 8080, 80)),
        ("5353:53/udp", Forward("udp", 5353, 53)),
        ("0.0.0.0:8080:80", Forward("tcp", 8080, 80, "0.0.0.0")),
        ("[::1]:8080:80/udp", Forward("udp", 8080, 80, "::1")),
    ],
)
def test_the_way_of_container_tools(text, expected):
    assert parse_publish(text) == expected


BAD_FORWARDS = {
    "": "expected PROTOCOL",
    "tcp": "expected PROTOCOL",
    "2222:22": "expected PROTOCOL",
    "tcp:2222-22": "expected PROTOCOL",
    "tcp::2222": "expected PROTOCOL",
    "tcp::2222-10.0.2.15:22": "the guest's address '10.0.2.15' cannot be chosen",
    "icmp::1-:1": "protocol 'icmp'",
    "tcp::0-:22": "port 0",
    "tcp::65536-:22": "port 65536",
    "tcp::123456-:22": "port '123456'",
    "tcp::-:22": "port ''",
    "tcp::x-:22": "port 'x'",
    "tcp::\u0663-:22": "port '\u0663'",
    "tcp::-1-:22": "port '-1'",
    "tcp:localhost:1-:1": "address 'localhost'",
    "tcp:1.2.3:1-:1": "address '1.2.3'",
    "tcp:a\0b:1-:1": "address",
}


@pytest.mark.parametrize("text", BAD_FORWARDS)
def test_a_bad_forward_is_named_with_what_was_expected(text):
    with pytest.raises(UsageError) as caught:
        parse_forward(text)
    assert repr(text) in str(caught.value) and BAD_FORWARDS[text] in str(caught.value)
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "80", "80:", ":80", "a:b", "80:80/", "80:80/sctp", "1:2:3:4", "x:80:80", "80:0"])
def test_a_bad_port_is_named_with_what_was_expected(text):
    with pytest.raises(UsageError) as caught:
        parse_publish(text)
    assert repr(text) in str(caught.value) and "expected" in str(caught.value)


def test_one_port_of_the_host_leads_to_one_place():
    with pytest.raises(UsageError, match="tcp port 80 of the host is forwarded twice"):
        Passt([Forward("tcp", 80, 1), Forward("tcp", 80, 2, "127.0.0.2")])


# --- Programs that stand in for passt --------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path):
    """Makes a program of some lines of Python; `end` is its socket, `arguments` what it was called with."""

    def make(lines):
        path = tmp_path / "passt"
        path.write_text(
            f"#!{sys.executable} -IS\nimport os, socket, sys, time\narguments = sys.argv[1:]\n"
            f"end = socket.socket(fileno=int(arguments[arguments.index('--fd') + 1]))\n{lines}\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture(autouse=True)
def short_wait(monkeypatch, request):
    """A stand-in has no seccomp filter, so it is waited for in vain."""
    if "program" in request.fixturenames:
        monkeypatch.setattr("pyvmm.backends.net.passt.START_WAIT", 0.3)


def descriptors():
    return set(os.listdir("/proc/self/fd"))


def wait_for_frame(passt, limit=5.0):
    deadline = time.monotonic() + limit
    while (left := deadline - time.monotonic()) > 0:
        frame = passt.receive()
        if frame is not None:
            return bytes(frame)
        poll = select.poll()
        poll.register(passt.fileno(), select.POLLIN)
        poll.poll(left * 1000)
    return b""


def test_a_missing_passt_is_named_with_its_package(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATH", f"{tmp_path}/file:{tmp_path}")
    before = descriptors()
    with pytest.raises(BackendError, match="needs passt-of-nowhere: apt install passt"):
        Passt(program="passt-of-nowhere")
    assert descriptors() == before


def test_a_passt_that_may_not_be_started_is_named(tmp_path):
    (tmp_path / "passt").write_text("")
    with pytest.raises(BackendError, match=r"cannot start .*: (Permission denied|Exec format error)"):
        Passt(program=str(tmp_path / "passt"))


def test_it_is_told_ports_mtu_and_socket(program):
    passt = Passt(
        [Forward("tcp", 2222, 22), Forward("udp", 53, 5353, "::1")],
        mtu=1400,
        program=program(
            "text = ' '.join(arguments).encode(); end.sendall(len(text).to_bytes(4, 'big') + text); end.recv(1)"
        ),
    )
    said = wait_for_frame(passt).decode()
    assert "--tcp-ports 127.0.0.1/2222:22" in said and "--udp-ports ::1/53:5353" in said
    assert "--foreground" in said and "--mtu 1400" in said and "--fd 3" in said
    assert ("--runas 65534:65534" in said) == (
        os.geteuid() == 0 and "4294967295" in Path("/proc/self/uid_map").read_text()
    )
    passt.close()


def test_frames_go_both_ways_whole(program):
    echo = "while data := end.recv(65536): end.sendall(data)"
    passt = Passt(program=program(echo))
    for length in (14, 60, 1514, 65535, 65589):
        frame = os.urandom(length)
        while not passt.send(memoryview(frame)):
            time.sleep(0.001)
        assert wait_for_frame(passt) == frame
    passt.close()


def test_a_frame_that_fits_in_part_is_finished_before_the_next(program):
    echo = "time.sleep(0.4)\nwhile data := end.recv(1000): end.sendall(data)"
    passt = Passt(program=program(echo))
    frames = [number.to_bytes(4, "big") * 8000 for number in range(20)]
    sent, got = 0, []
    refused = 0
    deadline = time.monotonic() + 20
    while len(got) < len(frames):
        assert time.monotonic() < deadline
        while sent < len(frames) and passt.send(memoryview(frames[sent])):
            sent += 1
        refused += sent < len(frames)
        frame = passt.receive()
        if frame is not None:
            got.append(bytes(frame))
    assert got == frames and refused
    passt.close()


def test_closing_ends_it_and_gives_everything_back(program):
    before = descriptors()
    passt = Passt(program=program("time.sleep(60)"))
    pid = passt.pid
    assert os.path.exists(f"/proc/{pid}")
    passt.close()
    passt.close()
    assert not os.path.exists(f"/proc/{pid}") and descriptors() == before
    assert passt.fileno() == -1


def test_it_inherits_its_socket_and_none_of_ours(program):
    lines = "text = ' '.join(sorted(os.listdir('/proc/self/fd'))).encode().ljust(200)"
    others = {
        name for name in descriptors() if os.path.exists(f"/proc/self/fd/{name}") and os.get_inheritable(int(name))
    }
    with socket.socket():
        passt = Passt(program=program(f"{lines}; end.sendall(len(text).to_bytes(4, 'big') + text); end.recv(1)"))
    found = set(wait_for_frame(passt).decode().split())
    assert len(found - others - {"0", "1", "2", "3"}) == 1, "that of the listing"
    passt.close()


def test_one_that_ends_at_once_is_an_error_with_its_last_words(program):
    before = descriptors()
    lines = "print('Failed to send 12 bytes to syslog\\nfirst\\nlast', file=sys.stderr); sys.exit(3)"
    with pytest.raises(BackendError) as caught:
        Passt(program=program(lines))
    assert str(caught.value) == "a user network: passt ended with status 3: first; last"
    assert descriptors() == before


@pytest.mark.parametrize("notices", ["receive", "send"])
@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ("print('oh no', file=sys.stderr); sys.exit(1)", "passt ended with status 1: oh no"),
        ("os.kill(os.getpid(), 9)", "passt was ended by signal 9"),
        ("os.kill(os.getpid(), 31)", r"passt was ended by signal 31 \(a seccomp filter"),
        ("end.close(); time.sleep(60)", "has gone"),
    ],
)
def test_one_that_ends_later_says_why(program, monkeypatch, notices, lines, text):
    monkeypatch.setattr("pyvmm.backends.net.passt.END_WAIT", 0.2 if "sleep" in lines else 5)
    before = descriptors()
    passt = Passt(program=program(f"end.recv(1)\n{lines}"))
    passt.send(memoryview(bytes(60)))
    with pytest.raises(BackendError, match=text):
        while True:
            passt.receive() if notices == "receive" else passt.send(memoryview(bytes(60)))
            time.sleep(0.001)
    assert descriptors() == before and passt.pid == -1 and passt.fileno() == -1
    for use in (passt.receive, lambda: passt.send(memoryview(bytes(60)))):
        with pytest.raises(BackendError, match="has ended"):
            use()


def test_one_that_speaks_something_else_is_ended(program, monkeypatch):
    monkeypatch.setattr("pyvmm.backends.net.passt.END_WAIT", 0.05)
    passt = Passt(program=program("end.sendall(bytes(8)); time.sleep(60)"))
    with pytest.raises(BackendError, match="passt: a frame of 0 bytes"):
        wait_for_frame(passt)
    assert passt.pid == -1


def test_many_complaints_do_not_stop_it(program):
    lines = """
try:
    for _ in range(1000):
        os.write(2, b'x' * 999 + b'\\n')
except BlockingIOError:
    pass
while data := end.recv(65536): end.sendall(data)
"""
    passt = Passt(program=program(lines))
    passt.send(memoryview(bytes(60)))
    assert wait_for_frame(passt) == bytes(60)
    passt.close()


# --- The real one ----------------------------------------------------------------------------------------------------


def dhcp_discover():
    bootp = struct.pack(">BBBBIHHIIII16s64s128s", 1, 1, 6, 0, 7, 0, 0, 0, 0, 0, 0, MAC, b"", b"")
    payload = bootp + b"\x63\x82\x53\x63" + b"\x35\x01\x01\xff"
    udp = struct.pack(">HHHH", 68, 67, 8 + len(payload), 0) + payload
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, bytes(4), b"\xff" * 4)
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + (0xFFFF ^ total).to_bytes(2, "big") + header[12:]
    return b"\xff" * 6 + MAC + b"\x08\x00" + header + udp


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def offered(passt):
    """Whether an address is offered by DHCP."""
    assert passt.send(memoryview(dhcp_discover()))
    while offer := wait_for_frame(passt):
        if offer[:6] == MAC and offer[12:14] == b"\x08\x00" and offer[34:38] == struct.pack(">HH", 67, 68):
            return offer[42] == 2 and offer[58:62] != bytes(4)
    return False


@pytest.mark.needs("passt")
def test_passt_answers_dhcp_and_ends_with_its_socket():
    before = descriptors()
    passt = Passt()
    assert offered(passt)
    passt.close()
    assert descriptors() == before


@pytest.mark.needs("passt", "unprivileged")
def test_passt_serves_a_user_without_privilege():
    port = free_port()
    passt = Passt([Forward("tcp", port, 22)])
    assert offered(passt)
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    passt.close()


@pytest.mark.needs("passt")
def test_passt_listens_at_forwarded_ports_from_the_beginning():
    port = free_port()
    passt = Passt([Forward("tcp", port, 22)])
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    passt.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


@pytest.mark.needs("passt")
def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BackendError, match=rf"Failed to bind .*127.0.0.1/{port}:22.* \(the port is taken"):
            Passt([Forward("tcp", port, 22)])


@pytest.mark.needs("passt")
def test_passt_that_is_killed_is_reported():
    passt = Passt()
    os.kill(passt.pid, 9)
    with pytest.raises(BackendError, match="passt was ended by signal 9"):
        wait_for_frame(passt)


START = """
import sys
from tests.support.seccomp import forbid
from pyvmm.backends.net.passt import Passt
from pyvmm.errors import BackendError
if sys.argv[1:]:
    forbid(*sys.argv[1:])
try:
    Passt().close()
except BackendError as error:
    print(error)
"""


def start(*words, before=()):
    return subprocess.run(
        [*before, sys.executable, "-c", START, *words], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.needs("passt")
def test_a_container_that_forbids_user_namespaces_is_named():
    said = start("unshare").stdout
    assert "user namespaces are refused here: by a container's seccomp profile" in said and said.count("\n") == 1


@pytest.mark.needs("passt", "net-namespace")
def test_a_host_without_a_route_is_named():
    result = start(before=("unshare", "--user", "--map-root-user", "--net"))
    assert "(this host has no default route)" in result.stdout, result.stderr
