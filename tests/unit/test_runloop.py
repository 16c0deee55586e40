"""The run loop on a scripted vCPU: dispatch, stopping, back-pressure, and what ends a run."""

import threading

import pytest

from pyvmm.bus import Bus
from pyvmm.errors import VcpuStuckError
from pyvmm.kvm.exits import FailEntry, InternalError, Mmio, Pio, Shutdown, Unknown
from pyvmm.observe import Observer
from pyvmm.runloop import HISTORY, Outcome, VcpuLoop, debug_exit
from pyvmm.steering import Control
from pyvmm.testing.scripted import ScriptedVcpu

LIMIT = 10


class Echo:
    """A register that gives back what was written to it, and remembers every access."""

    name = "echo"

    def __init__(self, on_write=None):
        self.lock = threading.Lock()
        self.value = 0
        self.log = []
        self._on_write = on_write

    def read(self, offset, size):
        self.log.append(("read", offset, size))
        return self.value & ((1 << size * 8) - 1)

    def write(self, offset, size, value):
        self.log.append(("write", offset, size, value))
        self.value = value
        if self._on_write:
            self._on_write(value)


class Rig:
    """Vcpus with a script each, a device at port 0x10 and another at 0xd0000000, and their threads."""

    def __init__(self, *scripts, on_write=None, observers=(), repair=None):
        self.control = Control()
        self.device, self.memory_device = Echo(on_write), Echo()
        ports, mmio = Bus("port", 1 << 16), Bus("MMIO", 1 << 52)
        ports.attach(0x10, 8, self.device)
        mmio.attach(0xD0000000, 0x1000, self.memory_device)
        self.vcpus = [ScriptedVcpu(script, index) for index, script in enumerate(scripts)]
        self.loops = [VcpuLoop(vcpu, ports, mmio, self.control, observers, repair) for vcpu in self.vcpus]
        self.control.steer(self.vcpus)
        self.threads = [threading.Thread(target=loop.run, daemon=True) for loop in self.loops]

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def finish(self):
        for thread in self.threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        return self.control.outcome


def out(value, port=0x10, size=1):
    return Pio(port, size, 1, True, value.to_bytes(size, "little"))


def inp(port=0x10, size=1, count=1):
    return Pio(port, size, count, False, b"")


def test_accesses_reach_the_bus_and_reads_are_answered():
    script = [
        out(0x1234, size=2),
        inp(size=2),
        inp(size=1, count=3),
        Pio(0x10, 1, 3, True, b"abc"),
        Mmio(0xD0000008, 8, True, bytes(range(8))),
        Mmio(0xD0000008, 4, False, b""),
        inp(port=0x999, size=4),
        Shutdown(),
    ]
    rig = Rig(script).start()
    assert rig.finish().reason == "crash"
    assert rig.device.log == [
        ("write", 0, 2, 0x1234),
        ("read", 0, 2),
        *[("read", 0, 1)] * 3,
        ("write", 0, 1, ord("a")),
        ("write", 0, 1, ord("b")),
        ("write", 0, 1, ord("c")),
    ]
    assert rig.vcpus[0].answers == [b"\x34\x12", b"\x34" * 3, bytes(range(4)), b"\xff" * 4]
    assert [type(exit) for exit in rig.loops[0].history] == [type(exit) for exit in script]


def test_history_is_bounded_and_counts_are_not():
    rig = Rig([out(n & 0xFF) for n in range(100)] + [Shutdown()]).start()
    rig.finish()
    history = rig.loops[0].history
    assert len(history) == HISTORY
    assert history[-2].data == bytes([99])
    assert rig.loops[0].counts[Pio] == 100


@pytest.mark.parametrize(
    ("exit", "words"),
    [
        (Shutdown(), "triple fault"),
        (FailEntry(0x80000021, 0), "0x80000021"),
        (InternalError(1, (), b""), "emulat"),
        (Unknown(77, b""), "77"),
    ],
)
def test_what_crashes_a_run(exit, words):
    outcome = Rig([exit]).start().finish()
    assert (outcome.reason, outcome.status) == ("crash", 121)
    assert words in outcome.detail


def test_an_instruction_that_kvm_refuses_can_be_completed():
    asked = []

    def repair(vcpu, exit):
        asked.append((vcpu.index, exit))
        exit.completed = "" if len(asked) == 4 else "popcnt" if len(asked) < 3 else "stac"
        return bool(exit.completed)

    errors = [InternalError(1, (), b"\xcc") for _ in range(4)]
    rig = Rig([errors[0], out(1), *errors[1:], out(2)], repair=repair).start()
    outcome = rig.finish()
    assert (outcome.reason, outcome.status) == ("crash", 121)
    assert asked == [(0, error) for error in errors]
    loop = rig.loops[0]
    assert loop.completed == {"popcnt": 2, "stac": 1}
    assert list(loop.history)[2:] == errors[1:]
    assert "completed it: stac" in errors[2].describe()
    assert "completed" not in errors[3].describe()


def test_only_what_kvm_refuses_is_completed():
    rig = Rig([Shutdown()], repair=lambda vcpu, exit: True).start()
    assert rig.finish().reason == "crash"


def test_a_device_can_end_the_run_and_the_first_outcome_counts():
    ends = []

    def end(value):
        ends.append(value)
        rig.control.end(debug_exit(value))

    rig = Rig([out(3), out(4)], [], on_write=end)
    rig.start()
    outcome = rig.finish()
    rig.control.end(Outcome("stopped", 0))
    assert (outcome.reason, outcome.status) == ("debug-exit", 7)
    assert rig.control.outcome is outcome
    assert ends == [3], "nothing runs after the end"


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x7F, 0xFF), (0x80, 1), (0xFFFFFFFF, 0xFF)])
def test_debug_exit_status(value, status):
    assert debug_exit(value).status == status


def test_a_failing_device_is_an_error_outcome_with_its_trace():
    def fail(value):
        raise RuntimeError("a bug in a device")

    outcome = Rig([out(1)], [], on_write=fail).start().finish()
    assert (outcome.reason, outcome.status) == ("error", 125)
    assert "a bug in a device" in outcome.detail
    assert "in fail" in outcome.report


def test_pause_completes_the_instruction_under_way():
    """A page-crossing MMIO write comes in two exits; a pause between them must serve the second."""
    first_half, paused = threading.Event(), threading.Event()

    def written(value):
        first_half.set()
        assert paused.wait(LIMIT)

    halves = (out(1), Mmio(0xD0000000, 4, True, b"half"), Mmio(0xD0000004, 4, True, b"next"))
    rig = Rig([halves], on_write=written)
    rig.start()
    assert first_half.wait(LIMIT)
    with rig.control.condition:
        rig.control.pausing = rig.control.attention = True
    rig.vcpus[0].kick()
    paused.set()
    rig.control.pause()
    assert [entry[1:3] for entry in rig.memory_device.log] == [(0, 4), (4, 4)]
    rig.control.resume()
    rig.control.end(Outcome("stopped", 0))
    rig.finish()


def test_pause_stands_still_and_resume_goes_on():
    written = threading.Semaphore(0)

    def script():
        for number in range(1, 1000000):
            yield out(number & 0xFF)

    rig = Rig(script(), on_write=lambda value: written.release())
    rig.start()
    for _ in range(20):
        assert written.acquire(timeout=LIMIT)
        rig.control.pause()
        seen = len(rig.device.log)
        assert not rig.vcpus[0].run.__self__._rest
        assert len(rig.device.log) == seen
        rig.control.resume()
    rig.control.end(Outcome("stopped", 0))
    rig.finish()


def test_a_kick_without_a_request_is_harmless():
    rig = Rig([out(1)]).start()
    for _ in range(100):
        rig.vcpus[0].kick()
    rig.control.pause()
    rig.control.resume()
    rig.control.end(Outcome("stopped", 0))
    assert rig.finish().reason == "stopped"


def test_held_output_stops_the_guest_and_nothing_else():
    started = threading.Event()

    def script():
        yield out(1)
        started.set()
        while True:
            yield out(2)

    rig = Rig(script(), on_write=lambda value: value == 1 and rig.control.hold())
    rig.start()
    with rig.control.condition:
        assert rig.control.condition.wait_for(lambda: rig.control.parked == 1, LIMIT)
    assert not started.is_set(), "the vCPU waits as soon as the device has asked for it"
    rig.control.pause()
    rig.control.release()
    assert not started.is_set(), "released, but still paused"
    rig.control.resume()
    assert started.wait(LIMIT)
    rig.control.end(Outcome("stopped", 0))
    rig.finish()


def test_held_output_does_not_keep_a_run_from_ending():
    rig = Rig([out(1), out(2)], on_write=lambda value: rig.control.hold())
    rig.start()
    with rig.control.condition:
        assert rig.control.condition.wait_for(lambda: rig.control.parked == 1, LIMIT)
    rig.control.end(Outcome("time-limit", 124))
    assert rig.finish().status == 124


def test_a_vcpu_that_does_not_come_back_is_reported():
    rig = Rig([out(1)])
    release = threading.Event()
    rig.vcpus[0].run = lambda: release.wait(LIMIT) and Shutdown()
    rig.start()
    with pytest.raises(VcpuStuckError, match=r"1 vCPU\(s\) did not come back from KVM within 0.3 s"):
        rig.control.pause(timeout=0.3)
    rig.control.end(Outcome("stopped", 0))
    with pytest.raises(VcpuStuckError):
        rig.control.wait_ended(timeout=0.3)
    release.set()
    rig.finish()


def test_the_last_thread_of_an_ended_run_sees_all_vcpus_standing():
    seen = []
    rig = Rig([Shutdown()], [], [])
    rig.control.on_end = lambda: seen.append(sum(thread.is_alive() for thread in rig.threads))
    rig.start().finish()
    rig.control.wait_ended(LIMIT)
    assert len(seen) == 1


def test_observers_see_exits_after_they_are_handled():
    seen = []

    class Watcher(Observer):
        def on_exit(self, vcpu, exit):
            seen.append((vcpu, exit.name, exit.data if isinstance(exit, Pio) else None))

    Rig([out(9), inp(), Shutdown()], observers=[Watcher()]).start().finish()
    assert seen[:2] == [(0, "IO", b"\x09"), (0, "IO", b"\x09")]
