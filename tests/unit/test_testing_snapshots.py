"""Snapshots shared by the workers of a test run: made once, under a lock that nothing but a living process holds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pyvmm import Disk, Net, VmConfig
from pyvmm.errors import PyvmmError, TimeLimitError
from pyvmm.testing import snapshots
from pyvmm.testing.snapshots import SharedSnapshots, key


class FakeVm:
    """A VM whose snapshot is an empty folder; its agent answers unless the kernel is called `mute`."""

    console_log = b"the last words\n"

    def __init__(self, config: VmConfig) -> None:
        self.config = config
        self.guest = self

    def __enter__(self) -> FakeVm:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_ready(self, timeout: float) -> None:
        time.sleep(0.05)
        if self.config.kernel.endswith("mute"):
            raise TimeLimitError(f"no agent came up in the guest within {timeout:g} s")

    def snapshot(self, path: str) -> None:
        os.mkdir(path)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "VM", FakeVm)


def config(folder: Path, kernel: str = "kernel", **settings: Any) -> VmConfig:
    if not (folder / kernel).exists():
        (folder / kernel).touch()
    return VmConfig(folder / kernel, **{"agent": True, "timeout": 3, **settings})


def made(path: str) -> list[str]:
    return (Path(path).parent / "made").read_text().splitlines()


def ask(folder: Path, queue: Any) -> None:
    queue.put(SharedSnapshots(str(folder / "shared")).get(config(folder), "a test"))


def test_many_processes_that_ask_at_once_share_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    config(tmp_path)
    processes = [context.Process(target=ask, args=(tmp_path, queue)) for _ in range(6)]
    for process in processes:
        process.start()
    paths = {queue.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
    (path,) = paths
    assert os.path.isdir(path)
    assert len(made(path)) == 1
    assert made(path)[0].endswith("for a test")


def test_what_could_not_be_made_is_not_tried_again_and_everyone_is_told_why(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(PyvmmError, match=r"for a test.: no agent came up(.|\n)*\| the last words"):
            SharedSnapshots(str(tmp_path / "shared")).get(config(tmp_path, "mute"), "a test")
    assert not list(tmp_path.glob("shared/*/made"))


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_worker_leaves_no_lock_and_one_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "shared" / key(config(tmp_path))
    folder.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLDER, folder / "lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        try:
            with pytest.raises(TimeLimitError, match=r"another process has been making the snapshot for 0.2 s"):
                SharedSnapshots(str(tmp_path / "shared")).get(config(tmp_path, timeout=0.1), "a test")
        finally:
            holder.send_signal(signal.SIGKILL)
    assert os.path.isdir(SharedSnapshots(str(tmp_path / "shared")).get(config(tmp_path), "a test"))


def test_all_that_a_guest_is_made_of_makes_another_snapshot(tmp_path: Path) -> None:
    (tmp_path / "disk").touch()
    one = key(config(tmp_path))
    others = [
        config(tmp_path, mem="64M"),
        config(tmp_path, cpus=2),
        config(tmp_path, append="word"),
        config(tmp_path, disks=[Disk(tmp_path / "disk", overlay=True)]),
        config(tmp_path, net=Net.switch("/a")),
        config(tmp_path, "other"),
    ]
    keys = {one, *map(key, others)}
    assert len(keys) == len(others) + 1
    (tmp_path / "kernel").write_text("another build")
    assert key(config(tmp_path)) not in keys


def test_a_switchs_path_or_a_time_limit_make_no_other_snapshot(tmp_path: Path) -> None:
    assert key(config(tmp_path, timeout=5, name="x")) == key(config(tmp_path))
    assert key(config(tmp_path, net=Net.switch("/a"))) == key(config(tmp_path, net=Net.switch("/b")))
    assert key(config(tmp_path, net=Net.switch("/a"))) != key(config(tmp_path, net=[Net.switch("/a")] * 2))


def test_a_missing_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(PyvmmError, match="nothing: No such file"):
        key(VmConfig(tmp_path / "nothing"))
