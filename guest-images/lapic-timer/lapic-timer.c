/*
 * The timer that every CPU has of its own: the local APIC counts down from INITIAL_COUNT at its bus
 * frequency divided by 16 and interrupts at zero, again and again in periodic mode. No line, no
 * interrupt controller outside the CPU. Intel SDM volume 3A, 11.5.4 (APIC timer), 11.8.5 (end of
 * interrupt), 11.9 (spurious interrupt).
 */
#include "interrupts.h"
#include "lapic.h"

enum {
    VECTOR = 0x40, SPURIOUS_VECTOR = 0xff,
    PERIODIC = 1 << 17,
    DIVIDE_BY_16 = 0x3,
    COUNT = 1000000,                    /* 16 ms where the bus runs at 1 GHz, as KVM's does */
    TICKS = 5,
};

static volatile u32 ticks;

__attribute__((interrupt)) static void on_timer(UNUSED void *frame)
{
    ticks++;
    *lapic(LAPIC_END_OF_INTERRUPT) = 0;
}

__attribute__((interrupt)) static void on_spurious(UNUSED void *frame) {}

void guest_main(void)
{
    remap_pics(0x20);                   /* all lines stay masked: nothing but the LAPIC may interrupt */
    set_gate(VECTOR, on_timer);
    set_gate(SPURIOUS_VECTOR, on_spurious);
    load_idt();

    *lapic(LAPIC_SPURIOUS) = LAPIC_SOFTWARE_ENABLE | SPURIOUS_VECTOR;
    *lapic(LAPIC_DIVIDE) = DIVIDE_BY_16;
    *lapic(LAPIC_LVT_TIMER) = PERIODIC | VECTOR;
    *lapic(LAPIC_INITIAL_COUNT) = COUNT;    /* the write that starts it */

    while (ticks < TICKS)
        wait_for_interrupt();
    *lapic(LAPIC_LVT_TIMER) = LVT_MASKED | VECTOR;
    put_decimal(TICKS);
    put(" ticks of the local APIC's timer\n");
    done();
}
