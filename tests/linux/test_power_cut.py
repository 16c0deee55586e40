"""Power cuts while Linux writes to ext4: whatever was flushed is there, and fsck accepts what is left.

Few of them, in every run of the tests, are in docs/testing.md.
"""

import re
import subprocess

import pytest

from pyvmm import VM
from pyvmm.backends import disk as disk_module
from pyvmm.testing.writelog import WriteLog
from tests.support.crashfs import fsck
from tests.support.linux import LIMIT, image
from tests.support.rootfs import build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox"), pytest.mark.timeout(4 * LIMIT)]

SCRIPT = """
step mount mount -t ext4 /dev/vdb /mnt
for number in {numbers}; do
    dd if=/dev/vda of=/mnt/file$number bs=4k count=$number conv=fsync 2>/dev/null
    [ $number = 3 ] && rm /mnt/file1
    [ $number = 4 ] && mv /mnt/file2 /mnt/moved
done
step sync sync
echo late > /mnt/late
"""


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_power_cut_under_linux_leaves_a_sound_file_system(
    tmp_path, monkeypatch, files=12, prefixes=1000, samples=400
):
    numbers = " ".join(map(str, range(1, files + 1)))
    root = build(tmp_path, SCRIPT.format(numbers=numbers))
    target = tmp_path / "target.img"
    # Without checksums: the superblock's goes over two sectors, of which a power cut may store one.
    options = ["-q", "-t", "ext4", "-O", "^metadata_csum", "-J", "size=1"]
    subprocess.run(["/usr/sbin/mke2fs", *options, target, "8M"], check=True, timeout=60)
    logs = []
    opened = disk_module.open_disk

    def logged(path, **settings):
        disk = opened(path, **settings)
        if path != str(target):
            return disk
        logs.append(WriteLog(disk))
        return logs[0]

    monkeypatch.setattr(disk_module, "open_disk", logged)
    words = "root=/dev/vda ro init=/init quiet"
    with VM(image("kernel"), disks=[str(root), str(target)], append=words, timeout=3 * LIMIT) as vm:
        outcome = vm.wait()
        shown = bytes(vm.console.output).decode(errors="replace")
    assert outcome.reason == "power-off", shown
    assert re.search(r"^step mount 0\r?$", shown, re.M) and re.search(r"^step sync 0\r?$", shown, re.M), shown
    [log] = logs
    assert log.log.count(None) >= files, "each fsync flushes"
    crash = tmp_path / "crash.img"
    for state in log.images(samples, prefixes=prefixes):
        crash.write_bytes(state.data)
        assert not (problem := fsck(crash)), f"{state.name}: {problem}"
    crash.write_bytes(log.at(log.stable(len(log.log))))
    assert not fsck(crash)
    there = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "ls -p /", crash], capture_output=True, text=True, timeout=60
    ).stdout
    for name in (f"file{files}", "moved"):
        assert f"/{name}/" in there, there
    assert "/file1/" not in there
