/*
 * The way down to ring 3 for guests that start with start-pvh64.S. Memory and ports are open to ring 3
 * as they are to ring 0; what is not there is whatever needs ring 0 itself, so set up first and go down
 * last. There is no way back but interrupts.
 *
 * Why anyone would: a VMM without VT-x or AMD-V may run ring 3 on the processor and emulate ring 0,
 * some hundred times slower. What is measured in ring 3 is then the VMM and not that emulation.
 */
#pragma once
#include "guest.h"

enum { RING3_DATA = 0x18 | 3, RING3_CODE = 0x20 | 3, TSS_SELECTOR = 0x28, FLAGS_IF = 0x202 };

/* Intel SDM volume 3A, 8.7. A port is ring 3's if its bit is clear; the map ends where the limit says. */
struct tss { u32 reserved0; u64 rsp[3], reserved1, ist[7], reserved2; u16 reserved3, map_offset; u8 map[8192]; }
    __attribute__((packed));

extern u64 gdt[];
static struct tss tss;
static u8 ring0_stack[4096] __attribute__((aligned(16))), ring3_stack[16384] __attribute__((aligned(16)));

/* Calls `function` in ring 3 with interrupts enabled; it must not return. */
static UNUSED void enter_ring3(void (*function)(void))
{
    u64 base = (u64)&tss, limit = sizeof tss - 1;

    tss.rsp[0] = (u64)(ring0_stack + sizeof ring0_stack);
    tss.map_offset = __builtin_offsetof(struct tss, map);
    /* 64-bit TSS descriptor, present, available: Intel SDM volume 3A, 8.2.3 */
    gdt[TSS_SELECTOR / 8] = limit | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[TSS_SELECTOR / 8 + 1] = base >> 32;
    __asm__ volatile("ltr %w0" ::"r"(TSS_SELECTOR));
    __asm__ volatile("pushq %0\n\tpushq %1\n\tpushq %2\n\tpushq %3\n\tpushq %4\n\tiretq"
                     ::"r"((u64)RING3_DATA), "r"((u64)(ring3_stack + sizeof ring3_stack - 8)), "r"((u64)FLAGS_IF),
                       "r"((u64)RING3_CODE), "r"((u64)function) : "memory");
    __builtin_unreachable();
}
