"""What changes under a running Linux, by the verbs that do it: a disk's size, a cable, the balloon. One boot."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tests.support.cli import environment, pyvmm, wait_for
from tests.support.linux import LIMIT, Shell

pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.timeout(6 * LIMIT)]

MIB = 1 << 20
MEMORY, CACHED, LEFT, WANTED = 192, 8, 4, 12
"""MiB: the guest's RAM (Linux reports free pages only while it has 128 MiB of them, 32 blocks of 4 MiB), what it reads
from its disk, what the balloon leaves it, and what it needs all the same."""
GROWN = CACHED + 4


class Running:
    """A guest with a disk of CACHED MiB, a network with nobody else, and a balloon."""

    def __init__(self, folder):
        self.image = folder / "disk.img"
        with self.image.open("wb") as file:
            for _ in range(CACHED):
                file.write(os.urandom(MIB))
        os.environ["PYVMM_RUNTIME_DIR"] = str(folder / "run")
        self.shell = Shell(
            *("--name", "guest", "--mem", f"{MEMORY}M", "--balloon", "--disk", self.image),
            *("--net", f"socket={folder}/switch", "--append", "quiet"),
        )

    def resident(self):
        """MiB that the VMM has in memory (proc(5), /proc/pid/status)."""
        for line in Path(f"/proc/{self.shell.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) >> 10
        raise AssertionError

    def balloon(self):
        done = pyvmm("balloon", "guest", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def wait_for_balloon(self, size):
        """Until the guest says that it holds `size` bytes; asked now and then, since each answer costs it time."""
        end = time.monotonic() + 2 * LIMIT
        while (actual := self.balloon()["actual"]) != size:
            assert time.monotonic() < end, f"the balloon holds {actual} bytes, not {size}"
            time.sleep(1)

    def close(self):
        self.shell.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVMM_RUNTIME_DIR", "")
        made = Running(tmp_path_factory.mktemp("guest"))
        yield made
        made.close()


def verb(*words):
    done = pyvmm(*words, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def test_a_disk_grows(running):
    """The guest's kernel is told and reads where there was nothing before."""
    sectors = "cat /sys/block/vda/size"
    assert running.shell.command(sectors) == f"{CACHED * 2048}\n"
    assert verb("disk", "guest", "resize", "blk0", f"{GROWN}M") == f"{GROWN}M\n"
    wait_for(lambda: running.shell.command(sectors) == f"{GROWN * 2048}\n", "the new size", LIMIT)
    last = f"dd if=/dev/vda bs=1024k skip={GROWN - 1} count=1 of=/tmp/last 2>/dev/null; wc -c < /tmp/last"
    assert running.shell.command(last) == f"{MIB}\n"
    os.truncate(running.image, CACHED * MIB)
    assert verb("disk", "guest", "resize", "blk0") == f"{CACHED}M\n"
    wait_for(lambda: running.shell.command(sectors) == f"{CACHED * 2048}\n", "the old size", LIMIT)


def test_a_cable_is_pulled_and_plugged_in_again(running):
    carrier = "cat /sys/class/net/eth0/carrier"
    running.shell.command("ip link set eth0 up")
    wait_for(lambda: running.shell.command(carrier) == "1\n", "the link", LIMIT)
    for state, seen in (("down", "0\n"), ("up", "1\n")):
        verb("net", "guest", "link", state)
        wait_for(lambda seen=seen: running.shell.command(carrier) == seen, f"the link to be {state}", LIMIT)


def test_memory_that_the_guest_has_freed_is_reported(running):
    """virtio 1.3, 5.5.6.7: without anybody asking for it."""
    shell = running.shell
    shell.command("mount -t tmpfs none /mnt; dd if=/dev/zero of=/mnt/file bs=1024k count=20 2>/dev/null")
    before = running.resident()
    shell.command("rm /mnt/file; umount /mnt")
    end = time.monotonic() + LIMIT
    while running.resident() > before - 10:
        assert time.monotonic() < end, f"{before} MiB resident before, {running.resident()} MiB after"
        time.sleep(0.5)


def test_memory_goes_to_the_host_and_comes_back_when_the_guest_must_have_it(running):
    """RSS falls when the balloon inflates; a guest that runs out of memory takes some out again, and goes on."""
    shell = running.shell
    shell.command("cat /dev/vda > /dev/null")  # in the page cache: not free, but it can be had
    before = running.resident()
    told = running.balloon()["statistics"]
    assert 0.7 * MEMORY * MIB < told["total"] <= MEMORY * MIB and told["available"] < told["total"]
    size = (told["available"] >> 20) - LEFT
    verb("balloon", "guest", f"{size}M")
    running.wait_for_balloon(size * MIB)
    after = running.resident()
    assert after <= before - CACHED // 2, f"{before} MiB resident before, {after} MiB after"
    shell.command("mount -t tmpfs none /mnt")
    written = shell.command(f"dd if=/dev/zero of=/mnt/file bs=1024k count={WANTED} 2>/dev/null; wc -c < /mnt/file")
    assert written == f"{WANTED * MIB}\n"
    assert running.balloon()["actual"] < size * MIB
    assert shell.command("dmesg > /tmp/log; grep -ci 'killed process' /tmp/log") == "0\n"
    verb("balloon", "guest", "0")
    running.wait_for_balloon(0)
    assert shell.command("rm /mnt/file; echo well") == "well\n"


def test_the_name_is_free_when_it_has_ended(running):
    running.shell.type(b"poweroff -f\r")
    assert running.shell.end() == 0, running.shell.errors()
    done = pyvmm("balloon", "guest")
    assert done.returncode == 125
    assert done.stderr == b"pyvmm: no running VM is called guest (none is running)\n"
