"""Multiboot, version 1: a header near the start of the kernel's file asks, an information structure answers.

Imports elf, entry, placement, detect, errors and layout. Follows the Multiboot Specification 0.6.96: 3.1 (header), 3.2
(machine state), 3.3 (information). Loaded are ELF files of either class, entered in 32-bit protected mode, and any
file whose header carries the addresses itself ("a.out kludge"), which then count even in an ELF file.
"""

from __future__ import annotations

import os
from struct import Struct, pack

from pyvmm import layout
from pyvmm.boot import elf, entry
from pyvmm.boot.detect import ELF_MAGIC, MULTIBOOT_MAGIC
from pyvmm.boot.placement import RAM
from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot import BootConfig
    from pyvmm.boot.image import Image
    from pyvmm.boot.placement import Placement
    from pyvmm.boot.x86 import CpuState

LOADER_MAGIC = 0x2BADB002
SEARCH_LENGTH = 8192
"""The header lies wholly within so many bytes (3.1)."""

# --- Header flags (3.1.2): a loader must refuse a bit of the lower half that it cannot fulfil ------
PAGE_ALIGN = 1 << 0
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
HAS_ADDRESSES = 1 << 16
MANDATORY = 0xFFFF

# --- Information flags (3.3): which fields are valid -----------------------------------------------
INFO_MEMORY = 1 << 0
INFO_COMMAND_LINE = 1 << 2
INFO_MODULES = 1 << 3
INFO_MEMORY_MAP = 1 << 6
INFO_LOADER_NAME = 1 << 9

INFO_LENGTH = 116
"""Up to and with color_info, the last field of the structure."""
MEMORY_ENTRY = Struct("<IQQI")
"""size (of what follows it), base_addr, length, type."""
MODULE = Struct("<IIII")
"""mod_start, mod_end, string, reserved."""
LOADER_NAME = b"pyvmm\0"

_MAGIC_FIELDS = Struct("<III")
_ADDRESS_FIELDS = Struct("<IIIII")
_HEADER_LENGTH = _MAGIC_FIELDS.size + _ADDRESS_FIELDS.size


class Header:
    """A multiboot header at `offset` of the file; `addresses` are its address fields where flag 16 says so."""

    __slots__ = ("offset", "flags", "addresses")

    def __init__(self, offset: int, flags: int, addresses: tuple[int, ...] | None) -> None:
        self.offset = offset
        self.flags = flags
        self.addresses = addresses


def candidates(head: bytes) -> list[tuple[int, bool]]:
    """Where in a file that begins with `head` the magic stands, and whether the checksum makes a header of it."""
    head = head[:SEARCH_LENGTH]
    found: list[tuple[int, bool]] = []
    at = head.find(MULTIBOOT_MAGIC)
    while at >= 0:
        if at % 4 == 0 and at + _MAGIC_FIELDS.size <= len(head):
            found.append((at, sum(_MAGIC_FIELDS.unpack_from(head, at)) & 0xFFFFFFFF == 0))
        at = head.find(MULTIBOOT_MAGIC, at + 1)
    return found


def find_header(head: bytes) -> int | None:
    """The offset of the first multiboot header in `head`, or None."""
    return next((offset for offset, valid in candidates(head) if valid), None)


def read_header(image: Image) -> Header:
    """Judge `image`'s header. Raises LoadError without one, and for a requirement that pyvmm cannot fulfil."""
    offset = find_header(image.head)
    if offset is None:
        wrong = candidates(image.head)
        if wrong:
            raise LoadError(
                image.path,
                "has a multiboot header with a wrong checksum",
                offset=wrong[0][0] + 8,
                expected="magic, flags and checksum to add up to 0",
            )
        raise LoadError(
            image.path,
            "has no multiboot header",
            expected=f"the bytes {MULTIBOOT_MAGIC.hex(' ')} at a multiple of 4 in the first {SEARCH_LENGTH} bytes",
        )
    flags = _MAGIC_FIELDS.unpack_from(image.head, offset)[1]
    unknown = flags & MANDATORY & ~(PAGE_ALIGN | MEMORY_INFO | VIDEO_MODE)
    if unknown:
        bits = ", ".join(str(bit) for bit in range(16) if unknown >> bit & 1)
        raise LoadError(
            image.path,
            f"has a multiboot header that requires flag {bits}",
            offset=offset + 4,
            expected="of the flags 0 to 15 at most 0 (page alignment), 1 (memory), 2 (video mode)",
        )
    addresses = None
    if flags & HAS_ADDRESSES:
        if offset + _HEADER_LENGTH > min(len(image.head), SEARCH_LENGTH):
            raise LoadError(
                image.path,
                "has a multiboot header cut short",
                offset=offset,
                expected=f"{_HEADER_LENGTH} bytes of it, in the first {SEARCH_LENGTH} of the file",
            )
        addresses = _ADDRESS_FIELDS.unpack_from(image.head, offset + _MAGIC_FIELDS.size)
    return Header(offset, flags, addresses)


def load(image: Image, config: BootConfig, placement: Placement) -> CpuState:
    """Load the kernel, the initrd as first module, and the information; 32-bit protected mode by 3.2."""
    header = read_header(image)
    if header.flags & VIDEO_MODE:
        # 3.1.4 calls the mode a recommendation; a kernel finds no video fields in the information and does without.
        placement.notes.append(f"{image.path} would like a video mode: there is none, its console is the serial port")
    state = entry.protected_mode(placement)
    string = b"" if config.initrd is None else os.fsencode(config.initrd) + b"\0"
    placement.claim(layout.MULTIBOOT_INFO, info_length(placement.map, string), "multiboot information")
    # A multiboot kernel finds the name of its own file first in its command line, like a program its argv[0].
    words = [config.kernel, config.append] if config.append else [config.kernel]
    command_line = placement.put_command_line(" ".join(words))
    if header.addresses is not None:
        state.rip = _load_by_addresses(header.offset, header.addresses, image, placement)
    else:
        if not image.head.startswith(ELF_MAGIC):
            raise LoadError(
                image.path,
                "has a multiboot header without addresses and is no ELF file",
                offset=header.offset + 4,
                expected="flag 16 and the address fields",
            )
        executable = elf.read(image)
        state.rip = elf.physical_entry(executable, image.path)
        elf.load_segments(executable, image, placement)
    module = (0, 0)
    if config.initrd is not None:
        # Right behind the kernel, where other loaders put modules: some kernels map only the first few MiB.
        behind = max(piece.end for piece in placement.pieces)
        piece = placement.load_module(config.initrd, above=max(behind, layout.HIGH_MEMORY))
        module = (piece.gpa, piece.end)
    placement.memory.write(layout.MULTIBOOT_INFO, information(placement.map, command_line, module, string))
    state.rax = LOADER_MAGIC
    state.rbx = layout.MULTIBOOT_INFO
    return state


def _load_by_addresses(offset: int, addresses: tuple[int, ...], image: Image, placement: Placement) -> int:
    """Load as the header's address fields (3.1.3) say and return the entry."""
    header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr = addresses

    def refuse(problem: str, field: int, expected: str) -> LoadError:
        return LoadError(image.path, f"has a multiboot header with {problem}", offset=offset + field, expected=expected)

    if not load_addr <= header_addr <= load_addr + offset:
        raise refuse(
            f"header_addr {header_addr:#x} and load_addr {load_addr:#x}",
            12,
            f"the header, at {offset:#x} of the file, at most so far behind load_addr",
        )
    start = offset - (header_addr - load_addr)
    available = image.size - start
    end = load_end_addr or load_addr + available
    if not load_addr < end <= load_addr + available:
        raise refuse(
            f"load_end_addr {end:#x}", 20, f"{load_addr + 1:#x} to {load_addr + available:#x}, where the file ends"
        )
    bss_end = bss_end_addr or end
    if bss_end < end:
        raise refuse(f"bss_end_addr {bss_end:#x}", 24, f"at least load_end_addr, {end:#x}")
    if not load_addr <= entry_addr < end:
        raise refuse(f"entry_addr {entry_addr:#x}", 28, f"an address of the code, {load_addr:#x}-{end - 1:#x}")
    placement.load(image, start, end - load_addr, load_addr, bss_end - load_addr, "kernel", offset + 16)
    return entry_addr


def info_length(memory_map: list[tuple[int, int, int]], string: bytes) -> int:
    """Bytes that `information` takes with this map and module string."""
    return INFO_LENGTH + len(memory_map) * MEMORY_ENTRY.size + MODULE.size + len(LOADER_NAME) + len(string)


def information(
    memory_map: list[tuple[int, int, int]], command_line: int, module: tuple[int, int], string: bytes
) -> bytes:
    """The structure of 3.3 for MULTIBOOT_INFO, followed by what it points to.

    `command_line` is a gpa. `module` is the range of the one module, end exclusive as everybody has it, and `string`
    its NUL-terminated name; empty without a module.
    """
    lower = sum(size for base, size, kind in memory_map if kind == RAM and base == 0)
    upper = sum(size for base, size, kind in memory_map if kind == RAM and base == layout.HIGH_MEMORY)
    map_at = layout.MULTIBOOT_INFO + INFO_LENGTH
    map_length = len(memory_map) * MEMORY_ENTRY.size
    module_at = map_at + map_length
    name_at = module_at + MODULE.size
    string_at = name_at + len(LOADER_NAME)
    info = bytearray(INFO_LENGTH)
    info[0:28] = pack(
        "<IIIIIII",
        INFO_MEMORY | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME,
        lower >> 10,
        upper >> 10,
        0,  # boot_device: not valid, the kernel comes from no disk of the guest's
        command_line,
        1 if string else 0,
        module_at,
    )
    info[44:52] = pack("<II", map_length, map_at)
    info[64:68] = pack("<I", name_at)
    entries = [MEMORY_ENTRY.pack(MEMORY_ENTRY.size - 4, *entry) for entry in memory_map]
    return b"".join((info, *entries, MODULE.pack(*module, string_at, 0), LOADER_NAME, string))
