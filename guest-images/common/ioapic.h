/*
 * The I/O APIC: turns its 24 input pins, the GSIs, into messages to local APICs (Intel's 82093AA data
 * sheet, 3.0). Two registers in memory lead to all others. It forgets an edge that comes while the pin
 * is masked.
 */
#pragma once
#include "lapic.h"

enum {
    IOAPIC = 0xfec00000, IOAPIC_WINDOW = 0x10, IOAPIC_REDIRECTION = 0x10,   /* two registers for each pin */
    IOAPIC_LOW = 1 << 13, IOAPIC_LEVEL = 1 << 15, IOAPIC_MASKED = 1 << 16,
};

static UNUSED void ioapic_write(u32 which, u32 value)
{
    *(volatile u32 *)(unsigned long)IOAPIC = which;
    *(volatile u32 *)(unsigned long)(IOAPIC + IOAPIC_WINDOW) = value;
}

/*
 * Sends edges on pin `gsi` to this CPU as `vector`; with IOAPIC_LEVEL and IOAPIC_LOW, as PCI has it, for as long as
 * the pin is low; with IOAPIC_MASKED nothing.
 */
static UNUSED void route(u32 gsi, u32 vector, u32 flags)
{
    ioapic_write(IOAPIC_REDIRECTION + 2 * gsi + 1, *lapic(LAPIC_ID));       /* both have the ID in bits 24 to 31 */
    ioapic_write(IOAPIC_REDIRECTION + 2 * gsi, vector | flags);             /* fixed, physical */
}
