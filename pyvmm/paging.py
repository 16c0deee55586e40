"""The guest's own page tables, walked in guest memory the way its processor would.

Imports errors and cpubits. Follows the Intel SDM volume 3A, chapter 4: 4.3 (32-bit), 4.4 (PAE), 4.5 (4-level
and 5-level). A walk takes at most five steps whatever the tables hold, and tables that point nowhere or set
reserved bits end it with a problem in words: nothing in a guest's memory raises here.

Not looked at: protection keys, SMEP and SMAP (whether an access is allowed depends on who makes it), how wide
physical addresses are, and the PDPTE registers that a PAE processor loads when CR3 is written (4.4.1).
"""

from __future__ import annotations

from pyvmm.cpubits import CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, EFER_NXE
from pyvmm.errors import GuestMemoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyvmm.memory import GuestMemory

PAGE = 4096

# An entry's bits, the same at every level and in every kind of paging (SDM volume 3A, tables 4-5 to 4-20).
PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
"""In the entry that maps a page."""
LARGE = 1 << 7
"""PS in entries above the last level: this entry maps a page itself."""
EXECUTE_DISABLE = 1 << 63
ERROR_PRESENT = 1 << 0
ERROR_WRITE = 1 << 1
ERROR_USER = 1 << 2
ERROR_RESERVED = 1 << 3
"""Bits of a page fault's error code (SDM volume 3A, 4.7)."""
_SHARED = {0: "P", 1: "W", 2: "U", 3: "PWT", 4: "PCD", 5: "A"}
_TABLE = {**_SHARED, 7: "PS", 63: "XD"}
_PAGE = {**_SHARED, 6: "D", 7: "PAT", 8: "G", 63: "XD"}
_LARGE_PAGE = {**_PAGE, 7: "PS", 12: "PAT"}
_POINTER = {0: "P", 3: "PWT", 4: "PCD"}
"""The bits of entries by name (tables 4-4 to 4-20): what points to a table, maps a page, a large one, a PAE PDPTE."""

ADDRESS = 0x000F_FFFF_FFFF_F000
"""Bits 51:12 of a 64-bit entry and of CR3."""


class Level:
    """One level of a kind of paging: the address bits from `shift`, `bits` many, choose the entry.

    `large` says whether an entry of this level may map a page of 1 << `shift` bytes itself.
    """

    __slots__ = ("bits", "large", "name", "shift")

    def __init__(self, name: str, shift: int, bits: int, large: bool = False) -> None:
        self.name = name
        self.shift = shift
        self.bits = bits
        self.large = large


_LONG = (Level("PML4E", 39, 9), Level("PDPTE", 30, 9, True), Level("PDE", 21, 9, True), Level("PTE", 12, 9))
LEVELS: dict[str, tuple[Level, ...]] = {
    "32-bit": (Level("PDE", 22, 10, True), Level("PTE", 12, 10)),
    "PAE": (Level("PDPTE", 30, 2), Level("PDE", 21, 9, True), Level("PTE", 12, 9)),
    "4-level": _LONG,
    "5-level": (Level("PML5E", 48, 9), *_LONG),
}


class Entry:
    """One step of a walk: entry `index` of a table of `level`, read at guest-physical `gpa`; `bits` names its bits."""

    __slots__ = ("bits", "gpa", "index", "level", "value")

    def __init__(self, level: str, index: int, gpa: int, value: int, bits: Mapping[int, str] = _TABLE) -> None:
        self.level = level
        self.index = index
        self.gpa = gpa
        self.value = value
        self.bits = bits

    @property
    def flags(self) -> list[str]:
        """The names of the bits that are set; none in an entry that is not present, whose bits are the guest's own."""
        if not self.value & PRESENT:
            return []
        return [name for bit, name in self.bits.items() if self.value >> bit & 1]

    def describe(self) -> str:
        """One line: "PTE   [  5] at 0x4028 = 0x5003  P W"."""
        flags = " ".join(self.flags) or "not present"
        return f"{self.level:<5} [{self.index:3}] at {self.gpa:#x} = {self.value:#x}  {flags}"


class Walk:
    """What translating `gva` met.

    gpa        the guest-physical address, or None where the tables do not lead to one
    problem    why not, one phrase; "" with a gpa
    fault      what the problem puts into a page fault's error code, of ERROR_PRESENT and ERROR_RESERVED; None with a
               gpa, and where a processor would not raise #PF but fail otherwise
    entries    the entries read, from the root down
    page_size  bytes of the page that holds `gva`; 0 without paging or translation
    writable, user, executable   what all the entries together allow
    """

    __slots__ = ("entries", "executable", "fault", "gpa", "gva", "page_size", "problem", "user", "writable")

    def __init__(self, gva: int) -> None:
        self.gva = gva
        self.gpa: int | None = None
        self.problem = ""
        self.fault: int | None = None
        self.entries: list[Entry] = []
        self.page_size = 0
        self.writable = self.user = self.executable = True


class Paging:
    """How a vCPU with these control registers translates linear addresses.

    `kind` is "none", "32-bit", "PAE", "4-level" or "5-level"; `root` is the gpa of the first table.
    """

    __slots__ = ("_efer", "_pse", "kind", "root")

    def __init__(self, cr0: int, cr3: int, cr4: int, efer: int) -> None:
        self._pse = bool(cr4 & CR4_PSE)
        self._efer = efer
        if not cr0 & CR0_PG:
            self.kind, self.root = "none", 0
        elif efer & EFER_LMA:
            self.kind, self.root = ("5-level" if cr4 & CR4_LA57 else "4-level"), cr3 & ADDRESS
        elif cr4 & CR4_PAE:
            self.kind, self.root = "PAE", cr3 & 0xFFFF_FFE0
        else:
            self.kind, self.root = "32-bit", cr3 & 0xFFFF_F000

    def walk(self, memory: GuestMemory, gva: int) -> Walk:
        """Translate linear address `gva`, keeping every entry on the way."""
        walk = Walk(gva)
        width = {"4-level": 48, "5-level": 57}.get(self.kind)
        if width is None:
            if gva >> 32:
                walk.problem = "the address is over 32 bits"
                return walk
        elif gva >> (width - 1) not in (0, (1 << (65 - width)) - 1):
            walk.problem = f"not canonical: bits 63 to {width - 1} differ"
            return walk
        if self.kind == "none":
            walk.gpa = gva
        else:
            self._descend(memory, walk)
        return walk

    def _descend(self, memory: GuestMemory, walk: Walk) -> None:
        wide = self.kind != "32-bit"
        table = self.root
        for level in LEVELS[self.kind]:
            index = walk.gva >> level.shift & (1 << level.bits) - 1
            gpa = table + index * (8 if wide else 4)
            try:
                value = memory.read_u64(gpa) if wide else memory.read_u32(gpa)
            except GuestMemoryError:
                walk.problem = f"the table of {level.name}s at {table:#x} is not in RAM"
                return
            leaf = level.shift == 12 or (level.large and bool(value & LARGE) and (wide or self._pse))
            walk.entries.append(Entry(level.name, index, gpa, value, self._bits(level, leaf)))
            if not value & PRESENT:
                walk.problem = f"{level.name} not present"
                walk.fault = 0
                return
            reserved = value & self._reserved(level, leaf)
            if reserved:
                walk.problem = f"{level.name} has reserved bits set ({reserved:#x})"
                walk.fault = ERROR_PRESENT | ERROR_RESERVED
                return
            # A PAE PDPTE has no access rights of its own (4.4.2).
            if not (self.kind == "PAE" and level.name == "PDPTE"):
                walk.writable &= bool(value & WRITABLE)
                walk.user &= bool(value & USER)
            if wide and value & EXECUTE_DISABLE:
                walk.executable = False
            if leaf:
                walk.page_size = 1 << level.shift
                walk.gpa = self._frame(level, value) | walk.gva & walk.page_size - 1
                return
            table = value & (ADDRESS if wide else 0xFFFF_F000)

    def _bits(self, level: Level, leaf: bool) -> Mapping[int, str]:
        if self.kind == "PAE" and level.name == "PDPTE":
            return _POINTER
        return (_PAGE if level.shift == 12 else _LARGE_PAGE) if leaf else _TABLE

    def _frame(self, level: Level, value: int) -> int:
        if self.kind == "32-bit":
            if level.shift == 22:  # PSE-36: bits 20:13 are bits 39:32 of the address (4.3)
                return value & 0xFFC0_0000 | (value >> 13 & 0xFF) << 32
            return value & 0xFFFF_F000
        return value & ADDRESS & -1 << level.shift

    def _reserved(self, level: Level, leaf: bool) -> int:
        """The bits that must be 0 in a present entry of `level`."""
        if self.kind == "32-bit":
            return 1 << 21 if leaf and level.shift == 22 else 0
        reserved = 0 if self._efer & EFER_NXE else EXECUTE_DISABLE
        if self.kind == "PAE":
            reserved |= 0x7FF << 52
            if level.name == "PDPTE":
                return reserved | EXECUTE_DISABLE | 0x1E6
        if leaf and level.shift > 12:
            return reserved | (1 << level.shift) - (1 << 13)  # bit 12 is PAT
        if level.shift > 12 and not level.large:
            reserved |= LARGE
        return reserved

    def translate(self, memory: GuestMemory, gva: int) -> int | None:
        """The guest-physical address of `gva`, or None."""
        return self.walk(memory, gva).gpa

    def read(self, memory: GuestMemory, gva: int, length: int) -> bytes:
        """Up to `length` bytes from linear address `gva`: as many as are mapped and in RAM, in one piece."""
        data = bytearray()
        while len(data) < length:
            at = gva + len(data)
            step = min(length - len(data), PAGE - at % PAGE)
            gpa = self.translate(memory, at)
            if gpa is None:
                break
            try:
                data += memory.read(gpa, step)
            except GuestMemoryError:
                break
        return bytes(data)
