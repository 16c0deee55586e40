"""Small guests that drive virtio devices themselves: doorbells and interrupts by way of KVM, and none lost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from pyvmm import VM, Disk
from pyvmm.backends.capture import CaptureConsole
from pyvmm.images import guest
from pyvmm.kvm.exits import Exit, Mmio
from pyvmm.layout import PCI_WINDOW, PCI_WINDOW_END, VIRTIO_MMIO
from pyvmm.observe import Observer
from pyvmm.pci.msix import Msix
from pyvmm.virtio import plane
from pyvmm.virtio.mmio import QUEUE_NOTIFY
from pyvmm.virtio.pci import NOTIFY

pytestmark = [pytest.mark.needs("kvm"), pytest.mark.needs("gcc")]

DISK_WORD = f"virtio_mmio.device=4K@{VIRTIO_MMIO:#x}:5"
TEXT = b"the first line of sector 0\n"
MODES = ("poll", "irq", "masked", "window")
PCI_MODES = ("poll", "irq", "masked", "irq intx", "masked intx", "irq move", "irq intx move")


class Writes(Observer):
    """Where the guest's writes to memory that is none left KVM."""

    def __init__(self) -> None:
        self.gpas: list[int] = []

    def on_exit(self, vcpu: int, exit: Exit) -> None:
        if isinstance(exit, Mmio) and exit.is_write:
            self.gpas.append(exit.gpa)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(TEXT.ljust(1 << 20, b"\0"))
    return path


def run(
    name: str,
    words: str,
    image: Path,
    *observers: Observer,
    transport: str = "mmio",
    others: Sequence[Path] = (),
    exits: str = "fast",
    datapath: str = "native",
) -> tuple[str, int | None]:
    """What the guest prints, and its status; its first disk is `image`."""
    vm = VM(
        guest(name).path(),
        mem="64M",
        disks=[Disk(image), *(Disk(other, readonly=True) for other in others)],
        append=f"{DISK_WORD} {words}" if transport == "mmio" else words,
        transport=transport,
        timeout=30,
        observers=observers,
        exits=exits,
        datapath=datapath,
    )
    with vm:
        exit = vm.wait(40)
        assert isinstance(vm.console, CaptureConsole)
        return vm.console.text, exit.status


@pytest.mark.parametrize(("exits", "datapath"), [("fast", "native"), ("plain", "python")])
@pytest.mark.parametrize("features", ["", " flags"])
@pytest.mark.parametrize("mode", MODES)
def test_a_sector_is_copied_however_the_driver_is_told(
    mode: str, features: str, image: Path, exits: str, datapath: str
) -> None:
    text, status = run("virtio-blk", mode + features, image, exits=exits, datapath=datapath)
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
    assert writes.gpas
    assert VIRTIO_MMIO + QUEUE_NOTIFY not in writes.gpas


# --- PCI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", ["", " flags"])
@pytest.mark.parametrize("mode", PCI_MODES)
def test_a_sector_is_copied_over_pci_by_messages_and_by_a_pin(mode: str, features: str, image: Path) -> None:
    text, status = run("virtio-blk", mode + features, image, transport="pci")
    told = "without interrupts" if mode == "poll" else "told by interrupts"
    assert (text, status) == (f"sector 0: {TEXT.decode()}copied to sector 1, {told}\n", 0)
    assert image.read_bytes() == TEXT.ljust(512, b"\0") * 2 + bytes((1 << 20) - 1024)


@pytest.mark.parametrize("words", ["load", "load flags", "load intx"])
def test_interrupts_masked_and_unmasked_under_load_are_not_lost(words: str, image: Path) -> None:
    """PCI 3.0, 6.8.2.9 (pending bits) and 6.8.3.5; for a pin the level stays until it is served."""
    assert run("virtio-blk", words, image, transport="pci") == ("every interrupt came\n", 0)


def test_without_pending_bits_they_would_be_lost(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fire = Msix.fire

    def forget(self: Msix, vector: int) -> None:
        before = self._pending
        fire(self, vector)
        self._pending = before

    monkeypatch.setattr(Msix, "fire", forget)  # so the guest does test what it says
    assert run("virtio-blk", "masked", image, transport="pci") == ("FAILED: an interrupt is lost\n", 3)


@pytest.mark.parametrize("words", ["irq", "load", "irq intx"])
def test_a_doorbell_on_pci_leaves_kvm_once(words: str, image: Path) -> None:
    writes = Writes()
    run("virtio-blk", words, image, writes, transport="pci")
    assert writes.gpas.count(PCI_WINDOW + NOTIFY) == 1


def test_a_doorbell_goes_with_the_registers(image: Path) -> None:
    for _ in range(10):
        writes = Writes()
        run("virtio-blk", "irq move", image, writes, transport="pci")
        rung = [gpa for gpa in writes.gpas if PCI_WINDOW <= gpa < PCI_WINDOW_END and gpa % 0x4000 == NOTIFY]
        assert len(set(rung)) == len(rung)
        if len(rung) == 2:
            break  # else the device was still looking when the second request came, and wanted no notification
    assert len(rung) == 2, "once at each of both places"


def test_a_function_is_told_from_the_others_on_the_bus(image: Path, tmp_path: Path) -> None:
    """The guest drives the first of 20 disks, whose neighbours keep quiet; the bus has room for 31."""
    other = tmp_path / "other"
    other.write_bytes(bytes(512))
    text, status = run("virtio-blk", "irq intx", image, transport="pci", others=[other] * 19)
    assert status == 0 and "told by interrupts" in text


def test_the_benchmarks_guest_measures_a_disk_on_pci(image: Path) -> None:
    text, status = run("virtio-bench", "khz=2000000 ms=20 read:4096:1 read:4096:128:irq", image, transport="pci")
    assert status == 1 and len(text.splitlines()) == 4, text
    interrupts = [int(line.split()[3]) for line in text.splitlines()[1::2]]
    assert interrupts[0] == 0 < interrupts[1]


# --- Measuring -------------------------------------------------------------------------------------------------------


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
