"""The forms of a trace: what one has, the others have; what is damaged is told in a line. No KVM."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest

from pyvmm.errors import LoadError, UsageError
from pyvmm.machine import Machine
from pyvmm.trace import spool
from pyvmm.trace.convert import convert
from pyvmm.trace.decode import Decoder, describe
from pyvmm.trace.reader import read
from pyvmm.trace.recording import EVENTS_CHUNK, Recording
from pyvmm.trace.writer import write_events
from tests.support.cli import pyvmm
from tests.support.traces import GREETING, HEADER, SpoolFile, sample

SAMPLE = Path(__file__).with_name("sample_trace.jsonl")


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "run.trace"
    path.write_bytes(sample().bytes())
    return path


def test_what_was_recorded_is_read_in_the_order_of_time_and_explained(recorded):
    trace = read(recorded)
    assert trace.form == "trace" and trace.header == {**HEADER, "t": 0}
    records = list(trace.records())
    assert [record["t"] for record in records] == sorted(record["t"] for record in records)
    exits = [record for record in records if record["kind"] == "exit"]
    assert [exit["words"] for exit in exits[:6]] == [
        "LCR 0x83: WLS=8 DLAB",
        "DLL 0x01",
        "DLM 0x00",
        "LCR 0x03: WLS=8",
        "INDEX 0x0a: INDEX=0xa",
        "A 0x26: RS=0x6 DV=32768Hz",
    ]
    string = next(exit for exit in exits if exit.get("count", 1) > 1)
    assert bytes.fromhex(string["data"]) == GREETING and string["count"] == len(GREETING)
    assert {exit["by"] for exit in exits} == {"c", "python"}
    assert [record["event"] for record in records if record["kind"] == "queue"] == list(spool.QUEUE_EVENTS)
    assert [record["level"] for record in records if record["kind"] == "interrupt"] == [1, 0, "pulse"]
    assert records[-1]["kind"] == "end" and records[-1]["reason"] == "debug-exit"
    assert all(exit.get("spec") for exit in exits)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_every_form_has_the_same_records(recorded, tmp_path, name):
    target = tmp_path / name
    convert(str(recorded), str(target))
    trace = read(target)
    assert trace.form == name[2:] and trace.header == read(recorded).header
    assert list(trace.records()) == list(read(recorded).records())
    convert(str(target), str(tmp_path / "back.jsonl"))
    assert list(read(tmp_path / "back.jsonl").records()) == list(read(recorded).records())
    assert not list(tmp_path.glob("*.part"))


def test_trace_events_are_one_json_object_with_slices_counters_and_names(recorded, tmp_path):
    convert(str(recorded), str(tmp_path / "a.json"))
    events = json.loads((tmp_path / "a.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C", "i"}
    assert all({"name", "ph", "pid"} <= event.keys() for event in events)
    slices = [event for event in events if event["ph"] == "X"]
    assert {event["name"] for event in slices} >= {"KVM_RUN", "serial LSR ->", "serial THR <-", "HLT"}
    assert all(event["dur"] >= 0 and "ts" in event and "tid" in event for event in slices)


def test_each_record_is_one_event_and_more_that_go_with_it():
    exit_ = {"kind": "exit", "t": 9000, "vcpu": 1, "reason": "HLT", "run": 4000, "handle": 500, "by": "python"}
    queue = {"kind": "queue", "t": 9500, "device": "blk0", "queue": 2, "event": "take", "count": 3, "depth": 4}
    notified = {"kind": "queue", "t": 9600, "device": "blk0", "queue": 2, "event": "interrupt"}
    level = {"kind": "interrupt", "t": 9700, "device": "serial", "gsi": 4, "level": 1}
    phase = {"kind": "phase", "t": 9800, "name": "init"}
    file = StringIO()
    write_events(file, [HEADER, exit_, queue, notified, level, phase])
    made = json.loads(file.getvalue())
    assert made["displayTimeUnit"] == "ns" and file.getvalue().count("\n") == len(made["traceEvents"]) + 2

    def named(what, track, name):
        return {"name": what, "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}

    def of(record, name, track, **more):
        event = {"name": name, "cat": record["kind"], "ts": record.get("t", 0) / 1000, "pid": 1, "tid": track}
        return event | {"args": {"record": record}, "ph": "i"} | more

    assert made["traceEvents"] == [
        named("process_name", 0, "pyvmm vmlinux"),
        named("thread_name", 0, "vCPU 0"),
        named("thread_name", 1, "vCPU 1"),
        of(HEADER, "trace", 0, s="p"),
        {"name": "KVM_RUN", "cat": "run", "ph": "X", "ts": 5, "dur": 4, "pid": 1, "tid": 1},
        of(exit_, "HLT", 1, ph="X", dur=0.5),
        named("thread_name", 1000, "blk0"),
        {"name": "blk0 queue 2", "ph": "C", "ts": 9.5, "pid": 1, "args": {"depth": 4}},
        of(queue, "blk0 queue 2 take 3", 1000, s="t"),
        of(notified, "blk0 queue 2 interrupt", 1000, s="t"),
        named("thread_name", 1001, "serial"),
        of(level, "interrupt 4 1", 1001, s="t"),
        named("thread_name", 1002, "VM"),
        of(phase, "init", 1002, s="g"),
    ]


def test_devices_are_described_alike_before_and_after_a_guest_uses_them():
    machine = Machine([(0, 1 << 20)], lambda *_: None, lambda _: None, lambda _: None)
    before = describe(machine)
    for base, _, _ in list(machine.ports.placed()):
        machine.ports.read(base, 1)
    assert describe(machine) == before
    machine.ports.write(0x3FB, 1, 0x83)  # DLAB
    machine.ports.write(0x70, 1, 0x0B)
    after = describe(machine)
    assert [one["bank"] for one in after if "bank" in one] == [0x0B, 1]
    assert [{**one, "bank": 0} for one in after] == [{**one, "bank": 0} for one in before]
    found = {(one["base"], one["length"]): (one["name"], one["model"], one.get("offset")) for one in before}
    expected = {
        (0x60, 1): ("i8042", "i8042", 0),
        (0x64, 1): ("i8042", "i8042", 4),
        (0x70, 2): ("rtc", "rtc", None),
        (0x402, 1): ("firmware-debugcon", "debugcon", None),
        (0x600, 14): ("acpi-pm", "acpipm", None),
    }
    assert found.items() >= expected.items()
    decoder = Decoder(after)  # as the header of a restored VM's trace has them
    assert decoder.decode("pio", 0x3F8, 1, True, 1).name == "DLL"
    assert decoder.decode("pio", 0x71, 1, False, 2).name == "B"
    assert decoder.decode("pio", 0x64, 1, False, 0x1C).name == "STATUS"


def test_the_sample_is_what_the_sample_s_bytes_say(recorded):
    sampled = read(SAMPLE)
    assert sampled.header == read(recorded).header
    assert list(sampled.records()) == list(read(recorded).records())


def test_a_recording_that_stops_anywhere_is_read_up_to_there(tmp_path):
    whole = sample().bytes()
    path = tmp_path / "cut.trace"
    count = sum(1 for _ in _read(path, whole).records())
    header = spool.CHUNK.size + spool.SIZE + spool.trailing(len(json.dumps(HEADER)))
    for length in (header, header + 1, header + 64, 1 << 16, (1 << 16) + 40, (1 << 16) + 64 * 9 + 13, len(whole) - 1):
        assert 0 <= sum(1 for _ in _read(path, whole[:length]).records()) <= count


def _read(path, data):
    path.write_bytes(data)
    return read(path)


def test_a_record_that_was_not_finished_ends_its_stream(tmp_path):
    made = SpoolFile()
    made.text(5, **HEADER)
    made.access(0, 10, 0x3F8, b"A", True)
    made.add(0, spool.END, *([0] * 11))
    made.access(0, 20, 0x3F8, b"B", True)
    assert [record["data"] for record in _read(tmp_path / "x", made.bytes()).records()] == ["41"]


def test_an_access_that_is_being_handled_has_no_answer_yet(tmp_path):
    made = SpoolFile()
    made.text(5, **HEADER)
    made.access(0, 10, 0x3FD, b"\xaa", False, flags=spool.OPEN)
    [record] = _read(tmp_path / "x", made.bytes()).records()
    assert record["data"] == "" and "handle" not in record


def test_what_was_lost_is_counted_where_it_was_lost(tmp_path):
    made = SpoolFile()
    made.text(5, **HEADER)
    made.chunk(0, lost=7)
    made.access(0, 10, 0x3F8, b"A", True)
    made.chunk(spool.EVENTS, lost=3)
    records = [(one["kind"], one["vcpu"], one.get("count")) for one in _read(tmp_path / "x", made.bytes()).records()]
    assert sorted(records, key=str) == [("exit", 0, 1), ("lost", 0, 7), ("lost", None, 3)]


def test_events_without_room_are_counted_and_told_of_once(tmp_path):
    told: list[str] = []
    made = Recording(str(tmp_path / "x"), told.append, EVENTS_CHUNK)
    made.text(HEADER)
    for gsi in range(2000):
        made.add(spool.INTERRUPT, 1, "serial", gsi, 0)
    made.stop()
    made.close()
    *kept, lost = read(tmp_path / "x").records()
    assert [one["gsi"] for one in kept] == list(range(len(kept))) and 900 < len(kept) < 1024
    assert (lost["vcpu"], lost["count"]) == (None, 2000 - len(kept)) and len(told) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is no trace (expected a file that pyvmm run --trace has written)"),
        (b"\x7fELF", "is no trace (expected a file that pyvmm run --trace has written)"),
        (b"\x7fELF\n", "line 1 is no JSON (expected a record of a trace)"),
        (b"[1]\n", "is no trace"),
        (b"3\n", 'line 1 is no record (expected an object with a "kind")'),
        (b'{"kind":"exit"}\n', "is no trace"),
        (b'{"kind":"trace","format":99}\n', "has format 99 (expected format 1)"),
        (b"PYVMMTR1" + bytes(100), "is damaged at offset 0x0 (expected a chunk of a trace)"),
    ],
)
def test_what_is_no_trace_is_told_in_a_line(tmp_path, data, message):
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(LoadError) as raised:
        read(path)
    assert message in str(raised.value) and str(path) in str(raised.value)


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(HEADER) + "\n{\n" + '{"kind":"phase"}\n')
    with pytest.raises(LoadError, match="line 2 is no JSON"):
        list(read(path).records())


def test_the_last_line_of_a_killed_writer_is_left_out(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(HEADER) + '\n{"kind":"phase","t":1}\n{"kind":"ph')
    assert [record["t"] for record in read(path).records()] == [1]


def test_no_conversion_overwrites_its_source_or_makes_a_recording(recorded, tmp_path):
    with pytest.raises(UsageError, match="would overwrite"):
        convert(str(SAMPLE), str(SAMPLE))
    with pytest.raises(UsageError, match="is recorded, not converted to"):
        convert(str(recorded), str(tmp_path / "b.trace"))


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(HEADER) + "\n{\n\n")
    with pytest.raises(LoadError):
        convert(str(path), str(tmp_path / "y.json"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.jsonl"]


def test_the_command_converts_and_compares(recorded, tmp_path):
    assert pyvmm("trace", "convert", str(recorded), str(tmp_path / "a.json")).returncode == 0
    same = pyvmm("trace", "diff", str(recorded), str(tmp_path / "a.json"))
    assert (same.returncode, same.stderr) == (0, b"") and same.stdout.startswith(b"the same ")
    lines = SAMPLE.read_text().splitlines()
    changed = [line.replace("LSR 0x60", "LSR 0x20").replace('"data":"60"', '"data":"20"') for line in lines]
    (tmp_path / "b.jsonl").write_text("\n".join([*changed[:12], *changed[13:]]) + "\n")
    other = pyvmm("trace", "diff", str(recorded), str(tmp_path / "b.jsonl"))
    text = other.stdout.decode()
    assert other.returncode == 1
    assert "vCPU 0: the accesses differ from number 7 on" in text and "counts that differ:" in text
    assert text.index(" - ") < text.index(" + ") and "LSR 0x60: THRE TEMT" in text
    alone = pyvmm("trace", "diff", "--device", "blk0", str(recorded), str(tmp_path / "b.jsonl"))
    assert (alone.returncode, alone.stdout) == (0, b"the same 6 exits\n")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ([], 2, "error: no verb given (expected "),
        (["frobnicate"], 2, "error: unknown verb 'frobnicate'"),
        (["convert", "a"], 2, "the following arguments are required: TO"),
        (["diff", "/nonexistent", "b"], 127, "/nonexistent: cannot be read: No such file or directory"),
        (["convert", "/", "b"], 127, "/: is no file (expected a trace)"),
    ],
)
def test_mistakes_are_told_in_a_line(words, status, message):
    done = pyvmm("trace", *words)
    assert done.returncode == status and message in done.stderr.decode()
