/*
 * Interrupts for 64-bit guests: the table of handlers (Intel SDM volume 3A, 6.14) and the two PICs
 * (Intel's 8259A data sheet). A handler is a function with __attribute__((interrupt)): the compiler
 * saves every register and ends it with IRETQ.
 */
#pragma once
#include "guest.h"

enum { PIC_MASTER = 0x20, PIC_SLAVE = 0xa0, PIC_INIT = 0x11, PIC_END_OF_INTERRUPT = 0x20 };

struct gate { u16 offset_low, selector; u8 stack, type; u16 offset_middle; u32 offset_high, reserved; };
static struct gate idt[256];

/* Type 0x8e: present, ring 0, interrupt gate. */
static UNUSED void set_gate(u8 vector, void *handler)
{
    u64 address = (u64)handler;
    idt[vector] = (struct gate){ address, 0x08, 0, 0x8e, address >> 16, address >> 32, 0 };
}

static UNUSED void load_idt(void)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = { sizeof idt - 1, (u64)idt };
    __asm__ volatile("lidt %0" ::"m"(pointer));
}

/* Gives the PICs the 16 vectors from `vector` on, where they collide with no exception, and masks all lines. */
static UNUSED void remap_pics(u8 vector)
{
    outb(PIC_MASTER, PIC_INIT);                 /* ICW1: start again, edges, ICW4 follows */
    outb(PIC_SLAVE, PIC_INIT);
    outb(PIC_MASTER + 1, vector);               /* ICW2: first vector */
    outb(PIC_SLAVE + 1, vector + 8);
    outb(PIC_MASTER + 1, 1 << 2);               /* ICW3: the slave hangs on line 2 */
    outb(PIC_SLAVE + 1, 2);
    outb(PIC_MASTER + 1, 1);                    /* ICW4: 8086 mode */
    outb(PIC_SLAVE + 1, 1);
    outb(PIC_MASTER + 1, 0xff);
    outb(PIC_SLAVE + 1, 0xff);
}

/* STI takes effect one instruction late: no interrupt can come before HLT and be slept through. */
static inline UNUSED void wait_for_interrupt(void) { __asm__ volatile("sti; hlt; cli" ::: "memory"); }
