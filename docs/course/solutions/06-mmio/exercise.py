"""Lesson 6, solved."""


def pieces(slots, gpa, size):
    """Which bytes of an access are RAM, and which a device's: a list of ("ram" or "mmio", gpa, size)."""
    found = []
    for at in range(gpa, gpa + size):
        kind = "ram" if any(base <= at < base + length for base, length in slots) else "mmio"
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1], found[-1][2] + 1)
        else:
            found.append((kind, at, 1))
    return found


def decode(code, registers):
    """What a `mov` between register and memory does: (address, size, value), with None for a load."""
    wide = 4
    if code[0] == 0x66:
        wide, code = 2, code[1:]
    opcode, modrm = code[0], code[1]
    size = wide if opcode & 1 else 1
    address = registers[modrm & 7]
    if modrm >> 6 == 1:
        address += int.from_bytes(code[2:3], "little", signed=True)
    address &= 0xFFFF_FFFF
    if opcode & 2:
        return address, size, None
    register = modrm >> 3 & 7
    if size == 1:
        value = registers[register & 3] >> (8 if register & 4 else 0)
    else:
        value = registers[register]
    return address, size, value & (1 << 8 * size) - 1
