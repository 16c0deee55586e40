"""Linux's block driver and ext4 on pyvmm's disks: made, written, checked, by the guest and then by the host."""

import hashlib
import os
import subprocess

import pytest

from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox"), pytest.mark.timeout(4 * LIMIT)]

# What is written is the beginning of the root file system: the guest's own random numbers cost it seconds a megabyte.
CYCLE = """
step {name}-mkfs /sbin/mke2fs -q -t ext4 /dev/{name}
step {name}-mount mount -t ext4 /dev/{name} /mnt
step {name}-write dd if=/dev/vda of=/mnt/file bs=64k count={count}
md5sum < /mnt/file > /tmp/sum
step {name}-unmount umount /mnt
step {name}-remount mount -t ext4 /dev/{name} /mnt
md5sum < /mnt/file > /tmp/again
step {name}-compare cmp /tmp/again /tmp/sum
step {name}-unmount-again umount /mnt
step {name}-fsck e2fsck -fn /dev/{name}
value {name}-sum $(cat /tmp/sum)
"""
STEPS = ("mkfs", "mount", "write", "unmount", "remount", "compare", "unmount-again", "fsck")


def steps(name):
    return [f"{name}-{step}" for step in STEPS]


def filesystem(path, size, **content):
    """An ext4 image of `size` with the files of `content`."""
    tree = path.parent / f"{path.name}.tree"
    tree.mkdir()
    for name, data in content.items():
        (tree / name).write_bytes(data)
    subprocess.run(["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-d", tree, path, size], check=True, timeout=60)
    return path


def file_in(image, name):
    """The content of file `name` of the ext4 in `image`, as the host finds it."""
    done = subprocess.run(["/usr/sbin/debugfs", "-R", f"cat {name}", image], capture_output=True, timeout=60)
    return done.stdout


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def blank(path, size):
    path.touch()
    os.truncate(path, size)
    return path


@pytest.mark.parametrize("mib", [1, pytest.param(16, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_raw_overlay_and_read_only_disks_side_by_side(tmp_path, mib):
    text = os.urandom(200_000)
    raw = blank(tmp_path / "raw.img", (mib + 15) << 20)
    base = blank(tmp_path / "base.img", (mib + 15) << 20)
    fixed = filesystem(tmp_path / "fixed.img", "8M", text=text)
    before = {path: digest(path) for path in (base, fixed)}
    script = CYCLE.format(name="vdb", count=16 * mib) + CYCLE.format(name="vdc", count=16 * mib)
    script += """
step fixed-mount mount -t ext4 -o ro /dev/vdd /mnt
value fixed-sum $(md5sum < /mnt/text)
step fixed-unmount umount /mnt
step fixed-refuses sh -c '! dd if=/dev/zero of=/dev/vdd bs=4k count=1 conv=fsync'
value serials $(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial)
"""
    root = build(tmp_path, script, ["mke2fs", "e2fsck"])
    guest = Guest(
        root,
        *("--disk", f"{raw},serial=data"),
        *("--disk", f"{base},overlay"),
        *("--disk", f"{fixed},ro"),
        limit=3 * LIMIT if mib == 1 else 3000,
    )
    assert guest.is_well(*steps("vdb"), *steps("vdc"), "fixed-mount", "fixed-unmount", "fixed-refuses")
    assert guest.values["serials"] == "blk0 data"
    assert guest.values["fixed-sum"].split()[0] == hashlib.md5(text).hexdigest()
    subprocess.run(["/usr/sbin/e2fsck", "-fn", raw], check=True, capture_output=True, timeout=60)
    assert hashlib.md5(file_in(raw, "/file")).hexdigest() == guest.values["vdb-sum"].split()[0]
    assert {path: digest(path) for path in before} == before
