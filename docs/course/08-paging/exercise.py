"""Lesson 8: walk page tables, and build them. `pyvmm lesson check 8` compares with pyvmm's own walk."""

PRESENT, WRITABLE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7


def translate(memory, root, gva):
    """Exercise `translate`: the guest-physical address of `gva` (bits 63 to 48 are 0), or None if it is not mapped.

    4-level paging (Intel SDM volume 3A, 4.5): the PML4 is at `root`, an entry is 8 bytes: `memory.read_u64(gpa)`.
    Pages have 4 KiB, 2 MiB (PS in a PDE) or 1 GiB (PS in a PDPTE). Reserved bits are not looked at.
    """
    ...


def map_page(memory, root, gva, gpa, flags, allocate):
    """Exercise `map_page`: map the page of 4 KiB at `gva` to the page at `gpa`.

    Its entry gets `flags` (PRESENT and perhaps WRITABLE, USER). Missing tables come from `allocate()`, which gives the
    gpa of a page full of zeroes; the entries that lead to them have PRESENT, WRITABLE and USER. What is mapped already
    stays as it is. `memory.write_u64(gpa, value)` writes an entry.
    """
    ...
