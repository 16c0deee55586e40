"""Linux's virtio-pci driver on pyvmm's functions: many at once by messages, few by pins that they share."""

import re

import pytest

from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox"), pytest.mark.timeout(2 * LIMIT + 60)]

SIZE = 96 << 10
"""Bytes written to each disk."""

# Whatever is written lies in the page cache, and then goes to all disks at once.
WRITE_ALL = """
set -- {names}
for name in "$@"; do dd if=/data/$name of=/dev/$name bs=32k 2>/dev/null; done
step sync sync
echo 3 > /proc/sys/vm/drop_caches
for name in "$@"; do step compare-$name cmp -n {size} /data/$name /dev/$name; done
step transport test -e /sys/bus/pci/drivers/virtio-pci/0000:00:01.0
value interrupts $(grep -c virtio /proc/interrupts)
"""


def disks(folder, count):
    """`count` blank disks behind the root file system: their names in the guest, and what is to be written to each."""
    names = [f"vd{chr(ord('b') + number)}" for number in range(count)]
    content = {
        name: bytes((number * 7 + at) & 0xFF for at in range(256)) * (SIZE // 256) for number, name in enumerate(names)
    }
    for name in names:
        (folder / f"{name}.img").write_bytes(bytes(SIZE * 2))
    return names, content


def options(folder, names):
    return [word for name in names for word in ("--disk", folder / f"{name}.img")]


def files(content):
    return [(f"/data/{name}", data) for name, data in content.items()]


def written(folder, content):
    return all((folder / f"{name}.img").read_bytes() == data + bytes(SIZE) for name, data in content.items())


def test_twenty_disks_at_once_beside_a_network_random_numbers_and_a_port(tmp_path):
    names, content = disks(tmp_path, 19)
    script = WRITE_ALL.format(names=" ".join(names), size=SIZE)
    script += """
value mac $(cat /sys/class/net/eth0/address)
step random dd if=/dev/hwrng of=/dev/null bs=64 count=1
set -- /dev/vport*p1
step port sh -c "echo hello > $1"
value messages $(grep -c "PCI-MSI" /proc/interrupts)
"""
    root = build(tmp_path, script, files=files(content))
    others = ["--net", f"socket={tmp_path}/switch,mac=52:54:00:12:34:56", "--rng", "--port", f"log=file:{tmp_path}/log"]
    guest = Guest(root, *options(tmp_path, names), *others, "--mem", "192M", limit=2 * LIMIT)
    assert guest.is_well("sync", *(f"compare-{name}" for name in names), "transport", "random", "port")
    assert written(tmp_path, content)
    assert guest.values["mac"] == "52:54:00:12:34:56"
    assert (tmp_path / "log").read_bytes() == b"hello\n"
    assert int(guest.values["messages"]) >= 40  # one for the configuration and one for each queue


@pytest.mark.parametrize("append", ["pci=nomsi", "pci=nomsi acpi=off"])
def test_pins_that_devices_share_are_enough(tmp_path, append):
    """By the DSDT's `_PRT`, and by the MP table."""
    names, content = disks(tmp_path, 4)
    script = WRITE_ALL.format(names=" ".join(names), size=SIZE) + "cat /proc/interrupts\n"
    root = build(tmp_path, script, files=files(content))
    guest = Guest(root, *options(tmp_path, names), "--transport", "pci", append=append)
    assert guest.is_well("sync", *(f"compare-{name}" for name in names), "transport")
    assert written(tmp_path, content)
    lines = re.findall(r"^ *\d+: .*IO-APIC +(\d+)-fasteoi +(virtio.*)$", guest.console, re.M)
    assert {int(pin) for pin, _ in lines} == {16, 17, 18, 19}
    assert next(users for pin, users in lines if pin == "17").count("virtio") == 2
