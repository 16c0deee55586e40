"""Names for a guest kernel's addresses, from its vmlinux (the ELF symbol table) or its System.map.

Imports boot.image and errors. Follows the System V gABI, "Sections", "Symbol Table" and "String Table"; a System.map is
what `nm -n` prints. Read when a name is wanted for the first time, never for a run that ends well. The file may be
anything: every offset and count in it is judged before it is used, and what is read has a limit.
"""

from __future__ import annotations

from bisect import bisect_right
from struct import Struct

from pyvmm.boot.image import Image
from pyvmm.errors import LoadError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ELF_MAGIC = b"\x7fELF"
SHT_SYMTAB, SHT_STRTAB = 2, 3
SHF_EXECINSTR = 4
PT_LOAD = 1
STT_NOTYPE, STT_FUNC = 0, 2
STB_LOCAL = 0
MAX_SYMBOLS = 4_000_000
MAX_TABLE = 256 << 20
"""Bytes of a symbol or string table; those of a kernel with everything built in are a tenth of that."""
MAX_MAP = 64 << 20
"""Bytes of a System.map."""
MAX_NAME = 256
FAR = 1 << 20
"""So many bytes behind a symbol without a size, an address does not belong to it."""
KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""__START_KERNEL_map of x86-64 Linux (Documentation/arch/x86/x86_64/mm.rst): where physical address 0 is mapped."""


class Symbols:
    """Functions by address. `path` is where they are from.

    `physical` is what makes a link-time address of the physical one that early code runs at; `slide` how far the
    kernel has been moved by KASLR, to be set by who learns of it.
    """

    __slots__ = ("_addresses", "_names", "_sizes", "path", "physical", "slide")

    def __init__(self, path: str, found: Iterable[tuple[int, int, bytes]], physical: int = 0) -> None:
        """`found` are (address, size, name), in any order; a size of 0 is unknown."""
        self.path = path
        self.physical = physical
        self.slide = 0
        table = sorted(found, key=lambda symbol: symbol[0])
        self._addresses = [symbol[0] for symbol in table]
        self._sizes = [symbol[1] for symbol in table]
        self._names = [symbol[2] for symbol in table]

    def __len__(self) -> int:
        return len(self._addresses)

    def describe(self, address: int) -> str:
        """ "panic+0x1a0/0x2f0" as Linux writes it, "panic+0x1a0" where the size is not known, "" for no function."""
        for at in (address - self.slide, address, address + self.physical):
            found = self._find(at)
            if found:
                return found
        return ""

    def address(self, name: str) -> int | None:
        """Where the kernel that runs has the function called `name`; None where there is none of that name."""
        try:
            return self._addresses[self._names.index(name.encode("ascii", "replace"))] + self.slide
        except ValueError:
            return None

    def _find(self, address: int) -> str:
        at = bisect_right(self._addresses, address) - 1
        if at < 0:
            return ""
        # Of several names for one address the one with a size: the others are labels.
        first = bisect_right(self._addresses, self._addresses[at] - 1)
        best = next((i for i in range(at, first - 1, -1) if self._sizes[i]), at)
        offset, size = address - self._addresses[best], self._sizes[best]
        if size:
            if offset >= size:
                return ""
        else:
            following = self._addresses[at + 1] if at + 1 < len(self._addresses) else self._addresses[at] + FAR
            size = following - self._addresses[best]
            if offset >= min(size, FAR):
                return ""
        name = self._names[best][:MAX_NAME].decode("ascii", "replace")
        name = "".join(c if c.isprintable() else "?" for c in name)
        return f"{name}+{offset:#x}/{size:#x}"


class Source:
    """The file that symbols may be read from, read when somebody asks.

    `path` is the file; with `required`, one that has no symbols raises LoadError here.
    """

    __slots__ = ("_path", "_symbols", "_tried")

    def __init__(self, path: str, *, required: bool) -> None:
        self._path = path
        self._symbols: Symbols | None = None
        self._tried = False
        if required:
            with Image(path) as image:
                if image.head.startswith(ELF_MAGIC):
                    _sections(image)
                else:
                    _check_map(image)

    def get(self) -> Symbols | None:
        """The symbols, or None where there are none."""
        if not self._tried:
            self._tried = True
            try:
                self._symbols = read(self._path)
            except LoadError:
                self._symbols = None
        return self._symbols


def read(path: str) -> Symbols:
    """The symbols in the file `path`. Raises LoadError for one that has none."""
    with Image(path) as image:
        if image.head.startswith(ELF_MAGIC):
            return _read_elf(image)
        _check_map(image)
        return _read_map(image)


# --- ELF ---------------------------------------------------------------------------------------------------------


class _Layout:
    """Struct formats of one class of ELF, and in which order a section's and a symbol's fields stand."""

    __slots__ = ("header", "program", "section", "symbol", "wide")

    def __init__(self, wide: bool) -> None:
        self.wide = wide
        self.header = Struct("<32xQQ6xHHHHH" if wide else "<28xII6xHHHHH")
        self.program = Struct("<I4xQQQ" if wide else "<IIII")
        self.section = Struct("<4xIQ8xQQI" if wide else "<4xII4xIII")
        self.symbol = Struct("<IBxHQQ" if wide else "<IIIBxH")


def _sections(image: Image) -> tuple[_Layout, list[tuple[int, ...]], tuple[int, ...]]:
    """The file's layout, its section headers, and which of them has the symbols. Raises LoadError without one."""
    head = image.head
    if len(head) < 64 or head[4] not in (1, 2) or head[5] != 1:
        raise LoadError(image.path, "is no ELF file for this machine", offset=4, expected="a little-endian vmlinux")
    layout = _Layout(head[4] == 2)
    _, shoff, _, _, shentsize, shnum, _ = layout.header.unpack_from(head)
    smallest = 64 if layout.wide else 40
    if shnum == 0 or shentsize < smallest:
        raise LoadError(image.path, "has no symbol table", expected="a vmlinux that is not stripped, or a System.map")
    table = _part(image, shoff, shnum * shentsize, "section headers")
    sections = [layout.section.unpack_from(table, at) for at in range(0, len(table), shentsize)]
    found = next((section for section in sections if section[0] == SHT_SYMTAB), None)
    if found is None:
        raise LoadError(image.path, "has no symbol table", expected="a vmlinux that is not stripped, or a System.map")
    return layout, sections, found


def _read_elf(image: Image) -> Symbols:
    layout, sections, (_, _, offset, size, link) = _sections(image)
    if link >= len(sections) or sections[link][0] != SHT_STRTAB:
        raise LoadError(image.path, f"names section {link} as its symbols' strings", expected="a string table")
    if size // layout.symbol.size > MAX_SYMBOLS:
        raise LoadError(image.path, f"has {size // layout.symbol.size} symbols", expected=f"at most {MAX_SYMBOLS}")
    raw = _part(image, offset, size // layout.symbol.size * layout.symbol.size, "symbol table")
    strings = _part(image, sections[link][2], sections[link][3], "string table")
    executable = frozenset(at for at, section in enumerate(sections) if section[1] & SHF_EXECINSTR)
    physical = _physical(image, layout)
    return Symbols(image.path, _functions(layout, raw, strings, executable), physical)


def _functions(
    layout: _Layout, raw: bytes, strings: bytes, executable: frozenset[int]
) -> Iterator[tuple[int, int, bytes]]:
    for fields in layout.symbol.iter_unpack(raw):
        if layout.wide:
            name, info, section, value, size = fields
        else:
            name, value, size, info, section = fields
        if info & 0xF not in (STT_NOTYPE, STT_FUNC) or section not in executable or not 0 < name < len(strings):
            continue
        end = strings.find(b"\0", name, name + MAX_NAME)
        text = strings[name : end if end >= 0 else name + MAX_NAME]
        if text and not text.startswith((b".L", b"__pfx_")):
            yield value, size, text


def _physical(image: Image, layout: _Layout) -> int:
    """By how much the first segment's virtual address exceeds its physical one; 0 where that cannot be told."""
    phoff, _, phentsize, phnum, _, _, _ = layout.header.unpack_from(image.head)
    if phentsize < layout.program.size or not phnum or phoff + phnum * phentsize > image.size:
        return 0
    table = image.read(phoff, phnum * phentsize)
    for at in range(0, len(table) - layout.program.size + 1, phentsize):
        kind, _, vaddr, paddr = layout.program.unpack_from(table, at)
        if kind == PT_LOAD:
            return int(vaddr - paddr)
    return 0


def _part(image: Image, offset: int, length: int, what: str) -> bytes:
    if offset + length > image.size:
        raise LoadError(image.path, f"has its {what} beyond its end", offset=offset, expected=f"{length} bytes there")
    if length > MAX_TABLE:
        raise LoadError(image.path, f"has a {what} of {length} bytes", offset=offset, expected=f"at most {MAX_TABLE}")
    return image.read(offset, length)


# --- System.map --------------------------------------------------------------------------------------------------


def _check_map(image: Image) -> None:
    line = image.head.split(b"\n", 1)[0]
    if _map_line(line) is None:
        expected = "an ELF file, or a System.map, whose lines are `ffffffff81000000 T _text`"
        raise LoadError(image.path, "has no symbols", offset=0, expected=expected)
    if image.size > MAX_MAP:
        raise LoadError(image.path, f"is a System.map of {image.size} bytes", expected=f"at most {MAX_MAP}")


def _read_map(image: Image) -> Symbols:
    found = []
    for line in image.read(0, image.size).splitlines():
        symbol = _map_line(line)
        if symbol is not None and symbol[1] in b"tTwW" and not symbol[2].startswith((b".L", b"__pfx_")):
            found.append((symbol[0], 0, symbol[2]))
    wide = bool(found) and min(address for address, _, _ in found) >= KERNEL_MAP
    return Symbols(image.path, found, KERNEL_MAP if wide else 0)


def _map_line(line: bytes) -> tuple[int, bytes, bytes] | None:
    """Address, type and name."""
    words = line.split(None, 3)
    if len(words) < 3 or not 8 <= len(words[0]) <= 16 or len(words[1]) != 1 or not words[1].isalpha():
        return None
    if words[0].strip(b"0123456789abcdef"):
        return None
    return int(words[0], 16), words[1], words[2]
