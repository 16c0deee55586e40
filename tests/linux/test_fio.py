"""fio writes, reads back and verifies: Debian's own, with all of its libraries, in a root file system on /dev/vda."""

import os

import pytest

from tests.support.linux import LIMIT
from tests.support.rootfs import Guest, build

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "mke2fs", "busybox", "fio"), pytest.mark.timeout(4 * LIMIT)]

JOB = (
    "step {name} fio --name={name} --filename=/dev/vdb --rw={rw} --bs={bs} --size={size}K --offset={offset}K --direct=1"
    " --ioengine=psync --verify=crc32c --verify_fatal=1 --do_verify=1 --thread --minimal --output=/tmp/{name}\n"
    "value {name} $(cut -d';' -f5,6,47 /tmp/{name})\n"
)


@pytest.mark.parametrize("kib", [256, pytest.param(8192, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])])
def test_what_fio_writes_at_random_and_in_order_it_reads_back(tmp_path, kib):
    script = JOB.format(name="random", rw="randwrite", bs="4k", size=kib, offset=0)
    script += JOB.format(name="sequential", rw="write", bs="64k", size=8 * kib, offset=8192)
    root = build(tmp_path, script, ["fio"], size="192M")
    disk = tmp_path / "disk.img"
    disk.touch()
    os.truncate(disk, 80 << 20)
    # The libraries that fio is linked with take address space that a guest of 128 MiB does not grant.
    guest = Guest(root, "--mem", "512M", "--disk", disk, limit=3 * LIMIT if kib == 256 else 3000)
    assert guest.is_well("random", "sequential")
    # Error count, KiB read back, KiB written (fio's terse format 3).
    assert guest.values["random"] == f"0;{kib};{kib}" and guest.values["sequential"] == f"0;{8 * kib};{8 * kib}"
    written = disk.read_bytes()
    assert any(written[: kib << 10]) and any(written[8 << 20 : (8 << 20) + (8 * kib << 10)])
