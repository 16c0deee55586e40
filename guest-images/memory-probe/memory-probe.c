/*
 * Is the memory there that was promised? Reads its size from the VMM's map and from CMOS, writes and
 * reads back the first and the last page below 4 GiB, and looks at what lies behind them: an open bus,
 * whose reads are all ones and whose writes go nowhere.
 */
#include "boot.h"

enum { WORDS = 1024, CMOS_INDEX = 0x70, CMOS_DATA = 0x71 };

static u8 cmos(u8 index)
{
    outb(CMOS_INDEX, index);
    return inb(CMOS_DATA);
}

/* End of RAM as firmware leaves it in CMOS: 64 KiB units above 16 MiB or, where that is zero, KiB above 1 MiB. */
static u32 cmos_end(void)
{
    u32 above_16m = cmos(0x34) | cmos(0x35) << 8, above_1m = cmos(0x30) | cmos(0x31) << 8;
    return above_16m ? (above_16m << 16) + (16 << 20) : (above_1m << 10) + (1 << 20);
}

static void probe(const char *name, u32 address)
{
    static u32 saved[WORDS];
    volatile u32 *page = (u32 *)address;
    u32 wrong = 0;

    for (u32 i = 0; i < WORDS; i++) {
        saved[i] = page[i];
        page[i] = ~(address + i);
    }
    for (u32 i = 0; i < WORDS; i++) {
        wrong += page[i] != ~(address + i);
        page[i] = saved[i];
    }
    put(name);
    put_hex(address, 8);
    put(wrong ? " differs\n" : " holds what was written\n");
    if (wrong)
        fail("not RAM", 1);
}

void guest_main(u32 magic, void *info)
{
    static struct boot boot;
    u32 map_end = 0;

    read_boot(&boot, magic, info);
    for (u32 i = 0; i < boot.map_entries; i++)
        if (boot.map[i].type == RAM && boot.map[i].start + boot.map[i].size < 1ull << 32)
            map_end = boot.map[i].start + boot.map[i].size;

    put("RAM ends at ");
    put_hex(map_end, 8);
    put(" by the map, at ");
    put_hex(cmos_end(), 8);
    put(" by CMOS\n");
    if (map_end != cmos_end())
        fail("they disagree", 2);

    probe("first page ", 0);
    probe("last page  ", map_end - 4 * WORDS);

    volatile u32 *behind = (u32 *)map_end;
    *behind = 0x12345678;
    put("behind it  ");
    put_hex(map_end, 8);
    put(" reads ");
    put_hex(*behind, 8);
    put("\n");
    if (*behind != 0xffffffff)
        fail("an open bus reads as ones", 3);
    done();
}
