"""The registers of the chips that KVM models itself, by name and bit by bit: PICs, I/O APIC, local APIC.

Imports registers and layout. A device of pyvmm's own declares its registers where it is; of these there is only the
declaration. What code computes with is in `wakeups` and `pyvmm.kvm.assembly`; a test holds both together. Follows the
Intel 8259A data sheet, the 82093AA data sheet and the SDM volume 3A, chapter 11; sections beside the registers.
"""

from __future__ import annotations

from pyvmm.layout import IOAPIC_PINS
from pyvmm.registers import Field, Register, RegisterMap

REQUESTS = '8259A data sheet, "Interrupt Request Register (IRR) and In-Service Register (ISR)"'
MASKS = '8259A data sheet, "Interrupt Mask Register (IMR)"'
LEVELS = '82371AB data sheet, "Edge/Level Control Register"'
PIC_LINES = 8
"""Of each of the two."""


def pic_registers(first: int) -> tuple[Register, ...]:
    """IRR, ISR, IMR and ELCR of the PIC whose line 0 is number `first` of both: a bit for each line."""
    lines = [Field(f"IRQ{first + at}", 1 << at, f"line {first + at}") for at in range(PIC_LINES)]
    return (
        Register("IRR", 0, REQUESTS, *lines, access="r"),
        Register("ISR", 0, REQUESTS, *lines, access="r"),
        Register("IMR", 1, MASKS, *lines),
        Register("ELCR", 0, LEVELS, *lines),
    )


# --- I/O APIC and local APIC: what they have in common ---------------------------------------------------------------

_DELIVERY = {0: "fixed", 1: "lowest-priority", 2: "SMI", 4: "NMI", 5: "INIT", 7: "ExtINT"}
_DEST = "an APIC ID, or a set of logical ones"
_VECTOR = Field("VECTOR", 0xFF, "the vector")
_MODE = Field("MODE", 1 << 11, "what DEST is", {0: "physical", 1: "logical"})
_PENDING = Field("PENDING", 1 << 12, "not delivered so far")
_POLARITY = Field("POLARITY", 1 << 13, "the level that is a request", {0: "high", 1: "low"})
_REMOTE_IRR = Field("REMOTE_IRR", 1 << 14, "a level that was accepted and not ended yet")
_TRIGGER = Field("TRIGGER", 1 << 15, "what is a request", {0: "edge", 1: "level"})
_MASKED = Field("MASKED", 1 << 16, "nothing comes through")

# --- The I/O APIC ----------------------------------------------------------------------------------------------------

IOREDTBL = tuple(
    Register(
        f"IOREDTBL{pin}", 0x10 + 2 * pin, "82093AA, 3.2.4",
        _VECTOR, Field("DELIVERY", 7 << 8, "how it is delivered", _DELIVERY), _MODE, _PENDING, _POLARITY, _REMOTE_IRR,
        _TRIGGER, _MASKED, Field("DEST", 0xFF << 56, _DEST),
        width=8,
    )
    for pin in range(IOAPIC_PINS)
)  # fmt: skip
"""The redirection entries, one for each pin; `offset` is what selects the lower half."""

# --- The local APIC --------------------------------------------------------------------------------------------------

_PIN_DELIVERY = Field("DELIVERY", 7 << 8, "what happens", {0: "fixed", 2: "SMI", 4: "NMI", 5: "INIT", 7: "ExtINT"})
_MESSAGES = {0: "fixed", 1: "lowest-priority", 2: "SMI", 4: "NMI", 5: "INIT", 6: "start-up"}
_PRIORITY = (Field("SUBCLASS", 0xF, "within the class"), Field("CLASS", 0xF0, "vectors up to this class wait"))
_MODELS = {0xFFFF_FFFF: "flat", 0x0FFF_FFFF: "cluster"}
_ERRORS = (
    "SEND_CHECKSUM", "RECEIVE_CHECKSUM", "SEND_ACCEPT", "RECEIVE_ACCEPT", "REDIRECTABLE_IPI", "SEND_ILLEGAL_VECTOR",
    "RECEIVE_ILLEGAL_VECTOR", "ILLEGAL_REGISTER",
)  # fmt: skip
_DIVISORS = {0: "2", 1: "4", 2: "8", 3: "16", 8: "32", 9: "64", 10: "128", 11: "1"}
"""By bits 3, 1 and 0."""


def _apic(name: str, offset: int, section: str, *fields: Field, access: str = "rw") -> Register:
    return Register(name, offset, f"SDM volume 3A, {section}", *fields, width=4, access=access)


def _lvt(name: str, offset: int, *fields: Field) -> Register:
    return _apic(name, offset, "11.5.1", _VECTOR, *fields)


APIC = RegisterMap(
    0x400,
    _apic("ID", 0x020, "11.4.6", Field("ID", 0xFF << 24, "the APIC's ID")),
    _apic(
        "VERSION", 0x030, "11.4.8",
        Field("VERSION", 0xFF, "1x: in the processor"),
        Field("MAX_LVT", 0xFF << 16, "LVT entries, less one"),
        Field("EOI_BROADCAST_OPTIONAL", 1 << 24, "SVR can keep the I/O APIC from hearing of EOIs"),
        access="r",
    ),
    _apic("TPR", 0x080, "11.8.3.1", *_PRIORITY),
    _apic("PPR", 0x0A0, "11.8.3.1", *_PRIORITY, access="r"),
    _apic("LDR", 0x0D0, "11.6.2.2", Field("LOGICAL", 0xFF << 24, "the sets that it belongs to")),
    _apic("DFR", 0x0E0, "11.6.2.2", Field("MODEL", 0xFFFF_FFFF, "of those sets", _MODELS)),
    _apic(
        "SVR", 0x0F0, "11.9",
        Field("VECTOR", 0xFF, "given when the interrupt is gone that the processor asks for"),
        Field("ENABLED", 1 << 8, "by software"),
        Field("FOCUS_OFF", 1 << 9, "no focus processor is looked for"),
        Field("EOI_NOT_BROADCAST", 1 << 12, "the I/O APIC hears of no EOI"),
    ),
    _apic("ESR", 0x280, "11.5.3", *(Field(name, 1 << bit, "seen") for bit, name in enumerate(_ERRORS))),
    _apic(
        "ICR", 0x300, "11.6.1", _VECTOR,
        Field("DELIVERY", 7 << 8, "what is sent", _MESSAGES),
        _MODE, _PENDING,
        Field("ASSERT", 1 << 14, "clear only to end an INIT"),
        _TRIGGER,
        Field("TO", 3 << 18, "who, or that DEST says it", {0: "DEST", 1: "self", 2: "all", 3: "all-others"}),
    ),
    _apic("ICR_HIGH", 0x310, "11.6.1", Field("DEST", 0xFF << 24, _DEST)),
    _lvt("LVT_CMCI", 0x2F0, _PIN_DELIVERY, _PENDING, _MASKED),
    _lvt(
        "LVT_TIMER", 0x320, _PENDING, _MASKED,
        Field("MODE", 3 << 17, "how it counts", {0: "one-shot", 1: "periodic", 2: "TSC-deadline"}),
    ),
    _lvt("LVT_THERMAL", 0x330, _PIN_DELIVERY, _PENDING, _MASKED),
    _lvt("LVT_PMC", 0x340, _PIN_DELIVERY, _PENDING, _MASKED),
    _lvt("LVT_LINT0", 0x350, _PIN_DELIVERY, _PENDING, _POLARITY, _REMOTE_IRR, _TRIGGER, _MASKED),
    _lvt("LVT_LINT1", 0x360, _PIN_DELIVERY, _PENDING, _POLARITY, _REMOTE_IRR, _TRIGGER, _MASKED),
    _lvt("LVT_ERROR", 0x370, _PENDING, _MASKED),
    _apic("TIMER_INITIAL", 0x380, "11.5.4"),
    _apic("TIMER_CURRENT", 0x390, "11.5.4", access="r"),
    _apic("TIMER_DIVIDE", 0x3E0, "11.5.4", Field("BY", 0b1011, "what divides its clock", _DIVISORS)),
)  # fmt: skip
"""Of 32 bits, at these offsets (SDM volume 3A, table 11-1); those of vectors are below."""
APIC_VECTORS = {"IRR": 0x200, "ISR": 0x100, "TMR": 0x180}
"""Requested, in service, level-triggered: 256 bits each, 32 of them every 16 bytes (SDM volume 3A, 11.8.4)."""
