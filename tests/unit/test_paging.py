"""The page-table walker against tables built by an independent builder, and against bad tables."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.boot.x86 import identity_page_tables
from pyvmm.cpubits import (
    CR0_PE,
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
)
from pyvmm.memory import GuestMemory
from pyvmm.paging import EXECUTE_DISABLE, LARGE, PRESENT, USER, WRITABLE, Paging

ROOT = 0x10000
RAM = 4 << 20
PAGING_ON = CR0_PE | CR0_PG


@dataclass(frozen=True)
class Kind:
    """A kind of paging, written down a second time: how addresses split, and what may be a large page."""

    name: str
    cr4: int
    efer: int
    splits: tuple[tuple[int, int], ...]  # (shift, index bits) from the root down
    large: frozenset[int]  # shifts at which an entry may map a page
    width: int  # bits of a linear address
    entry: int = 8


LONG = ((39, 9), (30, 9), (21, 9), (12, 9))
KINDS = (
    Kind("32-bit", CR4_PSE, 0, ((22, 10), (12, 10)), frozenset({22}), 32, entry=4),
    Kind("PAE", CR4_PAE, 0, ((30, 2), (21, 9), (12, 9)), frozenset({21}), 32),
    Kind("4-level", CR4_PAE, EFER_LMA | EFER_LME, LONG, frozenset({30, 21}), 48),
    Kind("5-level", CR4_PAE | CR4_LA57, EFER_LMA | EFER_LME, ((48, 9), *LONG), frozenset({30, 21}), 57),
)


def paging(kind: Kind, nx: bool = True) -> Paging:
    return Paging(PAGING_ON, ROOT, kind.cr4, kind.efer | (EFER_NXE if nx else 0))


class Builder:
    """Lays page tables out in guest memory, one mapping at a time, each table a fresh page."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.memory = GuestMemory.allocate([(0, RAM)])
        self.next_table = ROOT + 4096
        self.tables: dict[tuple[int, int], int] = {}

    def store(self, gpa: int, value: int) -> None:
        (self.memory.write_u32 if self.kind.entry == 4 else self.memory.write_u64)(gpa, value)

    def map(self, gva: int, gpa: int, shift: int, flags: int) -> bool:
        """Map the page of 1 << `shift` bytes at `gva`; False where an earlier mapping is in the way."""
        table = ROOT
        for at, bits in self.kind.splits:
            place = table + (gva >> at & (1 << bits) - 1) * self.kind.entry
            key = (place, at)
            if at == shift:
                if key in self.tables:
                    return False
                self.tables[key] = -1
                self.store(place, gpa | flags | PRESENT | (LARGE if at > 12 else 0))
                return True
            if key not in self.tables:
                self.tables[key] = self.next_table
                top_of_pae = self.kind.name == "PAE" and at == 30
                self.store(place, self.next_table | PRESENT | (0 if top_of_pae else WRITABLE | USER))
                self.next_table += 4096
            table = self.tables[key]
            if table < 0:
                return False
        raise AssertionError("a mapping ends at some level")


def canonical(gva: int, width: int) -> int:
    """`gva`, `width` bits, sign-extended to 64 where the width asks for it."""
    if width == 32 or not gva >> (width - 1):
        return gva
    return gva | (1 << 64) - (1 << width)


@st.composite
def mappings(draw: st.DrawFn) -> tuple[Kind, list[tuple[int, int, int, int]]]:
    kind = draw(st.sampled_from(KINDS))
    wanted = []
    for _ in range(draw(st.integers(1, 6))):
        shift = draw(st.sampled_from(sorted({12, *kind.large})))
        gva = draw(st.integers(0, (1 << kind.width) - 1)) >> shift << shift
        gpa = draw(st.integers(0, (1 << (32 if kind.entry == 4 else 52)) - 1)) >> shift << shift
        flags = draw(st.sampled_from((0, WRITABLE, USER, WRITABLE | USER)))
        if kind.entry == 8 and draw(st.booleans()):
            flags |= EXECUTE_DISABLE
        wanted.append((gva, gpa, shift, flags))
    return kind, wanted


@settings(max_examples=60, deadline=None)
@given(mappings(), st.integers(0, (1 << 30) - 1))
def test_walk_agrees_with_builder(case: tuple[Kind, list[tuple[int, int, int, int]]], within: int) -> None:
    kind, wanted = case
    builder = Builder(kind)
    done = [mapping for mapping in wanted if builder.map(*mapping)]
    for gva, gpa, shift, flags in done:
        offset = within & (1 << shift) - 1
        walk = paging(kind).walk(builder.memory, canonical(gva, kind.width) + offset)
        assert (walk.gpa, walk.problem) == (gpa + offset, "")
        assert walk.page_size == 1 << shift
        assert (walk.writable, walk.user) == (bool(flags & WRITABLE), bool(flags & USER))
        assert walk.executable == (not flags & EXECUTE_DISABLE)
        assert len(walk.entries) == [at for at, _ in kind.splits].index(shift) + 1
    builder.memory.close()


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
    st.binary(max_size=64),
    st.booleans(),
)
def test_no_table_makes_it_raise(kind: Kind, cr3: int, gva: int, filling: bytes, nx: bool) -> None:
    memory = GuestMemory.allocate([(0, 64 << 10)])
    for gpa in range(0, 64 << 10, max(len(filling), 1) * 64):
        memory.write(gpa, filling)
    space = Paging(PAGING_ON, cr3, kind.cr4, kind.efer | (EFER_NXE if nx else 0))
    walk = space.walk(memory, gva)
    assert (walk.gpa is None) == bool(walk.problem)
    assert walk.fault is None or walk.gpa is None
    assert len(walk.entries) <= len(kind.splits)
    assert all(entry.describe() for entry in walk.entries)
    assert len(space.read(memory, gva, 64)) <= 64
    memory.close()


def test_without_paging_addresses_are_physical() -> None:
    memory = GuestMemory.allocate([(0, 8192)])
    memory.write(8190, b"ab")
    space = Paging(CR0_PE, 0, 0, 0)
    assert space.kind == "none"
    assert space.translate(memory, 0x1234) == 0x1234
    assert space.read(memory, 8190, 10) == b"ab"
    assert space.read(memory, 8192, 1) == b""


def test_identity_map_of_the_loader() -> None:
    memory = GuestMemory.allocate([(0, RAM)])
    memory.write(ROOT, identity_page_tables(ROOT))
    space = paging(KINDS[2])
    assert space.translate(memory, 0x12345678) == 0x12345678
    hole = space.walk(memory, 1 << 32)
    assert (hole.problem, hole.fault) == ("PDPTE not present", 0)
    assert space.walk(memory, 0x8000_0000_0000).problem == "not canonical: bits 63 to 47 differ"
    assert [entry.level for entry in space.walk(memory, 0).entries] == ["PML4E", "PDPTE", "PDE"]


def test_large_page_of_36_bits() -> None:
    builder = Builder(KINDS[0])
    builder.store(ROOT + 4, 0x0040_0000 | 0x3 << 13 | LARGE | PRESENT)
    assert paging(KINDS[0]).translate(builder.memory, 0x0040_1234) == 0x3_0040_1234
    builder.store(ROOT + 4, 1 << 21 | LARGE | PRESENT)
    assert "reserved" in paging(KINDS[0]).walk(builder.memory, 0x0040_1234).problem
    # Without CR4.PSE the bit means nothing and the entry leads to a table.
    assert Paging(PAGING_ON, ROOT, 0, 0).walk(builder.memory, 0x0040_1234).entries[-1].level == "PTE"


@pytest.mark.parametrize(
    ("kind", "entry", "level"),
    [
        (KINDS[2], PRESENT | LARGE, "PML4E"),
        (KINDS[1], PRESENT | WRITABLE, "PDPTE"),
        (KINDS[1], PRESENT | 1 << 52, "PDPTE"),
    ],
)
def test_reserved_bits_end_a_walk(kind: Kind, entry: int, level: str) -> None:
    builder = Builder(kind)
    builder.store(ROOT, entry | 0x20000)
    walk = paging(kind).walk(builder.memory, 0)
    assert walk.gpa is None
    assert walk.problem.startswith(f"{level} has reserved bits set")
    assert walk.fault == 0b1001


def test_execute_disable_is_reserved_while_nxe_is_off() -> None:
    builder = Builder(KINDS[2])
    builder.map(0, 0x5000, 12, EXECUTE_DISABLE)
    assert paging(KINDS[2]).walk(builder.memory, 0).gpa == 0x5000
    assert "reserved" in paging(KINDS[2], nx=False).walk(builder.memory, 0).problem


def test_rights_are_those_of_all_levels() -> None:
    builder = Builder(KINDS[2])
    builder.map(0, 0x5000, 12, WRITABLE | USER)
    builder.store(ROOT, (ROOT + 4096) | PRESENT)
    walk = paging(KINDS[2]).walk(builder.memory, 0)
    assert (walk.gpa, walk.writable, walk.user) == (0x5000, False, False)


def test_a_table_outside_ram_is_said() -> None:
    memory = GuestMemory.allocate([(0, RAM)])
    walk = Paging(PAGING_ON, 0x4000_0000, CR4_PAE, EFER_LMA).walk(memory, 0)
    assert walk.problem == "the table of PML4Es at 0x40000000 is not in RAM"
    assert walk.fault is None


def test_a_read_crosses_pages_and_stops_at_the_first_hole() -> None:
    builder = Builder(KINDS[3])
    builder.map(0x1000, 0x300000, 12, 0)
    builder.map(0x2000, 0x200000, 12, 0)
    builder.memory.write(0x300FFE, b"ab")
    builder.memory.write(0x200000, b"cd" * 2048)
    space = paging(KINDS[3])
    assert space.read(builder.memory, 0x1FFE, 4) == b"abcd"
    assert len(space.read(builder.memory, 0x1FFE, 3 * 4096)) == 4098


def test_an_entry_describes_itself() -> None:
    builder = Builder(KINDS[2])
    builder.map(0x5000, 0x7000, 12, WRITABLE)
    assert paging(KINDS[2]).walk(builder.memory, 0x5000).entries[-1].describe().endswith("= 0x7003  P W")
