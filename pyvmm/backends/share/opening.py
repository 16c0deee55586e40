"""Taking a directory to be shared.

Imports its neighbours and errors.
"""

from __future__ import annotations

import os
import stat

from pyvmm.backends.share.ids import Mapped, Passthrough
from pyvmm.backends.share.server import Share
from pyvmm.backends.share.tree import Tree
from pyvmm.errors import BackendError

_EXPECTED = "expected a directory"
_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_share(path: str | os.PathLike[str], *, readonly: bool = False) -> Share:
    """The directory `path`, to be served to one guest. Where a symbolic link leads is what is shared.

    Raises BackendError, which names it: not there, not a directory, or the user may not read and search it (nor write,
    unless it is shared `readonly`).
    """
    path = os.fspath(path)
    fd = -1
    try:
        fd = os.open(path, _FLAGS)
        access = os.R_OK | os.X_OK | (0 if readonly else os.W_OK)
        if not os.access(f"/proc/self/fd/{fd}", access):
            if not os.path.isdir("/proc/self/fd"):
                raise BackendError(f"share {path}: /proc is not mounted (expected it: files are reopened by it)")
            wanted = "read and search" if readonly else "read, write and search"
            raise BackendError(f"share {path}: no permission (expected a directory that this user may {wanted})")
        tree = Tree(fd)
    except (OSError, ValueError) as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, BackendError):
            raise
        if isinstance(error, ValueError):  # a NUL in the path
            raise BackendError(f"share {path!r}: is not a path (expected a name without NUL)") from error
        raise BackendError(f"share {path}: {_problem(path, error)}") from error
    return Share(path, tree, Passthrough() if os.geteuid() == 0 else Mapped(), readonly=readonly)


def _problem(path: str, error: OSError) -> str:
    if isinstance(error, NotADirectoryError):
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                return f"is a file ({_EXPECTED})"
        except OSError:
            pass
        return f"is not a directory ({_EXPECTED})"
    if isinstance(error, FileNotFoundError):
        return f"there is no such directory ({_EXPECTED})"
    return f"cannot be shared: {error.strerror or error} ({_EXPECTED})"
