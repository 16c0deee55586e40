"""How much memory the control groups of this process allow: a guest that uses more ends it without a word.

Imports config. Both versions of cgroups(7): the limits of the process's own group and of every group above it. Linux
kernel documentation: admin-guide/cgroup-v2.rst, "memory.max"; admin-guide/cgroup-v1/memory.rst, section 3.
"""

from __future__ import annotations

import os

from pyvmm.config import format_size

GROUPS = "/proc/self/cgroup"
MOUNTED = "/sys/fs/cgroup"
LONGEST = 1 << 16
"""Bytes that are read of such a file."""
UNLIMITED = 1 << 60
"""Version 1 writes no limit as the largest number of bytes in whole pages."""


def memory_warning(mem: int) -> str:
    """What to tell the user of a guest of `mem` bytes before it runs, since a group ends it by SIGKILL; else ""."""
    limit = memory_limit()
    if limit is None or limit >= mem:
        return ""
    return (
        f"the memory cgroup allows {format_size(limit)}, less than the guest's {format_size(mem)}: "
        "if the guest uses all its RAM, the kernel kills pyvmm"
    )


def memory_limit(groups: str = GROUPS, mounted: str = MOUNTED) -> int | None:
    """The least limit in bytes, or None where there is none, or none to be read."""
    limits: list[int] = []
    for line in _read(groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, file = mounted, "memory.max"
        elif "memory" in controllers.split(","):
            folder, file = f"{mounted}/memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's: what is not there here is passed over, up to the group we see.
        while True:
            text = _read(f"{folder}{path.rstrip('/')}/{file}").strip()
            if text.isdigit() and int(text) < UNLIMITED:
                limits.append(int(text))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return min(limits, default=None)


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:
            return (file.read(LONGEST) or b"").decode("utf-8", "replace")
    except OSError:
        return ""
