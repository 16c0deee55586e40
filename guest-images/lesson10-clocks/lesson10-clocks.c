/*
 * Ten times 10 ms by the PIT, and what the other clocks say to each: TSC, local APIC timer, kvmclock.
 * Intel SDM volume 3A, 11.5.4 (APIC timer), volume 3B, 18.17 (TSC); Linux Documentation/virt/kvm/x86/msr.rst.
 */
#include "lapic.h"
#include "pit.h"

enum { KVM_SYSTEM_TIME = 0x4b564d01, ENABLE = 1, DIVIDE_BY_1 = 0xb, ROUNDS = 10 };

/* [kvmclock] */
/* What KVM writes whenever TSC and time have to be matched anew; `version` is odd meanwhile. */
static volatile struct { u32 version, pad; u64 tsc, time; u32 mul; signed char shift; u8 flags[3]; } record;

static u64 rdtsc(void)
{
    u64 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return high << 32 | low;
}

static u64 kvmclock(void)                   /* nanoseconds */
{
    u64 ticks, time;
    u32 version;

    do {
        version = record.version;
        ticks = rdtsc() - record.tsc;
        ticks = record.shift < 0 ? ticks >> -record.shift : ticks << record.shift;
        time = record.time + (ticks >> 32) * record.mul + ((ticks & 0xffffffff) * record.mul >> 32);
    } while (version & 1 || version != record.version);
    return time;
}
/* [/kvmclock] */

void guest_main(void)
{
    __asm__ volatile("wrmsr" ::"c"(KVM_SYSTEM_TIME), "a"((u32)(u64)&record | ENABLE), "d"(0) : "memory");
    *lapic(LAPIC_DIVIDE) = DIVIDE_BY_1;
    /* [round] */
    for (u32 i = 1; i <= ROUNDS; i++) {
        *lapic(LAPIC_INITIAL_COUNT) = 0xffffffff;
        u64 tsc = rdtsc(), time = kvmclock();
        wait_10ms();
        u32 cycles = rdtsc() - tsc, us = (kvmclock() - time) / 1000, apic = ~*lapic(LAPIC_CURRENT_COUNT);
        put_decimal(i), put(" PIT 10000 us, TSC "), put_decimal(cycles), put(" cycles, LAPIC "), put_decimal(apic);
        put(" ticks, kvmclock "), put_decimal(us), put(" us\n");
    }
    /* [/round] */
    done();
}
