"""Lesson 7, solved."""


def descriptor(base, limit, access, flags):
    """The 8 bytes of a segment descriptor as a number."""
    if limit > 0xFFFFF:
        limit >>= 12
        flags |= 8
    return (
        limit & 0xFFFF
        | (base & 0xFFFFFF) << 16
        | access << 40
        | (limit >> 16 & 0xF) << 48
        | flags << 52
        | (base >> 24 & 0xFF) << 56
    )


def mode(cr0, efer, rflags, cs_l, cs_d):
    """The mode in which a processor with these registers executes."""
    if not cr0 & 1:
        return "real"
    if efer >> 10 & 1:
        return "64-bit" if cs_l else "compatibility"
    if rflags >> 17 & 1:
        return "virtual-8086"
    return "32-bit protected" if cs_d else "16-bit protected"
