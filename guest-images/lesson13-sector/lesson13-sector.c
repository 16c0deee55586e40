/*
 * Reads one sector of a virtio disk and flushes the disk: two requests, each a header, perhaps data, and a status
 * byte (virtio 1.3, 5.2.6). The command line begins with the sector's number.
 */
#include "virtio.h"

enum { SECTOR = 512, READ = 0, FLUSH = 4, POISON = 0xff, BLK_F_FLUSH = 9 };
static struct boot boot;
static struct queue queue;
static struct { u32 type, reserved; u64 sector; } header;
static u8 status, data[SECTOR + 1];                     /* ends in 0, so that it can be shown as text */

static void request(const char *name, u32 type, u32 sector)
{
    u32 length;
    header.type = type, header.sector = sector, status = POISON;
    /* [chain] */
    queue.table[0] = (struct descriptor){ (u64)&header, sizeof header, F_NEXT, type == READ ? 1 : 2 };
    queue.table[1] = (struct descriptor){ (u64)data, SECTOR, F_NEXT | F_WRITE, 2 };
    queue.table[2] = (struct descriptor){ (u64)&status, 1, F_WRITE, 0 };
    submit(&queue, 0);
    notify(&queue);
    /* [/chain] */
    while (take(&queue, &length) < 0)
        __asm__ volatile("pause");
    put(name), put(": status "), put_decimal(status);
    put(", bytes written "), put_decimal(length), put("\n");
}

void guest_main(u32 magic, void *info)
{
    read_boot(&boot, magic, info);
    const char *word = boot.command_line;
    u32 sector = next_number(&word);
    find_devices(word);
    queue.device = find(VIRTIO_BLOCK);
    if (!queue.device)
        fail("no disk (--disk FILE gives one)", 1);
    negotiate(queue.device, FEATURE(BLK_F_FLUSH));
    set_up_queue(queue.device, &queue, 0);
    start(queue.device);
    request("read", READ, sector);
    if (queue.device->features & FEATURE(BLK_F_FLUSH))
        request("flush", FLUSH, 0);
    put("data: "), put((char *)data), put("\n");
    done();
}
