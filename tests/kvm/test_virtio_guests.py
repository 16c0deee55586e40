"""Small guests that drive virtio devices themselves: doorbells and interrupts by way of KVM, and none lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm import VM, Disk
from pyvmm.backends.capture import CaptureConsole
from pyvmm.images import guest
from pyvmm.kvm.exits import Exit, Mmio
from pyvmm.layout import VIRTIO_MMIO
from pyvmm.observe import Observer
from pyvmm.virtio import plane
from pyvmm.virtio.mmio import QUEUE_NOTIFY

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.needs("gcc")]

DISK_WORD = f"virtio_mmio.device=4K@{VIRTIO_MMIO:#x}:5"
TEXT = b"the first line of sector 0\n"
MODES = ("poll", "irq", "masked", "window")


class Writes(Observer):
    """The offsets in the first transport that the guest's writes left KVM for."""

    def __init__(self) -> None:
        self.offsets: list[int] = []

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        if isinstance(exit, Mmio) and exit.is_write:
            self.offsets.append(exit.gpa - VIRTIO_MMIO)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(TEXT.ljust(1 << 20, b"\0"))
    return path


def run(name: str, words: str, image: Path, *observers: Observer) -> tuple[str, int | None]:
    """What the guest prints, and its status."""
    vm = VM(
        guest(name).path(),
        mem="64M",
        disks=[Disk(image)],
        append=f"{DISK_WORD} {words}",
        timeout=30,
        observers=observers,
    )
    with vm:
        exit = vm.wait(40)
        assert isinstance(vm.console, CaptureConsole)
        return vm.console.text, exit.status


@pytest.mark.parametrize("features", ["", " flags"])
@pytest.mark.parametrize("mode", MODES)
def test_a_sector_is_copied_however_the_driver_is_told(mode: str, features: str, image: Path) -> None:
    text, status = run("virtio-blk", mode + features, image)
    told = "without interrupts" if mode == "poll" else "told by interrupts"
    assert (text, status) == (f"sector 0: {TEXT.decode()}copied to sector 1, {told}\n", 0)
    assert image.read_bytes() == TEXT.ljust(512, b"\0") * 2 + bytes((1 << 20) - 1024)


def test_a_masked_interrupt_is_lost_unless_the_driver_is_reminded(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane.DataPlane, "_remind", lambda self: None)  # so the guest does test what it says
    text, status = run("virtio-blk", "masked", image)
    assert (text, status) == ("FAILED: an interrupt is lost\n", 3)


def test_a_doorbell_never_leaves_kvm(image: Path) -> None:
    writes = Writes()
    run("virtio-blk", "irq", image, writes)
    assert writes.offsets
    assert QUEUE_NOTIFY not in writes.offsets


def test_the_benchmarks_guest_measures_a_disk(image: Path) -> None:
    tests = ["read:4096:1", "read:4096:128:irq", "write:4096:256", "seqread:65536:4:irq", "seqwrite:65536:4"]
    text, status = run("virtio-bench", " ".join(["khz=2000000 ms=20", *tests]), image)
    lines = text.splitlines()
    assert status == 1, text
    assert lines[::2] == [f"begin {test}" for test in tests]
    for line in lines[1::2]:
        word, operations, cycles, _, notifications, lost = line.split()
        assert word == "end" and int(operations) > 0 and int(cycles) >= 20 * 2_000_000 and lost == "0"
        assert int(notifications) <= int(operations)
