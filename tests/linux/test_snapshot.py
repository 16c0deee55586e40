"""The tiny Linux saved and restored: clones at the same time, each with disk, network and sockets of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import VM, Disk, Net, Port, Vsock
from pyvmm.errors import LoadError, UsageError
from pyvmm.hardware import Balloon, Rng
from tests.support.linux import LIMIT, image

pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.timeout(2 * LIMIT)]

SIZE = 4 << 20
BLOCK = 4096
REBIND = "cd /sys/bus/virtio/drivers/virtio_net; for d in virtio*; do echo $d > unbind; echo $d > bind; done"
FIRST, SECOND = b"\x52\x54\0\0\0\x01", b"\x52\x54\0\0\0\x02"


class Saved:
    def __init__(self, folder: Path, original: VM) -> None:
        self.folder = folder
        self.path = folder / "booted"
        self.original = original

    def clone(self, name: str, path: Path | None = None, mac: bytes | None = None, **settings: Any) -> VM:
        net = Net.switch(self.folder / f"switch-{name[0]}", mac=mac)
        vsock = Vsock(self.folder / f"vsock-{name}", cid=100 + len(name))
        return VM.restore(path or self.path, net=net, vsock=vsock, timeout=LIMIT, **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("snapshot")
    disk = folder / "disk"
    disk.write_bytes(b"the base".ljust(SIZE, b"\0"))
    vm = VM(
        image("kernel"),
        initrd=image("initrd"),
        append="quiet pyvmm.agent",
        mem="64M",
        agent=True,
        disks=[Disk(disk, overlay=True)],
        net=Net.switch(folder / "switch"),
        vsock=Vsock(folder / "vsock"),
        rng=Rng(),
        balloon=Balloon(),
        ports=[Port("org.pyvmm.test")],
        timeout=3 * LIMIT,
    )
    with vm:
        vm.guest.wait_ready(LIMIT)
        shell(vm, f"{write(1, 'before')}; echo kept > /tmp/word")
        vm.snapshot(folder / "booted")
        yield Saved(folder, vm)


def shell(vm: VM, line: str) -> str:
    """What a command prints."""
    return vm.exec(["sh", "-c", line], timeout=LIMIT).check().text


def write(block: int, word: str) -> str:
    return f"echo {word} > /tmp/out; dd if=/tmp/out of=/dev/vda bs={BLOCK} seek={block} conv=fsync 2>/dev/null"


def read(*blocks: int) -> str:
    """What begins each of `blocks` on the disk, not in the guest's memory."""
    words = [f"dd if=/dev/vda bs=1 skip={block * BLOCK} count=7 2>/dev/null" for block in blocks]
    return "; ".join(["echo 1 > /proc/sys/vm/drop_caches", *words])


def test_clones_go_on_from_the_same_moment_each_with_its_own_disk_and_address(saved: Saved) -> None:
    shell(saved.original, write(2, "origin"))
    with saved.clone("one", mac=FIRST) as one, saved.clone("other", mac=SECOND) as other:
        for clone, number in ((other, 2), (one, 1)):
            begin = (
                f"{REBIND}; ip addr add 10.9.0.{number}/24 dev eth0; ip link set eth0 up; {write(2, f'clone{number}')}"
            )
            assert shell(clone, f"{begin}; cat /sys/class/net/eth0/address") == f"52:54:00:00:00:0{number}\n"
        seen = shell(one, f"ping -c 1 -W 20 10.9.0.2 > /tmp/ping; echo $?; cat /tmp/word; {read(1, 2)}")
        assert seen == "0\nkept\nbefore\nclone1\n"
        assert shell(other, read(2)) == "clone2\n"
        with pytest.raises(UsageError, match="restored from it"):
            one.snapshot(saved.path)
        one.snapshot(saved.folder / "second")
    with saved.clone("third", saved.folder / "second") as third:
        look = "head -c 8 /dev/hwrng > /tmp/r; wc -c < /tmp/r; cat /sys/class/net/eth0/address"
        assert shell(third, f"{read(2)}; {look}") == "clone1\n8\n52:54:00:00:00:01\n"
        told = shell(third, "cat /sys/firmware/acpi/interrupts/gpe00").split()
        assert told[:2] == ["2", "EN"], "twice it became another VM"
        said = shell(third, "dmesg")
        assert said.count("crng reseeded due to virtual machine fork") == 2 and "ACPI Error" not in said
    assert shell(saved.original, read(2)) == "origin\n"


def test_a_clone_s_clock_is_right_when_its_agent_first_answers(saved: Saved) -> None:
    saved.original.agent.set_time(10**18)
    saved.original.snapshot(saved.folder / "late")
    saved.original.agent.set_time()
    with saved.clone("c", saved.folder / "late") as clone:
        assert abs(clone.agent.get_time() - time.time_ns()) < 60e9
    with saved.clone("d", saved.folder / "late", paused=True) as clone:
        clone.resume()
        clone.agent.set_time(10**18)
        assert abs(clone.agent.get_time() - 10**18) < 60e9, "it was set once more"


def test_a_guest_that_is_moved_while_it_reads_and_writes_loses_nothing(saved: Saved) -> None:
    data = "".join(f"line {number}\n" for number in range(50))
    digest = hashlib.md5(data.encode()).hexdigest()
    work = (
        "i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); done > /tmp/lines; for n in 1 2 3; do "
        "dd if=/tmp/lines of=/dev/vda bs=512 seek=$((n*4)) conv=fsync 2>/dev/null; done; echo 1 >"
        "/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/back bs=512 skip=12 count=4 2>/dev/null; "
        f"head -c {len(data)} /tmp/back > /tmp/cut; md5sum /tmp/cut > /tmp/sum"
    )
    vm = saved.clone("e")
    for move in range(4):
        with vm:
            if move == 0:
                started = vm.agent.call("guest-exec", {"path": "sh", "arg": ["-c", work]})
            time.sleep(0.3)
            if move < 3:
                path = saved.folder / f"move{move % 2}"
                vm.pause()
                vm.snapshot(path)
                vm.kill()
            else:
                deadline = time.monotonic() + LIMIT
                while not vm.agent.call("guest-exec-status", {"pid": started["pid"]})["exited"]:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                assert shell(vm, "cat /tmp/sum").split()[0] == digest
                return
        vm = saved.clone("f", path)


def test_a_disk_that_has_changed_since_is_refused(saved: Saved) -> None:
    with (saved.folder / "disk").open("r+b") as disk:
        disk.write(b"THE BASE")
    with pytest.raises(LoadError, match="has changed since"):
        saved.clone("g")
