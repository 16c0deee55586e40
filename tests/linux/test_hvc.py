"""The virtio console as Linux's own, ports beside it, random numbers, and faults on purpose: one boot each."""

import hashlib
import os
import socket
import threading
import time

import pytest

from pyvmm import VM, Port
from tests.linux.test_disks import CYCLE, blank, steps
from tests.support.linux import LIMIT, image
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox"), pytest.mark.timeout(4 * LIMIT)]


def test_hvc0_is_the_console_and_ports_and_random_numbers_are_there(tmp_path):
    log = tmp_path / "log"
    path = tmp_path / "socket"
    script = """
value consoles $(cat /proc/consoles)
step rng sh -c 'dd if=/dev/hwrng bs=16 count=1 of=/tmp/random && [ $(wc -c < /tmp/random) = 16 ]'
value names $(cat /sys/class/virtio-ports/vport1p1/name /sys/class/virtio-ports/vport1p2/name)
step log sh -c 'seq 300 > /dev/vport1p1'
step answer sh -c 'head -n 1 < /dev/vport1p2 > /tmp/question && (cat /tmp/question; echo answer) > /dev/vport1p2'
seq 300
"""
    root = build(tmp_path, script)
    heard = []

    def talk():
        while not path.exists():
            time.sleep(0.05)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"question\n")
            client.settimeout(2 * LIMIT)
            heard.append(client.makefile("rb").read(16))

    talker = threading.Thread(target=talk)
    talker.start()
    guest = Guest(
        root,
        *("--rng=64K", "--port", f"log=file:{log}", "--port", f"talk=unix:{path}"),
        append="console=hvc0",
        limit=2 * LIMIT,
    )
    talker.join()
    assert guest.is_well("rng", "log", "answer")
    assert guest.values["consoles"].startswith("hvc0 ") and guest.values["names"] == "log talk"
    numbers = "".join(f"{number}\n" for number in range(1, 301))
    assert numbers in guest.console
    assert log.read_text() == numbers
    assert heard == [b"question\nanswer\n"]


def test_a_program_talks_to_a_guest_through_a_port_of_its_own(tmp_path):
    # One at a time has a port open.
    script = """
exec 3<>/dev/vport1p1
while read -r line <&3; do
    echo "$line" > /tmp/line
    md5sum < /tmp/line >&3
done
"""
    root = build(tmp_path, script)
    words = "root=/dev/vda ro init=/init quiet"
    with VM(image("kernel"), disks=[str(root)], ports=[Port("agent")], append=words, timeout=LIMIT) as vm:
        port = vm.ports["agent"]
        port.wait_open(LIMIT)
        for line in (b"one", b"another"):
            port.send(line + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                piece = port.recv(timeout=LIMIT)
                assert piece, f"the guest has ended: {vm.exit}, {vm.console.output!r}"
                answer += piece
            assert answer.split()[0].decode() == hashlib.md5(line + b"\n").hexdigest()


def test_faults_reach_linux_and_a_file_system_survives_those_that_it_should(tmp_path):
    """Errors are seen where they are made and nowhere else; delay, reordering and repeated interrupts harm nothing."""
    bad, odd = blank(tmp_path / "bad.img", 4 << 20), blank(tmp_path / "odd.img", 16 << 20)
    bad.write_bytes(os.urandom(4 << 20))
    script = """
step good dd if=/dev/vdb of=/tmp/good bs=4k count=8 iflag=direct
value good $(md5sum < /tmp/good)
step bad dd if=/dev/vdb of=/dev/null bs=4k skip=256 count=8 iflag=direct
step behind dd if=/dev/vdb of=/dev/null bs=4k skip=512 count=8 iflag=direct
""" + CYCLE.format(name="vdc", count=8)
    root = build(tmp_path, script, ["mke2fs", "e2fsck"])
    guest = Guest(
        root,
        *("--disk", bad, "--fault", "blk1:error,op=read,sector=2048-2111"),
        *("--disk", odd, "--fault", "blk2:delay=5ms,rate=0.3", "--fault", "blk2:reorder,rate=0.3"),
        *("--fault", "blk2:repeat,rate=0.5", "--fault-seed", 7, "--stats"),
        limit=3 * LIMIT,
    )
    assert guest.is_well("good", "behind", *steps("vdc"))
    assert guest.steps["bad"] == 1 and "I/O error, dev vdb, sector 2048" in guest.console
    assert guest.values["good"].split()[0] == hashlib.md5(bad.read_bytes()[: 8 * 4096]).hexdigest()
    assert "fault   " in guest.errors and "blk1:error" in guest.errors
