"""Memory that a forked child does not get: guest RAM, and what KVM shares with a vCPU's thread.

Imports nothing of pyvmm. Such a map has MADV_DONTFORK (madvise(2)): a child neither sees it nor pays for copying its
page tables. But it inherits the Python object, which reads and writes there, and unmaps those addresses when it goes,
whatever the child has been given there meanwhile. So each child first fills the holes with pages of its own, all zero.
"""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableSet

MAP_FIXED_NOREPLACE = 0x100000
"""asm-generic/mman-common.h, since Linux 4.17."""
MAP_NORESERVE = 0x4000
"""asm-generic/mman-common.h; Python's mmap module has no name for it in 3.11."""

_maps: MutableSet[mmap.mmap] | None = None


def keep_from_children(map: mmap.mmap) -> None:
    """Let no child that is forked from now on inherit `map`, which is writable. Raises OSError."""
    global _maps
    map.madvise(mmap.MADV_DONTFORK)
    if _maps is None:
        from _weakrefset import WeakSet  # weakref's, without what weakref imports besides; threading has it loaded

        _maps = WeakSet()
        os.register_at_fork(after_in_child=_fill_holes)
    _maps.add(map)


def _fill_holes() -> None:
    maps = [] if _maps is None else [map for map in _maps if not map.closed]
    if not maps:
        return
    import ctypes  # too dear for the parent, which has no use for it

    c_mmap = ctypes.CDLL(None).mmap
    c_mmap.restype = ctypes.c_void_p
    c_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
    for map in maps:
        address = ctypes.addressof(ctypes.c_char.from_buffer(map))
        c_mmap(address, len(map), mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
