"""Whether a guest makes progress: samples to verdicts, the watcher's clockwork, what could wake a halted processor."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from pyvmm import layout
from pyvmm.bus import Bus
from pyvmm.config import VmConfig
from pyvmm.debug.consolewatch import ConsoleWatch
from pyvmm.debug.diagnosis import Diagnosis
from pyvmm.debug.wakeups import armed
from pyvmm.debug.watch import (
    HALTED,
    HYPERCALL,
    IDLE,
    LOOP_PATIENCE,
    LOOPING,
    OFF,
    REST,
    RUNNING,
    SPINNING,
    Sample,
    Watch,
    is_stuck,
    panicked,
    verdict,
)
from pyvmm.errors import UsageError, VcpuStuckError
from pyvmm.runloop import Outcome, VcpuLoop
from pyvmm.steering import Control
from pyvmm.testing.scripted import ScriptedVcpu

VMCALL = b"\x0f\x01\xc1"
SPIN = Sample(0x7C00, (1, 2))
COUNT = tuple(Sample(0x7C00 + n % 3, (n, 2)) for n in range(8))
IDLE_SHELL = Sample(0x1000, halted=True, interrupts=True, armed=("the PIT",))


# --- Verdicts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([SPIN] * 3, RUNNING),
        ([SPIN] * 4, SPINNING),
        ([Sample(0x7C00 + n % 2, (1, 2)) for n in range(8)], SPINNING),
        (COUNT, LOOPING),
        ([Sample(0x1000 * n, (n,)) for n in range(8)], RUNNING),
        ([Sample(100 * n, (1,)) for n in range(8)], RUNNING),
        ([SPIN, SPIN, Sample(0x99999, (7,)), SPIN], SPINNING),
        ([SPIN, Sample(0x99999, (7,)), Sample(0x99999, (8,)), SPIN], RUNNING),
        ([Sample(0x400000, ring=3, interrupts=True)] * 8, RUNNING),
        ([Sample(0x400000, ring=3)] * 8, SPINNING),
        ([Sample(0, off=True)], OFF),
        ([IDLE_SHELL], IDLE),
        ([SPIN] * 8 + [IDLE_SHELL], IDLE),
        ([Sample(1, halted=True, interrupts=True)] * 4, HALTED),
        ([Sample(1, halted=True)] * 4, HALTED),
        ([Sample(1, halted=True)] * 3, RUNNING),
        ([IDLE_SHELL, *[Sample(0x1000, halted=True, interrupts=True)] * 4], RUNNING),
        ([Sample(5, (n,), code=VMCALL) for n in range(4)], HYPERCALL),
        ([Sample(5, code=VMCALL), *[Sample(6)] * 4], SPINNING),
    ],
)
def test_verdicts(samples, expected):
    assert verdict(samples) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([SPINNING], True),
        ([HALTED, OFF], True),
        ([HALTED, SPINNING, LOOPING], True),
        ([OFF], False),
        ([SPINNING, IDLE], False),
        ([HALTED, RUNNING], False),
        ([HYPERCALL, IDLE, RUNNING], True),
    ],
)
def test_a_guest_is_stuck_when_no_processor_is_well(verdicts, expected):
    assert is_stuck(verdicts) is expected


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ([SPIN, Sample(1, halted=True), Sample(0, off=True)], True),
        ([Sample(1, interrupts=True)], True),
        ([SPIN, IDLE_SHELL], False),
        ([SPIN, Sample(0x400000, ring=3, interrupts=True)], False),
    ],
)
def test_what_a_panicked_kernel_does(samples, expected):
    assert panicked(samples) is expected


# --- The clockwork ------------------------------------------------------------------------------------------------


class Rig:
    """A watch over a guest whose processors do what `now` says; `log` is what it told."""

    def __init__(self, *now, limit=None):
        self.now = list(now)
        self.exits = 0
        self.held = False
        self.limit = limit
        self.looks = 0
        self.log = []
        self.console = ConsoleWatch()
        self.watch = Watch(
            self.console,
            look=self.look,
            progress=lambda: self.exits,
            standing=lambda: self.held,
            limit=lambda: self.limit,
            on_stuck=lambda seconds, samples, final: self.log.append(("end" if final else "stuck", seconds)),
            on_moving=lambda: self.log.append("moving"),
            on_panic=lambda: self.log.append("panic"),
            on_waiting=lambda seconds, final: self.log.append(("waited out" if final else "waiting", seconds)),
            on_silent=lambda: self.log.append("silent"),
        )

    def look(self):
        self.looks += 1
        return [sample() if callable(sample) else sample for sample in self.now]

    def pass_time(self, seconds, says=b""):
        """`seconds` of ticks, 1 s each; output comes with the first."""
        if says:
            self.console.feed(says)
        for _ in range(seconds):
            self.watch.tick(1.0)
        return self


def test_a_spinning_guest_is_named_once_and_left_running():
    rig = Rig(SPIN).pass_time(1, b"x\n").pass_time(200)
    assert rig.log == [("stuck", 10.0)]
    assert rig.looks < 30, "and is looked at less and less often"
    assert rig.watch.samples[0][-1] == 0x7C00


def test_a_guest_with_exits_is_never_looked_at():
    rig = Rig(SPIN)
    for _ in range(100):
        rig.exits += 1
        rig.pass_time(1, b"x\n")
    assert rig.looks == 0 and not rig.log


def test_an_idle_guest_is_left_alone_for_hours():
    rig = Rig(IDLE_SHELL, limit=60).pass_time(1, b"/ # ").pass_time(7200)
    assert not rig.log
    assert rig.looks < 7200 / REST + 10


def test_going_on_is_said_and_the_next_time_takes_longer():
    rig = Rig(SPIN).pass_time(1, b"x\n").pass_time(12)
    rig.exits += 1
    rig.pass_time(1)
    assert rig.log == [("stuck", 10.0), "moving"]
    rig.pass_time(19)
    assert len(rig.log) == 2
    rig.pass_time(2)
    assert rig.log[2:] == [("stuck", 20.0)]


def test_a_limit_ends_it():
    assert Rig(SPIN, limit=5).pass_time(7).log[0] == ("end", 5.0)


def test_a_loop_that_may_compute_is_given_longer():
    counter = iter(range(10**6))
    rig = Rig(lambda: Sample(0x7C00, (next(counter),)), limit=5).pass_time(1, b"x\n")
    rig.pass_time(5 * LOOP_PATIENCE)
    assert rig.log == []
    rig.pass_time(1)
    assert rig.log == [("end", 5.0 * LOOP_PATIENCE)]


def test_a_computing_guest_that_comes_to_spin():
    counter = iter(range(10**6))
    rig = Rig(lambda: Sample(next(counter) * 0x1000, (next(counter),)), limit=6).pass_time(300, b"x\n")
    assert not rig.log
    rig.now = [SPIN]
    rig.pass_time(100)
    assert rig.log[0][0] == "end" and rig.log[0][1] < 20, "the time that it computed does not count"


def test_a_guest_that_somebody_holds_is_not_stuck():
    rig = Rig(SPIN, limit=5)
    rig.held = True
    assert not rig.pass_time(1, b"x\n").pass_time(100).log and rig.looks == 0
    rig.held = False
    assert rig.pass_time(4).log == []


def test_a_guest_that_cannot_be_looked_at_is_not_judged():
    rig = Rig(SPIN, limit=5)
    rig.look = lambda: None
    rig.watch._look = rig.look
    assert not rig.pass_time(100, b"x\n").log


PANIC = b"[    1.000000] Kernel panic - not syncing: nothing to do\n"


def test_a_panics_text_counts_when_the_guest_then_stops():
    assert Rig(Sample(1, halted=True)).pass_time(8, PANIC).log == ["panic"]
    scattered = iter(range(10**6))
    rig = Rig(lambda: Sample(next(scattered) * 0x1000, (next(scattered),))).pass_time(8, PANIC)
    assert rig.log == ["panic"], "the loop of panic() calls functions all over the kernel"
    rig.pass_time(100)
    assert rig.log == ["panic"], "once"


def test_a_panics_text_does_not_count_while_the_guest_lives():
    rig = Rig(IDLE_SHELL).pass_time(30, PANIC)
    assert not rig.log
    rig = Rig(SPIN)
    for _ in range(30):
        rig.exits += 1
        rig.pass_time(1, PANIC)
    assert not rig.log, "it is still writing"


def test_a_panicked_kernel_may_blink():
    rig = Rig(SPIN).pass_time(1, PANIC)
    for _ in range(8):
        rig.exits += 2
        rig.pass_time(1)
    assert rig.log == ["panic"]


WAITING = b"[    1.000000] Waiting for root device /dev/vda...\n"


def test_a_kernel_that_waits_for_its_disk_is_named_though_it_is_idle():
    assert Rig(IDLE_SHELL).pass_time(60, WAITING).log == [("waiting", 9.0 + 1)]
    assert Rig(IDLE_SHELL, limit=30).pass_time(32, WAITING).log[:2] == [("waiting", 10.0), ("waited out", 30.0)]


def test_silence_is_told_once_and_only_silence():
    rig = Rig(IDLE_SHELL).pass_time(100)
    assert rig.log == ["silent"]
    assert not Rig(IDLE_SHELL).pass_time(100, b"hello\n").log


def test_the_thread_ticks_and_stops():
    rig, over = Rig(SPIN, limit=0.2), threading.Event()
    thread = threading.Thread(target=rig.watch.run, args=(over,), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not rig.log and time.monotonic() < deadline:
        time.sleep(0.01)
    over.set()
    thread.join(10)
    assert rig.log[0][0] == "end" and not thread.is_alive()


# --- Standing still, on scripted vCPUs ----------------------------------------------------------------------------


class Machine:
    """Vcpus that halt, with their threads, under a Control."""

    def __init__(self, count=2):
        self.control = Control()
        bus = Bus("port", 1 << 16)
        self.vcpus = [ScriptedVcpu((), index) for index in range(count)]
        self.loops = [VcpuLoop(vcpu, bus, bus, self.control) for vcpu in self.vcpus]
        self.control.steer(self.vcpus)
        self.threads = [threading.Thread(target=loop.run, daemon=True) for loop in self.loops]
        for thread in self.threads:
            thread.start()

    def end(self):
        self.control.end(Outcome("stopped", 0))
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def test_a_look_lets_every_vcpu_stand_and_go_on():
    machine = Machine()
    for _ in range(20):
        machine.control.hold_still()
        assert machine.control.parked == 2
        machine.control.release()
    machine.end()


def test_a_look_does_not_undo_a_users_pause_nor_a_resume_a_look():
    machine = Machine()
    control = machine.control
    control.pause()
    control.hold_still()
    control.release()
    assert control.pausing and control.attention and control.parked == 2
    control.hold_still()
    control.resume()
    time.sleep(0.05)
    assert control.parked == 2, "they stand until the look is over"
    control.release()
    assert not control.attention
    machine.end()


def test_an_end_ends_a_look():
    machine = Machine()
    machine.control.hold_still()
    machine.end()
    machine.control.hold_still()
    machine.control.release()


def test_a_look_at_a_vcpu_that_does_not_come_back_leaves_nothing_behind():
    control = Control()
    control.steer([ScriptedVcpu()])
    with pytest.raises(VcpuStuckError):
        control.hold_still(timeout=0.2)
    assert not control.attention


# --- What could wake a halted processor ---------------------------------------------------------------------------

LVT_TIMER, LINT0, SVR, INITIAL, CURRENT, IRR = 0x320, 0x350, 0xF0, 0x380, 0x390, 0x200
MASKED = 1 << 16
ON = {SVR: 0x1FF, LVT_TIMER: MASKED, LINT0: MASKED}


class Chips:
    def __init__(self, registers, deadline=0, imr=0xFF, pins=None, mode=0xFF, count=0x10000):
        regs = bytearray(1024)
        for offset, value in {**ON, **registers}.items():
            regs[offset : offset + 4] = value.to_bytes(4, "little")
        self.regs = regs
        self.deadline = deadline
        self.imr = imr
        self.pins = pins or {}
        self.channel = SimpleNamespace(mode=mode, count=count, count_load_time=0)

    def get_lapic(self):
        return SimpleNamespace(regs=self.regs)

    def get_msrs(self, indices):
        return {0x6E0: self.deadline} if self.deadline is not None else {}

    def get_irqchip(self, chip):
        table = [self.pins.get(pin, MASKED) for pin in range(24)]
        imr = self.imr & 0xFF if chip == 0 else self.imr >> 8 | 0xFF * (self.imr < 256)
        return SimpleNamespace(
            chip=SimpleNamespace(pic=SimpleNamespace(imr=imr & 0xFF), ioapic=SimpleNamespace(redirtbl=table))
        )

    def get_pit2(self):
        return SimpleNamespace(channels=[self.channel])


@pytest.mark.parametrize(
    ("chips", "listening", "expected"),
    [
        (Chips({}), False, ()),
        (Chips({LVT_TIMER: 1 << 17 | 0xEC, INITIAL: 1000}), False, ("the local APIC's timer",)),
        (Chips({LVT_TIMER: 1 << 17 | MASKED, INITIAL: 1000}), False, ()),
        (Chips({LVT_TIMER: 1 << 17}), False, ()),
        (Chips({LVT_TIMER: 0xEC, INITIAL: 1000, CURRENT: 5}), False, ("the local APIC's timer",)),
        (Chips({LVT_TIMER: 0xEC, INITIAL: 1000, CURRENT: 0}), False, ()),
        (Chips({LVT_TIMER: 2 << 17}, deadline=99), False, ("the local APIC's timer",)),
        (Chips({LVT_TIMER: 2 << 17}, deadline=0), False, ()),
        (Chips({LVT_TIMER: 2 << 17}, deadline=None), False, ("the local APIC's timer",)),
        (Chips({SVR: 0xFF, LVT_TIMER: 1 << 17, INITIAL: 1000}), False, ()),
        (Chips({IRR + 0x10: 1}), False, ("an interrupt that is pending",)),
        (Chips({}, pins={2: 0x30}, mode=2), False, ("the PIT",)),
        (Chips({}, pins={0: 0x30}, mode=3), False, ("the PIT",)),
        (Chips({}, mode=2), False, ()),
        (Chips({}, pins={2: 0x30}), False, ()),
        (Chips({}, pins={2: 0x30}, mode=0, count=0x7FFF), False, ("the PIT",)),
        (Chips({}, pins={2: 0x30}, mode=4, count=100), False, ("the PIT",)),
        (Chips({}, pins={2: 0x30}, mode=0), False, ()),
        (Chips({LINT0: 0x700}, imr=0xFE, mode=2), False, ("the PIT",)),
        (Chips({LINT0: 0x700 | MASKED}, imr=0xFE, mode=2), False, ()),
        (Chips({SVR: 0xFF}, imr=0xFE, mode=2), False, ("the PIT",)),
        (Chips({}, pins={4: 0x34}), True, ("serial input",)),
        (Chips({}, pins={4: 0x34}), False, ()),
        (Chips({}), True, ()),
        (Chips({LINT0: 0x700}, imr=0xEF), True, ("serial input",)),
        (Chips({LINT0: 0x700}, imr=0), False, ()),
        (Chips({}, pins={17: 0x51}), False, ("interrupt line 17",)),
    ],
)
def test_what_could_wake_it(chips, listening, expected):
    assert armed(chips, chips, {layout.SERIAL_IRQ: listening, layout.SCI_IRQ: False}) == expected


# --- How a run ends, in the light of what the guest said ----------------------------------------------------------


def diagnosis(says=b"", **settings):
    found = Diagnosis(VmConfig("kernel", **settings), None)
    found.console.feed(says)
    return found


OOPS = b"[    1.000000] Oops: 0002 [#1] SMP\n[    1.000000] ---[ end trace 0 ]---\n"
WARN = b"[    1.000000] WARNING: CPU: 0 PID: 1 at a.c:1 f+0x1/0x2\n"


@pytest.mark.parametrize("reason", ["reboot", "crash"])
def test_a_reset_after_a_panic_is_a_panic(reason):
    outcome = diagnosis(PANIC).judge(Outcome(reason, 0, "the guest reset the machine"))
    assert (outcome.reason, outcome.status) == ("panic", 122)
    assert "nothing to do" in outcome.detail and "reset the machine" in outcome.detail


@pytest.mark.parametrize("reason", ["power-off", "quit", "time-limit", "debug-exit"])
def test_other_ends_are_what_they_are(reason):
    assert diagnosis(PANIC).judge(Outcome(reason, 5, "so")).reason == reason


def test_a_reset_without_a_panic_is_a_reset():
    assert diagnosis(OOPS).judge(Outcome("reboot", 0, "so")).status == 0
    assert diagnosis(PANIC + b"/ # reboot\n").judge(Outcome("reboot", 0, "so")).status == 0


def test_pvpanics_panic_gets_the_kernels_words():
    outcome = diagnosis(PANIC).judge(Outcome("panic", 122, "it said so"))
    assert outcome.detail == "Kernel panic - not syncing: nothing to do (it said so)"


@pytest.mark.parametrize(
    ("says", "fail_on", "reason", "expected"),
    [
        (OOPS, ["oops"], "power-off", ("oops", 122)),
        (OOPS, ["warn", "oops"], "debug-exit", ("oops", 122)),
        (WARN, ["warn"], "reboot", ("warn", 122)),
        (WARN, ["oops"], "power-off", ("power-off", 0)),
        (OOPS, [], "power-off", ("power-off", 0)),
        (OOPS, ["oops"], "time-limit", ("time-limit", 0)),
    ],
)
def test_failing_on_complaints(says, fail_on, reason, expected):
    outcome = diagnosis(says, fail_on=fail_on).judge(Outcome(reason, 0, "so"))
    assert (outcome.reason, outcome.status) == expected


@pytest.mark.parametrize("choice", ["exit", "wait", "pause"])
def test_what_a_panic_does(choice):
    said = []
    found = Diagnosis(VmConfig("kernel", on_panic=choice), said.append)
    found._control = control = Machine(0).control
    found.guest_ends(Outcome("panic", 122, "panicked"))
    if choice == "exit":
        assert control.outcome is not None and control.outcome.reason == "panic"
        return
    assert control.outcome is None and control.pausing is (choice == "pause")
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        time.sleep(0.01)
    assert f"--on-panic {choice}" in said[0]
    assert found.judge(Outcome("reboot", 0, "so")).reason == "panic", "it stays one"


@pytest.mark.parametrize(
    "settings", [{"on_panic": "sleep"}, {"fail_on": ["bug"]}, {"stuck": 0}, {"stuck": "-1s"}, {"stuck_at_boot": -1.0}]
)
def test_what_cannot_be_meant(settings):
    with pytest.raises(UsageError):
        VmConfig("kernel", **settings)


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        ("console=ttyS1 panic=-1", "has no console=ttyS0"),
        ("console=tty0 console=ttyS0,115200n8", "before its console was up"),
        ("earlyprintk=serial,ttyS0", "before its console was up"),
    ],
)
def test_nothing_printed(command_line, expected):
    found = diagnosis()
    found._loaded = SimpleNamespace(format="linux", command_line=command_line, path="")
    assert [expected in reason.text for reason in found.hints()] == [True]
    found.console.feed(b"x\n")
    found.console.scan()
    assert not found.hints()


@pytest.mark.parametrize(("command_line", "expected"), [("console=tty0", 1), ("console=ttyS0", 0)])
def test_a_silent_guest_that_ends_well_is_told_of_once(command_line, expected):
    said = []
    found = Diagnosis(VmConfig("kernel"), said.append)
    found._loaded = SimpleNamespace(format="linux", command_line=command_line, path="")
    for _ in range(2):
        assert found.judge(Outcome("power-off", 0, "so")).status == 0
    assert len(said) == expected and all("has no console=ttyS0" in text for text in said)


def test_the_limit_of_a_boot_ends_with_the_first_output_of_a_program():
    found = diagnosis(stuck_at_boot=30.0)
    assert found._limit() == 30.0
    found.console.feed(b"hello\n")
    found.console.scan()
    assert found._limit() is None
    assert diagnosis(stuck=5, stuck_at_boot=30.0)._limit() == 5
