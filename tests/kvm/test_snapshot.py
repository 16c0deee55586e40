"""VMs that are saved and go on elsewhere: small guests must not notice, however often, and clones must be their own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import pytest

from pyvmm import VM, Disk, PortDevice, VirtioDevice
from pyvmm.backends.capture import CaptureConsole
from pyvmm.errors import LoadError, PyvmmError, UsageError
from pyvmm.images import guest
from pyvmm.kvm.archstate import CHIPS, judge_vm, restore_vm, save_vm
from pyvmm.layout import ACPI_PM_GPE, ACPI_PM_PORT, GENERATION_GPE, VIRTIO_MMIO, VM_GENERATION
from pyvmm.snapshot.inspect import inspect
from pyvmm.state import U8
from tests.support import guests
from tests.support.cli import wait_for
from tests.support.hugepages import huge_pages
from tests.support.tinyvm import tiny_vm

pytestmark = pytest.mark.needs("kvm")

LIMIT = 30
COUNTER = bytes.fromhex("31c0 8ed8 66ff060006 ebf9")
"""Real mode: xor %ax, %ax; mov %ax, %ds; 1: incl 0x600; jmp 1b."""
AT = 0x600
DISK_WORD = f"virtio_mmio.device=4K@{VIRTIO_MMIO:#x}:5"


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    path = tmp_path / "counter.bin"
    path.write_bytes(COUNTER)
    return path


def counts_beyond(vm: VM, count: int) -> None:
    wait_for(lambda: vm.memory.read_u32(AT) > count, "the guest to count")


def said(vm: VM) -> str:
    assert isinstance(vm.console, CaptureConsole)
    return vm.console.text


def moved(vm: VM, folder: Path, pause: float, most: int = 400) -> tuple[str, int, int]:
    """Run `vm` to its end, moving it to a new VM every `pause` seconds; all it printed, its status, how often."""
    text = ""
    for number in range(most):
        with vm:
            deadline = time.monotonic() + pause
            while vm.exit is None and time.monotonic() < deadline:
                time.sleep(0.0005)
            if number < most - 1 and vm.exit is None:
                vm.pause()
            if vm.exit is not None or number == most - 1:
                exit = vm.wait(LIMIT)
                return text + said(vm), exit.status, number
            path = folder / f"{number % 2}.snap"
            text += said(vm)
            vm.snapshot(path)
        vm = VM.restore(path, timeout=LIMIT)
    raise AssertionError


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("name", "settings"),
    [("lapic-timer", {}), ("hlt-pit", {}), ("paging", {}), ("outs", {}), ("smp", {"cpus": 2, "append": "2"})],
)
def test_a_guest_that_moves_all_the_time_prints_what_it_prints_at_rest(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    path = guest(name).path()
    with VM(path, mem="64M", timeout=LIMIT, **settings) as vm:
        status = vm.wait(LIMIT).status
        expected = said(vm)
    assert expected
    text, moved_status, _ = moved(VM(path, mem="64M", timeout=LIMIT, **settings), tmp_path, 0.004)
    assert (text, moved_status) == (expected, status)


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("transport", "mode", "pause", "most"),
    [
        *(("mmio", "irq", 0.002, 20), ("mmio", "irq flags", 0.002, 20)),
        *(("pci", "load", 0.02, 20), ("pci", "load intx flags", 0.02, 20)),
        # An edge that comes while the pin is masked is forgotten, there and at rest. Here the driver is reminded at
        # every move, and so soon enough; at rest it masks again before it is reminded, and gives up.
        pytest.param("mmio", "load", 0.004, 400, marks=pytest.mark.soak),
    ],
)
def test_requests_and_interrupts_of_a_disk_survive_moves(
    mode: str, transport: str, pause: float, most: int, tmp_path: Path
) -> None:
    image = tmp_path / "disk"
    image.write_bytes(b"the first line of sector 0\n".ljust(1 << 20, b"\0"))
    words = f"{DISK_WORD} {mode}" if transport == "mmio" else mode
    vm = VM(
        guest("virtio-blk").path(),
        mem="64M",
        disks=[Disk(image, overlay=True)],
        append=words,
        transport=transport,
        timeout=LIMIT,
    )
    text, status, moves = moved(vm, tmp_path, pause, most)
    assert status == 0, text
    assert moves > 0


def test_a_pulse_that_was_saved_half_way_swallows_no_other() -> None:
    """An edge of an irqfd is two calls inside KVM, and the chips may be saved between them."""
    with tiny_vm(irqchip=True) as first, tiny_vm(irqchip=True) as other:
        for tiny in (first, other):
            tiny.vm.create_pit2()
        first.vm.irq_line(5, True)
        first.vm.irq_line(12, True)
        restore_vm(other.vm, judge_vm(json.loads(json.dumps(save_vm(first.vm)))))
        chips = [other.vm.get_irqchip(chip).chip for chip in CHIPS.values()]
        assert [chips[0].pic.last_irr, chips[1].pic.last_irr, chips[2].ioapic.irr] == [0, 0, 0]


def test_nothing_is_lost_or_repeated_between_a_snapshot_and_its_clones(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="16M", timeout=LIMIT) as vm:
        counts_beyond(vm, 0)
        vm.pause()
        vm.snapshot(tmp_path / "s")
        assert vm.state == "paused"
        count, rip = vm.memory.read_u32(AT), vm.vcpus[0].get_regs().rip
        vm.resume()
        counts_beyond(vm, count)
    with VM.restore(tmp_path / "s", paused=True) as one, VM.restore(tmp_path / "s", paused=True) as other:
        for clone in (one, other):
            assert (clone.memory.read_u32(AT), clone.vcpus[0].get_regs().rip) == (count, rip)
        one.resume()
        counts_beyond(one, count)
        one.pause()
        assert other.memory.read_u32(AT) == count, "clones share what they write"


def test_a_running_vm_goes_on_after_its_snapshot(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="16M", timeout=LIMIT) as vm:
        vm.snapshot(tmp_path / "s")
        assert vm.state == "running"
        counts_beyond(vm, vm.memory.read_u32(AT))


def test_memory_is_sparse_and_above_4_gib_too(counter: Path, tmp_path: Path) -> None:
    high = 1 << 32
    with VM(counter, mem="4G", timeout=LIMIT, paused=True) as vm:
        vm.memory.write(high + 0x5000, b"far away")
        vm.snapshot(tmp_path / "s")
    (memory,) = (tmp_path / "s").glob("memory-*")
    status = memory.stat()
    assert status.st_size == 4 << 30
    assert status.st_blocks * 512 < 1 << 20
    assert status.st_mode & 0o777 == 0o444
    with VM.restore(tmp_path / "s", paused=True) as clone:
        assert clone.memory.read(high + 0x5000, 8) == b"far away"
        clone.memory.discard(high, 0x10000)
        assert clone.memory.read(high, 0x10000) == bytes(0x10000), "what was given back is there again"
        clone.memory.write(high + 0x9000, b"anew")
        clone.snapshot(tmp_path / "t")
    with VM.restore(tmp_path / "t", paused=True) as clone:
        assert clone.memory.read(high, 0xA000) == bytes(0x9000) + b"anew".ljust(0x1000, b"\0")


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_memory_of_each_backing_comes_back(backing: str, counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="16M", timeout=LIMIT, paused=True, memory_backing=backing) as vm:
        vm.memory.write(0x801000, b"x" * 5000)
        vm.snapshot(tmp_path / "s")
        expected = vm.memory.read(0, 16 << 20)
    with VM.restore(tmp_path / "s", paused=True) as clone:
        assert clone.memory.read(0, 16 << 20) == expected


@pytest.mark.serial
@pytest.mark.needs("huge-pages")
def test_memory_in_huge_pages_comes_back(counter: Path, tmp_path: Path) -> None:
    with huge_pages(8):
        test_memory_of_each_backing_comes_back("hugetlb", counter, tmp_path)


def test_it_never_overwrites_its_own_source(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="16M", timeout=LIMIT) as vm:
        vm.snapshot(tmp_path / "s")
    with VM.restore(tmp_path / "s", timeout=LIMIT) as clone:
        with pytest.raises(UsageError, match="restored from it"):
            clone.snapshot(tmp_path / "s")
        assert clone.state == "running"
        clone.snapshot(tmp_path / "t")
    with VM.restore(tmp_path / "t", timeout=LIMIT) as clone:
        assert clone.state == "running"


def test_a_differential_snapshot_has_what_changed_and_needs_its_base(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="64M", timeout=LIMIT, paused=True) as vm:
        vm.memory.fill(0x100000, 8 << 20, 7)
        vm.snapshot(tmp_path / "base")
        vm.resume()
        counts_beyond(vm, 0)
        vm.pause()
        vm.memory.write(0x200000, b"by a device")
        vm.snapshot(tmp_path / "one", base=tmp_path / "base")
        count = vm.memory.read_u32(AT)
    assert sum(path.stat().st_blocks for path in (tmp_path / "one").iterdir()) * 512 < 1 << 16
    with VM.restore(tmp_path / "one", paused=True) as clone:
        assert clone.memory.read_u32(AT) == count > 0
        assert clone.memory.read(0x200000, 12) == b"by a device\7"
        clone.resume()
        counts_beyond(clone, count)
        for name in ("base", "one"):
            with pytest.raises(UsageError, match="restored from it"):
                clone.snapshot(tmp_path / name)
        with pytest.raises(UsageError, match="the base"):
            clone.snapshot(tmp_path / "base", base=tmp_path / "one")
        clone.snapshot(tmp_path / "two", base=tmp_path / "one")
        clone.pause()
        count = clone.memory.read_u32(AT)
    with VM.restore(tmp_path / "two", paused=True) as clone:
        assert 0 < clone.memory.read_u32(AT) <= count
        assert clone.memory.read(0x200000, 12) == b"by a device\7"
        assert clone.memory.read_u8(0x800000) == 7
    found = inspect(tmp_path / "two", verify=True)
    assert found["bases"] == [os.path.realpath(tmp_path / name) for name in ("one", "base")]
    assert found["memory"] < 1 << 16
    with VM(counter, mem="32M", timeout=LIMIT, paused=True) as other:
        with pytest.raises(LoadError, match="memory is not that"):
            other.snapshot(tmp_path / "three", base=tmp_path / "base")
        with pytest.raises(LoadError, match="is no snapshot"):
            other.snapshot(tmp_path / "three", base=tmp_path / "nothing")
        assert other.state == "paused"


def test_only_a_vm_that_runs_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "exit.bin"
    path.write_bytes(guests.EXIT_5)
    vm = VM(path, mem="1M", timeout=LIMIT)
    with pytest.raises(UsageError, match="made"):
        vm.snapshot(tmp_path / "s")
    with vm:
        vm.wait(LIMIT)
        with pytest.raises(UsageError, match="ended"):
            vm.snapshot(tmp_path / "s")
    assert not (tmp_path / "s").exists()


class Unknown:
    """A device that says nothing of its state."""

    def __init__(self) -> None:
        self.name = "unknown"
        self.lock = Lock()

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def test_a_device_of_ones_own_without_state_is_refused(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="16M", timeout=LIMIT, paused=True) as vm:
        vm.machine.ports.attach(0x5000, 1, Unknown())
        with pytest.raises(UsageError, match="'unknown' cannot be saved"):
            vm.snapshot(tmp_path / "s")
        assert not (tmp_path / "s").exists()


class Latch(PortDevice):
    """Keeps the byte that was written last, and holds its line up while that is not 0."""

    STATE: ClassVar = {"_value": U8}

    def __init__(self) -> None:
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        self._value = value
        self.restored()

    def restored(self) -> None:
        assert self.irq is not None
        self.irq.set(bool(self._value))


class Secret(VirtioDevice):
    device_id = 42
    queue_sizes = (8,)
    STATE: ClassVar = {"secret": U8}
    secret = 0


def test_devices_of_ones_own_that_say_what_their_state_is_are_saved(counter: Path, tmp_path: Path) -> None:
    own = Secret("secret")
    vm = VM(counter, mem="16M", timeout=LIMIT, paused=True, virtio=[own])
    vm.attach(Latch(), port=0x5000, irq=11)
    with vm:
        vm.machine.ports.write(0x5000, 1, 7)
        own.secret = 9
        vm.snapshot(tmp_path / "s")
    again, latch = Secret("secret"), Latch()
    clone = VM.restore(tmp_path / "s", paused=True, virtio=[again])
    clone.attach(latch, port=0x5000, irq=11)
    with clone:
        assert (clone.machine.ports.read(0x5000, 1), again.secret) == (7, 9)
        assert latch.irq is not None and latch.irq.asserted
    with pytest.raises(LoadError, match="other devices than this pyvmm: Latch"):
        VM.restore(tmp_path / "s", paused=True, virtio=[Secret("secret")]).start()
    missing = VM.restore(tmp_path / "s", paused=True)
    missing.attach(Latch(), port=0x5000, irq=11)
    with pytest.raises(LoadError, match="other virtio devices"):
        missing.start()


def test_other_cpu_features_are_refused(counter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvmm.kvm.system import Kvm

    with VM(counter, mem="16M", timeout=LIMIT) as vm:
        vm.snapshot(tmp_path / "s")
    real = Kvm.supported_cpuid

    def less(self: Kvm) -> object:
        entries = real(self)
        for entry in entries:
            if entry.function == 1:
                entry.edx &= ~1
        return entries

    monkeypatch.setattr(Kvm, "supported_cpuid", less)
    with pytest.raises(LoadError, match="CPU features that this host does not have: fpu"):
        VM.restore(tmp_path / "s", timeout=LIMIT).start()


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_a_kill_during_a_snapshot_leaves_the_old_one_whole(kills: int, counter: Path, tmp_path: Path) -> None:
    """At whatever moment, the old one or the new one is there: all its checksums are right, a VM goes on from it."""
    program = (
        "import sys; from pyvmm import VM\n"
        "with VM(sys.argv[1], mem='16M', timeout=60, paused=True) as vm:\n"
        "    vm.memory.fill(0x100000, 2 << 20, 7)\n"
        "    number = int(sys.argv[3])\n"
        "    while True:\n"
        "        vm.memory.write_u32(0x8000, number)\n"
        "        vm.snapshot(sys.argv[2]); print(number, flush=True)\n"
        "        number += 1\n"
    )
    path = tmp_path / "s"
    moments = random.Random(kills)
    number = 1
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, "-c", program, counter, path, str(number)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": "."},
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"%d\n" % number
        time.sleep(moments.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        done = [number, *map(int, child.stdout.read().split())][-1]
        child.wait(LIMIT)
        child.stdout.close()
        inspect(path, verify=True)
        with VM.restore(path, timeout=LIMIT, paused=True) as clone:
            assert clone.memory.read_u32(0x8000) in (done, done + 1)
        number = done + 2
    with VM(counter, mem="16M", timeout=LIMIT) as vm:
        vm.snapshot(path)
    assert len(list(path.iterdir())) == 2, "left-overs stay"


def test_a_full_disk_leaves_nothing(counter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with VM(counter, mem="16M", timeout=LIMIT) as vm:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(PyvmmError, match="cannot be written: No space"):
            vm.snapshot(tmp_path / "s")
        assert vm.state == "running"
    assert not (tmp_path / "s").exists()


@pytest.mark.needs("gcc")
def test_every_clone_is_told_that_it_is_another_vm(tmp_path: Path) -> None:
    """Microsoft, "Virtual Machine Generation ID": another number after a restore, and a notification."""
    ids = []
    with VM(guest("hello-pvh").path(), mem="16M", timeout=LIMIT, paused=True) as vm:
        ids.append(vm.memory.read(VM_GENERATION, 16))
        vm.snapshot(tmp_path / "s")
        assert vm.memory.read(VM_GENERATION, 16) == ids[0], "the VM that was saved is no other"
        assert vm.machine.ports.read(ACPI_PM_PORT + ACPI_PM_GPE, 1) == 0
    for source, target in (("s", "t"), ("t", "u"), ("s", "v")):
        with VM.restore(tmp_path / source, paused=True) as clone:
            ids.append(clone.memory.read(VM_GENERATION, 16))
            assert clone.machine.ports.read(ACPI_PM_PORT + ACPI_PM_GPE, 1) == 1 << GENERATION_GPE
            clone.snapshot(tmp_path / target)
    assert len(set(ids)) == 4


def test_a_guest_without_tables_is_told_nothing(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="16M", timeout=LIMIT, paused=True) as vm:
        vm.memory.write(VM_GENERATION, b"its own")
        vm.snapshot(tmp_path / "s")
    with VM.restore(tmp_path / "s", paused=True) as clone:
        assert clone.memory.read(VM_GENERATION, 7) == b"its own"


@pytest.mark.serial
def test_a_clone_costs_milliseconds_and_what_it_writes(counter: Path, tmp_path: Path) -> None:
    with VM(counter, mem="128M", timeout=LIMIT, paused=True) as vm:
        vm.memory.fill(0x100000, 20 << 20, 7)
        began = time.monotonic()
        vm.snapshot(tmp_path / "s")
        assert time.monotonic() - began < 2
    times = []
    for _ in range(5):
        began = time.monotonic()
        with VM.restore(tmp_path / "s", paused=True) as clone:
            times.append(time.monotonic() - began)
            assert clone.memory.read_u8(0x100000) == 7
    assert min(times) < 0.1
