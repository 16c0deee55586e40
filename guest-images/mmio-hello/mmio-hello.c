/*
 * Hello through a device that lives in memory. At 0xd0000000 the guest expects two one-byte registers:
 * status (offset 1, bit 0 means ready) and data (offset 0). No RAM is there, so every access leaves the
 * guest: the VMM sees address, size and data. Where no device answers either, reads are all ones and
 * writes are lost, as on a real bus.
 */
#include "guest.h"

struct console { volatile u8 data, status; };
#define CONSOLE ((struct console *)0xd0000000)

enum { READY = 0x01, NOBODY = 0xff };

void guest_main(void)
{
    if (CONSOLE->status == NOBODY) {
        CONSOLE->data = 'x';                    /* lost, and harmless */
        put("Nobody answers at 0xd0000000: status reads ");
        put_hex(CONSOLE->status, 2);
        put(" as a byte, ");
        put_hex(*(volatile u32 *)CONSOLE, 8);
        put(" as four.\n");
        done();
    }
    for (const char *text = "Hello through MMIO!\n"; *text; text++) {
        while (!(CONSOLE->status & READY))
            ;
        CONSOLE->data = *text;
    }
    done();
}
