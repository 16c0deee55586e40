"""What kind of kernel a file is, told by its content and never by its name.

Imports image and errors, and the reader of a format once its magic is seen. The order of preference:

1. a Linux bzImage, before anything that its boot sector could be taken for
2. a multiboot header, in an ELF file or not: who puts one there wants such a loader, and GRUB and QEMU look for it
   first too, so that a kernel which also has a PVH entry has been tried by this one
3. in an ELF file the notes: those of a Linux kernel, which knows its own boot protocol best, then a PVH entry;
   without either the entry of the ELF header
4. anything known that is no kernel, or not a bare one: refused by name, so that it is never run as code
5. a flat binary: all the rest, boot sectors included

Multiboot 2 alone is refused: such a kernel started by its ELF entry would find nothing that it expects.
"""

from __future__ import annotations

from struct import unpack_from

from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot.image import Image

LINUX_HEADER = 0x202
"""Where "HdrS" stands in a bzImage (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header")."""
ELF_MAGIC = b"\x7fELF"
MULTIBOOT_MAGIC = (0x1BADB002).to_bytes(4, "little")
MULTIBOOT2_MAGIC = (0xE85250D6).to_bytes(4, "little")
ISO_DESCRIPTOR = 0x8001
"""Where "CD001" stands in a CD image (ECMA-119, 8.1)."""
TEXT_MINIMUM = 32
"""So many bytes without one that no text has are hardly code."""
_TEXT = bytes((*b"\t\n\r\f", *range(0x20, 0x7F)))

_DECOMPRESS = "the kernel itself, decompressed"
_NO_KERNELS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "is compressed with gzip", _DECOMPRESS),
    (0, b"\xfd7zXZ\0", "is compressed with xz", _DECOMPRESS),
    (0, b"\x28\xb5\x2f\xfd", "is compressed with zstd", _DECOMPRESS),
    (0, b"\x04\x22\x4d\x18", "is compressed with lz4", _DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "is compressed with lz4 (legacy format)", _DECOMPRESS),
    (0, b"BZh", "is compressed with bzip2", _DECOMPRESS),
    (0, b"\x89LZO\0", "is compressed with lzop", _DECOMPRESS),
    (0, b"MZ", "is a PE file, for EFI or Windows", "an ELF kernel or a flat binary"),
    (56, b"ARM\x64", "is a Linux kernel for AArch64", "a kernel for x86"),
    (0, b"07070", "is a cpio archive", "a kernel; an initrd goes to --initrd"),
    (257, b"ustar", "is a tar archive", "a kernel"),
    (0, b"PK\x03\x04", "is a zip archive", "a kernel"),
    (0, b"!<arch>\n", "is an ar archive", "a kernel"),
    (0, b"QFI\xfb", "is a qcow2 disk image", "a kernel"),
    (0, b"#!", "is a script", "a kernel"),
)


def detect(image: Image) -> tuple[str, list[str]]:
    """The format of `image` (a key of `boot.FORMATS`), and lines that the user should see.

    Raises LoadError for what is known and not supported, and for an ELF file that is not sound.
    """
    head = image.head
    notes: list[str] = []
    if head[LINUX_HEADER : LINUX_HEADER + 4] == b"HdrS":
        return "bzimage", notes
    if MULTIBOOT_MAGIC in head:
        from pyvmm.boot import multiboot

        if multiboot.find_header(head) is not None:
            return "multiboot", notes
        for offset, _ in multiboot.candidates(head)[:1]:
            notes.append(f"{image.path}: multiboot magic with a wrong checksum at offset {offset:#x}, ignored")
    if head.startswith(ELF_MAGIC):
        from pyvmm.boot import elf, pvh
        from pyvmm.boot.notes import is_linux

        executable = elf.read(image)
        if is_linux(executable, image):
            return "linux", notes
        if pvh.find_entry(executable, image) is not None:
            return "pvh", notes
        _refuse_multiboot2(image)
        return "elf", notes
    _refuse_multiboot2(image)
    for offset, magic, problem, expected in _NO_KERNELS:
        if head[offset : offset + len(magic)] == magic:
            raise LoadError(image.path, problem, expected=expected)
    if len(head) >= TEXT_MINIMUM and not head.translate(None, _TEXT):
        raise LoadError(image.path, "is text", expected="a kernel")
    if _is_lzma(image):
        raise LoadError(image.path, "is compressed with lzma", expected=_DECOMPRESS)
    if image.size >= ISO_DESCRIPTOR + 5 and image.read(ISO_DESCRIPTOR, 5) == b"CD001":
        raise LoadError(image.path, "is a CD image", expected="a kernel")
    return "flat", notes


def _refuse_multiboot2(image: Image) -> None:
    at = image.head.find(MULTIBOOT2_MAGIC)
    while at >= 0 and at + 16 <= len(image.head):
        # Multiboot2 Specification, 3.1.2: 64-bit aligned; magic, architecture, length and checksum add up to 0.
        if at % 8 == 0 and sum(unpack_from("<IIII", image.head, at)) & 0xFFFFFFFF == 0:
            raise LoadError(
                image.path,
                "has a multiboot 2 header only",
                offset=at,
                expected="multiboot 1 or PVH; --kernel-format elf starts it by its ELF entry",
            )
        at = image.head.find(MULTIBOOT2_MAGIC, at + 1)


def _is_lzma(image: Image) -> bool:
    """lzma alone has no magic: its usual properties byte, a power of two as dictionary, a size that could be."""
    if image.size < 13 or image.head[0] != 0x5D:
        return False
    dictionary, size = unpack_from("<IQ", image.head, 1)
    power_of_two: bool = dictionary >= 4096 and dictionary & (dictionary - 1) == 0
    return power_of_two and (size >> 40 == 0 or size == (1 << 64) - 1)
