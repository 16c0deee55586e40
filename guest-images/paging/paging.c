/*
 * A guest that builds page tables and lives through a page fault. Four levels, from CR3 down, each
 * table 512 entries and each entry 8 bytes; an address holds the four indexes, 9 bits each (Intel SDM
 * volume 3A, 4.5). The first 2 MiB are mapped onto themselves by one large page. A read at 0x00c0ffe0
 * then faults: the handler finds the address in CR2, maps a page there and returns to the same
 * instruction, which now succeeds.
 */
#include "interrupts.h"

enum { PRESENT = 1, WRITABLE = 2, LARGE = 1 << 7, PAGE_FAULT = 14 };
enum { UNMAPPED = 0x00c0ffe0, TREASURE = 0x600df00d };

typedef u64 table[512] __attribute__((aligned(4096)));

static table level4, level3, level2, level1;
static u32 page[1024] __attribute__((aligned(4096)));           /* what the handler will map */

static u32 index_of(u64 address, int level) { return address >> (12 + 9 * (level - 1)) & 511; }

/* [fault] */
__attribute__((interrupt)) static void on_page_fault(UNUSED void *frame, u64 error)
{
    u64 address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    put("page fault: cr2 ");
    put_hex(address, 8);
    put(error & 1 ? ", protection" : ", not present");
    put(error & 2 ? ", write\n" : ", read\n");

    level1[index_of(address, 1)] = (u64)page | PRESENT | WRITABLE;
    level2[index_of(address, 2)] = (u64)level1 | PRESENT | WRITABLE;
    __asm__ volatile("invlpg (%0)" ::"r"(address) : "memory");
}
/* [/fault] */

void guest_main(void)
{
    set_gate(PAGE_FAULT, on_page_fault);
    load_idt();

    level4[0] = (u64)level3 | PRESENT | WRITABLE;
    level3[0] = (u64)level2 | PRESENT | WRITABLE;
    level2[0] = 0 | PRESENT | WRITABLE | LARGE;                 /* 0 to 2 MiB: this program */
    __asm__ volatile("mov %0, %%cr3" ::"r"(level4) : "memory");
    put("my own page tables are in use\n");

    page[(UNMAPPED & 4095) / 4] = TREASURE;                     /* through its first address */
    u32 found = *(volatile u32 *)UNMAPPED;
    put("read ");
    put_hex(found, 8);
    put(" there after all\n");
    if (found != TREASURE)
        fail("the page read is not the page mapped", 1);
    done();
}
