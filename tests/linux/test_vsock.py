"""Linux's AF_VSOCK on the socket device: both ways, many at once, much, ends of all kinds. One boot."""

import hashlib
import random
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from pyvmm import VM, Vsock
from tests.support.linux import LIMIT, image
from tests.support.rootfs import build
from tests.support.vsockdriver import accept, listen

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox", "gcc"), pytest.mark.timeout(4 * LIMIT)]

SOURCE = Path(__file__).parent.parent / "native/vsock_guest.c"
ECHO, FLOOD, QUIT = 80, 81, 82
# Nothing forks between the start of `serve` and its first word: see docs/emulation.md on programs just started.
SCRIPT = """
cp /vsock.bin /tmp/vsock
chmod 755 /tmp/vsock
step refused /tmp/vsock refused 99
/tmp/vsock serve >/tmp/ready &
until [ -s /tmp/ready ]; do :; done
step ask sh -c '/tmp/vsock ask 52 question > /tmp/answer'
value answer $(cat /tmp/answer)
wait
step served true
"""


def call(path, port):
    """A connection to a port of the guest's that will be served."""
    deadline = time.monotonic() + LIMIT
    while True:
        caller = socket.socket(socket.AF_UNIX)
        caller.settimeout(LIMIT)
        caller.connect(str(path))
        caller.sendall(b"CONNECT %d\n" % port)
        reply = b""
        while not reply.endswith(b"\n"):
            piece = caller.recv(1)
            if not piece:
                break
            reply += piece
        if reply:
            assert reply.startswith(b"OK ") and int(reply[3:]) >= 1 << 30
            return caller
        caller.close()
        assert time.monotonic() < deadline, f"nobody accepts at port {port}"
        time.sleep(0.2)


def echoed(caller, data):
    """Whether what goes through the guest is the same when it comes back, and then ends."""
    sum_before = hashlib.sha256(data).digest()
    writer = threading.Thread(target=lambda: (caller.sendall(data), caller.shutdown(socket.SHUT_WR)))
    writer.start()
    found = hashlib.sha256()
    while piece := caller.recv(1 << 20):
        found.update(piece)
    writer.join()
    caller.close()
    return found.digest() == sum_before


def many(path, count):
    """So many connections, all open at the same time, and all used."""
    callers = [call(path, ECHO) for _ in range(count)]
    lines = [random.Random(number).randbytes(3000) for number in range(count)]
    for caller, line in zip(callers, lines, strict=True):
        caller.sendall(line)
        caller.shutdown(socket.SHUT_WR)
    for caller, line in zip(callers, lines, strict=True):
        heard = b""
        while piece := caller.recv(1 << 16):
            heard += piece
        assert heard == line
        caller.close()


def vanishes(path):
    """A host that is gone while its guest speaks to it."""
    caller = call(path, ECHO)
    caller.sendall(bytes(100_000))
    caller.close()


def answer(listener, limit):
    """What somebody in the guest asks the host, who is answered."""
    listener.settimeout(limit)
    asker = accept(listener)
    asker.settimeout(limit)
    question = b""
    while piece := asker.recv(100):
        question += piece
    asker.sendall(question + b" and answer")
    asker.close()
    return question


def converse(path, mib):
    """With the guest's servers, `mib` MiB of it in one stream, until they end."""
    assert echoed(call(path, ECHO), b"hello")
    idle = call(path, FLOOD)  # nobody reads what comes here
    many(path, 100)
    for _ in range(5):
        vanishes(path)
    assert echoed(call(path, ECHO), random.Random(1).randbytes(int(mib * (1 << 20))))
    assert len(idle.recv(1 << 16)) > 0
    idle.close()
    assert echoed(call(path, ECHO), b"still there")
    call(path, QUIT).close()


@pytest.mark.parametrize("mib", [6.4, pytest.param(64, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_linux_speaks_to_the_host_and_the_host_to_linux(tmp_path, mib):
    program, path = tmp_path / "program", tmp_path / "vm"
    limit = 3 * LIMIT if mib < 10 else 3000
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", program, SOURCE], check=True, timeout=60)
    root = build(tmp_path, SCRIPT, files=[("vsock.bin", program.read_bytes())])
    words = "root=/dev/vda ro init=/init quiet"
    with (
        listen(f"{path}_52") as listener,
        VM(image("kernel"), disks=[str(root)], vsock=Vsock(path), append=words, timeout=limit) as vm,
    ):
        try:
            question = answer(listener, limit)
            converse(path, mib)
            vm.wait(limit)
        except TimeoutError:
            raise AssertionError(vm.console.output.decode()) from None
        output = vm.console.output.decode()
    assert question == b"question"
    assert "value answer question and answer" in output, output
    for step in ("ask", "refused", "served"):
        assert f"step {step} 0" in output, output
    assert not path.exists()
