"""Runs that are traced: tiny guests in every form, two vCPUs at once, disks, a full disk, a killed process."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pyvmm import VM, Disk
from pyvmm.backends.capture import CaptureConsole
from pyvmm.errors import BackendError, UsageError
from pyvmm.images import guest
from pyvmm.layout import VIRTIO_MMIO
from pyvmm.owndevices import PortDevice
from pyvmm.trace.devices.replay import replay
from pyvmm.trace.devices.runs import played
from pyvmm.trace.reader import Trace, read
from tests.support import guests
from tests.support.cli import ECHO, PYVMM, environment, pyvmm, wait_for

pytestmark = pytest.mark.needs("kvm", "gcc")

LIMIT = 30


def exits(trace: Trace, **fields: Any) -> list[dict[str, Any]]:
    """The exits that have these fields."""
    wanted = {"kind": "exit", **fields}
    return [one for one in trace.records() if all(one.get(name) == value for name, value in wanted.items())]


def text(trace: Trace) -> bytes:
    """What went out on the serial port."""
    return b"".join(bytes.fromhex(one["data"]) for one in exits(trace, register="THR", write=True))


def flat(folder: Path, code: bytes) -> Path:
    """A flat binary of `code`."""
    path = folder / "flat.bin"
    path.write_bytes(code)
    return path


@pytest.mark.parametrize("name", ["run.jsonl", "run.json", "run.trace"])
def test_a_tiny_guest_in_every_form(tmp_path, name):
    done = pyvmm("run", guest("hello64").path(), "--timeout", "20s", "--trace", tmp_path / name)
    assert (done.returncode, done.stderr) == (0, b"")
    trace = read(tmp_path / name)
    assert trace.form == name.partition(".")[2]
    assert trace.header["cpus"] == 1 and trace.header["kernel"].endswith("hello64.elf")
    assert text(trace) == done.stdout
    records = list(trace.records())
    assert [one["state"] for one in records if one["kind"] == "lifecycle"] == ["running", "ended"]
    assert [one["name"] for one in records if one["kind"] == "phase"] == ["loaded", "first output"]
    assert records[-1]["kind"] == "end" and records[-1]["reason"] == "reboot"
    assert [one["t"] for one in records] == sorted(one["t"] for one in records)
    by = Counter(one["by"] for one in exits(trace, device="serial"))
    assert by["c"] > by["python"] >= 1, "accesses that C can deal with are left to it"
    assert all(one["rip"] > 0 and one["run"] > 0 for one in exits(trace))
    assert all(one["handle"] > 0 for one in exits(trace)[:-1]), "only the last one is not handled"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("how", ["fast", "plain"])
def test_every_access_is_recorded_whoever_deals_with_it(tmp_path, how):
    console = CaptureConsole()
    with VM(guest("hello32").path(), flat_mode="protected", console=console, exits=how, trace=tmp_path / "t") as vm:
        vm.wait(LIMIT)
        counted = vm.stats.exits
    trace = read(tmp_path / "t")
    assert text(trace) == console.output
    counts = Counter(one["reason"] for one in exits(trace))
    assert counts["IO"] == counted["IO"] and counts.get("MMIO", 0) == counted.get("MMIO", 0)


def test_string_instructions_keep_all_their_data(tmp_path):
    console = CaptureConsole()
    with VM(guest("outs").path(), flat_mode="protected", console=console, trace=tmp_path / "t") as vm:
        vm.wait(LIMIT)
    assert text(read(tmp_path / "t")) == console.output


def test_string_input_has_all_its_answers(tmp_path):
    with VM(guest("ins").path(), flat_mode="protected", trace=tmp_path / "t") as vm:
        assert vm.wait(LIMIT).status == 0
    read_in = [one for one in exits(read(tmp_path / "t"), device="debugcon") if not one["write"]]
    assert b"".join(bytes.fromhex(one["data"]) for one in read_in) == b"\xe9" * 20
    assert all(len(one["data"]) == 2 * one["size"] * one["count"] for one in read_in)


def test_reads_have_their_answers(tmp_path):
    seen = []

    class Counting(PortDevice):
        length = 4

        def read(self, offset: int, size: int) -> int:
            seen.append(len(seen) * 0x01010101 & (1 << 8 * size) - 1)
            return seen[-1]

    # Real mode: four times in %dx, %al and in %dx, %eax from port 0x500; then debug exit.
    code = bytes.fromhex("ba0005 b90400 ec 66ed e2fb baf400 b000 ee f4")
    with VM(flat(tmp_path, code), paused=True, trace=tmp_path / "t") as vm:
        vm.attach(Counting(), port=0x500)
        vm.resume()
        vm.wait(LIMIT)
    trace = read(tmp_path / "t")
    answers = [int.from_bytes(bytes.fromhex(one["data"]), "little") for one in exits(trace, at=0x500)]
    assert answers == seen and len(seen) == 8
    assert {one.get("device") for one in exits(trace, at=0x500)} == {"Counting"}
    [attached] = [one for one in trace.records() if one["kind"] == "device"]
    assert (attached["name"], attached["base"], attached["attached"]) == ("Counting", 0x500, True)


def test_vcpus_at_once_each_have_their_stream(tmp_path):
    console = CaptureConsole()
    with VM(guest("smp").path(), cpus=2, append="2", console=console, trace=tmp_path / "t") as vm:
        vm.wait(LIMIT)
    trace = read(tmp_path / "t")
    assert text(trace) == console.output
    assert {one["vcpu"] for one in exits(trace)} == {0, 1}
    for vcpu in (0, 1):
        times = [(one["t"] - one["run"], one["t"]) for one in exits(trace, vcpu=vcpu)]
        assert all(end <= begin for (_, end), (begin, _) in pairwise(times)), "one after the other"
    assert {one["vcpu"] for one in trace.records() if one["kind"] == "statistics"} <= {None, 0, 1}


@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("datapath", ["native", "python"])
def test_queues_and_interrupts_of_a_disk(tmp_path, transport, datapath):
    image = tmp_path / "disk"
    image.write_bytes(b"the first line\n".ljust(1 << 20, b"\0"))
    words = "irq" if transport == "pci" else f"virtio_mmio.device=4K@{VIRTIO_MMIO:#x}:5 irq"
    settings: dict[str, Any] = {"transport": transport, "datapath": datapath, "append": words, "mem": "64M"}
    with VM(guest("virtio-blk").path(), disks=[Disk(str(image))], trace=tmp_path / "t", **settings) as vm:
        assert vm.wait(LIMIT).status == 0
    trace = read(tmp_path / "t")
    records = list(trace.records())
    events = [one for one in records if one["kind"] == "queue"]
    assert {one["device"] for one in events} == {"blk0"}
    count = Counter[str]()
    for one in events:
        count[one["event"]] += one.get("count", 1)
    # The device may still be looking when the second request comes: then the driver need not notify it.
    assert count["take"] == count["complete"] == count["interrupt"] == 2 and count["notify"] >= 1
    assert all(one["handle"] > 0 for one in events if one["event"] == "complete")
    assert events[-1].get("depth", 0) == 0
    pulses = [one for one in records if one["kind"] == "interrupt" and one["device"] == "blk0"]
    assert len(pulses) >= 2 and all(one["level"] == "pulse" for one in pulses)
    accesses = exits(trace, device="blk0")
    assert {"Status", "QueueSel"} <= {one["register"] for one in accesses} or transport == "pci"
    assert all(one.get("spec") for one in exits(trace)), "each access is explained, also where PCI has moved it"


def test_a_killed_process_leaves_what_it_has_recorded(tmp_path):
    kernel = flat(tmp_path, guests.CHATTER)
    path = tmp_path / "run.jsonl"
    command = [*PYVMM, "run", str(kernel), "--timeout", "30s", "--trace", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment())
    try:
        wait_for(lambda: path.exists() and path.stat().st_size > 1 << 20, "three full pieces of the trace")
    finally:
        process.kill()
        process.wait(LIMIT)
    trace = read(path)
    assert trace.form == "trace" and trace.header["cpus"] == 1
    found = exits(trace)
    assert len(found) > 2 * 4095 and text(trace).strip(b"x") == b""
    assert pyvmm("trace", "convert", path, tmp_path / "after.jsonl").returncode == 0
    assert len(exits(read(tmp_path / "after.jsonl"))) == len(found)


def test_with_a_full_disk_the_run_goes_on_and_what_is_lost_is_counted(tmp_path):
    # Real mode: write 'x' to the serial port 20,000 times, then debug exit 0.
    kernel = flat(tmp_path, bytes.fromhex("b9204e baf803 b078 ee e2fd baf400 b000 ee f4"))
    path = tmp_path / "run.jsonl"
    room = 4 * (1 << 16) + 2 * (1 << 18)  # two pieces for the vCPU, however many of four the rest takes

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = pyvmm("run", kernel, "--timeout", "20s", "--trace", path, preexec_fn=limit)
    assert done.returncode == 1 and done.stdout == b"x" * 20_000
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 2, "one warning, and what became of the file"
    assert "File too large; the run goes on" in lines[0] and "is left in the form in which it was recorded" in lines[1]
    trace = read(path)
    recorded = len(exits(trace))
    # What the serial port passed on is recorded too, in as many records as the host was fast: some of them may be lost.
    lost = {one["vcpu"]: one["count"] for one in trace.records() if one["kind"] == "lost"}
    assert 8000 < recorded < 8190 and recorded + lost[0] in range(20_001, 20_010)
    assert set(lost) <= {0, None}
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([kernel.name, path.name])


def test_an_earlier_trace_is_replaced_and_one_that_is_being_written_is_left_alone(tmp_path):
    path = tmp_path / "t"
    path.write_text("an earlier one")
    kernel = flat(tmp_path, guests.HALT)
    with VM(kernel, trace=path) as one:
        with VM(guest("hello64").path(), trace=path) as other:
            other.wait(LIMIT)
        assert read(path).form == "jsonl"
        one.stop()
    assert read(path).header["kernel"] == str(kernel)


def test_what_cannot_be_written_is_told_before_anything_runs(tmp_path):
    for path, error in ((tmp_path / "no" / "t", BackendError), ("/dev/null", UsageError)):
        vm = VM(guest("hello64").path(), trace=path)
        with pytest.raises(error):
            vm.start()
    kernel = guest("hello64").path()
    done = pyvmm("run", kernel, "--trace", kernel)
    assert done.returncode == 2 and b"would be overwritten" in done.stderr
    same = pyvmm("run", kernel, "--trace", tmp_path / "x", "--report", tmp_path / "x")
    assert same.returncode == 2 and b"is written by --report too" in same.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_fails_leaves_no_trace(tmp_path):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"")
    done = pyvmm("run", kernel, "--trace", tmp_path / "t")
    assert done.returncode == 127
    assert [path.name for path in tmp_path.iterdir()] == ["kernel"]


def test_a_restored_vm_is_traced_from_where_it_goes_on(tmp_path):
    # Real mode: select byte 0x0f of the CMOS, halt for input, then read it; q ends.
    code = bytes.fromhex("b00f e670 bafd03 ec a801 74fb e471 baf400 b000 ee f4")
    with VM(flat(tmp_path, code), trace=tmp_path / "one") as vm:
        wait_for(lambda: vm.stats.exits.get("IO", 0) > 10, "the guest to poll")
        vm.snapshot(tmp_path / "snap")
    done = pyvmm("snapshot", "restore", tmp_path / "snap", "--trace", tmp_path / "snap" / "t")
    assert done.returncode == 2 and b"among the files of the snapshot" in done.stderr
    trace = tmp_path / "two.jsonl"
    command = ["snapshot", "restore", tmp_path / "snap", "--timeout", "20s", "--trace", trace]
    process = subprocess.Popen([*PYVMM, *map(str, command)], stdin=subprocess.PIPE, env=environment())
    process.communicate(b"q", LIMIT)
    assert process.returncode == 1
    [read_] = exits(read(trace), at=0x71)
    assert read_["register"] == "SHUTDOWN", "what was selected before the snapshot is still selected"


@pytest.mark.parametrize("how", ["fast", "plain"])
def test_a_run_s_platform_devices_are_played_back_without_a_difference(tmp_path, how):
    # Real mode: echo the serial port's input until q, which comes in while the guest polls.
    kernel = flat(tmp_path, ECHO)
    console = CaptureConsole()
    with VM(kernel, console=console, trace=tmp_path / "t", exits=how) as vm:
        for word in (b"some ", b"words ", b"and more"):
            console.send(word)
            wait_for(lambda word=word: word in console.output, "the echo")
        console.send(b"q")
        assert vm.wait(LIMIT).status == 1
    trace = read(tmp_path / "t")
    assert played(trace) == ["serial", "debugexit"]
    for device in played(trace):
        result = replay(trace, device)
        assert result.same, result
    assert pyvmm("trace", "replay", tmp_path / "t").returncode == 0
    lines = (tmp_path / "t").read_text().splitlines()
    at = next(number for number, line in enumerate(lines) if '"register":"RBR"' in line)
    (tmp_path / "t").write_text(
        "\n".join([*lines[:at], lines[at].replace('"data":"73"', '"data":"74"'), *lines[at + 1 :]])
    )
    result = replay(tmp_path / "t", "serial")
    assert not result.same and result.record["register"] == "RBR" and (result.expected, result.got) == ("0x74", "0x73")


def test_the_end_by_a_signal_is_in_the_trace(tmp_path):
    kernel = flat(tmp_path, guests.HALT)
    command = [*PYVMM, "run", str(kernel), "--timeout", "30s", "--trace", str(tmp_path / "t")]
    process = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "t").exists() and (tmp_path / "t").stat().st_size > 1 << 17, "the trace")
    wait_for(lambda: any(one.get("state") == "running" for one in read(tmp_path / "t").records()), "it to run")
    process.send_signal(signal.SIGTERM)
    assert process.wait(LIMIT) == 128 + signal.SIGTERM
    assert list(read(tmp_path / "t").records())[-1]["reason"] == "signal"
