/* A wait of known length, by the second channel of the PIT (Intel's 8254 data sheet, mode 0). */
#pragma once
#include "guest.h"

enum { PIT_CHANNEL_2 = 0x42, PIT_COMMAND = 0x43, SYSTEM_CONTROL = 0x61, TICKS_10MS = 11932 };

/* Waits 10 ms: the channel counts down once, bit 5 of port 0x61 shows its end. Bounded all the same. */
static UNUSED void wait_10ms(void)
{
    outb(SYSTEM_CONTROL, (inb(SYSTEM_CONTROL) & 0xfc) | 1);     /* gate on, speaker off */
    outb(PIT_COMMAND, 0xb0);
    outb(PIT_CHANNEL_2, TICKS_10MS & 0xff);
    outb(PIT_CHANNEL_2, TICKS_10MS >> 8);
    for (u32 i = 0; i < 100000 && !(inb(SYSTEM_CONTROL) & 0x20); i++)
        __asm__ volatile("pause");
}
