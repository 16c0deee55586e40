"""What an unprivileged user gets: a disk, a network and a share in one guest, with nobody's rights on the host."""

import hashlib
import os

import pytest

from tests.linux.test_disks import blank
from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [
    pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox", "passt", "unprivileged"),
    pytest.mark.timeout(4 * LIMIT),
]

SCRIPT = """
step write dd if=/bin/busybox of=/dev/vdb bs=64k count=4 conv=fsync
ip -4 addr show eth0 > /tmp/address
step address grep -q "inet " /tmp/address
step share mount -t 9p -o trans=virtio,version=9p2000.L host /mnt
value read $(cat /mnt/question)
step answer sh -c 'echo from the guest > /mnt/answer'
set -- $(ls -ln /mnt/answer)
value owner $3
step unshare umount /mnt
"""


def test_a_guest_of_nobodys_has_a_disk_a_network_and_a_share(tmp_path):
    assert os.geteuid() != 0
    disk = blank(tmp_path / "disk.img", 1 << 20)
    folder = tmp_path / "shared"
    folder.mkdir()
    (folder / "question").write_text("from the host\n")
    root = build(tmp_path, SCRIPT)
    guest = Guest(
        root, "--disk", disk, "--net", "user", "--share", f"{folder},tag=host", append="ip=dhcp", limit=2 * LIMIT
    )
    assert guest.is_well("write", "address", "share", "answer", "unshare")
    with open("/bin/busybox", "rb") as program:
        written = program.read(4 << 16)
    assert hashlib.md5(disk.read_bytes()[: 4 << 16]).digest() == hashlib.md5(written).digest()
    assert guest.values["read"] == "from the host"
    assert (folder / "answer").read_text() == "from the guest\n"
    assert (folder / "answer").stat().st_uid == os.geteuid()
    assert guest.values["owner"] == "0"
