"""What the lint finds in Linux's own virtio drivers: a boot with every device for each transport."""

import socket
from pathlib import Path

import pytest

from pyvmm import VM, Balloon, Disk, Net, Port, Rng, Share, Vsock
from tests.support.linux import LIMIT, image

BOOT = 2 * LIMIT
"""Seconds: every access of this boot comes to Python."""

pytestmark = [pytest.mark.needs("kvm", "tiny-image"), pytest.mark.timeout(4 * LIMIT)]

KNOWN = [("balloon0", 2, "notify-early")]
"""Linux breaks one rule: its balloon's driver notifies of the first statistics buffer before DRIVER_OK (init_vqs() in
drivers/virtio/virtio_balloon.c, up to 6.1 at least), which 3.1.1 forbids, and 5.5.5 names as a step after that one."""
COMMANDS = (
    "dd if=/dev/vda of=/tmp/data bs=64k count=2",
    "dd if=/tmp/data of=/dev/vda bs=4k seek=4 conv=fsync",
    "mount -t 9p -o trans=virtio,version=9p2000.L share /mnt",
    "cp /tmp/data /mnt/data",
    "umount /mnt",
    "cat /sys/block/vda/serial",
    "dd if=/dev/hwrng of=/tmp/random bs=64 count=4",
    "ip link set eth0 up",
    "ip addr add 10.0.0.2/24 dev eth0",
    "ping -c 1 -W 1 10.0.0.3",
)
"""The last one comes to nothing here: it is what it asks of a device that counts."""


@pytest.mark.parametrize(("transport", "commands"), [("mmio", COMMANDS), ("pci", COMMANDS[:5])])
def test_linux_breaks_one_rule_and_no_other(transport, commands, tmp_path):
    disk, shared = tmp_path / "disk.img", tmp_path / "shared"
    shared.mkdir()
    disk.write_bytes(bytes(1 << 20))
    devices = {
        "disks": [Disk(disk, queues=2, serial="one")],
        "net": Net.switch(tmp_path / "switch", mtu=1400),
        "ports": [Port("port")],
        "rng": Rng(),
        "shares": [Share(shared, "share")],
        "vsock": Vsock(tmp_path / "vsock"),
        "balloon": Balloon(),
    }
    settings = {
        "append": "quiet pyvmm.agent",
        "agent": True,
        "transport": transport,
        "lint": True,
        "timeout": 3 * LIMIT,
    }
    with VM(image("kernel"), initrd=image("initrd"), **settings, **devices) as vm:
        vm.guest.wait_ready(BOOT)
        statuses = [vm.exec(["sh", "-c", command], timeout=LIMIT).returncode for command in commands]
        vm.ports["port"].send(b"hello")
        call(tmp_path / "vsock")
        assert vm.balloon is not None
        vm.balloon.set_target(8 << 20)
        vm.resize_disk(2 << 20)
        vm.net_link(False)
        vm.exec(["sleep", "1"], timeout=LIMIT)
    assert statuses[:5] == [0] * 5 and statuses.count(0) >= len(commands) - 1, statuses
    assert (shared / "data").stat().st_size == 128 << 10
    accesses, chains = vm.judged
    assert accesses > 500 and chains > 50
    found = [(finding.device, finding.queue, finding.name) for finding in vm.findings]
    assert found == KNOWN, [str(finding) for finding in vm.findings]


def call(path: Path) -> None:
    """Call a port of the guest's where nobody listens: its driver has to say so."""
    with socket.socket(socket.AF_UNIX) as host:
        host.settimeout(LIMIT)
        host.connect(str(path))
        host.sendall(b"CONNECT 52\n")
        assert host.recv(64) == b""
