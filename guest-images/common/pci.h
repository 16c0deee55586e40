/*
 * Functions on PCI's bus 0: their configuration space, where their registers are in memory, and their
 * interrupts as messages. PCI Local Bus Specification 3.0, chapter 6 and 3.2.2.3.2 (ports); configuration
 * space in memory as PCI Express Base Specification 3.0, 7.2.2, has it, for machines without the ports.
 */
#pragma once
#include "lapic.h"

enum {
    PCI_CONFIG_ADDRESS = 0xcf8, PCI_CONFIG_DATA = 0xcfc, PCI_DEVICES = 32,
    PCI_ID = 0x00, PCI_COMMAND = 0x04, PCI_HEADER = 0x0c, PCI_BAR = 0x10, PCI_CAPABILITIES = 0x34, PCI_INTERRUPT = 0x3c,
    PCI_MEMORY = 1 << 1, PCI_MASTER = 1 << 2, PCI_INTX_DISABLE = 1 << 10, PCI_HAS_CAPABILITIES = 1 << 20,
    PCI_VENDOR_SPECIFIC = 0x09, PCI_MSIX = 0x11,
    MSIX_ENABLE = 1u << 31, MSIX_FUNCTION_MASK = 1 << 30,           /* in the capability's first dword */
    MSIX_ENTRY = 16, MSIX_CONTROL = 12, MSIX_MASKED = 1,
};

static u32 pci_memory = 0xe8000000;     /* where the next registers without a place go */
static volatile u8 *pci_ecam;           /* configuration space in memory, or 0: by ports */

static inline UNUSED u32 inl(u16 port)
{
    u32 value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* The dword that has the byte at `offset` of device `slot`, function 0; all ones where nobody is. */
static UNUSED u32 pci_read(u32 slot, u32 offset)
{
    if (pci_ecam)
        return *(volatile u32 *)(pci_ecam + (slot << 15) + (offset & ~3u));
    outl(PCI_CONFIG_ADDRESS, 1u << 31 | slot << 11 | (offset & 0xfc));
    return inl(PCI_CONFIG_DATA);
}

static UNUSED void pci_write(u32 slot, u32 offset, u32 value)
{
    if (pci_ecam) {
        *(volatile u32 *)(pci_ecam + (slot << 15) + offset) = value;
        return;
    }
    outl(PCI_CONFIG_ADDRESS, 1u << 31 | slot << 11 | offset);
    outl(PCI_CONFIG_DATA, value);
}

static UNUSED u8 pci_read8(u32 slot, u32 offset) { return pci_read(slot, offset) >> 8 * (offset & 3); }

/* Where the next capability `id` behind the one at `after` (0: from the start) is; 0 if there is none. */
static UNUSED u32 pci_capability(u32 slot, u8 id, u32 after)
{
    u32 at = after ? pci_read8(slot, after + 1)
             : pci_read(slot, PCI_COMMAND) & PCI_HAS_CAPABILITIES ? pci_read8(slot, PCI_CAPABILITIES) : 0;

    for (u32 i = 0; at >= 0x40 && i < 48; i++, at = pci_read8(slot, at + 1))
        if (pci_read8(slot, at) == id)
            return at & ~3u;
    return 0;
}

/* Puts the registers behind BAR `bar` where there is room; decoding is off. */
static UNUSED void pci_place(u32 slot, u32 bar)
{
    u32 at = PCI_BAR + 4 * bar, size;

    pci_write(slot, at, 0xffffffff);
    size = -(pci_read(slot, at) & ~15u);
    pci_memory = (pci_memory + size - 1) & -size;
    pci_write(slot, at, pci_memory);
    if ((pci_read(slot, at) & 6) == 4)                  /* 64 bits of address: these are the high ones */
        pci_write(slot, at + 4, 0);
    pci_memory += size;
}

/* The registers behind a BAR, placed if no firmware has done it. */
static UNUSED volatile u8 *pci_registers(u32 slot, u32 bar)
{
    u32 at = PCI_BAR + 4 * bar;

    if (!(pci_read(slot, at) & ~15u))
        pci_place(slot, bar);
    if ((pci_read(slot, at) & 6) == 4 && pci_read(slot, at + 4))
        fail("registers beyond 4 GiB", 2);
    return (volatile u8 *)(unsigned long)(pci_read(slot, at) & ~15u);
}

static UNUSED void pci_command(u32 slot, u32 clear, u32 set)
{
    pci_write(slot, PCI_COMMAND, (pci_read(slot, PCI_COMMAND) & 0xffff & ~clear) | set);
}

/*
 * Has the function send messages to this CPU, every one of them as `vector`, and not use its pin. Its
 * table of messages is returned, how many there are in *count; 0 if it has none.
 */
static UNUSED volatile u8 *pci_messages(u32 slot, u8 vector, u32 *count)
{
    u32 at = pci_capability(slot, PCI_MSIX, 0), control, place;

    *count = 0;
    if (!at)
        return 0;
    control = pci_read(slot, at) & 0xffff0000;
    place = pci_read(slot, at + 4);
    *count = (control >> 16 & 0x7ff) + 1;
    pci_command(slot, PCI_MEMORY, 0);
    volatile u8 *table = pci_registers(slot, place & 7) + (place & ~7u);
    pci_command(slot, 0, PCI_MEMORY | PCI_MASTER | PCI_INTX_DISABLE);
    pci_write(slot, at, control | MSIX_ENABLE | MSIX_FUNCTION_MASK);
    for (u32 i = 0; i < *count; i++) {
        volatile u32 *entry = (volatile u32 *)(table + MSIX_ENTRY * i);
        entry[0] = LAPIC | *lapic(LAPIC_ID) >> 24 << 12;            /* Intel SDM volume 3A, 11.11.1 */
        entry[1] = 0;
        entry[2] = vector;                                          /* fixed, edge */
        entry[3] = 0;
    }
    pci_write(slot, at, (control | MSIX_ENABLE) & ~MSIX_FUNCTION_MASK);
    return table;
}
