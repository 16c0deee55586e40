"""The API of a VM: ending it, its registers, single steps, hooks and devices of a program's own."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest

from pyvmm import VM, MmioDevice, PortDevice, VirtioDevice
from pyvmm.errors import BusConflictError, PyvmmError, TimeLimitError, UsageError
from pyvmm.kvm.exits import Pio
from tests.support import guests
from tests.support.cli import wait_for

pytestmark = pytest.mark.needs("kvm")
LIMIT = 20

STEPS = bytes.fromhex("b80500 40 e610 ba0005 ec 40 b005 e6f4 f4")
"""Real mode: mov $5, %ax; inc %ax; out %al, $0x10; mov $0x500, %dx; in (%dx), %al; inc %ax; mov $5, %al; out ..."""
STORE = bytes.fromhex("b844332211 a3000000d8 a1040000d8 e6f4 f4")
"""Protected mode: mov $0x11223344, %eax; mov %eax, 0xd8000000; mov 0xd8000004, %eax; out %al, $0xf4; hlt."""


@pytest.fixture
def make(tmp_path):
    """Makes a VM of a guest's bytes."""

    def make(code, **settings):
        path = tmp_path / "guest.bin"
        path.write_bytes(code)
        return VM(path, mem=settings.pop("mem", "1M"), timeout=LIMIT, **settings)

    return make


class Letter(PortDevice):
    """Answers with a letter, notes what is written, without a thought for its base's __init__."""

    def __init__(self, letter):
        self.letter = ord(letter)
        self.written = []
        self.closed = 0

    def read(self, offset, size):
        return self.letter

    def write(self, offset, size, value):
        self.written.append((offset, size, value))

    def close(self):
        self.closed += 1


# --- Ending --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [False, True])
def test_kill_returns_when_nothing_runs_any_more(make, paused):
    with make(guests.SPIN, paused=paused) as vm:
        outcome = vm.kill()
        assert (outcome.reason, outcome.status, vm.state) == ("killed", 137, "ended")
        assert vm._control.live == 0
        assert vm.kill() is outcome


def test_killing_what_has_ended_changes_nothing(make):
    with make(guests.EXIT_5) as vm:
        vm.wait(LIMIT)
        assert vm.kill().status == 11


def test_a_vm_that_was_not_started_cannot_be_killed_or_shut_down(make):
    vm = make(guests.SPIN)
    for end in (vm.kill, vm.shutdown):
        with pytest.raises(UsageError):
            end()


def test_a_guest_that_does_not_know_of_a_power_button_runs_on(make):
    with make(guests.SPIN) as vm:
        with pytest.raises(TimeLimitError, match=r"does not listen to its power button \(0.1 s\)"):
            vm.shutdown(0.1)
        assert vm.state == "running"
        vm.pause()
        with pytest.raises(UsageError, match="resume"):
            vm.shutdown(0.1)


def test_the_power_button_reaches_a_guest_that_listens(make):
    # mov $0x602, %dx; mov $0x100, %ax; out %ax, (%dx) (PWRBTN_EN); mov $0x600, %dx; 1: in (%dx), %ax; test $1, %ah;
    # jz 1b; mov $0x604, %dx; mov $0x2000 | 5 << 10, %ax; out %ax, (%dx)
    code = bytes.fromhex("ba0206 b80001 ef ba0006 ed f6c401 74fa ba0406 b83400 86e0 ef ebfe")
    with make(code) as vm:
        assert vm.shutdown(LIMIT).reason == "power-off"


def test_a_guest_that_ignores_its_power_button(make):
    with make(bytes.fromhex("ba0206 b80001 ef ebfe")) as vm:
        with pytest.raises(TimeLimitError, match="has not switched itself off 0.2 s after its power button"):
            vm.shutdown(0.2)
        assert vm.state == "running"


# --- Registers and steps ---------------------------------------------------------------------------------------------


def test_registers_have_names(make):
    vm = make(STEPS, paused=True)
    with pytest.raises(UsageError, match="no vCPU"):
        vm.registers  # noqa: B018
    with vm:
        registers = vm.registers
        assert registers.rip == registers["rip"] == dict(registers)["rip"] == 0x7C00
        assert registers == vm.vcpus[0].registers
        assert "rip 0000000000007c00" in repr(registers) and "apic_base fee00900" in repr(registers)
        with pytest.raises(AttributeError, match="there is no register 'eip'"):
            registers.eip  # noqa: B018
    with pytest.raises(UsageError, match="closed"):
        vm.registers  # noqa: B018
    assert registers.rip == 0x7C00, "a copy"


def test_the_registers_of_a_vm_that_runs_are_those_of_one_moment(make):
    with make(guests.SPIN) as vm:
        assert vm.registers.rip == 0x7C00
        assert vm.state == "running"


def test_steps_go_from_instruction_to_instruction(make):
    """Through accesses to devices too: each is made once."""
    device = Letter("A")
    with make(STEPS, paused=True) as vm:
        vm.attach(device, port=0x10)
        vm.attach(other := Letter("B"), port=0x500)
        seen = [(vm.step().rip, vm.registers.rax) for _ in range(6)]
        assert seen == [(0x7C03, 5), (0x7C04, 6), (0x7C06, 6), (0x7C09, 6), (0x7C0A, 0x42), (0x7C0B, 0x43)]
        assert device.written == [(0, 1, 6)] and other.written == []
        vm.resume()
        assert vm.wait(LIMIT).status == 11
        with pytest.raises(UsageError, match=r"does not stand still: pause\(\) comes first"):
            vm.step()


def test_many_steps_and_the_guest_runs_on_unharmed(make):
    with make(STEPS, paused=True) as vm:
        assert vm.step(5).rip == 0x7C0A
        assert vm.step(0).rip == 0x7C0A
        for count in (-1, "2", None):
            with pytest.raises(UsageError, match=rf"{count}' instructions to step \(expected a number from 0 on\)"):
                vm.step(count)
        vm.resume()
        assert vm.wait(LIMIT).status == 11


def test_a_step_that_ends_the_run(make):
    with make(guests.EXIT_5, paused=True) as vm:
        vm.step(100)
        assert vm.wait(LIMIT).status == 11


def test_no_steps_while_the_guest_runs(make):
    with make(guests.SPIN) as vm:
        with pytest.raises(UsageError, match="does not stand still"):
            vm.step()
        vm.pause()
        with pytest.raises(UsageError, match=r"no vCPU 1 to step \(there are 1\)"):
            vm.step(vcpu=1)
        assert vm.step(3).rip == 0x7C00


def test_steps_give_way_to_the_end_of_the_run(make):
    with make(guests.SPIN, paused=True) as vm:
        timer = threading.Timer(0.05, vm.stop)
        timer.start()
        began = time.monotonic()
        vm.step(1 << 40)
        assert time.monotonic() - began < 5 and vm.exit.reason == "stopped"
        timer.join()


def test_steps_that_take_too_long_are_stopped(make):
    # Only the processor to be started: it is asked to step, and never gets there.
    with make(guests.SPIN, paused=True, cpus=2, mem="2M") as vm:
        with pytest.raises(TimeLimitError, match=r"vCPU 1 did not execute 1 instructions within 0\.05 s"):
            vm.step(vcpu=1, timeout=0.05)
        assert vm.step().rip == 0x7C00
        vm.resume()
        assert vm.registers.rip == 0x7C00


def test_resuming_waits_for_the_steps(make, monkeypatch):
    begun, found = threading.Event(), []
    with make(bytes.fromhex("31c0 40 ebfd"), paused=True) as vm:  # xor ax, ax; 1: inc ax; jmp 1b
        kind = type(vm._control)
        perform = kind.perform

        def watched(control, vcpu, errand, *others):
            def noticed():
                begun.set()
                errand()

            return perform(control, vcpu, noticed, *others)

        monkeypatch.setattr(kind, "perform", watched)
        steps = threading.Thread(target=lambda: found.append(vm.step(401).rax))
        steps.start()
        assert begun.wait(LIMIT)
        vm.resume()
        steps.join(LIMIT)
        assert found == [200] and vm.state == "running"
        vm.pause()


# --- Hooks -----------------------------------------------------------------------------------------------------------


def test_hooks_see_exits_of_their_kind_with_registers_and_memory(make):
    seen = []
    vm = make(STEPS, paused=True)
    vm.on_exit("IO", lambda vcpu, exit: seen.append((exit.port, vcpu.registers.rip, vm.memory.read(0x7C00, 1))))
    vm.on_exit("MMIO", seen.append)
    with vm:
        remove = vm.on_exit(Pio, lambda vcpu, exit: seen.append(vm.registers.rip))
        vm.resume()
        vm.wait(LIMIT)
        remove()
        remove()
    ports = [found for found in seen if isinstance(found, tuple)]
    assert [port for port, _, _ in ports] == [0x10, 0x500, 0xF4]
    assert all(code == b"\xb8" for _, _, code in ports)
    assert [found for found in seen if not isinstance(found, tuple)] == [rip for _, rip, _ in ports]


def test_a_hook_may_stop_the_vm(make):
    with make(guests.CHATTER) as vm:
        vm.on_exit("IO", lambda vcpu, exit: vm.stop())
        assert vm.wait(LIMIT).reason == "stopped"


def test_a_hook_that_fails_ends_the_run(make):
    with make(guests.CHATTER) as vm:
        vm.on_exit("IO", lambda vcpu, exit: 1 // 0)
        outcome = vm.wait(LIMIT)
    assert (outcome.reason, outcome.detail) == ("error", "ZeroDivisionError: integer division or modulo by zero")
    assert "test_api.py" in outcome.report


def test_a_kind_that_there_is_not(make):
    with pytest.raises(UsageError, match=r"no exit called 'PIO' \(there are .*IO, .*MMIO"):
        make(guests.SPIN).on_exit("PIO", print)


# --- Devices of a program's own ---------------------------------------------------------------------------------------


def test_a_device_attached_before_the_start(make):
    vm = make(STEPS)
    vm.attach(device := Letter("A"), port=0x500)
    with vm:
        assert vm.wait(LIMIT).status == 11
        assert device.memory is vm.memory and not device.closed
    assert device.closed == 1 and device.name == "Letter"


def test_a_device_in_memory(make):
    class Registers(MmioDevice):
        length = 8
        value = 0

        def read(self, offset, size):
            return self.value >> 8 if offset == 4 else 0

        def write(self, offset, size, value):
            self.value = value

    with make(STORE, flat_mode="protected", mem="2M", paused=True) as vm:
        vm.attach(device := Registers(), gpa=0xD8000000)
        vm.resume()
        assert vm.wait(LIMIT).status == (0x33 << 1 | 1)
    assert device.value == 0x11223344


def test_the_interrupt_of_a_device_is_a_level(make):
    # Real mode: vector 8 + 5 of the PICs at 0x34: mov $0x7c20, its offset; unmask IRQ 5; sti; hlt; jmp back.
    code = bytes.fromhex("c7063400207c b0df e621 fb f4 ebfd")
    code = code.ljust(0x20, b"\x90") + bytes.fromhex("b005 e6f4 f4")
    # PIC 1: ICW1 0x11, ICW2 8, ICW3 4, ICW4 1
    code = bytes.fromhex("b011e620 b008e621 b004e621 b001e621") + code
    code = code.replace(bytes.fromhex("c7063400207c"), bytes.fromhex("c7063400307c"))
    with make(code, paused=True) as vm:
        vm.attach(device := PortDevice(), port=0x500, irq=5)
        vm.resume()
        time.sleep(0.05)
        assert vm.exit is None
        with device.lock:
            device.irq.set(True)
        assert vm.wait(LIMIT).status == 11


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ({}, "one of the two"),
        ({"port": 1, "gpa": 1}, "one of the two"),
        ({"port": 0x500, "irq": 24}, r"interrupt 24 \(expected 0 to 23\)"),
        ({"port": 0x3F8}, "Letter at 0x3f8-0x3f8 overlaps serial"),
        ({"port": 0xFFFF, "length": 2}, "does not fit the port bus"),
        ({"gpa": 0xFFFFF, "length": 2}, "overlaps memory at 0x0"),
        ({"gpa": 0xFEE00FFF}, "overlaps KVM's interrupt controllers at 0xfee00000"),
    ],
)
def test_where_a_device_cannot_be(make, where, error):
    with make(guests.SPIN, paused=True) as vm, pytest.raises((UsageError, BusConflictError), match=error):
        vm.attach(Letter("A"), **where)


def test_a_conflict_before_the_start_fails_the_start(make):
    before = len(os.listdir("/proc/self/fd"))
    vm = make(guests.SPIN)
    vm.attach(Letter("A"), port=0x60)
    with pytest.raises(BusConflictError, match="overlaps i8042"):
        vm.start()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_device_that_fails_ends_the_run(make):
    class Broken(PortDevice):
        def read(self, offset, size):
            raise LookupError("nothing here")

    vm = make(STEPS)
    vm.attach(Broken(), port=0x500)
    with vm:
        assert vm.wait(LIMIT).detail == "LookupError: nothing here"


def test_a_virtio_device_of_ones_own(make):
    class Own(VirtioDevice):
        device_id = 42
        queue_sizes = (8,)
        closed = False

        def close(self):
            super().close()
            self.closed = True

    # Protected mode: mov 0xd0000008, %eax (DeviceID); out %al, $0xf4
    with make(bytes.fromhex("a1080000d0 e6f4 f4"), flat_mode="protected", mem="2M", virtio=[device := Own("x")]) as vm:
        assert vm.wait(LIMIT).status == (42 << 1 | 1)
        assert [slot.name for slot in vm.slots] == ["own0"] == [device.name]
    assert device.closed


# --- The console -----------------------------------------------------------------------------------------------------


def test_reading_the_console_by_pieces(make):
    with make(guests.says(b"one two three", 5)) as vm:
        vm.console.expect("one")
        found = b""
        while piece := vm.console.read(LIMIT):
            found += piece
        assert found == b" two three"
        assert vm.console.read(0) == b"" and vm.console.output == b"one two three" == vm.console_log


def test_a_console_that_says_no_more(make):
    with make(guests.SPIN) as vm, pytest.raises(TimeLimitError, match="showed nothing more within 0.02 s"):
        vm.console.read(0.02)


def test_the_log_is_the_end_of_what_was_written(make):
    text = bytes(range(32, 127)) * 10
    with make(guests.says(text, 5)) as vm:
        vm.wait(LIMIT)
        assert vm.console_log == text


def test_listeners_hear_what_is_written(make):
    heard = []
    vm = make(guests.says(b"hello", 5))
    vm.listen(heard.append)
    vm.listen(print)()
    with vm:
        vm.wait(LIMIT)
    assert b"".join(heard) == b"hello"


# --- Several ----------------------------------------------------------------------------------------------------------


def test_several_vms_at_once_in_an_asyncio_program(tmp_path):
    def one(number):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(guests.says(b"guest %d" % number, number))
        with VM(path, mem="1M", timeout=LIMIT) as vm:
            vm.console.expect(f"guest {number}")
            return vm.wait(LIMIT).status

    async def main():
        return await asyncio.gather(*(asyncio.to_thread(one, number) for number in range(4)))

    assert asyncio.run(main()) == [number << 1 | 1 for number in range(4)]


def test_everything_is_closed_after_an_exception(make):
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    with pytest.raises(PyvmmError, match="mine"), make(guests.SPIN) as vm:
        vm.on_exit("IO", print)
        vm.attach(device := Letter("A"), port=0x500)
        raise PyvmmError("mine")
    wait_for(lambda: (len(os.listdir("/proc/self/fd")), threading.active_count()) == before, "threads to be gone")
    assert device.closed == 1
