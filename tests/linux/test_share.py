"""Linux's 9p client on shared directories: as root file system, and as a place to work in, where the host works too."""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.cli import pyvmm
from tests.support.linux import LIMIT, image
from tests.unit.test_9p_locks import free

pytestmark = [pytest.mark.needs("kvm", "tiny-image", "busybox", "gcc"), pytest.mark.timeout(4 * LIMIT)]

SOURCE = Path(__file__).parent.parent / "native/share_guest.c"
OPTIONS = "trans=virtio,version=9p2000.L"
APPLETS = ("cat", "echo", "grep", "ls", "mkdir", "mount", "poweroff", "rm", "sh", "sync", "touch", "umount")
SCRIPT = f"""#!/bin/sh
export PATH=/bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t tmpfs tmp /tmp
step() {{
    name=$1
    shift
    "$@" > /tmp/out 2>&1
    status=$?
    [ $status = 0 ] || cat /tmp/out
    echo "step $name $status"
}}
grep ' / 9p ' /proc/mounts > /tmp/root
step root grep -q share0 /tmp/root
step read-only sh -c '! touch /new'
step work-mount mount -t 9p -o {OPTIONS},locktimeout=1 work /mnt
/bin/share files /mnt
/bin/share locks /mnt
step work-unmount umount /mnt
mkdir /tmp/upper /tmp/work
step overlay mount -t overlay -o lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work overlay /mnt
step overlay-write sh -c 'echo changed > /mnt/etc/file && rm /mnt/etc/other && mkdir /mnt/etc/made'
cat /mnt/etc/file > /tmp/changed
cat /etc/file > /tmp/kept
step overlay-has grep -q changed /tmp/changed
step root-has grep -q original /tmp/kept
step overlay-unmount umount /mnt
sync
poweroff -f
"""
FILES = (
    *("create", "write", "truncate", "fsync", "times", "mmap", "append", "chmod", "link", "symlink", "rename over"),
    *("unlink", "unlinked", "dangling", "xattr", "no xattr", "mkdir", "remove while reading", "fsync directory"),
    *("rmdir", "statvfs", "way out"),
)
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
fcntl.lockf(file, fcntl.LOCK_EX, 10)
print(flush=True)
input()
"""
LOCKS = ("held", "seen", "beside", "mine", "waited", "unlocked")


@pytest.fixture
def root(tmp_path):
    """A root file system with busybox and share_guest."""
    folder = tmp_path / "root"
    for name in ("bin", "dev", "etc", "mnt", "proc", "tmp"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin")
    for name in APPLETS:
        (folder / "bin" / name).symlink_to("busybox")
    command = ["gcc", "-static", "-O1", "-Wall", "-Werror", "-o", folder / "bin/share", SOURCE]
    subprocess.run(command, check=True, timeout=60)
    (folder / "init").write_text(SCRIPT)
    (folder / "init").chmod(0o755)
    (folder / "etc/file").write_text("original\n")
    (folder / "etc/other").touch()
    return folder


class Host(threading.Thread):
    """What the host does while the guest locks: holds, looks, lets go. `failure` is what went wrong, or ""."""

    def __init__(self, folder):
        super().__init__(daemon=True)
        self.folder, self.failure = folder, ""
        (folder / "held").write_bytes(bytes(20))
        command = [sys.executable, "-c", HOLDER, folder / "held"]
        self.holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.holder.stdout.readline()

    def wait_for(self, name):
        deadline = time.monotonic() + LIMIT
        while not (self.folder / name).exists():
            if time.monotonic() > deadline:
                raise TimeoutError(name)
            time.sleep(0.05)

    def run(self):
        try:
            self.wait_for("locked")
            mine = self.folder / "mine"
            assert not free(mine, start=3, length=4) and free(mine, length=3) and free(mine, start=7)
            self.holder.communicate(b"\n", timeout=30)
            self.wait_for("over")
            assert free(mine) and not free(self.folder / "held")
        except Exception as error:
            self.failure = repr(error)
        (self.folder / "seen").touch()


def test_a_root_file_system_an_overlay_and_a_place_to_work_in(tmp_path, root):
    outside, folder = tmp_path / "outside", tmp_path / "work"
    outside.mkdir()
    folder.mkdir()
    (outside / "secret").write_text("what is outside")
    (folder / "out").symlink_to(outside)
    (folder / "up").symlink_to("../outside")
    before = sorted(str(path) for path in root.rglob("*"))
    host = Host(folder)
    host.start()
    flags = f"root=share0 rootfstype=9p rootflags={OPTIONS},cache=loose ro init=/init quiet"
    shares = ("--share", f"{root},tag=share0,ro", "--share", f"{folder},tag=work")
    limits = ("--timeout", 3 * LIMIT)
    done = pyvmm("run", image("kernel"), *shares, "--append", flags, *limits, timeout=3 * LIMIT + 30)
    console = done.stdout.decode(errors="replace").replace("\r\n", "\n")
    host.holder.kill()
    host.join(5)
    assert done.returncode == 0, console[-3000:] + done.stderr.decode()
    steps = re.findall(r"^step (.+) (\d+)$", console, re.M)
    expected = (*("root", "read-only", "work-mount"), *FILES, *LOCKS, *("work-unmount", "overlay", "overlay-write"))
    assert steps == [(name, "0") for name in (*expected, "overlay-has", "root-has", "overlay-unmount")]
    assert host.failure == ""
    assert sorted(str(path) for path in root.rglob("*")) == before
    assert (root / "etc/file").read_text() == "original\n"
    assert sorted(os.listdir(outside)) == ["secret"]
    assert os.getxattr(folder / "attributed", "user.guest") == b"value"
    assert sorted(os.listdir(folder)) == sorted(["attributed", "held", "locked", "mine", "out", "over", "seen", "up"])
