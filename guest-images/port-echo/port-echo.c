/*
 * Sends back whatever comes in at the serial port, until Ctrl-D (EOT). It asks the line status register
 * over and over: polling, the simplest way to wait, and the dearest; every question is an exit.
 * (hlt-pit shows the other way.)
 */
#include "guest.h"

enum { END_OF_TRANSMISSION = 0x04 };

void guest_main(void)
{
    for (;;) {
        while (!(inb(SERIAL_LINE_STATUS) & DATA_READY))
            __asm__ volatile("pause");
        u8 byte = inb(SERIAL);
        if (byte == END_OF_TRANSMISSION)
            done();
        put_char(byte);
    }
}
