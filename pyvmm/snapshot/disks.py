"""Disks in a snapshot: images stay where they are and must not change; what was written to an overlay is taken along.

Imports errors, state and the back-ends. An image is known by size and time of the last change, a block device by its
size. One to which the VM goes on writing has changed at once: clones need overlays, or images that are read-only.
"""

from __future__ import annotations

import os
import stat

from pyvmm.backends.overlay import OverlayDisk, WrittenBefore
from pyvmm.errors import LoadError, PyvmmError
from pyvmm.state import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.hardware import Disk
    from pyvmm.snapshot.file import Folder, Writer
    from pyvmm.virtio.block import VirtioBlock


def image_now(path: str) -> dict[str, Any]:
    """What is to be remembered of the image `path`. Raises OSError."""
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):
        with open(path, "rb", buffering=0) as device:
            return {"path": os.path.realpath(path), "size": device.seek(0, os.SEEK_END), "mtime_ns": None}
    return {"path": os.path.realpath(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def save_disk(writer: Writer, disk: Disk, device: VirtioBlock) -> dict[str, Any]:
    """What is to be known of `disk`, which `device` serves. Raises OSError."""
    found: dict[str, Any] = {"image": image_now(disk.path), "overlay": None}
    if isinstance(device.disk, OverlayDisk):
        name, fd = writer.create(device.name)
        try:
            runs = device.disk.copy_to(fd)
            found["overlay"] = {**writer.seal(name, fd), "length": device.disk.size, "runs": runs}
        finally:
            os.close(fd)
    return found


def judge_disks(path: str, disks: Sequence[Disk], saved: Any) -> None:
    """See that images are as they were. Raises LoadError."""
    if type(saved) is not list or len(saved) != len(disks):
        raise LoadError(path, "its state has not as many disks as its configuration")
    for disk, known in zip(disks, saved, strict=True):
        image = known.get("image") if type(known) is dict and known.keys() == {"image", "overlay"} else None
        if type(image) is not dict:
            raise LoadError(path, "its state says nothing of a disk")
        try:
            now = image_now(disk.path)
        except OSError as error:
            raise LoadError(path, f"its disk {disk.path}: {error.strerror or error}") from error
        for key, what in (("size", "size"), ("mtime_ns", "time of the last change")):
            if now[key] != image.get(key):
                problem = f"its disk {disk.path} has changed since: another {what}"
                raise LoadError(path, problem, expected=f"{image.get(key)}, found {now[key]}")


def restore_disk(folder: Folder, device: VirtioBlock, known: Any) -> None:
    """Let `device` find what was written to its overlay. Raises LoadError, StateError, BackendError."""
    overlay = known["overlay"]
    if (overlay is not None) != isinstance(device.disk, OverlayDisk):
        raise StateError(f"{device.name}: with an overlay or without, but not as the snapshot has it")
    if overlay is not None:
        assert isinstance(device.disk, OverlayDisk)
        fd, sealed = folder.open(overlay)
        try:
            if not sealed:
                raise LoadError(os.path.join(folder.path, overlay["name"]), "is a copy, or was changed")
            device.disk.begin_with(WrittenBefore(fd, overlay["length"], overlay["runs"], device.disk.path))
        except (TypeError, ValueError, KeyError, OverflowError, OSError) as error:
            os.close(fd)
            if isinstance(error, PyvmmError):
                raise
            raise StateError(f"{device.name}: its overlay is damaged: {error}") from error
