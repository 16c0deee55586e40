"""Where each virtio device of a VM will be found: a page of registers and an interrupt, by its place in the list.

Imports layout, the words of the kernel's command line, and errors. A kernel can so be told of its devices, by ACPI or
on its command line, before any of them exists.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot.commandline import console_device, without_acpi
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import VmConfig

HVC = "hvc0"
"""Linux's name of the first port of a virtio console."""


class Slot:
    """Where device number `number` of its `kind` is found: registers at `gpa`, interrupt `gsi`."""

    __slots__ = ("gpa", "gsi", "kind", "number")

    def __init__(self, kind: str, number: int, gpa: int, gsi: int) -> None:
        self.kind = kind
        self.number = number
        self.gpa = gpa
        self.gsi = gsi

    @property
    def name(self) -> str:
        """What messages and fault plans call the device: "blk0"."""
        return f"{self.kind}{self.number}"

    @property
    def word(self) -> str:
        """What announces it on a Linux command line (Linux's kernel-parameters.txt, virtio_mmio.device=)."""
        return f"virtio_mmio.device={layout.VIRTIO_MMIO_SIZE >> 10}K@{self.gpa:#x}:{self.gsi}"


def slots(config: VmConfig) -> list[Slot]:
    """The slots of all devices that `config` asks for. Raises UsageError for more than there are interrupts."""
    wanted = [("blk", number) for number in range(len(config.disks))]
    wanted += [("net", number) for number in range(len(config.nets))]
    if config.ports or console_device(config.append) == HVC:
        wanted.append(("console", 0))
    if config.rng is not None:
        wanted.append(("rng", 0))
    gsis = layout.VIRTIO_GSIS + (() if without_acpi(config.append) else layout.VIRTIO_HIGH_GSIS)
    if len(wanted) > len(gsis):
        raise UsageError(f"{len(wanted)} virtio devices: this machine has interrupts for {len(gsis)}")
    size = layout.VIRTIO_MMIO_SIZE
    return [Slot(*which, layout.VIRTIO_MMIO + size * at, gsis[at]) for at, which in enumerate(wanted)]
