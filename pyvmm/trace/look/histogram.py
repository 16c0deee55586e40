"""Percentiles of any number of values in bounded memory: counts in buckets whose width grows with the value.

Imports nothing. A bucket is a sixteenth of its power of two, so a percentile is at most 3.2 % off (the middle of a
bucket is given); the largest value, the sum and the count are exact. There are fewer than 1000 buckets below 2^63.
"""

from __future__ import annotations

FINE = 4
"""Bits below the leading one that tell buckets apart: 16 buckets to a power of two."""


class Histogram:
    """Counts of integers from 0 up. `count`, `total` and `largest` are exact."""

    __slots__ = ("buckets", "count", "largest", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.largest = 0
        self.buckets: dict[int, int] = {}

    def add(self, value: int) -> None:
        """Count `value`, 0 or more."""
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value
        shift = value.bit_length() - FINE - 1
        bucket = value if shift <= 0 else (shift << FINE) + (value >> shift)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1

    def percentile(self, share: float) -> int:
        """The value below or at which `share` percent of all lie; 0 if there are none."""
        rank = self.count * share / 100
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return min(_middle(bucket), self.largest)
        return 0

    @property
    def mean(self) -> float:
        """The arithmetic mean; 0 if there are no values."""
        return self.total / self.count if self.count else 0.0


def _middle(bucket: int) -> int:
    if bucket < 2 << FINE:
        return bucket
    shift = (bucket >> FINE) - 1
    low = (bucket - (shift << FINE)) << shift
    return low + (1 << shift) // 2
