/*
 * What the VMM told the guest: command line, memory map and modules, from either boot protocol that
 * start32.S accepts. Multiboot specification 0.6.96, 3.3 ('Boot information format'); Xen's
 * public/arch-x86/hvm/start_info.h, version 1.
 */
#pragma once
#include "guest.h"

enum { MULTIBOOT_LOADED = 0x2badb002, PVH_MAGIC = 0x336ec578, RAM = 1, MAX_ENTRIES = 32 };

struct range { u64 start, size; u32 type; };     /* type 1 is RAM in both protocols */

struct boot {
    const char *protocol, *command_line;
    struct range map[MAX_ENTRIES], modules[MAX_ENTRIES];
    u32 map_entries, module_count;
};

struct pvh_info {
    u32 magic, version, flags, module_count;
    u64 modules, command_line, rsdp, map;
    u32 map_entries, reserved;
};
struct pvh_module { u64 start, size, command_line, reserved; };
struct pvh_range { u64 start, size; u32 type, reserved; };

struct multiboot_info {
    u32 flags, memory_lower, memory_upper, boot_device, command_line, module_count, modules;
    u32 symbols[4], map_length, map;
};
struct multiboot_module { u32 start, end, command_line, reserved; };
struct multiboot_range { u32 length; u64 start, size; u32 type; } __attribute__((packed));

static void from_pvh(struct boot *boot, const struct pvh_info *info)
{
    const struct pvh_range *map = (void *)(unsigned long)info->map;
    const struct pvh_module *modules = (void *)(unsigned long)info->modules;

    boot->protocol = "PVH";
    boot->command_line = info->command_line ? (char *)(unsigned long)info->command_line : "";
    for (u32 i = 0; info->version >= 1 && i < info->map_entries && i < MAX_ENTRIES; i++)
        boot->map[boot->map_entries++] = (struct range){ map[i].start, map[i].size, map[i].type };
    for (u32 i = 0; i < info->module_count && i < MAX_ENTRIES; i++)
        boot->modules[boot->module_count++] = (struct range){ modules[i].start, modules[i].size, RAM };
}

static void from_multiboot(struct boot *boot, const struct multiboot_info *info)
{
    const struct multiboot_module *modules = (void *)(unsigned long)info->modules;
    u32 end = info->map + info->map_length;

    boot->protocol = "multiboot";
    boot->command_line = info->flags & 1 << 2 ? (char *)(unsigned long)info->command_line : "";
    while (*boot->command_line && *boot->command_line != ' ')   /* the first word is the program's name */
        boot->command_line++;
    while (*boot->command_line == ' ')
        boot->command_line++;
    for (u32 at = info->map; info->flags & 1 << 6 && at < end && boot->map_entries < MAX_ENTRIES;) {
        const struct multiboot_range *range = (void *)(unsigned long)at;
        boot->map[boot->map_entries++] = (struct range){ range->start, range->size, range->type };
        at += range->length + 4;                                /* the length does not count itself */
    }
    for (u32 i = 0; info->flags & 1 << 3 && i < info->module_count && i < MAX_ENTRIES; i++)
        boot->modules[boot->module_count++] =
            (struct range){ modules[i].start, modules[i].end - modules[i].start, RAM };
}

static UNUSED void read_boot(struct boot *boot, u32 magic, const void *info)
{
    if (magic == MULTIBOOT_LOADED)
        from_multiboot(boot, info);
    else if (((const struct pvh_info *)info)->magic == PVH_MAGIC)
        from_pvh(boot, info);
    else
        fail("started by neither multiboot nor PVH", 1);
}

/* Reads the next number of a text, decimal or 0x..., and moves on behind it; 0 where there is none. */
static UNUSED u32 next_number(const char **text)
{
    const char *at = *text;
    u32 value = 0, base = 10, digit;

    while (*at && (*at < '0' || *at > '9'))
        at++;
    if (at[0] == '0' && at[1] == 'x') {
        base = 16;
        at += 2;
    }
    for (;; at++) {
        digit = *at >= 'a' ? *at - 'a' + 10u : *at <= '9' ? *at - '0' + 0u : base;
        if (digit >= base)
            break;
        value = value * base + digit;
    }
    *text = at;
    return value;
}
