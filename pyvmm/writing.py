"""Where a file goes that is written beside its place and put there when it is whole.

Imports nothing of pyvmm. Every such file is one that the user names, and a name may stand for something else: a link, a
pipe, or a stream that this process has been given (`/dev/stdout`).
"""

from __future__ import annotations

import errno
import os
import stat

STREAMS = (0, 1, 2)
"""Standard input, output and error."""


def place(path: str) -> tuple[str, bool]:
    """The path to write what `path` names to, and whether a new file may take that place.

    A link's place is what it leads to; the link stays. A pipe, a device, and a file that is one of this process's
    standard streams are written to as they are. Raises OSError for what cannot be looked at, and for a file that may
    not be written: that its folder may be does not count.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return os.path.realpath(path), True
    if not stat.S_ISREG(found.st_mode) or is_stream(found):
        return path, False
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return os.path.realpath(path), True


def is_stream(found: os.stat_result) -> bool:
    """Whether the file `found` is one of this process's standard streams."""
    for fd in STREAMS:
        try:
            if os.path.samestat(found, os.fstat(fd)):
                return True
        except OSError:
            pass  # closed
    return False
