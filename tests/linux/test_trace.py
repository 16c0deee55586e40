"""A boot of Linux, traced: that nothing of it is missing, and that everything has a name."""

from __future__ import annotations

from collections import Counter

import pytest

from pyvmm.trace.devices.replay import replay
from pyvmm.trace.devices.runs import played
from pyvmm.trace.explain import Words
from pyvmm.trace.reader import read
from tests.support.linux import LIMIT

pytestmark = [
    pytest.mark.needs("kvm", "tiny-image"),
    pytest.mark.serial,
    pytest.mark.timeout(2 * LIMIT),
]


@pytest.fixture(scope="module")
def records(traced_boot):
    return list(read(traced_boot.path).records())


@pytest.fixture(scope="module")
def exits(records):
    return [record for record in records if record["kind"] == "exit"]


def test_the_console_is_in_the_trace_byte_for_byte(traced_boot, exits):
    written = b"".join(bytes.fromhex(one["data"]) for one in exits if one.get("register") == "THR")
    assert written.decode(errors="replace") == traced_boot.boot.console


def test_at_least_99_of_100_exits_name_register_and_section(exits):
    accesses = [one for one in exits if "at" in one]
    named = [one for one in accesses if one.get("register") and one.get("spec")]
    missing = Counter((one["space"], hex(one["at"])) for one in accesses if not one.get("register"))
    assert len(named) >= 0.99 * len(exits) and len(accesses) > 10_000, missing.most_common(10)
    assert all(one["words"] and one["spec"] for one in exits if "at" not in one)


def test_at_least_99_of_100_exits_are_explained_with_register_and_section(exits):
    words, said = Words(), Counter()
    for one in exits:
        line = words.line(one)
        said[bool(one.get("register") in line and one.get("spec") in line) if "at" in one else "(" in line] += 1
    assert said[True] >= 0.99 * len(exits), said


def test_exits_are_counted_as_the_run_counts_them(traced_boot, exits):
    counted = traced_boot.boot.report["exits"]
    traced = Counter(one["reason"] for one in exits)
    assert (traced["IO"], traced["MMIO"]) == (counted["IO"], counted["MMIO"])


def test_phases_queues_interrupts_and_counters_are_there(records):
    phases = [one["name"] for one in records if one["kind"] == "phase"]
    assert phases == ["loaded", "first output", "init"]
    complete = Counter(one["device"] for one in records if one["kind"] == "queue" and one["event"] == "complete")
    assert complete["blk0"] > 0 and complete["rng0"] > 0
    assert {one["device"] for one in records if one["kind"] == "interrupt"} >= {"serial", "blk0", "rng0"}
    states = [one["state"] for one in records if one["kind"] == "lifecycle"]
    assert (states, records[-1]["kind"], records[-1]["reason"]) == (["running", "ended"], "end", "power-off")
    assert "lost" not in {one["kind"] for one in records}


def test_the_platform_devices_do_again_what_they_did(traced_boot):
    trace = read(traced_boot.path)
    assert {"serial", "rtc", "acpi-pm"} <= set(played(trace))
    for device in played(trace):
        result = replay(trace, device)
        assert result.same, result


def test_no_time_is_told_twice(exits):
    """Of one vCPU stays in KVM and handling follow each other, and together are what passed."""
    mine = [one for one in exits if one["vcpu"] == 0]
    inside = sum(one["run"] for one in mine)
    outside = sum(one.get("handle", 0) for one in mine)
    passed = mine[-1]["t"] - mine[0]["t"] + mine[0]["run"]
    assert 0.95 * passed <= inside + outside <= 1.05 * passed
