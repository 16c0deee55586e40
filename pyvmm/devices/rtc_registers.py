"""The bytes of the real-time clock and its CMOS RAM, declared.

Imports registers and hot. The clock is Motorola's MC146818A (data sheet, "Address Map", "Registers"); what a PC
keeps in the RAM behind it is from the IBM PC/AT Technical Reference, "Real-Time Clock/CMOS RAM Information",
and, for memory above 16 MiB, SeaBIOS's src/hw/rtc.h (CMOS_MEM_EXTMEM2, CMOS_MEM_HIGHMEM).
"""

from __future__ import annotations

from pyvmm.hot import POST
from pyvmm.registers import Field, Register, RegisterMap

CMOS_BYTES = 128

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR = 6, 7, 8, 9
REGISTER_A, REGISTER_B, REGISTER_C, REGISTER_D = 0x0A, 0x0B, 0x0C, 0x0D
SHUTDOWN = 0x0F
EQUIPMENT = 0x14
BASE_MEMORY, EXTENDED_MEMORY = 0x15, 0x17
"""Memory sizes, low byte first: KiB up to 640 KiB, and KiB from 1 MiB (here and at EXTENDED_MEMORY_FOUND)."""
CHECKED = range(0x10, 0x2E)
"""The bytes whose sum stands in CHECKSUM, high byte first."""
CHECKSUM = 0x2E
EXTENDED_MEMORY_FOUND = 0x30
CENTURY = 0x32
MEMORY_ABOVE_16M, MEMORY_ABOVE_4G = 0x34, 0x5B
"""Memory sizes, low byte first, in units of 64 KiB: from 16 MiB to 4 GiB, and from 4 GiB."""

ALARM_ANY = 0xC0
"""An alarm byte with both bits set matches any time."""

A_UIP, A_DV, A_RS = 0x80, 0x70, 0x0F
B_SET, B_PIE, B_AIE, B_UIE, B_SQWE, B_BINARY, B_24_HOURS, B_DSE = (0x80 >> bit for bit in range(8))
C_IRQF, C_PF, C_AF, C_UF = 0x80, 0x40, 0x20, 0x10
"""The flags stand at the bits of register B that enable their interrupts."""
D_VRT = 0x80
HOURS_PM = 0x80
"""In 12-hour format, the bit that says afternoon."""

EQUIPMENT_COPROCESSOR = 0x02
"""Equipment byte: an FPU; no diskette drive, no display adapter without a BIOS of its own."""

_CLOCK = "MC146818A, Address Map"
_AT = "IBM PC/AT Technical Reference, CMOS RAM"
_SEABIOS = "SeaBIOS src/hw/rtc.h"

PORTS = RegisterMap(
    2,
    Register(
        "INDEX",
        0,
        "IBM PC/AT Technical Reference, port 0x70",
        Field("INDEX", 0x7F, "the byte that port 0x71 is to mean"),
        Field("NMI_OFF", 0x80, "non-maskable interrupts disabled"),
        access="w",
        action=POST,
    ),
    Register("DATA", 1, "IBM PC/AT Technical Reference, port 0x71"),
)
"""The two ports. What DATA means is in `CMOS`, by index."""

CMOS = RegisterMap(
    CMOS_BYTES,
    Register("SECONDS", SECONDS, _CLOCK),
    Register("SECONDS_ALARM", SECONDS_ALARM, _CLOCK),
    Register("MINUTES", MINUTES, _CLOCK),
    Register("MINUTES_ALARM", MINUTES_ALARM, _CLOCK),
    Register("HOURS", HOURS, _CLOCK),
    Register("HOURS_ALARM", HOURS_ALARM, _CLOCK),
    Register("DAY_OF_WEEK", DAY_OF_WEEK, _CLOCK),
    Register("DAY_OF_MONTH", DAY_OF_MONTH, _CLOCK),
    Register("MONTH", MONTH, _CLOCK),
    Register("YEAR", YEAR, _CLOCK),
    Register(
        "A",
        REGISTER_A,
        "MC146818A, Register A",
        Field("RS", A_RS, "periodic rate"),
        Field("DV", A_DV, "time base", {2: "32768Hz"}),
        Field("UIP", A_UIP, "update in progress"),
        reset=0x26,
    ),
    Register(
        "B",
        REGISTER_B,
        "MC146818A, Register B",
        Field("DSE", B_DSE, "daylight saving"),
        Field("24_HOURS", B_24_HOURS, "24-hour format"),
        Field("BINARY", B_BINARY, "binary, not BCD"),
        Field("SQWE", B_SQWE, "square wave output"),
        Field("UIE", B_UIE, "update-ended interrupt"),
        Field("AIE", B_AIE, "alarm interrupt"),
        Field("PIE", B_PIE, "periodic interrupt"),
        Field("SET", B_SET, "the time stands still to be set"),
        reset=B_24_HOURS,
    ),
    Register(
        "C",
        REGISTER_C,
        "MC146818A, Register C",
        Field("UF", C_UF, "a second has begun"),
        Field("AF", C_AF, "the alarm time has come"),
        Field("PF", C_PF, "a period has ended"),
        Field("IRQF", C_IRQF, "one of them, with its interrupt enabled"),
        access="r",
    ),
    Register(
        "D",
        REGISTER_D,
        "MC146818A, Register D",
        Field("VRT", D_VRT, "RAM and time valid: the battery is good"),
        access="r",
        reset=D_VRT,
    ),
    Register("DIAGNOSTIC_STATUS", 0x0E, _AT),
    Register("SHUTDOWN", SHUTDOWN, _AT),
    Register(
        "EQUIPMENT",
        EQUIPMENT,
        _AT,
        Field("COPROCESSOR", EQUIPMENT_COPROCESSOR, "mathematics coprocessor"),
        reset=EQUIPMENT_COPROCESSOR,
    ),
    Register("BASE_MEMORY_LOW", BASE_MEMORY, _AT),
    Register("BASE_MEMORY_HIGH", BASE_MEMORY + 1, _AT),
    Register("EXTENDED_MEMORY_LOW", EXTENDED_MEMORY, _AT),
    Register("EXTENDED_MEMORY_HIGH", EXTENDED_MEMORY + 1, _AT),
    Register("CHECKSUM_HIGH", CHECKSUM, _AT),
    Register("CHECKSUM_LOW", CHECKSUM + 1, _AT),
    Register("EXTENDED_MEMORY_FOUND_LOW", EXTENDED_MEMORY_FOUND, _AT),
    Register("EXTENDED_MEMORY_FOUND_HIGH", EXTENDED_MEMORY_FOUND + 1, _AT),
    Register("CENTURY", CENTURY, _AT),
    Register("MEMORY_ABOVE_16M_LOW", MEMORY_ABOVE_16M, _SEABIOS),
    Register("MEMORY_ABOVE_16M_HIGH", MEMORY_ABOVE_16M + 1, _SEABIOS),
    Register("MEMORY_ABOVE_4G_LOW", MEMORY_ABOVE_4G, _SEABIOS),
    Register("MEMORY_ABOVE_4G_MIDDLE", MEMORY_ABOVE_4G + 1, _SEABIOS),
    Register("MEMORY_ABOVE_4G_HIGH", MEMORY_ABOVE_4G + 2, _SEABIOS),
)
"""What each index means; an index not named is plain RAM. Memory sizes are set when the machine is made."""
