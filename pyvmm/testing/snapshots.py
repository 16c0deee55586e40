"""Snapshots that the workers of one test run share: made once, by whoever needs one first, under a lock of its file.

Imports vm, snapshot and errors. The lock is fcntl's: it is gone with its process, however that ends. A snapshot that
could not be made is not tried again: all who need it are told why.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from contextlib import contextmanager

from pyvmm import __version__
from pyvmm.errors import PyvmmError, TimeLimitError
from pyvmm.snapshot.configuration import save_config
from pyvmm.testing.failures import console_tail
from pyvmm.vm import VM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyvmm.config import VmConfig

LOCK, SNAPSHOT, FAILED, MADE = "lock", "snapshot", "failed", "made"
LOOK_AGAIN = 0.05
"""Seconds between two looks whether the lock is free."""
_INDIFFERENT = ("name", "timeout", "stuck", "stuck_at_boot")
"""Settings that make no other snapshot."""


def key(config: VmConfig) -> str:
    """Names all that a snapshot of a VM made of `config` depends on. Raises PyvmmError where a file is missing."""
    saved: dict[str, Any] = {name: value for name, value in save_config(config).items() if name not in _INDIFFERENT}
    for net in saved["nets"]:
        if net["kind"] == "socket":
            net["target"] = ""  # a clone gets a switch of its own
    files = []
    for path in (config.kernel, config.initrd):
        try:
            status = os.stat(path) if path is not None else None
        except OSError as error:
            raise PyvmmError(f"{path}: {error.strerror}") from None
        files.append(status and (status.st_size, status.st_mtime_ns, status.st_ino))
    text = json.dumps([__version__, saved, files], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class SharedSnapshots:
    """The snapshots in `folder`, which the workers share.

    Each has a folder by its key: the snapshot, the lock, and `made`, a line for each time that it was made.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._known: dict[str, str] = {}

    def get(self, config: VmConfig, who: str) -> str:
        """The folder of a snapshot of a VM made of `config` whose agent answers; `who` asks.

        To make it takes the time limit of `config` at most. Raises PyvmmError if there is none to be had.
        """
        name = key(config)
        if name not in self._known:
            folder = os.path.join(self._folder, name)
            os.makedirs(folder, exist_ok=True)
            with _locked(os.path.join(folder, LOCK), 2 * (config.timeout or math.inf)):
                self._make(folder, config, who)
            self._known[name] = os.path.join(folder, SNAPSHOT)
        return self._known[name]

    def _make(self, folder: str, config: VmConfig, who: str) -> None:
        path, failed = os.path.join(folder, SNAPSHOT), os.path.join(folder, FAILED)
        if os.path.exists(path):
            return
        if os.path.exists(failed):
            with open(failed) as file:
                raise PyvmmError(file.read())
        began = time.monotonic()
        vm = VM(config=config)
        try:
            with vm:
                vm.guest.wait_ready(config.timeout)
                vm.snapshot(path)
        except PyvmmError as error:
            text = f"the snapshot could not be made (for {who}): {error}\nconsole, the last lines:\n{console_tail(vm)}"
            with open(failed, "w") as file:
                file.write(text)
            raise PyvmmError(text) from error
        with open(os.path.join(folder, MADE), "a") as file:
            file.write(f"{time.monotonic() - began:.1f} s, process {os.getpid()}, for {who}\n")


@contextmanager
def _locked(path: str, limit: float) -> Iterator[None]:
    """Hold the lock of the file `path`. Raises TimeLimitError if others keep it for `limit` seconds."""
    import fcntl  # here, so that where there is no KVM a test is skipped and not an error

    deadline = time.monotonic() + limit
    with open(path, "ab") as file:
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    text = f"another process has been making the snapshot for {limit:g} s ({path})"
                    raise TimeLimitError(text) from None
                time.sleep(LOOK_AGAIN)
        yield
