"""Lesson 8, solved."""

PRESENT, WRITABLE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
ADDRESS = 0x000F_FFFF_FFFF_F000


def translate(memory, root, gva):
    """The guest-physical address of `gva`, or None if it is not mapped."""
    table = root
    for shift in (39, 30, 21, 12):
        entry = memory.read_u64(table + 8 * (gva >> shift & 511))
        if not entry & PRESENT:
            return None
        if shift == 12 or (entry & LARGE and shift < 39):
            offset = (1 << shift) - 1
            return entry & ADDRESS & ~offset | gva & offset
        table = entry & ADDRESS
    return None


def map_page(memory, root, gva, gpa, flags, allocate):
    """Map the page of 4 KiB at `gva` to the page at `gpa`."""
    table = root
    for shift in (39, 30, 21):
        at = table + 8 * (gva >> shift & 511)
        entry = memory.read_u64(at)
        if not entry & PRESENT:
            entry = allocate() | PRESENT | WRITABLE | USER
            memory.write_u64(at, entry)
        table = entry & ADDRESS
    memory.write_u64(table + 8 * (gva >> 12 & 511), gpa | flags)
