"""Guests on both paths: a loop in C that deals with what devices leave to it, and Python that sees every exit.

tests/unit/test_run_loop.py holds the two together access by access; here the accesses are a guest's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvmm import VM, Port, layout
from pyvmm.backends.capture import CaptureConsole
from pyvmm.images import guest
from pyvmm.kvm.constants import KVM_MP_STATE_RUNNABLE
from pyvmm.kvm.exits import Exit, Mmio, Pio
from pyvmm.kvm.hot import NativeHot
from pyvmm.kvm.vcpu import VcpuFd
from pyvmm.observe import Observer
from tests.support import guests

pytestmark = [pytest.mark.needs("kvm")]
PATHS = ("plain", "fast")
LIMIT = 20
RING = 1024

COM1 = layout.SERIAL_PORT
SECOND_ENTRY = 0x7C40

Make = Callable[..., VM]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(code: bytes, **settings: Any) -> VM:
        path = tmp_path / "guest.bin"
        path.write_bytes(code)
        return VM(path, mem="1M", timeout=LIMIT, **settings)

    return make


def served(vm: VM) -> int:
    return sum(sum(vcpu.served().values()) for vcpu in vm.vcpus)


def said(vm: VM) -> bytes:
    assert isinstance(vm.console, CaptureConsole)
    return vm.console.output


def until(condition: Callable[[], bool], limit: float = LIMIT) -> None:
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.0005)


class Accesses(Observer):
    """Every access in words, and the RIPs of those that the loop in C dealt with."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.rips: set[int] = set()

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        if isinstance(exit, Pio | Mmio):
            self.seen.append(exit.describe())

    def on_served(self, vcpu: int, exit: Exit, tsc: int, rip: int) -> None:
        assert tsc
        self.rips.add(rip)
        self.on_exit(vcpu, exit)


# --- Both paths agree ----------------------------------------------------------------------------------------------


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("name", ["hello16", "hello32", "hello64", "hello-pvh", "outs", "paging", "cpuid", "boot-info"])
def test_output_state_and_the_trace_of_accesses_are_the_same(name: str) -> None:
    found = []
    for exits in PATHS:
        accesses = Accesses()
        with VM(guest(name).path(), exits=exits, timeout=LIMIT, observers=[accesses]) as vm:
            outcome = vm.wait(LIMIT)
            # Traced whole, so what C dealt with came back in its log.
            traced = accesses.seen
            state = vm.machine.serial.save()
            found.append((outcome.status, said(vm), state, vm.stats.exits, vm.stats.unclaimed, traced))
            strings = name in ("hello32", "outs")  # whose every other word is one
            assert (served(vm) > 0) == (exits == "fast") or strings
            assert 0 not in accesses.rips
    assert found[0] == found[1]


def test_what_nobody_watches_is_the_same_too(make: Make) -> None:
    """More than the ring has room for, and so the history at the end."""
    text = bytes(32 + i % 90 for i in range(5 * RING))
    found = []
    for exits in PATHS:
        with make(guests.says(text), exits=exits) as vm:
            vm.wait(LIMIT)
            history = [exit.describe() for exit in vm.loops[0].history]
            found.append((said(vm), history, vm.stats.exits["IO"]))
    assert found[0] == found[1]
    assert found[0][0] == text


@pytest.mark.parametrize("exits", PATHS)
@pytest.mark.parametrize("index", [0x15, 0x16, 0x17, 0x35])
def test_a_register_is_read_right_behind_a_posted_write_that_it_depends_on(make: Make, exits: str, index: int) -> None:
    """CMOS: mov $0x14, %al; out %al, $0x70; mov $index, %al; out %al, $0x70; in $0x71, %al; out %al, $0xf4; hlt."""
    with make(b"\xb0\x14\xe6\x70\xb0" + bytes((index,)) + bytes.fromhex("e670 e471 e6f4 f4"), exits=exits) as vm:
        status = vm.wait(LIMIT).status
        expected = vm.machine.rtc._ram[index]
    assert status == (expected << 1 | 1) & 0xFF


@pytest.mark.parametrize("exits", PATHS)
def test_a_guest_polls_for_what_its_posted_write_brings_about(make: Make, exits: str) -> None:
    """mov $0x3f8, %dx; mov $'?', %al; out %al, %dx; mov $0x3fd, %dx; 1: in %dx, %al; test $1, %al; jz 1b;
    mov $0x3f8, %dx; in %dx, %al; out %al, $0xf4; hlt
    """
    code = bytes.fromhex("baf803 b03f ee bafd03 ec a801 74fb baf803 ec e6f4 f4")
    asked = threading.Event()
    with make(code, exits=exits, paused=True) as vm:
        vm.listen(lambda data: asked.set())
        vm.resume()

        def answer() -> None:
            asked.wait(LIMIT)
            vm.type(b"!")

        thread = threading.Thread(target=answer)
        thread.start()
        assert vm.wait(LIMIT).status == ord("!") * 2 + 1
        thread.join()


# --- Two processors ------------------------------------------------------------------------------------------------


def start_both(vm: VM, *registers: dict[str, int]) -> None:
    """Let the vCPUs of a paused VM run, in real mode with all segments 0, each with its registers."""
    for vcpu, given in zip(vm.vcpus, registers, strict=True):
        sregs, regs = vcpu.get_sregs(), vcpu.get_regs()
        sregs.cs.base = sregs.cs.selector = 0
        regs.rflags = 2
        for name, value in given.items():
            setattr(regs, name, value)
        vcpu.set_sregs(sregs)
        vcpu.set_regs(regs)
        vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)
    vm.resume()


TAKES_TURNS = bytes.fromhex("381e0070 75fa 88f8 eeeeeeee 88260070 49 75ed 08db 7402 e6f4 fa f4 ebfd")
"""1: cmp %bl, 0x7000; jne 1b; mov %bh, %al; out %al, %dx (four times); mov %ah, 0x7000; dec %cx; jne 1b;
or %bl, %bl; jz 2f; out %al, $0xf4; 2: cli; 3: hlt; jmp 3b
"""


@pytest.mark.parametrize("exits", PATHS)
def test_two_processors_hand_one_uart_over(make: Make, exits: str) -> None:
    """Each writes four letters when it is its turn, which is a byte of memory."""
    rounds = 150
    with make(TAKES_TURNS, exits=exits, cpus=2, paused=True) as vm:
        start_both(
            vm,
            {"rip": 0x7C00, "rdx": COM1, "rcx": rounds, "rbx": ord("a") << 8 | 0, "rax": 1 << 8},
            {"rip": 0x7C00, "rdx": COM1, "rcx": rounds, "rbx": ord("b") << 8 | 1, "rax": 0 << 8},
        )
        assert vm.wait(LIMIT).reason == "debug-exit"
        assert said(vm) == b"aaaabbbb" * rounds
        assert (served(vm) > 0) == (exits == "fast")


COUNTS = bytes.fromhex("ee 40 49 75fb e6f4 fa f4 ebfd")
"""1: out %al, %dx; inc %ax; dec %cx; jne 1b; out %al, $0xf4; cli; 2: hlt; jmp 2b"""
TOGGLES = bytes.fromhex("ee 30d8 ebfb")
"""1: out %al, %dx; xor %bl, %al; jmp 1b"""


@pytest.mark.parametrize("exits", PATHS)
@pytest.mark.parametrize(("register", "bits"), [(1, 0x02), (1, 0x0F), (3, 0x03)], ids=["THRI", "all", "LCR"])
def test_one_processor_writes_while_another_switches_how_it_is_dealt_with(
    make: Make, exits: str, register: int, bits: int
) -> None:
    """No character is lost, comes twice or out of order."""
    count = 4000
    code = COUNTS.ljust(SECOND_ENTRY - 0x7C00, b"\x90") + TOGGLES
    with make(code, exits=exits, cpus=2, paused=True) as vm:
        start_both(
            vm,
            {"rip": 0x7C00, "rdx": COM1, "rcx": count, "rax": 0},
            {"rip": SECOND_ENTRY, "rdx": COM1 + register, "rbx": bits, "rax": 0},
        )
        assert vm.wait(LIMIT).reason == "debug-exit"
        assert said(vm) == bytes(i & 0xFF for i in range(count))


# --- When it is done -----------------------------------------------------------------------------------------------


@pytest.fixture
def chatter(make: Make) -> Iterator[VM]:
    with make(guests.CHATTER, exits="fast") as vm:
        until(lambda: served(vm) > 10)
        yield vm


def test_a_guest_that_spins_after_its_last_word_is_heard(make: Make) -> None:
    """mov $0x3f8, %dx; mov $'a', %al; out %al, %dx; inc %ax (four times); 1: jmp 1b"""
    with make(bytes.fromhex("baf803 b061 ee40 ee40 ee40 ee40 ebfe"), exits="fast") as vm:
        until(lambda: served(vm) == 2)  # the first ones come to Python: they make the UART, and start what flushes
        until(lambda: said(vm) == b"abcd", limit=2)
        assert vm.stats.exits == {"IO": 4}


def test_what_goes_wrong_with_a_posted_write_ends_the_run_as_it_would_have_at_once(make: Make) -> None:
    """A listener that raises, on the thread that flushes."""

    def broken(data: bytes) -> None:
        if data.endswith(b"d"):
            raise ValueError("it is broken")

    code = bytes.fromhex("baf803 b061 ee40 ee40 ee40 ee40 ebfe")
    for exits in PATHS:
        with make(code, exits=exits, paused=True) as vm:
            vm.listen(broken)
            vm.resume()
            outcome = vm.wait(LIMIT)
        assert (outcome.reason, outcome.detail) == ("error", "ValueError: it is broken")
        assert "in broken" in str(outcome.report)


def test_what_a_virtio_console_writes_comes_behind_what_was_posted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeHot, "_flush", lambda self: None)  # nobody else does it
    with make(bytes.fromhex("baf803 b061 ee40 ee40 ee40 ee40 ebfe"), exits="fast", ports=[Port("p")]) as vm:
        until(lambda: served(vm) == 2)
        assert said(vm) == b"ab"
        vm._virtio.console.ports[0].output(b"!")  # type: ignore[union-attr]
        assert said(vm) == b"abcd!"


def test_a_pause_finds_nothing_posted(chatter: VM) -> None:
    for _ in range(20):
        chatter.pause()
        assert len(said(chatter)) == chatter.stats.exits["IO"]
        before = served(chatter)
        chatter.resume()
        until(lambda: served(chatter) > before)  # noqa: B023


def test_a_snapshot_has_what_was_posted(chatter: VM, tmp_path: Path) -> None:
    chatter.snapshot(tmp_path / "snapshot")
    with VM.restore(tmp_path / "snapshot", paused=True) as again:
        assert again.config.exits == "fast"
        again.resume()
        until(lambda: served(again) > 100)
        again.pause()
        assert set(said(again)) == {ord("x")}
        assert len(said(again)) == again.stats.exits["IO"]


def test_output_that_is_held_stays_within_the_ring(make: Make) -> None:
    """No exit comes to Python meanwhile, so the loop in C has to notice."""

    class Full(CaptureConsole):
        held_at = 0
        link: Any = None

        def start(self, link: Any) -> None:
            self.link = link
            super().start(link)

        def write(self, data: bytes) -> None:
            super().write(data)
            if not self.held_at and len(self.output) > 1000:
                self.held_at = len(self.output)
                self.link.hold()

    console = Full()
    with make(guests.CHATTER, exits="fast", console=console) as vm:
        until(lambda: bool(console.held_at))
        until(lambda: vm._control.parked == 1, limit=2)
        written = len(console.output)
        assert written - console.held_at <= RING + 1
        time.sleep(0.05)
        assert len(console.output) == written == vm.stats.exits["IO"]
        console.link.release()
        until(lambda: len(console.output) > written + 1000)


def test_the_end_of_a_run_has_heard_everything(make: Make) -> None:
    with make(guests.CHATTER, exits="fast") as vm:
        until(lambda: served(vm) > 10)
        vm.stop()
        vm.wait(LIMIT)
        assert len(said(vm)) == vm.stats.exits["IO"]


def test_a_run_that_the_vmm_itself_fails_has_heard_everything(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: VcpuFd, error: int) -> Exit:
        raise ValueError("KVM is broken")

    monkeypatch.setattr(NativeHot, "_flush", lambda self: None)
    with make(bytes.fromhex("baf803 b061 ee40 ee40 ee40 ee40 ebfe"), exits="fast") as vm:
        until(lambda: served(vm) == 2)
        monkeypatch.setattr(VcpuFd, "_no_exit", broken)
        vm.vcpus[0].kick()
        assert vm.wait(LIMIT).detail == "ValueError: KVM is broken"
        assert said(vm) == b"abcd"


def test_a_crash_report_has_the_last_words_and_the_last_accesses(make: Make) -> None:
    """mov $0x3f8, %dx; mov $'a', %al; out (twice); inc %ax; out; lidt of nothing; int3: a triple fault."""
    with make(bytes.fromhex("baf803 b061 ee ee 40 ee 0f011e4000 cc"), exits="fast") as vm:
        outcome = vm.wait(LIMIT)
        assert outcome.reason == "crash"
        assert said(vm) == b"aab"
        report = outcome.report.text()  # type: ignore[attr-defined,union-attr]
        assert "IO out port 0x3f8 size 1 <- 0x62" in report


def test_a_hook_sees_each_access_before_the_guest_goes_on(make: Make) -> None:
    seen: list[tuple[int, int]] = []
    with make(guests.says(b"abc"), exits="fast", paused=True) as vm:
        vm.on_exit("IO", lambda vcpu, exit: seen.append((exit.port, vcpu.registers.rcx)))
        vm.resume()
        vm.wait(LIMIT)
        assert served(vm) == 0
    assert seen[:3] == [(COM1, 3), (COM1, 2), (COM1, 1)]
