/*
 * Wakes every other CPU and lets all of them count. The boot CPU sends INIT, then start-up IPIs, to all
 * but itself through its local APIC (Intel SDM volume 3A, 9.4.4.1 and 11.6.1). Each CPU adds to a
 * counter of its own and, by locked instructions, to one that all share. How many CPUs to wait for is
 * the first number on the command line.
 */
#include "boot.h"
#include "lapic.h"
#include "pit.h"

enum {
    TRAMPOLINE = 0x8000, ROUNDS = 1000, CPUS = 256,
    ALL_BUT_SELF = 3 << 18, ASSERT = 1 << 14, INIT = 5 << 8, STARTUP = 6 << 8, PENDING = 1 << 12,
};

extern const u8 trampoline[], trampoline_end[];
static volatile u32 counts[CPUS], total, finished;

void count(u32 id)
{
    for (u32 i = 0; i < ROUNDS; i++) {
        counts[id]++;
        __atomic_fetch_add(&total, 1, __ATOMIC_SEQ_CST);
    }
    __atomic_fetch_add(&finished, 1, __ATOMIC_SEQ_CST);
}

static void send_to_others(u32 what)
{
    *lapic(LAPIC_ICR_LOW) = ALL_BUT_SELF | ASSERT | what;
    for (u32 i = 0; i < 1000 && *lapic(LAPIC_ICR_LOW) & PENDING; i++)
        __asm__ volatile("pause");
}

void guest_main(u32 magic, void *info)
{
    static struct boot boot;
    read_boot(&boot, magic, info);
    const char *text = boot.command_line;
    u32 cpus = next_number(&text);

    for (u32 i = 0; i < (u32)(trampoline_end - trampoline); i++)
        ((volatile u8 *)TRAMPOLINE)[i] = trampoline[i];

    /* [wake] */
    *lapic(LAPIC_SPURIOUS) = LAPIC_SOFTWARE_ENABLE | 0xff;
    send_to_others(INIT);
    wait_10ms();
    send_to_others(STARTUP | TRAMPOLINE >> 12);
    wait_10ms();
    send_to_others(STARTUP | TRAMPOLINE >> 12);         /* for those that missed it; the others ignore it */
    /* [/wake] */

    count(*lapic(LAPIC_ID) >> 24);
    for (u32 i = 0; i < 500 && finished < cpus; i++)            /* five seconds at most */
        wait_10ms();
    wait_10ms();                                                /* for the last one to come to its HLT */

    for (u32 id = 0; id < CPUS; id++)
        if (counts[id]) {
            put("CPU ");
            put_decimal(id);
            put(" counted to ");
            put_decimal(counts[id]);
            put("\n");
        }
    put_decimal(finished);
    put(" CPUs, together ");
    put_decimal(total);
    put("\n");
    if (finished != cpus)
        fail("not all CPUs came", 1);
    done();
}
