"""A root file system for guests that test devices: busybox, what else a test needs with its libraries, and a script.

The script runs as process 1 from an ext4 made with `mke2fs -d`, on /dev/vda. It reports by `step NAME COMMAND...`,
which prints one line with the command's status; the guest powers off at its end.
"""

import re
import shutil
import subprocess
from pathlib import Path

from tests.support.cli import pyvmm
from tests.support.linux import LIMIT, image

INIT = """#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
step() {
    name=$1
    shift
    "$@" >/tmp/step.out 2>&1
    status=$?
    [ $status = 0 ] || cat /tmp/step.out
    echo "step $name $status"
}
value() { # value NAME WORDS...
    echo "value $*"
}
. /script
sync
poweroff -f
"""
FOLDERS = ("bin", "dev", "etc", "lib64", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin")
APPLETS = (
    "cat chmod cmp cp cut dd dmesg echo grep head ip ls md5sum mkdir mount mv nc ping poweroff printf rm sh sleep sync"
    " tail test touch tr umount udhcpc wc wget yes hexdump blkdiscard stty"
)


def libraries(program: Path) -> list[Path]:
    """The shared libraries, and the dynamic loader, that `program` asks for on this machine."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=30).stdout
    return [Path(name) for name in re.findall(r"(/\S+) \(0x", listed)]


def build(folder: Path, script: str, programs=(), size: str = "64M", files=()) -> Path:
    """The image, in `folder`: `script`, `programs` by name, and `files` as (path in the guest, content)."""
    tree = folder / "tree"
    for name in FOLDERS:
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for name in APPLETS.split():
        (tree / "bin" / name).symlink_to("busybox")
    for name in programs:
        found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
        assert found, name
        for path in (Path(found), *libraries(Path(found))):
            target = tree / ("sbin" if path == Path(found) else str(path.parent).lstrip("/")) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    (tree / "script").write_text(script)
    for name, content in files:
        (tree / name.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        (tree / name.lstrip("/")).write_bytes(content)
    made = folder / "root.img"
    subprocess.run(
        ["/usr/sbin/mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, made, size], check=True, timeout=60
    )
    shutil.rmtree(tree)
    return made


class Guest:
    """One run of the tiny kernel with `root` as its root file system, read-only, and what its script reported."""

    def __init__(self, root: Path, *arguments: object, append: str = "", limit: int = LIMIT):
        words = f"root=/dev/vda ro init=/init quiet {append}"
        done = pyvmm(
            "run",
            image("kernel"),
            "--disk",
            f"{root},ro",
            *arguments,
            "--append",
            words,
            "--timeout",
            limit,
            timeout=limit + 30,
        )
        self.status = done.returncode
        self.console = done.stdout.decode(errors="replace").replace("\r\n", "\n")
        self.errors = done.stderr.decode(errors="replace")
        self.steps = {name: int(status) for name, status in re.findall(r"^step (\S+) (\d+)$", self.console, re.M)}
        self.values = dict(re.findall(r"^value (\S+) (.*)$", self.console, re.M))

    def is_well(self, *steps: str) -> bool:
        """Whether it came to its end and each of `steps` succeeded."""
        assert self.status == 0, self.console[-3000:] + self.errors
        assert {step: self.steps.get(step) for step in steps} == dict.fromkeys(steps, 0), self.console[-3000:]
        return True
