"""Which mappings the benchmark of memory takes for the guest's RAM."""

from __future__ import annotations

import mmap
import os

import pytest

from bench.measure import mappings, pss_beyond


def test_ram_may_be_several_mappings_one_behind_the_other() -> None:
    found = [(0x1000, 4, 4), (0x200000, 2048, 40), (0x400000, 63488, 500), (0x8000000, 65536, 9)]
    assert pss_beyond(found[:3], 65536) == 4
    assert pss_beyond([found[0], found[3]], 65536) == 4
    with pytest.raises(SystemExit):
        pss_beyond([found[0], found[1], (0x401000, 63488, 500)], 65536)


def test_mappings_are_read_from_the_kernel() -> None:
    with mmap.mmap(-1, 48 << 20, mmap.MAP_PRIVATE) as pages:
        before = {start: pss for start, _, pss in mappings(os.getpid())}
        pages[: 8 << 20] = bytes(8 << 20)
        assert any(pss - before.get(start, 0) >= 8 << 10 for start, _, pss in mappings(os.getpid()))
