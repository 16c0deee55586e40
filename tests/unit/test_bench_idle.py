"""What the benchmark of idle guests makes of the kernel's accounting."""

from __future__ import annotations

import os
import time

import pytest

from bench.idle import table, times, used


def test_the_floor_is_what_one_thread_spends_in_the_kernel() -> None:
    before = {1: (1.0, 0.5), 2: (0.0, 2.0)}
    after = {1: (1.03, 0.51), 2: (0.01, 2.2), 3: (0.01, 0.0)}  # the third came meanwhile
    assert used(before, after, 10.0) == pytest.approx({"total_pct": 2.6, "floor_pct": 2.0, "beyond_pct": 0.6})


def test_a_target_is_met_by_every_guest_or_not() -> None:
    guest = {"total_pct": 0.4, "floor_pct": 0.31, "beyond_pct": 0.09}
    assert table([guest, guest]).endswith("at most: 0.090 %  met (<= 0.1)")
    assert table([guest, {**guest, "beyond_pct": 0.11}]).endswith("at most: 0.110 %  MISSED (<= 0.1)")


def test_threads_are_counted_from_the_kernels_accounts() -> None:
    before, end = times(os.getpid()), time.monotonic() + 10
    while sum(map(sum, times(os.getpid()).values())) - sum(map(sum, before.values())) < 0.05:
        assert time.monotonic() < end
