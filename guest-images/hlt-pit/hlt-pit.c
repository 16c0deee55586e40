/*
 * A CPU that sleeps until the timer wakes it. The PIT (8254) counts 1,193,182 times a second; at zero
 * it raises line 0 of the PIC (8259A), which interrupts the CPU, which leaves HLT. All three are inside
 * KVM: `pyvmm run --stats` shows how few exits reach the VMM. Sources: Intel's data sheets of the 8254
 * (control word) and the 8259A (initialization words).
 */
#include "interrupts.h"

enum {
    VECTOR = 0x20,
    PIT_CHANNEL_0 = 0x40, PIT_CONTROL = 0x43,
    RATE_GENERATOR = 0x34,              /* channel 0, low byte then high byte, mode 2, binary */
    HUNDREDTH = 1193182 / 100,          /* PIT ticks in 10 ms */
    TICKS = 5,
};

static volatile u32 ticks;

__attribute__((interrupt)) static void on_timer(UNUSED void *frame)
{
    ticks++;
    outb(PIC_MASTER, PIC_END_OF_INTERRUPT);
}

void guest_main(void)
{
    remap_pics(VECTOR);                 /* lines 0 to 7 become vectors 0x20 to 0x27 */
    set_gate(VECTOR, on_timer);
    load_idt();

    outb(PIT_CONTROL, RATE_GENERATOR);
    outb(PIT_CHANNEL_0, HUNDREDTH & 0xff);
    outb(PIT_CHANNEL_0, HUNDREDTH >> 8);
    outb(PIC_MASTER + 1, 0xfe);         /* unmask line 0, the timer, alone */

    for (u32 seen = 0; seen < TICKS;) {
        wait_for_interrupt();
        while (seen < ticks && seen < TICKS) {
            put("tick ");
            put_decimal(++seen);
            put("\n");
        }
    }
    done();
}
