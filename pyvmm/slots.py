"""Where each virtio device of a VM will be found: a page of registers and an interrupt, by its place in the list.

Imports layout and errors, and the words of the kernel's command line if there are any. A kernel can so be told of its
devices, by ACPI or on its command line, before any of them exists.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.config import VmConfig

HVC = "hvc0"
"""Linux's name of the first port of a virtio console."""


class Slot:
    """Where device number `number` of its `kind` is found: registers at `gpa`, interrupt `gsi`.

    With the PCI transport it is function 0 of `device` on bus 0, `gpa` is where its first BAR points to at first, and
    `gsi` its INTx; else `device` is None.
    """

    __slots__ = ("device", "gpa", "gsi", "kind", "number")

    def __init__(self, kind: str, number: int, gpa: int, gsi: int, device: int | None = None) -> None:
        self.kind = kind
        self.number = number
        self.gpa = gpa
        self.gsi = gsi
        self.device = device

    @property
    def name(self) -> str:
        """What messages and fault plans call the device: "blk0"."""
        return f"{self.kind}{self.number}"

    @property
    def word(self) -> str:
        """What announces it on a Linux command line (Linux's kernel-parameters.txt, virtio_mmio.device=)."""
        return f"virtio_mmio.device={layout.VIRTIO_MMIO_SIZE >> 10}K@{self.gpa:#x}:{self.gsi}"


def on_hvc(config: VmConfig) -> bool:
    """Whether the guest's console is the virtio console's first port."""
    if HVC not in config.append:
        return False
    from pyvmm.boot.commandline import console_device

    return console_device(config.append) == HVC


def wanted(config: VmConfig) -> list[tuple[str, int]]:
    """The devices that `config` asks for, each a kind and its number."""
    found = [("blk", number) for number in range(len(config.disks))]
    found += [("net", number) for number in range(len(config.nets))]
    if config.ports or on_hvc(config):
        found.append(("console", 0))
    if config.rng is not None:
        found.append(("rng", 0))
    found += [("9p", number) for number in range(len(config.shares))]
    if config.vsock is not None:
        found.append(("vsock", 0))
    if config.balloon is not None:
        found.append(("balloon", 0))
    found += [("own", number) for number in range(len(config.virtio))]
    return found


def slots(config: VmConfig, transport: str = "mmio") -> list[Slot]:
    """The slots of all devices that `config` asks for. Raises UsageError for more than there is room for."""
    found = wanted(config)
    if not found:
        return []
    if transport == "pci":
        if len(found) > layout.PCI_DEVICES:
            raise UsageError(f"{len(found)} virtio devices: a PCI bus has room for {layout.PCI_DEVICES}")
        return [
            Slot(*which, layout.PCI_WINDOW + layout.PCI_BARS * at, layout.pci_gsi(at + 1), at + 1)
            for at, which in enumerate(found)
        ]
    gsis = _mmio_gsis(config)
    if len(found) > len(gsis):
        raise UsageError(
            f"{len(found)} virtio devices: there are interrupts for {len(gsis)} (--transport pci has room for more)"
        )
    size = layout.VIRTIO_MMIO_SIZE
    return [Slot(*which, layout.VIRTIO_MMIO + size * at, gsis[at]) for at, which in enumerate(found)]


def _mmio_gsis(config: VmConfig) -> tuple[int, ...]:
    from pyvmm.boot.commandline import without_acpi

    return layout.VIRTIO_GSIS + (() if without_acpi(config.append) else layout.VIRTIO_HIGH_GSIS)


def choose_transport(config: VmConfig) -> str:
    """What "auto" means for `config`: "mmio" or "pci".

    MMIO is quicker to find. PCI is what every stock kernel has, and the transport for more devices than there are
    interrupts. So a Linux kernel gets MMIO if the driver for it is built in, and what is no Linux gets it because it
    has no configuration space to search. Whether a compressed kernel has the driver cannot be seen: PCI.
    """
    if config.transport != "auto":
        return config.transport
    found = wanted(config)
    if not found:
        return "mmio"
    if len(found) > len(_mmio_gsis(config)):
        return "pci"
    from pyvmm.boot.driver import has_virtio_mmio

    return "mmio" if has_virtio_mmio(config.kernel, config.kernel_format) else "pci"
