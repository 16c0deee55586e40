/*
 * Makes exits and nothing else, for measuring what one costs. The command line says which, how many,
 * and where:
 *     outb COUNT PORT    inb COUNT PORT                (one byte each)
 *     write COUNT ADDRESS    read COUNT ADDRESS        (MMIO, four bytes each)
 * COUNT is rounded down to a multiple of ten. Without a command the guest leaves at once. Either way it
 * leaves through the debug-exit port with code 0, so every VMM that has one can run it.
 */
#include "boot.h"

/* Unrolled, since where KVM emulates the guest's ring 0 the loop's own instructions are not for nothing. */
#define TEN_TIMES(instruction, ...) \
    for (u32 left = count / 10; left; left--) \
        __asm__ volatile(".rept 10\n\t" instruction "\n\t.endr" ::__VA_ARGS__ : "eax", "memory")

void guest_main(u32 magic, void *info)
{
    static struct boot boot;
    read_boot(&boot, magic, info);
    const char *word = boot.command_line, *number = word;
    u32 count = next_number(&number), place = next_number(&number);

    if (word[0] == 'o')
        TEN_TIMES("outb %%al, %%dx", "d"(place));
    else if (word[0] == 'i')
        TEN_TIMES("inb %%dx, %%al", "d"(place));
    else if (word[0] == 'w')
        TEN_TIMES("movl %%eax, (%0)", "r"(place));
    else if (word[0] == 'r')
        TEN_TIMES("movl (%0), %%eax", "r"(place));
    outl(DEBUG_EXIT, 0);
    halt();
}
