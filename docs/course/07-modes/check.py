"""Lesson 7: whether the exercises are right. Each check says what is wrong, or "" if nothing is."""

DESCRIPTORS = (
    (0, 0xFFFFFFFF, 0x9B, 4, 0x00CF9B000000FFFF, "32-bit code, 4 GiB"),
    (0, 0xFFFFFFFF, 0x93, 4, 0x00CF93000000FFFF, "data, 4 GiB"),
    (0, 0xFFFFFFFF, 0x9B, 2, 0x00AF9B000000FFFF, "64-bit code: L, not D"),
    (0, 0xFFFF, 0x9B, 0, 0x00009B000000FFFF, "16-bit code, 64 KiB: it fits, so no G"),
    (0x12345678, 0xFFFFF, 0x93, 4, 0x124F93345678FFFF, "a base in its three pieces, and the largest limit without G"),
    (0x00400000, 0xFFFFFF, 0xF3, 4, 0x00C0F34000000FFF, "16 MiB of ring-3 data: 0xfffff, in pages 0xfff"),
    (0xFEDCBA98, 0x67, 0x8B, 0, 0xFE008BDCBA980067, "a TSS"),
)
PE, PG, LME, LMA, VM = 1, 1 << 31, 1 << 8, 1 << 10, 1 << 17
MODES = (
    ((0x10, 0, 2, 0, 0), "real", "CR0.PE is 0"),
    ((0x10, LME, 2, 0, 1), "real", "CR0.PE is 0; LME only says that long mode is wanted"),
    ((PE, 0, 2, 0, 0), "16-bit protected", "PE is set, CS still has D = 0"),
    ((PE, 0, 2, 0, 1), "32-bit protected", "PE is set, CS.D is 1"),
    ((PE | PG, 0, 2, 0, 1), "32-bit protected", "PE and PG are set, but long mode is not active"),
    ((PE, LME, 2, 0, 1), "32-bit protected", "LME is set, LMA is not"),
    ((PE, LME, 2, 1, 0), "16-bit protected", "without LMA the bit L of CS says nothing"),
    ((PE | PG, 0, VM | 2, 0, 0), "virtual-8086", "RFLAGS.VM is set in protected mode"),
    ((PE | PG, LME | LMA, 2, 0, 1), "compatibility", "LMA is set, CS.L is 0"),
    ((PE | PG, LME | LMA, 2, 0, 0), "compatibility", "LMA is set, CS.L is 0 (16-bit code)"),
    ((PE | PG, LME | LMA, 2, 1, 0), "64-bit", "LMA and CS.L are set"),
)


def check_descriptor(work):
    for base, limit, access, flags, expected, what in DESCRIPTORS:
        found = work.exercise.descriptor(base, limit, access, flags)
        if found is None:
            return "descriptor() returns nothing yet"
        if not isinstance(found, int):
            return f"descriptor() returned {found!r}, expected a number"
        if found != expected:
            bits = [bit for bit in range(64) if (found ^ expected) >> bit & 1]
            call = f"descriptor({base:#x}, {limit:#x}, {access:#x}, {flags:#x})"
            span = f"bits {', '.join(map(str, bits[:6]))}{' ...' if bits[6:] else ''}" if bits else "bits above 63"
            return f"{call} ({what}): got {found:#018x}, expected {expected:#018x}; wrong in {span}"
    return ""


def check_mode(work):
    for registers, expected, why in MODES:
        found = work.exercise.mode(*registers)
        if found is None:
            return "mode() returns nothing yet"
        if found != expected:
            names = zip(("cr0", "efer", "rflags", "cs_l", "cs_d"), registers, strict=True)
            shown = ", ".join(f"{name}={value:#x}" for name, value in names)
            return f"mode({shown}): got {found!r}, expected {expected!r}: {why}"
    return ""
