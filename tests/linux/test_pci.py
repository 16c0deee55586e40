"""Linux's virtio-pci driver on pyvmm's functions: many at once by messages, few by pins that they share."""

import hashlib
import re

import pytest

from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox"), pytest.mark.timeout(2 * LIMIT + 60)]

PAGES, REST = 24, 16 << 10
"""Of 4 KiB, written to each disk, and the bytes behind them."""

# Whatever is written lies in the page cache, and then goes to all disks at once. The shell writes it by itself, and one
# program reads all of it: where ring 0 is emulated, starting one for each disk takes longer than what it does.
WRITE_ALL = """
set -- {names}
for name in "$@"; do
    page="$name "
    for _ in 8 16 32 64 128 256 512 1024 2048 4096; do page=$page$page; done
    for _ in {pages}; do printf %s "$page"; done > /dev/$name
done
step sync sync
echo 3 > /proc/sys/vm/drop_caches
step compare md5sum -c /sums
step transport test -e /sys/bus/pci/drivers/virtio-pci/0000:00:01.0
"""


def disks(folder, count):
    """`count` blank disks behind the root file system: their names in the guest, and what is to be written to each."""
    names = [f"vd{chr(ord('b') + number)}" for number in range(count)]
    content = {name: f"{name} ".encode() * 1024 * PAGES + bytes(REST) for name in names}
    for name, data in content.items():
        (folder / f"{name}.img").write_bytes(bytes(len(data)))
    return names, content


def write_all(names):
    return WRITE_ALL.format(names=" ".join(names), pages=" ".join(map(str, range(PAGES))))


def options(folder, names):
    return [word for name in names for word in ("--disk", folder / f"{name}.img")]


def sums(content):
    """The file by which md5sum checks the disks in the guest."""
    lines = (f"{hashlib.md5(data).hexdigest()}  /dev/{name}\n" for name, data in content.items())
    return [("/sums", "".join(lines).encode())]


def written(folder, content):
    return all((folder / f"{name}.img").read_bytes() == data for name, data in content.items())


def test_twenty_disks_at_once_beside_a_network_random_numbers_and_a_port(tmp_path):
    names, content = disks(tmp_path, 19)
    script = write_all(names)
    script += """
value mac $(cat /sys/class/net/eth0/address)
step random dd if=/dev/hwrng of=/dev/null bs=64 count=1
set -- /dev/vport*p1
step port sh -c "echo hello > $1"
value messages $(grep -c "PCI-MSI" /proc/interrupts)
"""
    root = build(tmp_path, script, files=sums(content))
    others = ["--net", f"socket={tmp_path}/switch,mac=52:54:00:12:34:56", "--rng", "--port", f"log=file:{tmp_path}/log"]
    guest = Guest(root, *options(tmp_path, names), *others, "--mem", "192M", limit=2 * LIMIT)
    assert guest.is_well("sync", "compare", "transport", "random", "port")
    assert written(tmp_path, content)
    assert guest.values["mac"] == "52:54:00:12:34:56"
    assert (tmp_path / "log").read_bytes() == b"hello\n"
    assert int(guest.values["messages"]) >= 40  # one for the configuration and one for each queue


@pytest.mark.parametrize("append", ["pci=nomsi", "pci=nomsi acpi=off"])
def test_pins_that_devices_share_are_enough(tmp_path, append):
    """By the DSDT's `_PRT`, and by the MP table."""
    names, content = disks(tmp_path, 4)
    root = build(tmp_path, write_all(names) + "cat /proc/interrupts\n", files=sums(content))
    guest = Guest(root, *options(tmp_path, names), "--transport", "pci", append=append)
    assert guest.is_well("sync", "compare", "transport")
    assert written(tmp_path, content)
    lines = re.findall(r"^ *\d+: .*IO-APIC +(\d+)-fasteoi +(virtio.*)$", guest.console, re.M)
    assert {int(pin) for pin, _ in lines} == {16, 17, 18, 19}
    assert next(users for pin, users in lines if pin == "17").count("virtio") == 2
