"""Writes an initramfs: a cpio archive in the "new ASCII" format, without compression.

Imports errors. Follows Documentation/driver-api/early-userspace/buffer-format.rst of Linux: header of six-byte magic
`070701` and thirteen 8-digit hexadecimal fields, name and data each padded to 4 bytes, `TRAILER!!!` at the end. The
same entries give the same bytes: times are 0, owners root, inode numbers count up.
"""

from __future__ import annotations

import stat

from pyvmm.errors import ImageError

MAGIC = b"070701"
TRAILER = "TRAILER!!!"
NAME_MAX = 4095
"""Bytes in a name without its NUL: the kernel skips an entry whose name does not fit PATH_MAX (init/initramfs.c)."""
DATA_MAX = 0xFFFFFFFF
"""Bytes in a file: the size is eight hexadecimal digits."""


class Archive:
    """An initramfs in the making. Paths are relative (`bin/busybox`); parents must come before what is in them.

    Every method raises ImageError for what the format cannot hold: a path that is empty, absolute, not normal, there
    already, or without a parent; a file of 4 GiB and more.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders = {""}
        self._names: set[str] = set()

    def folder(self, path: str, mode: int = 0o755) -> None:
        """An empty directory with permission bits `mode`."""
        self._add(path, stat.S_IFDIR | mode, b"")
        self._folders.add(path)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A regular file with permission bits `mode`."""
        self._add(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """A symbolic link to `target`."""
        self._add(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, mode: int, major: int, minor: int) -> None:
        """A node for the character device `major`:`minor`."""
        self._add(path, stat.S_IFCHR | mode, b"", (major, minor))

    def finish(self) -> bytes:
        """The whole archive with its trailer."""
        return b"".join((*self._parts, _entry(TRAILER, 0, 0, b"", (0, 0))))

    def _add(self, path: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        parent, _, name = path.rpartition("/")
        if not name or path[0] == "/" or name in (".", "..", TRAILER) or "\0" in path or len(path.encode()) > NAME_MAX:
            raise ImageError(f"initramfs: {path!r} is no path for an entry")
        if parent not in self._folders:
            raise ImageError(f"initramfs: {path!r} has no folder {parent!r} to be in")
        if path in self._names:
            raise ImageError(f"initramfs: {path!r} is there twice")
        if len(data) > DATA_MAX:
            raise ImageError(f"initramfs: {path!r} has {len(data)} bytes (expected at most {DATA_MAX})")
        self._names.add(path)
        self._parts.append(_entry(path, len(self._names), mode, data, device))


def _entry(path: str, inode: int, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(name), 0)
    header = MAGIC + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
