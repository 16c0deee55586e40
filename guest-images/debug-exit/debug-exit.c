/*
 * Leaves through the debug-exit port with a code: the first number on the command line, 42 where there
 * is none. The process that runs the guest ends with status (code << 1) | 1, modulo 256, so that a
 * guest's test result reaches a script.
 */
#include "boot.h"

void guest_main(u32 magic, void *info)
{
    static struct boot boot;
    read_boot(&boot, magic, info);
    const char *text = boot.command_line;
    outl(DEBUG_EXIT, *text ? next_number(&text) : 42);
    halt();
}
