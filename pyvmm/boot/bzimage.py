"""Linux bzImages: the setup header judged field by field, and the kernel behind it entered by the boot protocol.

Imports linux, placement, image, errors and layout; payload when the kernel is to be decompressed here. Follows "The
Linux/x86 Boot Protocol" (Documentation/arch/x86/boot.rst in Linux, before 6.5 Documentation/x86/): "The Real-Mode
Kernel Header", "Details of Header Fields", "32-bit Boot Protocol", "64-bit Boot Protocol". Fields carry its names.

The real-mode code is never run. Its header is read, and copied to the zero page; the protected-mode kernel is put
where it prefers to be and entered in 64-bit mode, or in 32-bit mode where it has no such entry. Or, see `payload`,
what it would unpack is unpacked here and entered instead.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.boot import linux
from pyvmm.boot.image import Image
from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot import BootConfig, Surroundings
    from pyvmm.boot.placement import Placement
    from pyvmm.boot.x86 import CpuState

SECTOR = 512
DEFAULT_SETUP_SECTORS = 4
"""What setup_sects 0 means."""
MAX_SETUP_SECTORS = 64
"""SETUP_SECT_MAX of arch/x86/boot/tools/build.c; the setup code runs in 32 KiB."""
BOOT_FLAG = 0xAA55
MAGIC = b"HdrS"
SHORT_JUMP = 0xEB
HEADER_START = 0x1F1
JUMP_END = 0x202
"""Where the jump at 0x200 counts from: the header ends as many bytes later as it jumps."""
OLDEST = 0x202
"""The first protocol with cmd_line_ptr, of Linux 2.4; before it, a loader had to run real-mode code."""
PARAGRAPH = 16
"""The unit of syssize."""

LOADED_HIGH = 1 << 0
"""loadflags: the kernel lies at 1 MiB or above (a bzImage; a zImage does not)."""
XLF_KERNEL_64 = 1 << 0
"""xloadflags: there is a 64-bit entry, ENTRY_64 bytes behind the 32-bit one."""
ENTRY_64 = 0x200

_OLD_INITRD_ADDR_MAX = 0x37FFFFFF
_OLD_CMDLINE_SIZE = 255

# Name: offset, bytes, the first protocol that has it, the value before that.
FIELDS = {
    "setup_sects": (0x1F1, 1, 0x000, 0),
    "syssize": (0x1F4, 4, 0x204, 0),
    "boot_flag": (0x1FE, 2, 0x000, 0),
    "version": (0x206, 2, 0x200, 0),
    "kernel_version": (0x20E, 2, 0x200, 0),
    "loadflags": (0x211, 1, 0x200, 0),
    "code32_start": (0x214, 4, 0x200, 0),
    "cmd_line_ptr": (0x228, 4, 0x202, 0),
    "initrd_addr_max": (0x22C, 4, 0x203, _OLD_INITRD_ADDR_MAX),
    "kernel_alignment": (0x230, 4, 0x205, 0),
    "relocatable_kernel": (0x234, 1, 0x205, 0),
    "min_alignment": (0x235, 1, 0x20A, 0),
    "xloadflags": (0x236, 2, 0x20C, 0),
    "cmdline_size": (0x238, 4, 0x206, _OLD_CMDLINE_SIZE),
    "hardware_subarch_data": (0x240, 8, 0x207, 0),
    "payload_offset": (0x248, 4, 0x208, 0),
    "payload_length": (0x24C, 4, 0x208, 0),
    "setup_data": (0x250, 8, 0x209, 0),
    "pref_address": (0x258, 8, 0x20A, 0),
    "init_size": (0x260, 4, 0x20A, 0),
    "handover_offset": (0x264, 4, 0x20B, 0),
    "kernel_info_offset": (0x268, 4, 0x20F, 0),
}
"""The fields that are read, and those whose presence tells how long the header of a version is at least."""


class SetupHeader:
    """The header of a bzImage that may be loaded: what its fields say, and what follows from them.

    bytes            the header as it stands, from offset 0x1f1
    setup_size       bytes of the real-mode code; the protected-mode kernel follows it
    load_address     gpa where the kernel is put
    memory_size      bytes that it needs from there on before it looks at its memory map
    entry_64         whether it has a 64-bit entry
    payload          (offset in the file, length) of the compressed kernel, or None where the header does not say
    release          the kernel's version in words, "" where it has none
    """

    __slots__ = (
        "bytes", "version", "setup_size", "load_address", "memory_size", "init_size", "entry_64", "payload",
        "initrd_addr_max", "cmdline_size", "release",
    )  # fmt: skip

    def __init__(self, image: Image) -> None:
        """Read and judge `image`'s header. Raises LoadError, which names the field."""
        head = image.head
        self.version = version = _judge_marks(image)
        end = JUMP_END + head[JUMP_END - 1]
        field = {
            name: int.from_bytes(head[at : at + size], "little") if version >= since else default
            for name, (at, size, since, default) in FIELDS.items()
        }
        self.bytes = head[HEADER_START:end]
        self.setup_size = (1 + (field["setup_sects"] or DEFAULT_SETUP_SECTORS)) * SECTOR
        length = _judge_sizes(image, field, self.setup_size)
        self.load_address = _load_address(image, field)
        self.init_size = field["init_size"]
        self.memory_size = max(self.init_size, length)
        self.entry_64 = bool(field["xloadflags"] & XLF_KERNEL_64)
        self.payload = _payload(image, field, self.setup_size)
        self.initrd_addr_max = field["initrd_addr_max"]
        self.cmdline_size = field["cmdline_size"]
        self.release = _release(image, field, self.setup_size)

    def describe(self) -> str:
        """A line for the user."""
        name = f"Linux {self.release}" if self.release else "a Linux kernel of unknown version"
        return f"{name}, boot protocol {self.version >> 8}.{self.version & 0xFF:02}"


def _judge_marks(image: Image) -> int:
    """The protocol version of a file that is a bzImage with a header as long as that version's."""
    head = image.head
    boot_flag, _, _, _ = FIELDS["boot_flag"]
    if len(head) < FIELDS["kernel_version"][0]:
        raise LoadError(image.path, "ends within the setup header", offset=len(head), expected="a bzImage")
    found = int.from_bytes(head[boot_flag : boot_flag + 2], "little")
    if found != BOOT_FLAG:
        raise LoadError(image.path, f"has boot_flag {found:#06x}", offset=boot_flag, expected=f"{BOOT_FLAG:#x}")
    if head[JUMP_END : JUMP_END + 4] != MAGIC:
        raise LoadError(image.path, "has no setup header magic", offset=JUMP_END, expected=MAGIC.decode())
    at = FIELDS["version"][0]
    version = int.from_bytes(head[at : at + 2], "little")
    if not OLDEST <= version < 0x300:
        words = f"has boot protocol {version >> 8}.{version & 0xFF:02}"
        raise LoadError(image.path, words, offset=at, expected="2.02 (Linux 2.4) or a later 2.xx")
    jump, reach = head[JUMP_END - 2 : JUMP_END]
    needed = max(at + size for at, size, since, _ in FIELDS.values() if since <= version)
    if jump != SHORT_JUMP or reach > 0x7F or JUMP_END + reach < needed:
        raise LoadError(
            image.path,
            f"has {jump:02x} {reach:02x} where the length of the setup header is told,",
            offset=JUMP_END - 2,
            expected=f"eb {needed - JUMP_END:02x} or up to eb 7f by its boot protocol",
        )
    if len(head) < JUMP_END + reach:
        words = f"{JUMP_END + reach:#x} bytes"
        raise LoadError(image.path, "ends within the setup header", offset=len(head), expected=words)
    return version


def _judge_sizes(image: Image, field: dict[str, int], setup_size: int) -> int:
    """The bytes of the protected-mode kernel, all of which are there."""
    if field["setup_sects"] > MAX_SETUP_SECTORS:
        words = f"has a setup_sects of {field['setup_sects']}"
        raise LoadError(image.path, words, offset=HEADER_START, expected=f"at most {MAX_SETUP_SECTORS}")
    length = image.size - setup_size
    if length <= 0:
        words = f"ends within its {setup_size} bytes of setup code"
        raise LoadError(image.path, words, offset=image.size, expected="a kernel behind them")
    if field["version"] >= FIELDS["syssize"][2]:
        told = field["syssize"] * PARAGRAPH
        if told == 0:
            raise LoadError(image.path, "has a syssize of 0", offset=FIELDS["syssize"][0], expected="a kernel's")
        # Rounded up: the file itself may end within the last paragraph.
        if told - length >= PARAGRAPH:
            words = f"is cut short: {image.size} bytes"
            raise LoadError(image.path, words, expected=f"{setup_size + told} by its syssize")
    if not field["loadflags"] & LOADED_HIGH:
        raise LoadError(
            image.path,
            "is a zImage, a kernel to be loaded below 640 KiB,",
            offset=FIELDS["loadflags"][0],
            expected="loadflags with LOADED_HIGH: a bzImage",
        )
    return length


def _load_address(image: Image, field: dict[str, int]) -> int:
    """Where the kernel is put. Every kernel is given the place that it prefers, so none is moved.

    A relocatable kernel would take any aligned place above the one it prefers, and no lower one: it is linked there.
    """
    name = "pref_address" if field["pref_address"] else "code32_start"
    address = field[name]
    if field["relocatable_kernel"]:
        alignment = field["kernel_alignment"]
        if alignment == 0 or alignment & (alignment - 1):
            words = f"is relocatable and has a kernel_alignment of {alignment:#x}"
            raise LoadError(image.path, words, offset=FIELDS["kernel_alignment"][0], expected="a power of 2")
        if 1 << field["min_alignment"] > alignment:
            words = f"has a min_alignment of 2^{field['min_alignment']}"
            expected = f"at most its kernel_alignment, {alignment:#x}"
            raise LoadError(image.path, words, offset=FIELDS["min_alignment"][0], expected=expected)
        address = -(-address // alignment) * alignment
    if not layout.HIGH_MEMORY <= address < layout.HOLE_END:
        words = f"has a {name} of {field[name]:#x}"
        raise LoadError(image.path, words, offset=FIELDS[name][0], expected="a place between 1 MiB and 4 GiB")
    if field["version"] >= FIELDS["init_size"][2] and field["init_size"] == 0:
        raise LoadError(image.path, "has an init_size of 0", offset=FIELDS["init_size"][0], expected="what it needs")
    return address


def _payload(image: Image, field: dict[str, int], setup_size: int) -> tuple[int, int] | None:
    if field["payload_offset"] == 0:
        return None
    at, length = setup_size + field["payload_offset"], field["payload_length"]
    if length == 0 or at + length > image.size:
        words = f"has its payload, {length} bytes, at {at:#x}"
        expected = f"within its {image.size} bytes"
        raise LoadError(image.path, words, offset=FIELDS["payload_offset"][0], expected=expected)
    return at, length


def _release(image: Image, field: dict[str, int], setup_size: int) -> str:
    """The version string; "" for a pointer of 0 or one that leaves the setup code."""
    at = field["kernel_version"] + SECTOR
    if at == SECTOR or at >= setup_size:
        return ""
    text = image.head[at : min(at + 256, setup_size)].split(b"\0")[0].decode("ascii", "replace")
    return text if text.isprintable() else ""


def load(image: Image, config: BootConfig, placement: Placement, surroundings: Surroundings) -> CpuState:
    """Load the kernel, its command line and initrd, and the zero page made of its header.

    By `config.kernel_entry` the kernel is entered as it stands ("bzimage") or unpacked here ("payload"); "auto" is
    the latter where ring 0 is emulated: there the kernel would take minutes to unpack itself.
    """
    header = SetupHeader(image)
    placement.notes.append(header.describe())
    unpack = config.kernel_entry == "payload"
    if config.kernel_entry == "auto" and surroundings.emulated and header.payload is not None:
        unpack = True
        note = "this host emulates ring 0: pyvmm unpacks the kernel (--kernel-entry bzimage leaves that to the kernel)"
        placement.notes.append(note)
    if unpack:
        from pyvmm.boot import payload

        return linux.boot_elf(payload.unpack(image, header), config, placement, surroundings, header)

    def place() -> int:
        at, size = header.load_address, image.size - header.setup_size
        placement.claim(at, header.memory_size, "kernel", offset=_size_field(header))
        with placement.memory.view(at, size) as target:
            image.read_into(target, header.setup_size)
        return at + ENTRY_64 if header.entry_64 else at

    return linux.boot(64 if header.entry_64 else 32, place, config, placement, surroundings, header)


def _size_field(header: SetupHeader) -> int:
    """Where the file says how much memory the kernel needs."""
    return FIELDS["init_size" if header.init_size else "syssize"][0]
