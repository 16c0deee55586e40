"""Guest RAM: bounds, types, the 32-bit hole."""

import errno
import mmap
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm import layout
from pyvmm.errors import GuestMemoryError, PyvmmError, UsageError
from pyvmm.memory import GuestMemory
from tests.support.hugepages import huge_pages

PAGE = 4096
RANGES = [(0, 4 * PAGE), (0x100000, 2 * PAGE)]
EDGES = sorted({edge + delta for gpa, length in RANGES for edge in (gpa, gpa + length) for delta in (-1, 0, 1)})


@pytest.fixture(scope="module")
def memory():
    memory = GuestMemory.allocate(RANGES)
    yield memory
    memory.close()


def inside(gpa: int, length: int) -> bool:
    return length >= 0 and any(base <= gpa and gpa + length <= base + size for base, size in RANGES)


@given(
    gpa=st.sampled_from(EDGES) | st.integers(-10, 1 << 65),
    length=st.integers(-3, 3 * PAGE) | st.integers(-(1 << 65), 1 << 65),
)
def test_every_access_lies_in_one_region_or_raises(memory, gpa, length):
    assert memory.contains(gpa, length) == inside(gpa, length)
    if inside(gpa, length):
        assert len(memory.read(gpa, length)) == length
        assert len(memory.view(gpa, length)) == length
    else:
        for access in (memory.read, memory.view):
            with pytest.raises(GuestMemoryError) as caught:
                access(gpa, length)
            assert (caught.value.gpa, caught.value.length) == (gpa, length)


@given(gpa=st.integers(0, 4 * PAGE + 8), data=st.binary(max_size=64))
def test_what_is_written_is_read(memory, gpa, data):
    if inside(gpa, len(data)):
        memory.write(gpa, data)
        assert memory.read(gpa, len(data)) == data
    else:
        with pytest.raises(GuestMemoryError):
            memory.write(gpa, data)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("gpa", [0, 3, 4 * PAGE - 8, 0x100000])
def test_typed_accesses_are_little_endian(memory, bits, gpa):
    value = 0x8877665544332211 & ((1 << bits) - 1)
    getattr(memory, f"write_u{bits}")(gpa, value)
    assert memory.read(gpa, bits // 8) == value.to_bytes(bits // 8, "little")
    assert getattr(memory, f"read_u{bits}")(gpa) == value


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_typed_accesses_over_an_end_raise(memory, bits):
    last = 4 * PAGE - bits // 8 + 1
    with pytest.raises(GuestMemoryError):
        getattr(memory, f"read_u{bits}")(last)
    with pytest.raises(GuestMemoryError):
        getattr(memory, f"write_u{bits}")(last, 0)


def test_write_takes_any_buffer(memory):
    memory.write(0, memoryview(bytes(range(8))).cast("H"))
    assert memory.read(0, 8) == bytes(range(8))


def test_fill_stays_inside(memory):
    memory.fill(0, 4 * PAGE, 0xAA)
    memory.fill(PAGE, PAGE)
    assert memory.read(PAGE - 1, PAGE + 2) == b"\xaa" + bytes(PAGE) + b"\xaa"
    with pytest.raises(GuestMemoryError):
        memory.fill(3 * PAGE, PAGE + 1)


@pytest.mark.parametrize("backing", ["anonymous", "memfd"])
def test_allocated_memory_is_zero_and_closes(backing):
    before = sorted(os.listdir("/proc/self/fd"))
    memory = GuestMemory.allocate([(0, 4 << 20)], backing)
    assert memory.size == 4 << 20
    assert memory.read((4 << 20) - 16, 16) == bytes(16)
    assert (memory.regions[0].fd >= 0) == (backing == "memfd")
    memory.close()
    memory.close()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_borrowed_view_keeps_memory_open():
    memory = GuestMemory.allocate([(0, PAGE)])
    with memory.view(0, 4), pytest.raises(BufferError):
        memory.close()
    memory.close()


def test_memory_is_not_inherited_by_a_fork():
    memory = GuestMemory.allocate([(0, 3 << 20)])
    with open("/proc/self/smaps") as smaps:
        marks = [line.split()[1:] for line in smaps if line.startswith("VmFlags:")]
    assert any("dc" in flags and "nr" in flags for flags in marks), "no mapping has MADV_DONTFORK and MAP_NORESERVE"
    memory.close()


def test_a_forked_child_has_pages_of_its_own_there():
    """In a fresh process, where what fills the holes is loaded for it: not into them."""
    program = """
import mmap, os, sys
from pyvmm.memory import GuestMemory

def maps():
    with open("/proc/self/maps") as lines:
        for line in lines:
            words = line.split()
            yield *(int(end, 16) for end in words[0].split("-")), words[5:]

elsewhere = [mmap.mmap(-1, 64 << 10) for _ in range(256)]  # so that the only room above others is where RAM is
others = set(first for first, *_ in maps())
memory = GuestMemory.allocate([(0, 1 << 20)])  # too small for huge pages, whose alignment would leave room above it
memory.write(0x1000, b"the parent's")
(ram,) = [(first, end) for first, end, name in maps() if end - first == 1 << 20 and first not in others]
assert "ctypes" not in sys.modules
child = os.fork()
if child == 0:
    there = [name for first, end, name in maps() if first < ram[1] and ram[0] < end]
    before = memory.read(0x1000, 12)
    memory.write(0x1000, b"the child's ")
    memory.close()
    os._exit(0 if there == [[]] and before == bytes(12) else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert memory.read(0x1000, 12) == b"the parent's"
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_more_than_the_host_maps_is_one_line():
    with pytest.raises(PyvmmError, match="cannot map .* MiB of guest RAM"):
        GuestMemory.allocate([(0, PAGE), (1 << 40, 1 << 60)])


def test_a_kernel_without_huge_pages_is_good_enough(monkeypatch):
    monkeypatch.setattr("mmap.MADV_HUGEPAGE", 0xBAD)
    with pytest.raises(OSError), mmap.mmap(-1, PAGE) as pages:
        pages.madvise(mmap.MADV_HUGEPAGE)
    GuestMemory.allocate([(0, 4 << 20)]).close()


@pytest.mark.parametrize(("name", "number"), [("memfd_create", errno.EPERM), ("ftruncate", errno.ENOSPC)])
def test_a_memfd_that_cannot_be_had_is_one_line(monkeypatch, name, number):
    """A seccomp filter, a host without room."""

    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(PyvmmError) as caught:
        GuestMemory.allocate([(0, 4 << 20)], "memfd")
    assert str(caught.value) == f"cannot map 4 MiB of guest RAM (memfd): {os.strerror(number)}"
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_huge_pages_that_the_host_does_not_have_are_one_line(monkeypatch):
    def mmap_refused(*_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("pyvmm.memory.mmap.mmap", mmap_refused)
    with pytest.raises(PyvmmError, match=r"^cannot map 4 MiB of guest RAM \(hugetlb\): .* \(.*/nr_hugepages\)$"):
        GuestMemory.allocate([(0, 4 << 20)], "hugetlb")


def test_ram_in_huge_pages_is_a_multiple_of_them():
    with pytest.raises(UsageError, match="expected a multiple of 2 MiB"):
        GuestMemory.allocate([(0, 3 << 20)], "hugetlb")


@pytest.mark.serial
@pytest.mark.needs("huge-pages")
def test_huge_pages_are_given_back_whole():
    with huge_pages(4):
        memory = GuestMemory.allocate([(0, 8 << 20)], "hugetlb")
        memory.fill(0, 8 << 20, 1)
        assert memory.discard((2 << 20) - 4096, (4 << 20) + 8192) == 4 << 20
        assert memory.read(2 << 20, 4 << 20) == bytes(4 << 20)
        assert memory.read_u8((2 << 20) - 1) == memory.read_u8(6 << 20) == 1
        memory.close()


def test_unknown_backing():
    with pytest.raises(UsageError, match="'floppy'"):
        GuestMemory.allocate([(0, PAGE)], "floppy")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1 << 20, [(0, 1 << 20)]),
        (3 << 30, [(0, 3 << 30)]),
        ((3 << 30) + PAGE, [(0, 3 << 30), (1 << 32, PAGE)]),
        (8 << 30, [(0, 3 << 30), (1 << 32, 5 << 30)]),
    ],
)
def test_ram_leaves_the_32_bit_hole(size, expected):
    assert layout.ram_ranges(size) == expected
