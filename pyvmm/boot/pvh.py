"""PVH: an ELF kernel whose Xen note names a 32-bit entry, told of the machine by a start info structure.

Imports elf, entry, notes, placement, errors and layout; commandline for Linux. Follows Xen's "x86/HVM direct boot
ABI" (docs/misc/pvh.pandoc) and xen/include/public/arch-x86/hvm/start_info.h. Linux, FreeBSD and Xen itself can be
booted this way.
"""

from __future__ import annotations

from struct import pack

from pyvmm import layout
from pyvmm.boot import elf, entry, notes
from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot import BootConfig, Surroundings
    from pyvmm.boot.elf import Elf
    from pyvmm.boot.image import Image
    from pyvmm.boot.placement import Placement
    from pyvmm.boot.x86 import CpuState

XEN_ELFNOTE_PHYS32_ENTRY = 18
"""xen/include/public/elfnote.h."""
START_MAGIC = 0x336EC578
START_VERSION = 1

START_INFO_LENGTH = 56
MODULE_LENGTH = 32
MEMORY_ENTRY_LENGTH = 24


def find_entry(executable: Elf, image: Image) -> int | None:
    """The gpa that the PHYS32_ENTRY note names, or None without such a note.

    Raises LoadError when the note holds no 32-bit address of loaded code.
    """
    found = elf.find_note(executable, image, notes.XEN, XEN_ELFNOTE_PHYS32_ENTRY)
    if found is None:
        return None
    descriptor, offset = found
    if len(descriptor) not in (4, 8):
        raise LoadError(image.path, f"has a PVH note of {len(descriptor)} bytes", offset=offset, expected="4 or 8")
    address = int.from_bytes(descriptor, "little")
    return elf.check_entry(executable, image.path, address, "the PVH entry", offset)


def load(image: Image, config: BootConfig, placement: Placement, surroundings: Surroundings) -> CpuState:
    """Load the kernel, the initrd as first module, and the start info; 32-bit protected mode, EBX at the latter.

    A Linux kernel gets the command line that it gets by its own protocol.
    """
    executable = elf.read(image)
    address = find_entry(executable, image)
    if address is None:
        raise LoadError(
            image.path, "has no PVH entry", expected="an ELF note by Xen of type 18 (XEN_ELFNOTE_PHYS32_ENTRY)"
        )
    state = entry.protected_mode(placement)
    length = START_INFO_LENGTH + MODULE_LENGTH + len(placement.map) * MEMORY_ENTRY_LENGTH
    placement.claim(layout.PVH_START_INFO, length, "PVH start info")
    text = config.append
    if notes.is_linux(executable, image):
        from pyvmm.boot import commandline

        text = commandline.for_kernel(config, surroundings, placement.notes)
    command_line = placement.put_command_line(text) if text else 0
    elf.load_segments(executable, image, placement)
    modules = b""
    if config.initrd is not None:
        module = placement.load_module(config.initrd)
        modules = pack("<QQQQ", module.gpa, module.length, 0, 0)
    placement.memory.write(layout.PVH_START_INFO, start_info(placement.map, command_line, modules, placement.rsdp))
    state.rip = address
    state.rbx = layout.PVH_START_INFO
    return state


def start_info(memory_map: list[tuple[int, int, int]], command_line: int, modules: bytes, rsdp: int) -> bytes:
    """hvm_start_info for PVH_START_INFO, followed by its module list (0 or 1 entries) and memory map."""
    modules_at = layout.PVH_START_INFO + START_INFO_LENGTH
    map_at = modules_at + MODULE_LENGTH
    return b"".join(
        (
            pack(
                "<IIIIQQQQII",
                START_MAGIC,
                START_VERSION,
                0,  # flags: neither privileged nor the initial domain
                len(modules) // MODULE_LENGTH,
                modules_at if modules else 0,
                command_line,
                rsdp,
                map_at,
                len(memory_map),
                0,
            ),
            modules.ljust(MODULE_LENGTH, b"\0"),
            *[pack("<QQII", base, size, kind, 0) for base, size, kind in memory_map],
        )
    )
