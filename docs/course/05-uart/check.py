"""Lesson 5: replays accesses to the learner's UART, as a guest and a peer would make them."""

OFFSETS = {"RBR": 0, "THR": 0, "DLL": 0, "DLM": 1, "LCR": 3, "LSR": 5, "SCR": 7}

# (what, register or None, value): what is written, received or expected to be read.
ACCESSES = (
    ("write", "SCR", 0x5A),
    ("read", "SCR", 0x5A),
    ("read", "LSR", 0x60),
    ("write", "LCR", 0x83),
    ("read", "LCR", 0x83),
    ("write", "DLL", 0x0C),
    ("write", "DLM", 0x01),
    ("read", "DLL", 0x0C),
    ("read", "DLM", 0x01),
    ("write", "LCR", 0x03),
    ("write", "THR", 0x48),
    ("write", "THR", 0x69),
    ("receive", None, 0x61),
    ("read", "LSR", 0x61),
    ("read", "LSR", 0x61),
    ("read", "RBR", 0x61),
    ("read", "LSR", 0x60),
    ("receive", None, 0x62),
    ("receive", None, 0x63),
    ("read", "LSR", 0x63),
    ("read", "LSR", 0x61),
    ("read", "RBR", 0x63),
    ("read", "LSR", 0x60),
    ("receive", None, 0x00),
    ("write", "LCR", 0x80),
    ("read", "DLL", 0x0C),
    ("read", "LSR", 0x61),
    ("write", "LCR", 0x03),
    ("read", "RBR", 0x00),
    ("write", "THR", 0x00),
)
WHY = {
    "RBR": "the character that was received last (table II); reading it clears DR",
    "DLL": "while DLAB is set offset 0 is the divisor's low byte (8.3)",
    "DLM": "while DLAB is set offset 1 is the divisor's high byte (8.3)",
    "LCR": "it reads back as written (8.1)",
    "LSR": "bit 0 DR, bit 1 OE, bits 5 and 6 THRE and TEMT; reading it clears OE and nothing else (8.4)",
    "SCR": "it reads back as written (8.10)",
}


def check_uart(work):
    uart = work.exercise.Uart()
    sent = b""
    for number, (what, register, value) in enumerate(ACCESSES, 1):
        if what == "receive":
            uart.receive(value)
            continue
        offset = OFFSETS[register]
        place = f"access {number}, {what} {register} (offset {offset})"
        if what == "write":
            uart.write(offset, 1, value)
            sent += bytes([value]) if register == "THR" else b""
        else:
            found = uart.read(offset, 1)
            if not isinstance(found, int):
                return f"{place}: read_{register.lower()} gives {found!r}; a read returns a number"
            if found != value:
                shown = uart.registers[register].describe(found)
                wanted = uart.registers[register].describe(value)
                return f"{place}: got {shown}, expected {wanted}. {WHY[register]}"
        if uart.sent != sent:
            why = "with DLAB off offset 0 is THR" if register == "THR" else "does write_lcr select the bank by DLAB?"
            return f"{place}: sent is {uart.sent!r} now, expected {sent!r}: {why}"
    return ""
