"""ELF executables: judging a file, loading its segments, finding its entry and its notes.

Imports entry, detect and errors. Follows the System V ABI ("gABI", chapters 4 and 5: ELF header, program
header, note section) with the processor supplements for i386 and x86-64.

Segments go to their physical address p_paddr, as kernels mean it: the virtual address counts only once the kernel
has set up paging. Section headers are never looked at.
"""

from __future__ import annotations

from struct import Struct

from pyvmm.boot import entry
from pyvmm.boot.detect import ELF_MAGIC
from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm.boot import BootConfig
    from pyvmm.boot.image import Image
    from pyvmm.boot.placement import Placement
    from pyvmm.boot.x86 import CpuState

ELFCLASS32, ELFCLASS64 = 1, 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
EV_CURRENT = 1
ET_EXEC = 2
EM_386, EM_X86_64 = 3, 62
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE = 1, 2, 3, 4

MAX_PROGRAM_HEADERS = 1024
"""Kernels have about five. Linux stops at 64 KiB of them, which is 1170 (fs/binfmt_elf.c)."""
MAX_NOTES = 65536
"""Bytes of notes that are looked through; Linux has about 500."""

_IDENT_LENGTH = 16
_NOTE = Struct("<III")  # Elf32_Nhdr and Elf64_Nhdr alike: namesz, descsz, type
_TYPES = {
    1: "relocatable object (ET_REL)",
    3: "position-independent or shared object (ET_DYN)",
    4: "core dump (ET_CORE)",
}
_MACHINES = {
    EM_386: "i386", 8: "MIPS", 21: "PowerPC", 22: "S/390", 40: "Arm", EM_X86_64: "x86-64", 183: "AArch64",
    243: "RISC-V", 258: "LoongArch",
}  # fmt: skip


class _Layout:
    """Where a class of ELF keeps its fields: struct formats, and offsets in the ELF header for error lines."""

    __slots__ = ("bits", "machine", "header", "program", "fields", "phoff_at", "phentsize_at", "phnum_at")

    def __init__(
        self, bits: int, machine: int, header: str, program: str, fields: tuple[str, ...], at: tuple[int, ...]
    ) -> None:
        self.bits = bits
        self.machine = machine
        self.header = Struct(header)
        self.program = Struct(program)
        self.fields = fields
        self.phoff_at, self.phentsize_at, self.phnum_at = at


_LAYOUTS = {
    ELFCLASS32: _Layout(
        32, EM_386, "<16xHHIIIIIHHHHHH", "<8I",
        ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"), (28, 42, 44),
    ),
    ELFCLASS64: _Layout(
        64, EM_X86_64, "<16xHHIQQQIHHHHHH", "<IIQQQQQQ",
        ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align"), (32, 54, 56),
    ),
}  # fmt: skip


class Segment:
    """A program header: the fields of Elf32_Phdr and Elf64_Phdr, and where in the file it stands (`header_at`)."""

    __slots__ = ("index", "header_at", "type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align")
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int

    def __init__(self, index: int, header_at: int, fields: tuple[str, ...], values: tuple[int, ...]) -> None:
        self.index = index
        self.header_at = header_at
        for name, value in zip(fields, values, strict=True):
            setattr(self, name, value)


class Elf:
    """An ELF executable that may be loaded. `bits` is 32 or 64, `entry` is e_entry as it stands.

    `loads` are the PT_LOAD segments that take memory, `notes` the PT_NOTE ones.
    """

    __slots__ = ("bits", "entry", "loads", "notes")

    def __init__(self, bits: int, entry: int, loads: list[Segment], notes: list[Segment]) -> None:
        self.bits = bits
        self.entry = entry
        self.loads = loads
        self.notes = notes


def read(image: Image) -> Elf:
    """Judge `image`'s headers. Raises LoadError unless it is a statically linked executable for this machine."""
    head = image.head

    def refuse(problem: str, offset: int, expected: str = "") -> LoadError:
        return LoadError(image.path, problem, offset=offset, expected=expected)

    if not head.startswith(ELF_MAGIC):
        raise refuse("has no ELF magic", 0, "7f 45 4c 46")
    if len(head) < _IDENT_LENGTH:
        raise refuse("ends within the ELF identification", len(head), f"{_IDENT_LENGTH} bytes")
    kind, data, version = head[4], head[5], head[6]
    if kind not in _LAYOUTS:
        raise refuse(f"has the unknown ELF class {kind}", 4, "1 (32-bit) or 2 (64-bit)")
    if data != ELFDATA2LSB:
        order = "is big-endian" if data == ELFDATA2MSB else f"has the unknown ELF byte order {data}"
        raise refuse(order, 5, "1 (little-endian)")
    if version != EV_CURRENT:
        raise refuse(f"has ELF version {version}", 6, "1")
    layout = _LAYOUTS[kind]
    if len(head) < layout.header.size:
        raise refuse("ends within the ELF header", len(head), f"{layout.header.size} bytes")
    e_type, machine, version, e_entry, phoff, _, _, _, phentsize, phnum, _, _, _ = layout.header.unpack_from(head)
    if machine != layout.machine:
        name = _MACHINES.get(machine, "another machine")
        raise refuse(
            f"is a {layout.bits}-bit ELF file for {name} (e_machine {machine})",
            18,
            f"{layout.machine}, {_MACHINES[layout.machine]}",
        )
    if e_type != ET_EXEC:
        name = _TYPES.get(e_type, f"file of ELF type {e_type}")
        raise refuse(f"is a {name}", 16, "an executable for fixed addresses (ET_EXEC; link with -no-pie)")
    if version != EV_CURRENT:
        raise refuse(f"has e_version {version}", 20, "1")
    if phnum == 0:
        raise refuse("has no program headers", layout.phnum_at, "a linked executable")
    if phnum > MAX_PROGRAM_HEADERS:
        raise refuse(f"has {phnum} program headers", layout.phnum_at, f"at most {MAX_PROGRAM_HEADERS}")
    if phentsize != layout.program.size:
        raise refuse(f"has program headers of {phentsize} bytes", layout.phentsize_at, f"{layout.program.size}")
    table_end = phoff + phnum * phentsize
    if phoff < layout.header.size or table_end > image.size:
        raise refuse(
            f"has its program headers at {phoff:#x}-{table_end - 1:#x}",
            layout.phoff_at,
            f"within {layout.header.size:#x}-{image.size - 1:#x}",
        )

    table = image.read(phoff, phnum * phentsize)
    loads: list[Segment] = []
    notes: list[Segment] = []
    for index, values in enumerate(layout.program.iter_unpack(table)):
        segment = Segment(index, phoff + index * phentsize, layout.fields, values)
        if segment.type in (PT_INTERP, PT_DYNAMIC):
            raise refuse("is linked dynamically", segment.header_at, "a kernel linked with -static")
        if segment.type not in (PT_LOAD, PT_NOTE):
            continue
        what = f"segment {index}"
        if segment.offset + segment.filesz > image.size:
            raise refuse(
                f"{what} is {segment.filesz} bytes from {segment.offset:#x}, beyond the file's end: is it cut short?",
                segment.header_at,
                f"at most {image.size} bytes in all",
            )
        if segment.type == PT_NOTE:
            notes.append(segment)
            continue
        if segment.filesz > segment.memsz:
            raise refuse(
                f"{what} takes {segment.filesz} bytes of the file",
                segment.header_at,
                f"no more than its {segment.memsz} of memory",
            )
        for name, start in (("p_paddr", segment.paddr), ("p_vaddr", segment.vaddr)):
            if start + segment.memsz > 1 << layout.bits:
                raise refuse(f"{what} wraps: {segment.memsz:#x} bytes from {name} {start:#x}", segment.header_at)
        if segment.memsz:
            loads.append(segment)
    if not loads:
        raise refuse("has nothing to load", phoff, "a PT_LOAD segment")
    return Elf(layout.bits, e_entry, loads, notes)


def load(image: Image, config: BootConfig, placement: Placement) -> CpuState:
    """Load an executable that follows no boot protocol: protected mode for ELF32, long mode for ELF64, at e_entry."""
    executable = read(image)
    entry.claim_stack(placement)
    state = entry.protected_mode(placement) if executable.bits == 32 else entry.long_mode(placement)
    state.rip = physical_entry(executable, image.path)
    load_segments(executable, image, placement)
    return state


def load_segments(elf: Elf, image: Image, placement: Placement) -> None:
    """Put every segment at its p_paddr, what the file does not fill being zero.

    Raises LoadError where one does not lie in RAM, or lies on another or on what the boot protocol needs.
    """
    # The farthest first: so much memory would do for all of them.
    last = max(elf.loads, key=lambda segment: segment.paddr + segment.memsz)
    placement.require_ram(last.paddr, last.memsz, f"segment {last.index}", offset=last.header_at)
    for segment in elf.loads:
        placement.load(
            image,
            segment.offset,
            segment.filesz,
            segment.paddr,
            segment.memsz,
            f"segment {segment.index}",
            segment.header_at,
        )


def physical_entry(elf: Elf, path: str) -> int:
    """The gpa that e_entry means.

    Kernels that run at high virtual addresses give either a virtual entry, translated here by its segment, or, like
    Linux, a physical one. Raises LoadError when it is neither, or is beyond the 4 GiB that the first page tables map.
    """
    gpa = elf.entry
    for segment in elf.loads:
        if segment.vaddr <= gpa < segment.vaddr + segment.filesz:
            gpa += segment.paddr - segment.vaddr
            break
    return check_entry(elf, path, gpa, "e_entry", 24)


def check_entry(elf: Elf, path: str, gpa: int, name: str, offset: int) -> int:
    """`gpa`, which stands at `offset`; LoadError unless a byte of the file was loaded there below 4 GiB."""
    if not any(segment.paddr <= gpa < segment.paddr + segment.filesz for segment in elf.loads):
        raise LoadError(path, f"{name} {gpa:#x} is in no segment", offset=offset, expected="an address of loaded code")
    if gpa >= 1 << 32:
        raise LoadError(path, f"{name} {gpa:#x} is beyond 4 GiB", offset=offset)
    return gpa


def find_note(elf: Elf, image: Image, owner: bytes, type: int) -> tuple[bytes, int] | None:
    """The descriptor of the first note of `type` by `owner` (with its NUL), and its offset in the file; or None.

    Raises LoadError when a note says that it is longer than its segment.
    """
    total = 0
    for segment in elf.notes:
        total += segment.filesz
        if total > MAX_NOTES:
            problem = f"has {total} bytes of notes up to segment {segment.index}"
            raise LoadError(image.path, problem, offset=segment.header_at, expected=f"at most {MAX_NOTES}")
        # The gABI aligns notes of 64-bit files to 8 bytes; toolchains do so only where the segment says so.
        align = 8 if segment.align == 8 else 4
        data = image.read(segment.offset, segment.filesz)
        at = 0
        while at < len(data):
            if at + _NOTE.size > len(data):
                raise LoadError(image.path, "has a note cut short", offset=segment.offset + at, expected="12 bytes")
            namesz, descsz, kind = _NOTE.unpack_from(data, at)
            name_at = at + _NOTE.size
            desc_at = -(-(name_at + namesz) // align) * align
            if desc_at + descsz > len(data):
                raise LoadError(
                    image.path,
                    f"has a note of {namesz} + {descsz} bytes",
                    offset=segment.offset + at,
                    expected=f"one that ends with its segment, at {segment.offset + len(data):#x}",
                )
            if kind == type and data[name_at : name_at + namesz] == owner:
                return data[desc_at : desc_at + descsz], segment.offset + desc_at
            at = -(-(desc_at + descsz) // align) * align
    return None
