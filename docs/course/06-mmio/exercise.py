"""Lesson 6: where an access goes, and what an instruction does. `pyvmm lesson check 6` looks at both."""


def pieces(slots, gpa, size):
    """Exercise `pieces`: which bytes of an access are RAM, and which a device's.

    `slots` are the memory slots, pairs of (base, length); they do not overlap. The access is `size` bytes from
    guest-physical address `gpa`. Returns a list of ("ram" or "mmio", gpa, size), by address, as few as possible.

        pieces([(0, 0x1000)], 0xffe, 4) == [("ram", 0xffe, 2), ("mmio", 0x1000, 2)]
    """
    ...


def decode(code, registers):
    """Exercise `decode`: what a `mov` between register and memory does, in 32-bit mode with flat segments.

    `code` are the bytes of the instruction: perhaps the prefix 0x66 (16 bits), an opcode of 0x88, 0x89, 0x8a, 0x8b
    (Intel SDM volume 2B, MOV), and ModRM (volume 2A, 2.1.5, table 2-2) with mod = 0, the address in a register, or
    mod = 1, with a signed byte behind it that is added. rm is never 4, and with mod = 0 never 5.
    `registers` are EAX, ECX, EDX, EBX, ESP, EBP, ESI, EDI.

    Returns (address, size, value): `value` is what is stored, of `size` bytes, or None where the instruction loads.

        decode(b"\\x88\\x07", [0x41, 0, 0, 0, 0, 0, 0, 0xd0000000]) == (0xd0000000, 1, 0x41)    # mov %al, (%edi)
    """
    ...
