"""What the benchmark of snapshots prints, and what its clones count."""

from __future__ import annotations

from bench.clone import used
from bench.snapshot import table


def test_a_target_is_met_or_missed_by_the_median() -> None:
    name = "restore to first instruction, running process, ms"
    lines = table({name: [10.0, 30.0, 19.9], "snapshot create, ms": [1.0]}).splitlines()
    assert lines[1].endswith("met (< 20)") and lines[1].split()[-6:-3] == ["19.90", "10.00", "30.00"]
    assert "target" in lines[0] and "met" not in lines[2]
    assert table({name: [21.0]}).splitlines()[1].endswith("MISSED (< 20)")


def test_memory_is_counted_in_mib() -> None:
    before = used()
    kept = bytearray(b"x" * (32 << 20))
    assert 30 < used()["Private_Dirty"] - before["Private_Dirty"] < 40
    assert len(kept) == 32 << 20
