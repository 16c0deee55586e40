"""fio writes, reads back and verifies: Debian's own, with all of its libraries, in a root file system on /dev/vda."""

import os

import pytest

from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox", "fio"), pytest.mark.timeout(4 * LIMIT)]

# One run of both jobs: starting fio takes as long as either.
SCRIPT = """
step fio fio --filename=/dev/vdb --direct=1 --ioengine=psync --verify=crc32c --verify_fatal=1 --do_verify=1 --thread \\
    --minimal --output=/tmp/out \\
    --name=random --rw=randwrite --bs=4k --size={random}K \\
    --name=sequential --stonewall --rw=write --bs=64k --size={sequential}K --offset=16M
grep '^3;' /tmp/out > /tmp/terse
value results $(cut -d';' -f3,5,6,47 /tmp/terse)
"""


@pytest.mark.parametrize("kib", [128, pytest.param(4096, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_what_fio_writes_at_random_and_in_order_it_reads_back(tmp_path, kib):
    root = build(tmp_path, SCRIPT.format(random=kib, sequential=4 * kib), ["fio"], size="192M")
    disk = tmp_path / "disk.img"
    disk.touch()
    os.truncate(disk, 80 << 20)
    # The libraries that fio is linked with take address space that a guest of 128 MiB does not grant.
    guest = Guest(root, "--mem", "512M", "--disk", disk, limit=3 * LIMIT if kib == 128 else 3000)
    assert guest.is_well("fio")
    # Name, error, KiB read back, KiB written: fields of fio's terse format 3.
    assert guest.values["results"] == f"random;0;{kib};{kib} sequential;0;{4 * kib};{4 * kib}"
    written = disk.read_bytes()
    assert any(written[: kib << 10]) and any(written[16 << 20 : (16 << 20) + (4 * kib << 10)])
