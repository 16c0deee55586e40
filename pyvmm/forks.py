"""Memory that a forked child does not get: guest RAM, and what KVM shares with a vCPU's thread.

Imports nothing of pyvmm. Such a map has MADV_DONTFORK (madvise(2)): a child neither sees it nor pays for copying its
page tables. But it inherits the Python object, which reads and writes there, and unmaps those addresses when it goes,
whatever the child has been given there meanwhile. So each child first fills the holes with pages of its own, all zero.
The parent prepares that: a library that the child loaded would be mapped into the very holes.
"""

from __future__ import annotations

import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, MutableSet

MAP_FIXED_NOREPLACE = 0x100000
"""asm-generic/mman-common.h, since Linux 4.17."""
MAP_NORESERVE = 0x4000
"""asm-generic/mman-common.h; Python's mmap module has no name for it in 3.11."""

_maps: MutableSet[mmap.mmap] | None = None
_fills: list[Callable[[], object]] = []
"""What the next child calls, each with arguments that are C values already."""


def keep_from_children(map: mmap.mmap) -> None:
    """Let no child that is forked from now on inherit `map`, which is writable. Raises OSError."""
    global _maps
    map.madvise(mmap.MADV_DONTFORK)
    if _maps is None:
        from _weakrefset import WeakSet  # weakref's, without what weakref imports besides; threading has it loaded

        _maps = WeakSet()
        os.register_at_fork(before=_prepare, after_in_child=_fill_holes)
    _maps.add(map)


def _prepare() -> None:
    global _fills
    _fills = []
    maps = [] if _maps is None else [map for map in _maps if not map.closed]
    if not maps:
        return
    import ctypes  # too dear for a process that never forks
    from functools import partial

    c_mmap = ctypes.CDLL(None).mmap
    c_mmap.restype = None
    access = ctypes.c_int(mmap.PROT_READ | mmap.PROT_WRITE)
    flags = ctypes.c_int(mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE)
    descriptor, offset = ctypes.c_int(-1), ctypes.c_long(0)
    for map in maps:
        address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(map)))
        _fills.append(partial(c_mmap, address, ctypes.c_size_t(len(map)), access, flags, descriptor, offset))


def _fill_holes() -> None:
    for fill in _fills:
        fill()
