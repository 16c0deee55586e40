"""The split of KVM_RUN into guest and KVM: only from the kernel's tracepoints, labelled so, and with its reach."""

from __future__ import annotations

import json

import pytest

from pyvmm.errors import STATUS_NOT_LOADABLE, LoadError
from pyvmm.trace.look import summary, tracepoints
from pyvmm.trace.look.tracepoints import read_events, said
from tests.support.cli import pyvmm
from tests.support.madetraces import HEADER, write

HEAD = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 4/4   #P:2\n#     TASK-PID     CPU#  |||||  TIMESTAMP\n"
TRACEFS = "          python-{0}   [001] ..... {1}: kvm_{2}: {3}\n"
TRACE_CMD = " vcpu 0-thread-{0} [001]  {1}: kvm_{2}:             {3}\n"


@pytest.fixture(params=[TRACEFS, TRACE_CMD])
def form(request):
    return request.param


def text(form, *events):
    shown = {"entry": "vcpu 0, rip 0xfff0", "exit": "reason IO_INSTRUCTION rip 0x5 info 3f80008 0"}
    lines = (form.format(thread, f"{at:.6f}", kind, what or shown[kind]) for thread, at, kind, what in events)
    return HEAD + "".join(lines)


def test_the_time_between_an_entry_and_its_exit_is_the_guest_s(form, tmp_path):
    path = tmp_path / "events"
    events = [(7, 100.0, "entry", ""), (7, 100.25, "exit", ""), (7, 101.0, "entry", ""), (7, 101.5, "exit", "")]
    path.write_text(text(form, *events))
    time = read_events(str(path)).vcpus[0]
    assert (time.entries, time.guest, time.covered) == (2, 750_000_000, 1_500_000_000)


def test_an_exit_without_an_entry_and_an_entry_without_an_exit_count_nothing(form, tmp_path):
    path = tmp_path / "events"
    events = [(7, 99.0, "exit", ""), (7, 100.0, "entry", ""), (7, 101.0, "entry", ""), (7, 102.0, "exit", "")]
    path.write_text(text(form, *events, (7, 103.0, "entry", "")))
    assert read_events(str(path)).vcpus[0].guest == 1_000_000_000


def test_events_that_were_lost_are_told_and_bridge_nothing(form, tmp_path):
    path = tmp_path / "events"
    lost = "CPU:1 [LOST 42 EVENTS]\n"
    path.write_text(text(form, (7, 1.0, "entry", "")) + lost + text(form, (7, 9.0, "exit", "")))
    found = read_events(str(path))
    assert (found.lost, found.vcpus[0].guest) == (42, 0)
    assert "lost 42 events" in " ".join(said(summary.count([]), found))


def test_each_vcpu_is_told_by_itself(form, tmp_path):
    path = tmp_path / "events"
    events = [(7, 1.0, "entry", ""), (8, 1.5, "entry", "vcpu 1, rip 0x1"), (7, 2.0, "exit", ""), (8, 1.6, "exit", "")]
    path.write_text(text(form, *events))
    found = read_events(str(path))
    assert {vcpu: time.guest for vcpu, time in found.vcpus.items()} == {0: 1_000_000_000, 1: 100_000_000}


def test_events_of_two_vms_are_not_taken_for_one(form, tmp_path):
    path = tmp_path / "events"
    path.write_text(text(form, (7, 1.0, "entry", ""), (9, 1.5, "entry", "")))
    with pytest.raises(LoadError, match="several VMs: vCPU 0 is on more than one thread"):
        read_events(str(path))


def test_kvm_s_part_is_told_only_if_the_events_cover_the_run(form, tmp_path):
    path = tmp_path / "events"
    path.write_text(text(form, (7, 10.0, "entry", ""), (7, 10.25, "exit", ""), (7, 11.0, "entry", "")))
    events = read_events(str(path))
    whole = summary.count([{"kind": "exit", "t": 1_000_000_000, "vcpu": 0, "reason": "IO", "run": 750_000_000}])
    assert "250 ms of the 1.00 s that the events cover (25.0 %); KVM had the other 500 ms" in said(whole, events)[0]
    longer = summary.count([{"kind": "exit", "t": 9_000_000_000, "vcpu": 0, "reason": "IO", "run": 8_000_000_000}])
    assert "KVM had" not in said(longer, events)[0] and "(25.0 %)" in said(longer, events)[0]


@pytest.mark.parametrize(
    ("there", "why"), [("events/kvm/kvm_entry", "--kvm-events"), (".", "may not read"), (None, "there is no")]
)
def test_without_events_one_line_says_why_nothing_is_split(there, why, tmp_path, monkeypatch):
    monkeypatch.setattr(tracepoints, "TRACEFS", str(tmp_path / "tracing"))
    if there:
        (tmp_path / "tracing" / there).mkdir(parents=True)
    (line,) = said(summary.count([]), None)
    assert "not split into guest and KVM" in line and why in line


def test_the_command_takes_them(form, tmp_path):
    trace, path = write(tmp_path / "t.jsonl"), tmp_path / "events"
    path.write_text(text(form, (7, 10.0, "entry", ""), (7, 10.25, "exit", "")))
    done = pyvmm("trace", "summary", trace, "--kvm-events", path)
    assert b"vCPU 0 ran the guest itself for" in done.stdout
    data = json.loads(pyvmm("trace", "summary", trace, "--json", "--kvm-events", path).stdout)
    assert data["guest"]["0"] == {"guest": 250_000_000, "covered": 250_000_000, "entries": 1}
    assert summary.as_data(HEADER, summary.count([]))["guest"] is None


@pytest.mark.parametrize(
    "content", [b"", b"no events\n" * 10, bytes(range(256)) * 100, b"x" * 100_000, b"-1 1.000000: kvm_exit: \n"]
)
def test_what_has_no_events_is_refused_in_a_line(content, tmp_path):
    trace, path = write(tmp_path / "t.jsonl", []), tmp_path / "events"
    path.write_bytes(content)
    done = pyvmm("trace", "summary", trace, "--kvm-events", path)
    assert (
        done.returncode == STATUS_NOT_LOADABLE and done.stderr.count(b"\n") == 1 and str(path).encode() in done.stderr
    )
    done = pyvmm("trace", "summary", trace, "--kvm-events", tmp_path / "nowhere")
    assert done.returncode == STATUS_NOT_LOADABLE and done.stderr.count(b"\n") == 1
