"""`pyvmm trace summary`: figures of a trace whose figures are known, in a terminal's width, in bounded memory."""

from __future__ import annotations

import json
import random
import statistics

import pytest

from pyvmm.trace.fields import WIDTH, clean, duration, table
from pyvmm.trace.look import summary
from pyvmm.trace.look.figures import NAMES, OTHERS, Figures
from pyvmm.trace.look.headline import headline
from pyvmm.trace.look.histogram import Histogram
from tests.support.cli import pyvmm
from tests.support.madetraces import HEADER, boot, write


def figures(*records: dict[str, object]) -> Figures:
    return summary.count(records)


def an_exit(**fields: object) -> dict[str, object]:
    return {"kind": "exit", "t": 1000, "vcpu": 0, "reason": "IO", "run": 600, "handle": 200, "by": "python"} | fields


def access(device: str | None, register: str | None, **fields: object) -> dict[str, object]:
    where = {"space": "pio", "at": 0x3F8, "size": 1, "count": 1, "write": True, "data": "41"}
    return an_exit(device=device, register=register, **where) | fields


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_within_what_is_promised(seed):
    rng = random.Random(seed)
    values = [round(rng.lognormvariate(9, 2)) for _ in range(5000)]
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    for share in (50, 90, 99):
        assert histogram.percentile(share) == pytest.approx(cuts[share - 1], rel=0.032 + 0.02)
    assert (histogram.count, histogram.total, histogram.largest) == (len(values), sum(values), max(values))
    assert len(histogram.buckets) < 1000


def test_small_values_and_single_ones_are_exact():
    histogram = Histogram()
    assert histogram.percentile(99) == 0
    for value in range(32):
        histogram.add(value)
        assert histogram.percentile(100) == value
    lone = Histogram()
    lone.add(1_000_003)
    assert lone.percentile(50) == pytest.approx(1_000_003, rel=0.032)
    assert lone.percentile(50) <= lone.largest


def test_what_each_exit_cost_is_counted_once():
    found = figures(
        access("serial", "THR", by="c", handle=100),
        access("serial", "THR", by="c", handle=100),
        access("serial", "LSR", write=False, handle=5000),
        access("pci", "CONFIG_DATA", space="mmio", reason="MMIO", vcpu=1),
        an_exit(reason="HLT", t=9000),
    )
    data = summary.as_data(HEADER, found)
    assert data["exits"] == {"count": 5, "run": 3000, "handle": 5600, "c": 2, "python": 3}
    assert {name: cost["count"] for name, cost in data["reasons"].items()} == {"IO": 3, "MMIO": 1, "HLT": 1}
    assert data["devices"]["serial"]["count"] == 3 and data["devices"]["serial"]["c"] == 2
    assert data["devices"]["serial"]["latency"]["max"] == 5000
    assert data["devices"]["HLT"]["count"] == 1
    rows = [(row["register"], row["access"], row["count"]) for row in data["registers"]]
    assert rows[0] == ("THR", "write", 2) and ("LSR", "read", 1) in rows
    assert data["vcpus"]["0"]["count"] == 4 and data["vcpus"]["1"]["count"] == 1
    assert data["length"] == 9000


def test_the_first_lines_say_what_the_exits_were_spent_on():
    found = figures(
        *[access("serial", "THR")] * 90, *[access("pci", "CONFIG_DATA", write=False)] * 9, an_exit(reason="HLT")
    )
    text = headline(found)
    assert text.startswith("Of 100 exits, 90 % went to the serial port (mostly THR writes) and 9 % went to PCI")
    assert "(mostly CONFIG_DATA reads)" in text and "halts" not in text
    assert "inside KVM_RUN" in text and "in exit handlers" in text
    assert "every one" not in text


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "There is not one exit in the trace."),
        ([an_exit(reason="HLT")], "The only exit: halts."),
        ([access("serial", "THR")] * 2, "Of 2 exits, all went to the serial port"),
        ([access(None, None)] * 2, "addresses that no device claims"),
        ([an_exit(reason="WEIRD")] * 3, "all were WEIRD"),
    ],
)
def test_the_headline_of_odd_runs_is_a_sentence_too(records, said):
    assert said in headline(figures(*records))


def test_queues_and_interrupts_are_counted():
    queue = {"kind": "queue", "t": 5, "device": "virtio-blk0", "queue": 0}
    found = figures(
        queue | {"event": "notify", "count": 1, "depth": 0},
        queue | {"event": "take", "count": 3, "depth": 3},
        queue | {"event": "complete", "count": 2, "depth": 1, "handle": 700},
        queue | {"event": "interrupt", "count": 1, "depth": 1},
        {"kind": "interrupt", "t": 6, "device": "serial", "level": 1},
        {"kind": "interrupt", "t": 7, "device": "serial", "level": 0},
        {"kind": "interrupt", "t": 8, "gsi": 5, "level": "pulse"},
    )
    data = summary.as_data(HEADER, found)
    assert data["queues"][0]["requests"] == 2 and data["queues"][0]["deepest"] == 3
    assert data["queues"][0]["latency"]["max"] == 700
    assert data["interrupts"] == {"serial": 1, "GSI 5": 1}  # a line that is lowered interrupts nobody


def test_exits_belong_to_the_phase_they_were_made_in():
    found = figures(
        an_exit(t=10),
        {"kind": "phase", "t": 100, "name": "first output"},
        access("serial", "THR", t=150),
        access("serial", "THR", t=200),
        {"kind": "phase", "t": 300, "name": "init"},
        an_exit(t=400),
    )
    stages = [(phase.name, phase.exits, length) for phase, length in found.stages]
    assert stages == [("", 1, 100), ("first output", 2, 200), ("init", 1, 100)]


def test_exits_that_kvm_handled_itself_are_the_difference_of_its_counters():
    def reading(exits: int, t: int, vcpu: int) -> dict[str, object]:
        return {
            "kind": "statistics",
            "t": t,
            "vcpu": vcpu,
            "counters": {"exits": exits, "same": 4, "histogram": [1, 2]},
        }

    found = figures(
        reading(100, 1, 0), reading(7, 1, 1), an_exit(), reading(180, 2, 0), reading(9, 2, 1), reading(190, 3, 0)
    )
    assert found.kvm == {"exits": 92}
    assert summary.inside(found).startswith("KVM counts 92 exits; 1 came to user space, so it dealt with 91 (98.9 %)")
    emulated = {
        "kind": "statistics",
        "vcpu": 0,
        "counters": {"exits": 9, "insn_emulation": 70, "io_exits": 0, "pages_4k": 9},
    }
    start = {"kind": "statistics", "t": 0, "vcpu": 0, "counters": {"exits": 0, "insn_emulation": 0}}
    found = figures(start, access("serial", "THR"), access("serial", "THR"), emulated | {"t": 5})
    assert "counts 9 exits of the processor" in summary.inside(found) and "emulated 70" in summary.inside(found)
    assert "pages_4k" not in found.kvm


def test_what_is_not_in_the_trace_is_said_to_be_missing():
    text = summary.as_text(HEADER, figures(an_exit()))
    assert "no end: the process that wrote it was killed" in text
    assert "the trace has none" in text and "not split into guest and KVM" in " ".join(text.split())
    lost = summary.as_text(HEADER, figures(an_exit(), {"kind": "lost", "t": 5, "count": 1234}))
    assert "1,234 records were lost, so counts are too low" in " ".join(lost.split())


def test_the_text_fits_a_terminal_whatever_things_are_called():
    long = [access("d" * 150, "R" * 150, words="w" * 500), access("x", "y", spec="z" * 300)]
    phases = [{"kind": "phase", "t": 1, "name": "p" * 190}]
    text = summary.as_text(HEADER | {"kernel": "k" * 400}, figures(*phases, *long, *boot(50)))
    assert max(map(len, text.splitlines())) <= WIDTH


def test_a_trace_of_anything_takes_bounded_memory_and_no_terminal():
    found = Figures()
    for number in range(3 * NAMES):
        found.add(access(f"device{number}", f"R{number}", vcpu=number, reason=f"r{number}"))
        found.add({"kind": "interrupt", "t": 1, "device": f"d{number}", "level": 1})
        found.add({"kind": "phase", "t": 1, "name": f"p{number}"})
        found.add({"kind": "queue", "t": 1, "device": f"d{number}", "queue": number, "event": f"e{number}"})
        found.add({"kind": "statistics", "t": 1, "vcpu": number, "counters": {f"c{number}": 1}})
    for costs in (
        found.kinds,
        found.registers,
        found.vcpus,
        found.reasons,
        found.interrupts,
        found.queues,
        found.counters,
    ):
        assert len(costs) <= NAMES + 1
    assert found.kinds[OTHERS].count == 2 * NAMES
    assert len(found.phases) < NAMES
    assert clean("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\x0ac"


@pytest.mark.parametrize(
    "record",
    [
        {"kind": "exit"},
        {"kind": "exit", "t": -5, "run": "x", "handle": 1e300, "vcpu": None, "reason": 7, "device": [], "space": {}},
        {"kind": "exit", "t": 1 << 200, "run": 1 << 200, "handle": True, "words": "\x00" * 9999, "rip": -1},
        {"kind": "queue", "depth": None, "count": "many", "event": ["e"]},
        {"kind": "interrupt", "level": {}},
        {"kind": "statistics", "counters": 5},
        {"kind": "statistics", "vcpu": "0", "counters": {"a": "b", "c": -1, "d\n": 1}},
        {"kind": "phase"},
        {"kind": "end", "status": "0"},
        {"kind": "lost", "count": -7},
        {"kind": "new in a later pyvmm", "t": 3},
    ],
)
def test_a_record_of_any_shape_is_survived(record):
    text = summary.as_text({}, figures(record, an_exit()))
    assert all(line.isprintable() for line in text.splitlines())
    json.dumps(summary.as_data({}, figures(record)))


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [(0, "0 ns"), (999, "999 ns"), (1000, "1.00 µs"), (9996, "10.0 µs"), (999_600, "1.00 ms"), (1.5e9, "1.50 s")],
)
def test_durations_have_three_digits(nanoseconds, shown):
    assert duration(nanoseconds) == shown


def test_a_table_takes_from_its_widest_column_what_is_too_much():
    lines = table(["a", "b", "n"], [["x" * 90, "y" * 60, "123"], ["short", "short", "4"]], 2)
    assert max(map(len, lines)) <= WIDTH and "…" in lines[1] and lines[2].startswith("  short")


def test_the_command_shows_text_or_json(tmp_path):
    path = write(tmp_path / "t.jsonl")
    done = pyvmm("trace", "summary", path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode().startswith("Of 401 exits, ")
    shown = pyvmm("trace", "summary", path, "--json")
    data = json.loads(shown.stdout)
    assert data["exits"]["count"] == 401 and data["trace"]["kernel"] == HEADER["kernel"]
    assert data["end"] == {"reason": "power-off", "status": 0}
