"""Opening disk images: what a path leads to, how it is to be cached, and who else uses it.

May import its neighbours raw, direct and overlay, and errors. The format is always said and never guessed: an image
whose first bytes the guest has written could otherwise make the VMM follow them to any file of the host.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from pyvmm.backends.raw import RawDisk
from pyvmm.errors import BackendError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.virtio.block import Disk

CACHES = ("writeback", "none", "unsafe")
"""What a flush of the guest's does: fdatasync; the same, past the page cache (O_DIRECT); nothing, which is not offered
then."""
FORMATS = ("raw",)

_KINDS = (
    (stat.S_ISDIR, "is a directory"),
    (stat.S_ISFIFO, "is a FIFO"),
    (stat.S_ISCHR, "is a character device"),
    (stat.S_ISSOCK, "is a socket"),
)
_EXPECTED = "expected a disk image or a block device"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def open_disk(
    path: str, *, readonly: bool = False, overlay: bool = False, cache: str = "writeback", format: str = "raw"
) -> Disk:
    """The disk image or block device `path`.

    A writer has it alone; readers, an overlay among them, share it (flock(2); a mounted block device counts as
    written to). A file that ends within a sector counts as a sector longer (see RawDisk).

    Raises UsageError for options that nobody knows or that exclude each other, BackendError for a path that cannot be
    opened or is used by somebody else; both name it.
    """
    path = os.fspath(path)
    if format not in FORMATS:
        raise UsageError(f"disk {path}: unknown format {format!r} (expected {' or '.join(FORMATS)})")
    if cache not in CACHES:
        raise UsageError(f"disk {path}: unknown cache mode {cache!r} (expected {', '.join(CACHES)})")
    if overlay and readonly:
        raise UsageError(f"disk {path}: an overlay is there to be written to, so it cannot be read-only")
    if overlay and cache == "none":
        raise UsageError(f"disk {path}: an overlay is kept in the page cache (expected cache=writeback)")
    disk = _open(path, readonly or overlay, cache)
    if not overlay:
        return disk
    from pyvmm.backends.overlay import OverlayDisk

    try:
        return OverlayDisk(disk)
    except BaseException:
        disk.close()
        raise


def _open(path: str, readonly: bool, cache: str) -> RawDisk:
    fds: list[int] = []
    try:
        mode = _judge(path, os.stat(path))
        # Opening some devices has effects, so the path is judged first; nothing said that it still leads to the same
        # file: O_NONBLOCK (a FIFO would wait), and judge what was opened.
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        if stat.S_ISBLK(mode) and not readonly:
            flags |= os.O_EXCL  # "busy" if it is mounted or part of another device (open(2))
        fds.append(os.open(path, flags))
        _judge(path, os.fstat(fds[0]))
        _lock(fds[0], path, readonly)
        if cache == "none":
            from pyvmm.backends.direct import DirectDisk

            fds.insert(0, _open_direct(fds[0], path, readonly))
            disk: RawDisk = DirectDisk(fds[0], fds[1], path, readonly=readonly)
        else:
            os.set_blocking(fds[0], True)
            disk = RawDisk(fds[0], path, readonly=readonly, durable=cache != "unsafe")
        if not disk.size:
            raise BackendError(f"disk {path}: is empty ({_EXPECTED})")
        return disk
    except (OSError, ValueError) as error:
        for fd in fds:
            os.close(fd)
        if isinstance(error, BackendError):
            raise
        if isinstance(error, ValueError):  # a NUL in the path
            raise BackendError(f"disk {path!r}: is not a path (expected a name without NUL)") from error
        raise BackendError(f"disk {path}: cannot be opened: {_problem(error, readonly)}") from error


def _judge(path: str, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        kind = next((text for test, text in _KINDS if test(status.st_mode)), "is no file")
        raise BackendError(f"disk {path}: {kind} ({_EXPECTED})")
    return status.st_mode


def _lock(fd: int, path: str, readonly: bool) -> None:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = "is being written to" if readonly else "is in use"
        raise BackendError(f"disk {path}: {problem} by another VM or program, which has locked it") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # a file system without locks protects nobody
            raise


def _open_direct(fd: int, path: str, readonly: bool) -> int:
    """The file behind `fd` once more, with O_DIRECT: by way of /proc, so that it is the same file."""
    flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_DIRECT
    try:
        return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise BackendError(
            f"disk {path}: its file system does not do without the page cache (O_DIRECT): use cache=writeback"
        ) from None


def _problem(error: OSError, readonly: bool) -> str:
    if not readonly and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror} (if it is only to be read, say so)"
    if error.errno == errno.EBUSY:
        return f"{error.strerror} (is it mounted, or another VM's?)"
    return error.strerror or str(error)
