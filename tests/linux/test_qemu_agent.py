"""Debian's own qemu-guest-agent, unmodified, served by the same client as pyvmm's agent."""

from __future__ import annotations

import random
import re
import subprocess
import time

import pytest

from pyvmm import VM, Share
from pyvmm.errors import GuestAgentError, PyvmmError, UsageError
from tests.support.linux import LIMIT, image, release

pytestmark = [
    pytest.mark.needs("kvm", "tiny-image", "dpkg-deb"),
    pytest.mark.soak,  # it downloads a package
    pytest.mark.timeout(5 * LIMIT),
]

PACKAGE = "qemu-guest-agent"
NINE = "trans=virtio,version=9p2000.L,msize=262144,cache=loose"
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
for port in /sys/class/virtio-ports/*; do
    read -r name <$port/name
    [ "$name" = org.qemu.guest_agent.0 ] && exec {program} -m virtio-serial -p /dev/${{port##*/}} -t /run -f /run/pid
done
echo "there is no port"
"""


@pytest.fixture
def program(tmp_path):
    """Debian's agent; its libraries are the host's, which the guest has as its root file system."""
    done = subprocess.run(["apt-get", "download", PACKAGE], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    packages = list(tmp_path.glob(f"{PACKAGE}_*.deb"))
    if done.returncode or not packages:
        pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.decode().strip()[-200:]}")
    subprocess.run(["dpkg-deb", "-x", packages[0], tmp_path / "agent"], check=True, timeout=60)
    found = tmp_path / "agent/usr/sbin/qemu-ga"
    missing = re.findall(r"(\S+) => not found", subprocess.run(["ldd", found], capture_output=True, text=True).stdout)
    if missing:
        pytest.skip(f"this host has no {', '.join(missing)} for {PACKAGE}")
    return found


def test_debians_agent_does_it_all_by_the_same_client(tmp_path, program):
    init = tmp_path / "init"
    init.write_text(INIT.format(program=program))
    init.chmod(0o755)
    words = f"root=host rootfstype=9p rootflags={NINE} ro init={init} quiet"
    shares = [Share("/", "host", readonly=True)]
    with VM(image("kernel"), agent=True, append=words, shares=shares, timeout=4 * LIMIT) as vm:
        try:
            vm.guest.wait_ready(2 * LIMIT)
        except PyvmmError as error:
            pytest.fail(f"{error}; its console: {vm.console_log.decode(errors='replace')[-3000:]}")
        assert not vm.guest.own
        assert re.match(r"\d+\.\d+", vm.agent.info()["version"])
        done = vm.exec(["uname", "-r"], timeout=LIMIT)
        assert (done.returncode, done.text, done.stderr) == (0, release() + "\n", b"")
        line = "pwd; echo $A; cat; echo err >&2; exit 7"
        done = vm.exec(["sh", "-c", line], env={"A": "b"}, cwd="/usr", input=b"in\n", timeout=LIMIT)
        assert (done.returncode, done.stdout, done.stderr) == (7, b"/usr\nb\nin\n", b"err\n")
        assert vm.exec(["sh", "-c", "kill -9 $$"], timeout=LIMIT).returncode == -9
        with pytest.raises(GuestAgentError, match="No such file"):
            vm.exec(["/no/such"], timeout=LIMIT)
        with pytest.raises(UsageError, match="own agent"):
            vm.popen(["ls"])

        data = random.Random(3).randbytes(300_001)
        local, back = tmp_path / "local", tmp_path / "back"
        local.write_bytes(data)
        vm.push(local, "/run/there", timeout=LIMIT)
        vm.pull("/run/there", back, timeout=LIMIT)
        assert back.read_bytes() == data

        vm.agent.set_time(1_000_000_000_000_000_000)
        assert vm.exec(["date", "-u", "+%Y-%m-%d"], timeout=LIMIT).text == "2001-09-09\n"
        assert abs(vm.agent.get_time() / 1e9 - 1e9) < LIMIT
        vm.agent.set_time()
        assert abs(vm.agent.get_time() / 1e9 - time.time()) < 60
        assert [each["name"] for each in vm.agent.network_interfaces()] == ["lo"]
