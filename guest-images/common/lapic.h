/*
 * The local APIC of each CPU: registers in memory, at the same address for every CPU (Intel SDM volume
 * 3A, 11.4.1 and table 11-1).
 */
#pragma once
#include "guest.h"

enum {
    LAPIC = 0xfee00000,
    LAPIC_ID = 0x20, LAPIC_END_OF_INTERRUPT = 0xb0, LAPIC_SPURIOUS = 0xf0, LAPIC_ICR_LOW = 0x300,
    LAPIC_LVT_TIMER = 0x320, LAPIC_INITIAL_COUNT = 0x380, LAPIC_CURRENT_COUNT = 0x390, LAPIC_DIVIDE = 0x3e0,
    LAPIC_SOFTWARE_ENABLE = 0x100, LVT_MASKED = 0x10000,
};

static inline volatile u32 *lapic(u32 offset) { return (volatile u32 *)(unsigned long)(LAPIC + offset); }
