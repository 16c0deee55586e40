/*
 * Prints everything that the VMM tells a kernel: by which protocol it was started, the command line,
 * the memory map and the modules (`--initrd`), the first of them as text. The decoding is in
 * ../common/boot.h.
 */
#include "boot.h"

static void put_range(const char *kind, const struct range *range)
{
    put(kind);
    put(" ");
    put_hex(range->start, 12);
    put(" + ");
    put_hex(range->size, 12);
}

void guest_main(u32 magic, void *info)
{
    static struct boot boot;
    read_boot(&boot, magic, info);
    put("protocol ");
    put(boot.protocol);
    put("\ncommand line ");
    put(boot.command_line);
    put("\n");
    for (u32 i = 0; i < boot.map_entries; i++) {
        put_range("memory", &boot.map[i]);
        put(" type ");
        put_decimal(boot.map[i].type);
        put("\n");
    }
    for (u32 i = 0; i < boot.module_count; i++) {
        put_range("module", &boot.modules[i]);
        put("\n");
    }
    const char *text = (char *)(u32)boot.modules[0].start;
    for (u32 i = 0; boot.module_count && i < boot.modules[0].size; i++)
        put_char(text[i]);
    done();
}
