"""What a VM's parts tell the one who records its run, and what the file has of it. No KVM: the vCPUs are made up."""

from __future__ import annotations

import time
from datetime import datetime
from types import SimpleNamespace

import pytest

from pyvmm import layout
from pyvmm.config import VmConfig
from pyvmm.devices.debugcon import DebugCon
from pyvmm.errors import BackendError
from pyvmm.kvm.native import ffi, lib
from pyvmm.kvm.tracing import Tracing
from pyvmm.machine import Machine
from pyvmm.trace import spool
from pyvmm.trace.reader import read
from pyvmm.trace.recorder import Tracer
from pyvmm.trace.recording import EVENTS_CHUNK, VCPU_CHUNK, Recording
from tests.support import virtiodriver
from tests.support.echo import Echo


class Counters:
    """KVM's, which go up by one each time."""

    def __init__(self):
        self.value, self.closed = 0, False

    def read(self):
        self.value += 1
        return {"exits": self.value}

    def close(self):
        self.closed = True


class Vcpu:
    def __init__(self, index):
        self.index, self.counters, self.chunks = index, Counters(), None

    def trace(self, chunks):
        self.chunks = chunks

    def stats_fd(self):
        return self.counters


class Recorded:
    """A run that is recorded to `path`; after `end()` the trace is in `header` and `records`."""

    def __init__(self, path, **options):
        self.path, self.said = path, []
        self.tracer = Tracer(str(path), self.said.append, **options)
        self.machine = Machine([(0, 1 << 20)], lambda *_: None, lambda _: None, lambda _: None)
        self.vcpus = [Vcpu(0), Vcpu(1)]
        self.counters = Counters()

    def begin(self, restored=False):
        config = VmConfig(kernel="guest.bin", mem=1 << 20, cpus=2, append="quiet")
        fd = SimpleNamespace(stats_fd=lambda: self.counters)
        self.tracer.begin(config, "intel", self.machine, fd, self.vcpus, restored=restored)

    def end(self):
        self.tracer.end(SimpleNamespace(reason="power-off", status=3))
        self.tracer.close()
        self.tracer.close()
        trace = read(self.path)
        self.header, self.records = trace.header, list(trace.records())
        assert [record["t"] for record in self.records] == sorted(record["t"] for record in self.records)

    def of(self, kind):
        """The records of that kind, without it and their time."""
        return [
            {name: value for name, value in record.items() if name not in ("kind", "t")}
            for record in self.records
            if record["kind"] == kind
        ]


@pytest.fixture(params=["run.jsonl", "run.json", "run.trace"])
def run(request, tmp_path):
    return Recorded(tmp_path / request.param)


def test_the_header_says_what_ran_and_the_end_how_it_ended(run):
    run.tracer.phase("loaded")
    assert not run.tracer.begun
    run.begin(restored=True)
    assert run.tracer.begun
    run.tracer.phase("ready")
    run.end()
    expected = {
        "cpus": 2,
        "mem": 1 << 20,
        "kernel": "guest.bin",
        "append": "quiet",
        "kvm": "kvm_intel",
        "restored": True,
    }
    assert run.header.items() >= {"kind": "trace", "t": 0, **expected}.items()
    assert {one["name"]: one["model"] for one in run.header["devices"]}["serial"] == "serial"
    assert abs(datetime.fromisoformat(run.header["began"]).timestamp() - time.time()) < 300
    assert run.of("phase") == [{"name": "loaded"}, {"name": "ready"}]
    assert run.of("end") == [{"reason": "power-off", "status": 3}]
    counted = [(one["vcpu"], one["counters"]["exits"]) for one in run.of("statistics")]
    assert counted == [(None, 1), (0, 1), (1, 1), (None, 2), (0, 2), (1, 2)]
    assert all(counters.closed for counters in (run.counters, *(vcpu.counters for vcpu in run.vcpus)))
    assert run.said == []


def test_without_counters_of_kvm_the_rest_is_recorded(run):
    run.vcpus[1].stats_fd = lambda: (_ for _ in ()).throw(BackendError("there are none"))
    run.begin()
    run.end()
    assert run.of("statistics") == [] and len(run.of("end")) == 1


def test_a_counter_that_cannot_be_read_any_more_stops_none_of_the_rest(run):
    run.begin()
    run.counters.read = lambda: (_ for _ in ()).throw(OSError(5, "gone"))
    run.end()
    assert len(run.of("statistics")) == 3 and len(run.of("end")) == 1


def test_each_vcpu_is_given_pieces_of_its_own(run):
    run.begin()
    for vcpu in run.vcpus:
        piece = vcpu.chunks()
        magic, length, stream, lost = spool.CHUNK.unpack_from(piece)
        assert (magic, length, stream, lost, len(piece)) == (spool.MAGIC, VCPU_CHUNK, vcpu.index, 0, VCPU_CHUNK)
    run.tracer._recording.stop()
    assert run.vcpus[0].chunks() is None
    run.tracer._recording.close()


def test_devices_come_and_go(run):
    run.begin()
    run.machine.ports.attach(0x300, 1, DebugCon(lambda data: None))
    run.machine.ports.detach(0x300)
    run.end()
    came, gone = run.of("device")
    assert came.items() >= {"space": "pio", "base": 0x300, "length": 1, "model": "debugcon", "attached": True}.items()
    assert gone == {"space": "pio", "base": 0x300, "attached": False}


def test_what_a_guest_writes_first_and_linux_s_word_on_init_are_phases(run):
    run.tracer.output(b"Lin")
    run.begin()
    for data in (b"ux\nRun /init a", b"s init proces"):
        run.tracer.output(data)
    run.tracer.phase("not yet")
    for data in (b"s\nand more", b"Run x as init process", b""):
        run.tracer.output(data)
    run.end()
    assert run.of("phase") == [{"name": "first output"}, {"name": "not yet"}, {"name": "init"}]


def test_interrupts_are_recorded_and_delivered(run):
    delivered = []
    platform = run.tracer.lines(lambda gsi, level: delivered.append((gsi, level)))
    own = run.tracer.lines(lambda gsi, level: delivered.append((gsi, level)), "nic")
    edge = run.tracer.edge(lambda: delivered.append("edge"), "blk0", 7)
    sent = SimpleNamespace(route="r", unroute="u", signal=lambda vector: delivered.append(("vector", vector)))
    wires = run.tracer.messages(sent, "net0")
    assert (wires.route, wires.unroute) == ("r", "u")
    platform(layout.SERIAL_IRQ, True)  # before the beginning: delivered, that is all
    run.begin()
    for gsi, level in ((layout.SERIAL_IRQ, True), (layout.RTC_IRQ, False), (11, True)):
        platform(gsi, level)
    own(12, True)
    edge()
    wires.signal(2)
    run.end()
    assert [(one["device"], one["gsi"], one["level"]) for one in run.of("interrupt")] == [
        *(("serial", layout.SERIAL_IRQ, 1), ("rtc", layout.RTC_IRQ, 0), ("pci", 11, 1)),
        *(("nic", 12, 1), ("blk0", 7, "pulse"), ("net0", 2, "pulse")),
    ]
    assert delivered == [
        *((layout.SERIAL_IRQ, True), (layout.SERIAL_IRQ, True), (layout.RTC_IRQ, False), (11, True), (12, True)),
        *("edge", ("vector", 2)),
    ]


def test_what_passes_between_a_device_and_the_world_is_recorded_when_it_is_over(run):
    def takes(data):
        time.sleep(0.002)
        return len(data) - 1

    receive = run.tracer.tap("serial", "receive", takes)
    now = run.tracer.tap("rtc", "now", lambda: 1.5)
    arm = run.tracer.tap("rtc", "arm", lambda seconds: None)
    reset = run.tracer.tap("i8042", "reset", lambda: None)
    assert receive(b"early") == 4
    run.begin()
    assert (receive(bytearray(b"\0abc")), now(), arm(3), reset()) == (3, 1.5, None, None)
    run.end()
    found = run.of("outside")
    took = [one.pop("handle") for one in found]
    assert found == [
        {"device": "serial", "name": "receive", "data": "00616263", "value": 3},
        {"device": "rtc", "name": "now", "value": 1.5},
        {"device": "rtc", "name": "arm", "value": 3},
        {"device": "i8042", "name": "reset"},
    ]
    assert took[0] >= 2_000_000 > 0 <= min(took)


def test_the_use_of_a_queue_is_counted(run):
    driver = virtiodriver.Driver(Echo())
    driver.device.trace = run.tracer.queues(driver.device)
    driver.bring_up()
    driver.request(0, [b"early"], [5])
    run.begin()
    driver.device.paused = True
    for _ in range(3):
        driver.send(0, [b"text"], [4])
    driver.device.paused = False
    driver.kick(0)
    driver.send(1, [b"held"], [4])
    driver.device.answer()
    run.end()
    found = run.of("queue")
    assert all(one.pop("device") == "echo" for one in found)
    handled = [one.pop("handle", None) for one in found if one["event"] == "complete"]
    assert len(handled) == 2 and all(0 < one < 60e9 for one in handled)
    first = [one for one in found if one["queue"] == 0 and one["event"] in ("take", "complete")]
    assert first == [
        {"queue": 0, "event": "take", "count": 3, "depth": 3},
        {"queue": 0, "event": "complete", "count": 3, "depth": 0},
    ]
    second = [one for one in found if one["queue"] == 1]
    assert second == [
        {"queue": 1, "event": "notify", "count": 1, "depth": 0},
        {"queue": 1, "event": "take", "count": 1, "depth": 1},
        {"queue": 1, "event": "complete", "count": 1, "depth": 0},
        {"queue": 1, "event": "interrupt"},
    ]
    driver.close()


def test_a_run_that_never_began_leaves_no_file(run):
    run.tracer.phase("loaded")
    run.tracer.record("lifecycle", state="made")
    run.tracer.close()
    assert not run.path.exists()


def test_a_form_that_cannot_be_written_leaves_what_was_recorded(tmp_path):
    run = Recorded(tmp_path / "run.jsonl")
    run.begin()
    (tmp_path / "run.jsonl").rename(tmp_path / "kept.trace")
    (tmp_path / "run.jsonl").mkdir()
    run.tracer.close()
    [said] = run.said
    assert said.startswith("--trace ") and "it is left in the form in which it was recorded" in said
    assert read(tmp_path / "kept.trace").header["cpus"] == 2


def test_a_full_trace_is_told_of_and_the_run_goes_on(tmp_path):
    run = Recorded(tmp_path / "run.trace", limit=EVENTS_CHUNK)
    run.begin()
    assert run.vcpus[0].chunks() is None and run.vcpus[1].chunks() is None
    [said] = run.said
    assert said.startswith(f"--trace {run.path}: the trace has the 0 MiB that it may have; the run goes on")
    run.end()
    assert len(run.of("end")) == 1


def test_a_vcpu_goes_on_in_another_piece_before_an_exit_would_not_fit():
    first, second = bytearray(VCPU_CHUNK), bytearray(VCPU_CHUNK)
    pieces = [first, second]
    context = ffi.new("struct pyvmm_vcpu *")
    tracing = Tracing(context, lambda: pieces.pop(0) if pieces else None)
    room = VCPU_CHUNK // spool.SIZE - 1
    assert (context.trace_room, context.traced) == (room, 0)
    context.traced = room - lib.PYVMM_TRACE_ROOM  # the largest one fits yet
    tracing.go_on()
    assert context.traced == room - lib.PYVMM_TRACE_ROOM and pieces == [second]
    with pytest.raises(BufferError):
        first.append(0)
    context.traced += 1
    tracing.go_on()
    assert (context.trace_room, context.traced) == (room, 0) and pieces == []
    assert context.trace == ffi.cast("struct pyvmm_chunk *", ffi.from_buffer(second))
    first.append(0)  # nobody has it any more
    context.traced = room - lib.PYVMM_TRACE_ROOM + 1
    tracing.go_on()
    assert context.trace_room == 0 and context.trace != ffi.NULL  # it counts there what is lost
    tracing.close()
    assert context.trace == ffi.NULL and context.open == ffi.NULL
    second.append(0)


# --- The file ---------------------------------------------------------------------------------------------------------


def test_a_record_larger_than_a_piece_has_a_piece_that_fits_it(tmp_path):
    recording = Recording(str(tmp_path / "x"), print)
    recording.text({"kind": "trace", "format": 1, "append": "x" * (3 * EVENTS_CHUNK)})
    recording.add(spool.INTERRUPT, 1, "serial", 4, 1)
    recording.stop()
    recording.add(spool.INTERRUPT, 0, "serial", 4, 1)
    recording.text({"kind": "phase"})
    assert recording.own_path == f"/proc/self/fd/{recording._fd}"
    recording.close()
    with pytest.raises(OSError):
        recording.close()
    trace = read(tmp_path / "x")
    assert trace.header["append"] == "x" * (3 * EVENTS_CHUNK)
    assert [record["level"] for record in trace.records()] == [1]
    length = (tmp_path / "x").stat().st_size
    assert length % 4096 == 0 and 3 * EVENTS_CHUNK < length < 4 * EVENTS_CHUNK


def test_a_folder_that_is_not_there_is_told_in_a_line(tmp_path):
    with pytest.raises(BackendError, match="No such file or directory"):
        Tracer(str(tmp_path / "nowhere" / "run.jsonl"))
