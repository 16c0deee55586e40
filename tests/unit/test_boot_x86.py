"""Descriptors, page tables and the state of each mode, against the Intel SDM and against second readers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import cpubits
from pyvmm.boot import segments, x86
from pyvmm.boot.segments import Segment

# The numbers of SDM volume 3A, 3.4.5 worked out by hand; Linux has the same in GDT_ENTRY_INIT (0xc09b, 0xa09b, 0xc093).
FLAT_CODE = 0x00CF9B000000FFFF
FLAT_DATA = 0x00CF93000000FFFF
LONG_CODE = 0x00AF9B000000FFFF
BUSY_TSS = 0x00008B0000000067


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        (segments.flat_code(), FLAT_CODE),
        (segments.flat_data(), FLAT_DATA),
        (segments.long_code(), LONG_CODE),
        (segments.busy_task(), BUSY_TSS),
        (Segment(8, 0x12345678, 0xABCDE, 2), 0x120A92345678BCDE),
    ],
)
def test_descriptor(segment: Segment, descriptor: int) -> None:
    assert segment.descriptor() == descriptor
    assert Segment.from_descriptor(descriptor, segment.selector) == segment


@given(
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFF),
    st.integers(0, 15),
    st.tuples(*[st.integers(0, 1)] * 6),
    st.integers(0, 3),
)
def test_descriptor_round_trip(base: int, limit: int, kind: int, bits: tuple[int, ...], dpl: int) -> None:
    s, present, avl, long, db, g = bits
    limit = limit << 12 | 0xFFF if g else limit
    segment = Segment(0x10, base, limit, kind, s=s, dpl=dpl, present=present, avl=avl, l=long, db=db, g=g)
    assert Segment.from_descriptor(segment.descriptor(), 0x10) == segment


@pytest.mark.parametrize(
    ("base", "limit", "g"), [(1 << 32, 0, 0), (0, 1 << 20, 0), (0, 0xFFFFF000, 1), (0, 1 << 32, 1)]
)
def test_what_no_descriptor_holds(base: int, limit: int, g: int) -> None:
    with pytest.raises(ValueError, match="no descriptor holds"):
        Segment(0x10, base, limit, 3, g=g).descriptor()


def test_gdt_has_the_selectors_of_the_linux_boot_protocol() -> None:
    table = segments.gdt((segments.long_code(), segments.flat_data(), segments.busy_task()))
    assert struct.unpack("<6Q", table) == (0, 0, LONG_CODE, FLAT_DATA, BUSY_TSS, 0)
    assert (segments.CODE_SELECTOR, segments.DATA_SELECTOR) == (0x10, 0x18)


def translate(tables: bytes, root: int, gva: int) -> int | None:
    """A 4-level walk as SDM volume 3A, 4.5.4 draws it, reading `tables` placed at `root`."""
    table = root
    for shift in (39, 30, 21):
        (entry,) = struct.unpack_from("<Q", tables, table - root + (gva >> shift & 511) * 8)
        if not entry & 1:
            return None
        assert entry & 2, "not writable"
        if entry & 0x80:
            assert shift == 21
            return int(entry & 0x000FFFFFFFE00000 | gva & 0x1FFFFF)
        table = entry & 0x000FFFFFFFFFF000
    raise AssertionError("no 4 KiB pages expected")


@pytest.mark.parametrize("root", [0x1000, 0x70000])
def test_identity_page_tables(root: int) -> None:
    tables = x86.identity_page_tables(root)
    assert len(tables) == x86.IDENTITY_LENGTH == 6 * 4096
    for gva in (*range(0, 1 << 32, 2 << 20), 0x7C00, 0x1FFFFF, 0xFEE00030, 0xFFFFFFFF):
        assert translate(tables, root, gva) == gva
    for gva in (1 << 32, 1 << 39, (1 << 48) - 1):
        assert translate(tables, root, gva) is None


def test_control_register_bits() -> None:
    """SDM volume 3A, 2.5, and the neighbour that others have taken for it: OSFXSR is bit 9, PCE bit 8."""
    assert (cpubits.CR4_OSFXSR, cpubits.CR4_PCE) == (0x200, 0x100)
    assert (cpubits.CR0_PE, cpubits.CR0_ET, cpubits.CR0_WP, cpubits.CR0_PG) == (1, 0x10, 0x10000, 0x80000000)
    assert (cpubits.CR4_PSE, cpubits.CR4_PAE, cpubits.CR4_PGE, cpubits.CR4_OSXMMEXCPT, cpubits.CR4_LA57) == (
        0x10,
        0x20,
        0x80,
        0x400,
        0x1000,
    )
    assert (cpubits.EFER_SCE, cpubits.EFER_LME, cpubits.EFER_LMA, cpubits.EFER_NXE) == (1, 0x100, 0x400, 0x800)


def test_long_state() -> None:
    state = x86.long_state(0x7C00, 0x500, 0x1000)
    assert state.mode == "long"
    assert state.cr0 & 0x80000001 == 0x80000001  # PG and PE
    assert not state.cr0 & (cpubits.CR0_EM | cpubits.CR0_TS | cpubits.CR0_CD | cpubits.CR0_NW)
    assert state.cr4 == 0x620  # PAE, OSFXSR, OSXMMEXCPT
    assert state.efer == 0x500  # LME, LMA
    assert (state.cr3, state.rsp, state.rflags) == (0x1000, 0x7C00, 2)
    assert (state.gdt_base, state.gdt_limit) == (0x500, 0x2F)
    assert (state.cs.selector, state.cs.l, state.cs.db) == (0x10, 1, 0)
    assert all(getattr(state, name).selector == 0x18 for name in ("ds", "es", "ss"))
    assert (state.tr.type, state.tr.s, state.ldt.unusable) == (0xB, 0, 1)


def test_protected_state() -> None:
    state = x86.protected_state(0x7C00, 0x500)
    assert state.mode == "protected"
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (0x11, 0, 0, 0)
    assert (state.cs.base, state.cs.limit, state.cs.db, state.cs.l) == (0, 0xFFFFFFFF, 1, 0)
    for name in ("ds", "es", "fs", "gs", "ss"):
        data = getattr(state, name)
        assert (data.base, data.limit, data.type, data.db) == (0, 0xFFFFFFFF, 3, 1)
    assert (state.tr.base, state.tr.limit, state.tr.type) == (0, 0x67, 0xB)
    assert (state.idt_base, state.idt_limit) == (0, 0)


def test_real_state() -> None:
    state = x86.real_state(0x1234, 0x7C00)
    assert state.mode == "real"
    assert (state.cr0, state.cr4, state.efer) == (0x10, 0, 0)
    assert (state.cs.selector, state.cs.base, state.cs.limit, state.cs.type) == (0x1234, 0x12340, 0xFFFF, 0xB)
    assert (state.ss.base, state.rsp) == (0, 0x7C00)
    assert (state.idt_base, state.idt_limit) == (0, 0x3FF)


def test_state_has_every_register() -> None:
    state = x86.real_state(0, 0)
    for name in x86.CpuState.__slots__:
        assert getattr(state, name) is not None
    assert set(x86.GENERAL_REGISTERS) | set(x86.SEGMENT_REGISTERS) < set(x86.CpuState.__slots__)
