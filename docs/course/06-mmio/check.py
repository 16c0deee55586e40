"""Lesson 6: whether the exercises are right. Each check says what is wrong, or "" if nothing is."""

SLOTS = [(0, 0xA_0000), (0x10_0000, 0xBFF0_0000), (0x1_0000_0000, 0x4000_0000)]
PIECES = (
    ([(0, 0x1000)], 0xFFE, 4, [("ram", 0xFFE, 2), ("mmio", 0x1000, 2)]),
    (SLOTS, 0x1000, 8, [("ram", 0x1000, 8)]),
    (SLOTS, 0x9_FFFF, 1, [("ram", 0x9_FFFF, 1)]),
    (SLOTS, 0xA_0000, 1, [("mmio", 0xA_0000, 1)]),
    (SLOTS, 0xD000_0000, 4, [("mmio", 0xD000_0000, 4)]),
    (SLOTS, 0xF_FFFD, 8, [("mmio", 0xF_FFFD, 3), ("ram", 0x10_0000, 5)]),
    (SLOTS, 0xFFFF_FFFC, 8, [("mmio", 0xFFFF_FFFC, 4), ("ram", 0x1_0000_0000, 4)]),
    ([(0x1000, 0x1000), (0x2000, 0x1000)], 0x1FFE, 4, [("ram", 0x1FFE, 4)]),
    ([], 0, 2, [("mmio", 0, 2)]),
    ([(0x1000, 2)], 0xFFF, 4, [("mmio", 0xFFF, 1), ("ram", 0x1000, 2), ("mmio", 0x1002, 1)]),
)
REGISTERS = [0x11223344, 0x55667788, 0x99AABBCC, 0xDDEEFF00, 0x7000, 0xD000_1000, 0xD000_2000, 0xD000_3000]
INSTRUCTIONS = (
    ("88 07", "mov %al, (%edi)", (0xD000_3000, 1, 0x44)),
    ("89 06", "mov %eax, (%esi)", (0xD000_2000, 4, 0x1122_3344)),
    ("66 89 1f", "mov %bx, (%edi)", (0xD000_3000, 2, 0xFF00)),
    ("8a 0f", "mov (%edi), %cl", (0xD000_3000, 1, None)),
    ("8b 16", "mov (%esi), %edx", (0xD000_2000, 4, None)),
    ("66 8b 06", "mov (%esi), %ax", (0xD000_2000, 2, None)),
    ("89 4f 10", "mov %ecx, 0x10(%edi)", (0xD000_3010, 4, 0x5566_7788)),
    ("88 67 01", "mov %ah, 1(%edi)", (0xD000_3001, 1, 0x33)),
    ("88 3e", "mov %bh, (%esi)", (0xD000_2000, 1, 0xFF)),
    ("89 5d fc", "mov %ebx, -4(%ebp)", (0xD000_0FFC, 4, 0xDDEE_FF00)),
    ("8b 73 80", "mov -0x80(%ebx), %esi", (0xDDEE_FE80, 4, None)),
)


def check_pieces(work):
    for slots, gpa, size, expected in PIECES:
        found = work.exercise.pieces(list(slots), gpa, size)
        if found is None:
            return "pieces() returns nothing yet"
        if not isinstance(found, list) or not all(isinstance(one, tuple) and len(one) == 3 for one in found):
            return f"pieces() returned {found!r}, expected a list of tuples (kind, gpa, size)"
        if found != expected:
            shown = ", ".join(f"({base:#x}, {length:#x})" for base, length in slots)
            return f"slots [{shown}], {size} bytes at {gpa:#x}: got {_hex(found)}, expected {_hex(expected)}"
    return ""


def _hex(pieces):
    return "[" + ", ".join(f"({kind!r}, {gpa:#x}, {size})" for kind, gpa, size in pieces) + "]"


def check_decode(work):
    for code, text, expected in INSTRUCTIONS:
        found = work.exercise.decode(bytes.fromhex(code), list(REGISTERS))
        if found is None:
            return "decode() returns nothing yet"
        if not isinstance(found, tuple) or len(found) != 3:
            return f"{code} is {text}: got {found!r}, expected a tuple (address, size, value)"
        for name, is_value, should in zip(("address", "size", "value"), found, expected, strict=True):
            if is_value != should:
                shown = [hex(one) if isinstance(one, int) else repr(one) for one in (is_value, should)]
                return f"{code} is {text}: its {name} came out as {shown[0]}, expected {shown[1]}"
    return ""
