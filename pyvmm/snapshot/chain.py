"""Differential snapshots: memory that is one snapshot's file, and in front of it the pages that others have changed.

Imports its neighbours and errors. A differential snapshot names its base by path and by the checksum of the base's
state, which has those of the base's memory in it: another snapshot in that place is not taken for it. Bases may have
bases. What has changed is told by comparing contents, not by a log of writes: that is exact whoever wrote, the guest,
a device or a program on the host, and costs the running guest nothing. Where a VM comes from its base, only the pages
of which it has a copy of its own are compared.
"""

from __future__ import annotations

import os

from pyvmm.errors import LoadError
from pyvmm.memory import GuestMemory
from pyvmm.snapshot.file import Folder
from pyvmm.snapshot.memory import add_runs, judge_memory, map_memory, verify_memory
from pyvmm.state import StateError, Text, judged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.state import Kind

DEEPEST = 16
"""Snapshots on top of each other, at most."""
_BASE: dict[str, Kind] = {"path": Text(), "checksum": Text(64)}


class Layers:
    """The memory of the snapshot `folder` and of those that it is based on. `close()` it.

    paths  the folders, the snapshot's own first

    Raises LoadError: a base that is not there or has changed, a file that is not what it was.
    """

    def __init__(self, folder: Folder, ranges: Sequence[tuple[int, int]]) -> None:
        self.paths: list[str] = []
        self._ranges = ranges
        self._known: list[Any] = []
        self._fds: list[int] = []
        bases: list[Folder] = []
        try:
            self._add(folder)
            while (base := _base_of(folder)) is not None:
                if len(self.paths) == DEEPEST:
                    raise LoadError(self.paths[0], f"is based on more than {DEEPEST - 1} others")
                folder = _open_base(folder.path, base)
                bases.append(folder)
                self._add(folder)
        except BaseException:
            self.close()
            raise
        finally:
            for base in bases:
                base.close()

    def _add(self, folder: Folder) -> None:
        known = folder.state.get("memory")
        self._fds.append(judge_memory(folder, known, self._ranges, based=folder.state.get("base") is not None))
        self._known.append(known)
        self.paths.append(folder.path)

    def map(self) -> GuestMemory:
        """RAM that begins with what the snapshot has and is then the VM's own. Raises OSError, ValueError."""
        memory = map_memory(self._fds[-1], self._ranges)
        try:
            for fd, known in zip(self._fds[-2::-1], self._known[-2::-1], strict=True):
                add_runs(memory, fd, known["runs"])
        except BaseException:
            memory.close()
            raise
        return memory

    def verify(self) -> None:
        """Read all of it and compare the checksums. Raises LoadError."""
        for path, fd, known in zip(self.paths, self._fds, self._known, strict=True):
            verify_memory(fd, known, os.path.join(path, known["name"]))

    @property
    def stored(self) -> int:
        """Bytes that the snapshot's own memory file has on the disk, without its bases'."""
        return os.fstat(self._fds[0]).st_blocks * 512

    def close(self) -> None:
        """Let go of the files; memory that was mapped stays. A second call does nothing."""
        while self._fds:
            os.close(self._fds.pop())


def describe_base(folder: Folder) -> dict[str, str]:
    """What a snapshot has of its base, `folder`."""
    return {"path": os.path.realpath(folder.path), "checksum": folder.checksum}


def _base_of(folder: Folder) -> Any:
    base = folder.state.get("base")
    if base is None:
        return None
    try:
        return judged("base", base, _BASE)
    except StateError as error:
        raise LoadError(folder.path, str(error)) from error


def _open_base(path: str, base: Any) -> Folder:
    try:
        folder = Folder(base["path"])
    except LoadError as error:
        raise LoadError(path, f"its base cannot be read: {error}") from error
    if folder.checksum != base["checksum"]:
        folder.close()
        raise LoadError(path, f"its base {base['path']} has changed since: another snapshot is there")
    return folder
