"""Loading a kernel: `load()` fills guest memory and says in which state the boot processor starts.

Imports image, placement, detect and errors; the reader of a format is imported when a kernel has that format, because
starting a VM should cost no more than it needs. Nothing here knows KVM.
"""

from __future__ import annotations

from pyvmm.boot.image import Image
from pyvmm.boot.placement import RAM, Piece, Placement
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    from pyvmm.boot.x86 import CpuState
    from pyvmm.memory import GuestMemory

    class BootConfig(Protocol):
        """The part of `pyvmm.config.VmConfig` that a loader reads; what each means stands there."""

        @property
        def kernel(self) -> str: ...
        @property
        def kernel_format(self) -> str: ...
        @property
        def flat_mode(self) -> str | None: ...
        @property
        def load_addr(self) -> int | None: ...
        @property
        def initrd(self) -> str | None: ...
        @property
        def append(self) -> str: ...
        @property
        def kernel_entry(self) -> str: ...
        @property
        def host_quirks(self) -> bool: ...
        @property
        def cpus(self) -> int: ...


FORMATS = {
    "flat": "flat binary",
    "elf": "ELF executable",
    "linux": "Linux kernel (vmlinux)",
    "bzimage": "Linux kernel (bzImage)",
    "multiboot": "multiboot kernel",
    "pvh": "ELF kernel with a PVH entry",
}
_MODES = {"real": "16-bit real mode", "protected": "32-bit protected mode", "long": "64-bit long mode"}


class Surroundings:
    """What a kernel is told of that is no part of the configuration: facts about the host and about the machine.

    emulated     ring 0 is emulated on this host, so that nothing is left to the guest that can be done before
    helps        words for a Linux command line that a guest needs on this host
    devices      words for a Linux command line that announce devices to a kernel without ACPI
    virtio_mmio  (gpa, length, gsi) of devices that ACPI announces
    pci          the slots of PCI devices that interrupt by INTA#; None in a machine without PCI
    """

    __slots__ = ("devices", "emulated", "helps", "pci", "virtio_mmio")

    def __init__(
        self,
        *,
        emulated: bool = False,
        helps: Sequence[str] = (),
        devices: Sequence[str] = (),
        virtio_mmio: Sequence[tuple[int, int, int]] = (),
        pci: Sequence[int] | None = None,
    ) -> None:
        self.emulated = emulated
        self.helps = helps
        self.devices = devices
        self.virtio_mmio = virtio_mmio
        self.pci = pci


class LoadedKernel:
    """What `load()` made of a kernel.

    `format` is a key of FORMATS. `entry` is the gpa of the first instruction, `state` the boot processor's registers.
    `pieces` are the ranges of guest memory in use, ascending; `memory_map` is what the guest is told of it, as
    (gpa, length, type). `command_line` is None where the kernel gets none. `notes` are lines for the user.
    """

    __slots__ = ("path", "format", "entry", "state", "pieces", "memory_map", "command_line", "notes")

    def __init__(self, format: str, state: CpuState, placement: Placement) -> None:
        self.path = placement.path
        self.format = format
        self.state = state
        self.entry = state.cs.base + state.rip
        self.pieces: tuple[Piece, ...] = tuple(placement.pieces)
        self.memory_map = tuple(placement.map)
        self.command_line = placement.command_line
        self.notes = tuple(placement.notes)

    def describe(self) -> str:
        """Several lines for `--dry-run`: what was loaded where, and how the processor starts."""
        lines = [
            f"kernel        {self.path}: {FORMATS[self.format]}",
            f"entry         {self.entry:#x} in {_MODES[self.state.mode]}",
            f"command line  {'(none)' if self.command_line is None else self.command_line}",
        ]
        lines += [
            f"loaded        {piece.gpa:#012x}-{piece.end - 1:#012x} {piece.length:>10} bytes  {piece.what}"
            for piece in self.pieces
        ]
        lines += [
            f"memory map    {base:#012x}-{base + size - 1:#012x} {size >> 10:>10} KiB    "
            f"{'RAM' if kind == RAM else 'reserved'}"
            for base, size, kind in self.memory_map
        ]
        return "\n".join(lines + [f"note          {note}" for note in self.notes])


def load(config: BootConfig, memory: GuestMemory, surroundings: Surroundings | None = None) -> LoadedKernel:
    """Load `config.kernel`, and its initrd and command line, into `memory`, which nothing has written to yet.

    The format is told by the content (see `detect`) or forced by `config.kernel_format`. Raises LoadError for a file
    that is not what it should be, UsageError for options that do not go with its format.
    """
    with Image(config.kernel) as image:
        placement = Placement(memory, config.kernel)
        format = config.kernel_format
        if format == "auto":
            from pyvmm.boot.detect import detect

            format, placement.notes = detect(image)
        _judge_options(config, format)
        surroundings = surroundings or Surroundings()
        if format not in ALONE:
            from pyvmm.boot.firmware import put_tables

            placement.rsdp = put_tables(placement, config.cpus, surroundings.virtio_mmio, surroundings.pci)
        return LoadedKernel(format, _load_as(format, image, config, placement, surroundings), placement)


ALONE = ("flat", "elf")
"""Formats whose kernels are told nothing, and have all memory to themselves."""


def _judge_options(config: BootConfig, format: str) -> None:
    """Raise UsageError for an option that a kernel in `format` has no use for."""

    loaded = f"{config.kernel} is loaded as {FORMATS[format]}"
    if format != "flat" and (config.flat_mode is not None or config.load_addr is not None):
        option = "--load-addr" if config.flat_mode is None else "--flat-mode"
        raise UsageError(f"{option} is for flat binaries; {loaded} (--kernel-format flat would change that)")
    if format in ALONE and (config.append or config.initrd is not None):
        option = "--append" if config.append else "--initrd"
        raise UsageError(f"{option}: {loaded}, which has no way to be told")
    if format != "bzimage" and config.kernel_entry != "auto":
        raise UsageError(f"--kernel-entry is for Linux bzImages; {loaded}")


def _load_as(
    format: str, image: Image, config: BootConfig, placement: Placement, surroundings: Surroundings
) -> CpuState:
    if format == "flat":
        from pyvmm.boot import flat

        return flat.load(image, config, placement)
    if format == "multiboot":
        from pyvmm.boot import multiboot

        return multiboot.load(image, config, placement)
    if format == "pvh":
        from pyvmm.boot import pvh

        return pvh.load(image, config, placement, surroundings)
    if format == "linux":
        from pyvmm.boot import linux

        return linux.load(image, config, placement, surroundings)
    if format == "bzimage":
        from pyvmm.boot import bzimage

        return bzimage.load(image, config, placement, surroundings)
    from pyvmm.boot import elf

    return elf.load(image, config, placement)
