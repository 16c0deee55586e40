/*
 * Interrupts by a level: a mailbox at port 0x500 holds line 5 high while there is a letter in it. Port 0x501 says
 * whether there is one (bit 0), and reading port 0x500 takes it. Intel SDM volume 3A, 6.14 (gates) and 11.8.5 (end of
 * interrupt); Intel's 82093AA data sheet (I/O APIC). pyvmm has no such device: lesson 9 attaches one.
 */
#include "interrupts.h"
#include "ioapic.h"

enum { MAILBOX = 0x500, STATUS = 0x501, FULL = 1, NOBODY = 0xff, LINE = 5, VECTOR = 0x35, LETTERS = 3 };

static volatile u32 taken;

/* [handler] */
__attribute__((interrupt)) static void on_mail(UNUSED void *frame)
{
    if (inb(STATUS) & FULL) {
        put_char(inb(MAILBOX));                         /* the last letter taken, the line falls */
        put(" came\n");
        taken++;
    } else {
        put("an interrupt, but no letter\n");
    }
    *lapic(LAPIC_END_OF_INTERRUPT) = 0;
}
/* [/handler] */

void guest_main(void)
{
    if (inb(STATUS) == NOBODY) {
        put("There is no mailbox at port 0x500.\n");
        done();
    }
    /* [setup] */
    remap_pics(0x20);                                   /* and mask all their lines: the I/O APIC does it */
    set_gate(VECTOR, on_mail);
    load_idt();
    *lapic(LAPIC_SPURIOUS) = LAPIC_SOFTWARE_ENABLE | 0xff;
    route(LINE, VECTOR, IOAPIC_LEVEL);                  /* pin 5, a level, as vector 0x35 to this CPU */
    put("ready\n");
    while (taken < LETTERS)
        wait_for_interrupt();                           /* sti; hlt; cli */
    /* [/setup] */
    done();
}
