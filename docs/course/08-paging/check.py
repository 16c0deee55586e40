"""Lesson 8: whether the exercises are right. Each check says what is wrong, or "" if nothing is."""

from pyvmm.cpubits import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, EFER_NXE
from pyvmm.errors import GuestMemoryError
from pyvmm.memory import GuestMemory
from pyvmm.paging import Paging

ROOT, TABLES = 0x1000, 0x8000
PRESENT, WRITABLE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
PAGING = Paging(CR0_PE | CR0_PG, ROOT, CR4_PAE, EFER_LME | EFER_LMA | EFER_NXE)
TABLE = {  # where: entry
    0x1000: 0x2000 | PRESENT | WRITABLE,
    0x1008: 0x2000,  # not present
    0x17F8: 0x3000 | PRESENT | WRITABLE,  # entry 255, the highest of the lower half
    0x2000: 0x4000 | PRESENT,
    0x2008: 0x4000_0000 | PRESENT | LARGE,
    0x3FF8: 0x4000 | PRESENT,
    0x4000: 0x5000 | PRESENT | USER | 1 << 63,
    0x4008: 0xC00_0000 | PRESENT | LARGE | 1 << 12,  # PAT stands where a small page has its address
    0x4030: 0x5000 | PRESENT,
    0x5000: 0x7000 | PRESENT,
    0x5078: 0x6000 | PRESENT | WRITABLE | 1 << 63,
    0x5080: 0x6000 | WRITABLE,  # not present
    0x5FF8: 0x9000 | PRESENT | LARGE,  # in the last level bit 7 is PAT
}
WALKS = (
    (0, "the first page"),
    (0xFFF, "the first page's last byte"),
    (0xC0_FFE0, "the address of the lesson"),
    (0xC1_0FE0, "a page table entry that is not present"),
    (0x1F_F123, "the last entry of a page table; bit 7 means PAT there, not PS"),
    (0x20_0000, "a page of 2 MiB; bit 12 of its entry is no part of the address"),
    (0x32_1ABC, "within a page of 2 MiB: bits 20 to 0 come from the address"),
    (0x5234_5678, "within a page of 1 GiB: bits 29 to 0 come from the address"),
    (0x8000_0000, "a PDPT entry that is not present"),
    (0x80_0000_0000, "a PML4 entry that is not present"),
    (0x7FFF_C000_0010, "PML4 entry 255, PDPT entry 511"),
    (0x60_0000, "a page directory entry that is not present"),
)


def _memory():
    memory = GuestMemory.allocate([(0, 1 << 20)])
    for at, entry in TABLE.items():
        memory.write_u64(at, entry)
    return memory


def _hex(value):
    return hex(value) if isinstance(value, int) else repr(value)


def check_translate(work):
    memory = _memory()
    for gva, what in WALKS:
        walk = PAGING.walk(memory, gva)
        expected = None if walk.problem else walk.gpa
        try:
            found = work.exercise.translate(memory, ROOT, gva)
        except GuestMemoryError as error:
            return f"{gva:#x} ({what}): the walk reads an entry where no table is: {error}"
        if found != expected:
            steps = "; ".join(" ".join(entry.describe().split()) for entry in walk.entries)
            return f"{gva:#x} ({what}): got {_hex(found)}, expected {_hex(expected)}. The entries: {steps}"
    return ""


def check_map_page(work):
    memory = GuestMemory.allocate([(0, 1 << 20)])
    given = []

    def allocate():
        given.append(TABLES + 0x1000 * len(given))
        return given[-1]

    wanted = {}
    pages = (
        (0x40_0000, 0x7_0000, PRESENT | WRITABLE, 3, "three tables are missing below the empty PML4"),
        (0x40_1000, 0x5_0000, PRESENT, 3, "its neighbour: all tables are there"),
        (0x60_0000, 0x6_0000, PRESENT | USER, 4, "2 MiB further: one more page table"),
        (0x7FFF_FFFF_F000, 0x4_0000, PRESENT | WRITABLE | USER, 7, "the top of the lower half: three more"),
        (0x40_0000, 0x3_0000, PRESENT, 7, "the first page again, elsewhere now"),
    )
    for gva, gpa, flags, tables, what in pages:
        work.exercise.map_page(memory, ROOT, gva, gpa, flags, allocate)
        wanted[gva] = (gpa, flags)
        if not given:
            return f"map_page() did not call allocate(), though {what}"
        if len(given) != tables:
            return f"{gva:#x} ({what}): allocate() has been called {len(given)} times in all, expected {tables}"
        for at, (to, allowed) in wanted.items():
            walk = PAGING.walk(memory, at)
            if walk.gpa != to:
                found = walk.problem or hex(walk.gpa or 0)
                return f"after mapping {gva:#x} ({what}), {at:#x} leads to {found}, expected {to:#x}"
            if (walk.writable, walk.user) != (bool(allowed & WRITABLE), bool(allowed & USER)):
                return (
                    f"after mapping {gva:#x} ({what}), {at:#x} has writable={walk.writable}, user={walk.user}, "
                    f"expected {bool(allowed & WRITABLE)}, {bool(allowed & USER)}: all entries on the way must allow it"
                )
    return ""
