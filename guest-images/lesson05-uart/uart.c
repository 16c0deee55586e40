/*
 * A driver of a 16550A by the data sheet (National Semiconductor, PC16550D, 1995): is it there, how fast shall it be,
 * may it have a byte? It uses the second serial port of a PC, which pyvmm does not have: lesson 5 puts a model there.
 */
#include "guest.h"

enum {
    COM2 = 0x2f8,
    DLL = COM2, DLM = COM2 + 1,                         /* only while DLAB is set */
    LCR = COM2 + 3, LSR = COM2 + 5, SCR = COM2 + 7,
    DLAB = 0x80, EIGHT_BITS = 0x03, PATTERN = 0x5a,
};

void guest_main(void)
{
    /* [probe] */
    outb(SCR, PATTERN);                                 /* the scratch register does nothing but remember (8.10) */
    if (inb(SCR) != PATTERN) {
        put("There is no UART at 0x2f8.\n");
        done();
    }
    /* [/probe] */
    /* [setup] */
    outb(LCR, DLAB);                                    /* ports 0 and 1 become the divisor (8.1, bit 7) */
    outb(DLL, 1);                                       /* 1,843,200 Hz / 16 / 1 = 115,200 baud (8.3) */
    outb(DLM, 0);
    outb(LCR, EIGHT_BITS);                              /* 8 data bits, 1 stop bit, no parity, DLAB off */
    /* [/setup] */
    /* [send] */
    for (const char *text = "UART\n"; *text; text++) {
        while (!(inb(LSR) & TRANSMITTER_EMPTY))         /* THRE (8.4, bit 5) */
            ;
        outb(COM2, *text);                              /* THR */
    }
    /* [/send] */
    done();
}
