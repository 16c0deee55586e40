"""Entering Linux: the zero page, and the state that its 32-bit and 64-bit boot protocols ask for.

Imports entry, elf, commandline, placement, errors and layout. Follows Documentation/arch/x86/boot.rst ("32-bit Boot
Protocol", "64-bit Boot Protocol") and zero-page.rst in Linux; offsets are those of `struct boot_params` in
arch/x86/include/uapi/asm/bootparam.h.

Used for a vmlinux, which is an ELF file and has no setup header of its own, for a bzImage, and for the vmlinux that
was in a bzImage.
"""

from __future__ import annotations

from struct import pack, pack_into

from pyvmm import layout
from pyvmm.boot import commandline, elf, entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.boot import BootConfig, Surroundings
    from pyvmm.boot.bzimage import SetupHeader
    from pyvmm.boot.image import Image
    from pyvmm.boot.placement import Piece, Placement
    from pyvmm.boot.x86 import CpuState

# --- struct boot_params -------------------------------------------------------------------------------------------
BOOT_PARAMS_LENGTH = 4096
ACPI_RSDP_ADDR = 0x070
E820_ENTRIES = 0x1E8
HEADER = 0x1F1
BOOT_FLAG = 0x1FE
MAGIC = 0x202
VERSION = 0x206
TYPE_OF_LOADER = 0x210
LOADFLAGS = 0x211
CODE32_START = 0x214
RAMDISK_IMAGE = 0x218
RAMDISK_SIZE = 0x21C
EXT_LOADER = 0x226
CMD_LINE_PTR = 0x228
HARDWARE_SUBARCH = 0x23C
SETUP_DATA = 0x250
E820_TABLE = 0x2D0
E820_MAX_ENTRIES = 128

LOADER_UNDEFINED = 0xFF
"""type_of_loader of who has no number of his own."""
LOADED_HIGH = 1 << 0
CAN_USE_HEAP = 1 << 7
"""loadflags: there is a heap for the real-mode code, which is never run here."""

VMLINUX_CMDLINE_SIZE = 2047
"""COMMAND_LINE_SIZE of arch/x86/include/asm/setup.h, without the NUL; a vmlinux does not say."""
VMLINUX_INITRD_ADDR_MAX = {32: 0x37FFFFFF, 64: 0x7FFFFFFF}
"""What arch/x86/boot/header.S says for a bzImage: a 32-bit kernel reaches no farther (896 MiB of low memory)."""
VMLINUX_PROTOCOL = 0x20C
"""The protocol that a vmlinux is told of: the first with a 64-bit entry."""


def load(image: Image, config: BootConfig, placement: Placement, surroundings: Surroundings) -> CpuState:
    """Load a vmlinux: ELF64 in 64-bit mode, ELF32 in 32-bit mode, at its physical entry."""
    return boot_elf(image, config, placement, surroundings, None)


def boot_elf(
    image: Image, config: BootConfig, placement: Placement, surroundings: Surroundings, header: SetupHeader | None
) -> CpuState:
    """Load the vmlinux `image`; `header` is that of the bzImage it was in, if it was in one.

    It runs where it is linked to run: the relocations that a bzImage's payload has behind it are not looked at.
    """
    executable = elf.read(image)

    def place() -> int:
        elf.load_segments(executable, image, placement)
        return elf.physical_entry(executable, image.path)

    return boot(executable.bits, place, config, placement, surroundings, header)


def boot(
    bits: int,
    place: Callable[[], int],
    config: BootConfig,
    placement: Placement,
    surroundings: Surroundings,
    header: SetupHeader | None,
) -> CpuState:
    """Set up all that a kernel finds when it is entered in `bits`-bit mode, and the state that it is entered in.

    `place()` loads the kernel and returns the gpa of its entry. It comes after the tables and the command line, so
    that a kernel which wants their place is refused with the offset in its file, and before the initrd, which takes
    what is left: as high as the kernel allows.
    """
    state = entry.long_mode(placement) if bits == 64 else entry.protected_mode(placement)
    placement.claim(layout.BOOT_PARAMS, BOOT_PARAMS_LENGTH, "Linux boot_params")
    limit = VMLINUX_CMDLINE_SIZE if header is None else header.cmdline_size
    text = commandline.for_kernel(config, surroundings, placement.notes)
    command_line = placement.put_command_line(text, limit=min(limit + 1, layout.COMMAND_LINE_SIZE))
    state.rip = place()
    initrd = None
    if config.initrd is not None:
        highest = VMLINUX_INITRD_ADDR_MAX[bits] if header is None else header.initrd_addr_max
        initrd = placement.load_module(config.initrd, below=highest + 1)
    zero_page = boot_params(placement.map, command_line, initrd, placement.rsdp, header)
    placement.memory.write(layout.BOOT_PARAMS, zero_page)
    state.rsi = layout.BOOT_PARAMS
    return state


def boot_params(
    memory_map: list[tuple[int, int, int]],
    command_line: int,
    initrd: Piece | None,
    rsdp: int,
    header: SetupHeader | None,
) -> bytes:
    """The zero page: a setup header, and what else a loader has to say.

    `header` is a bzImage's; a vmlinux is given one that has what every kernel looks for. `command_line` and `rsdp`
    (0 without ACPI) are gpas.
    """
    page = bytearray(BOOT_PARAMS_LENGTH)
    if header is None:
        pack_into("<H", page, BOOT_FLAG, 0xAA55)
        pack_into("<4sH", page, MAGIC, b"HdrS", VMLINUX_PROTOCOL)
        page[LOADFLAGS] = LOADED_HIGH
    else:
        page[HEADER : HEADER + len(header.bytes)] = header.bytes
        pack_into("<I", page, CODE32_START, header.load_address)
    page[TYPE_OF_LOADER] = LOADER_UNDEFINED
    page[LOADFLAGS] &= ~CAN_USE_HEAP
    pack_into("<H", page, EXT_LOADER, 0)
    pack_into("<I", page, CMD_LINE_PTR, command_line)
    pack_into("<II", page, RAMDISK_IMAGE, *((initrd.gpa, initrd.length) if initrd is not None else (0, 0)))
    pack_into("<Q", page, ACPI_RSDP_ADDR, rsdp)
    pack_into("<I", page, HARDWARE_SUBARCH, 0)  # a PC
    pack_into("<Q", page, SETUP_DATA, 0)
    assert len(memory_map) <= E820_MAX_ENTRIES
    page[E820_ENTRIES] = len(memory_map)
    table = b"".join(pack("<QQI", base, size, kind) for base, size, kind in memory_map)
    page[E820_TABLE : E820_TABLE + len(table)] = table
    return bytes(page)
