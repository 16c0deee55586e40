/*
 * Asks the entropy device for four times eight random bytes: four buffers, one notification (virtio 1.3, 5.4).
 * Whoever traps its register writes sees where the ring is, and can read it from outside.
 */
#include "virtio.h"

enum { VIRTIO_ENTROPY = 4, BUFFERS = 4, BYTES = 8 };

static struct boot boot;
static struct queue queue;
static u8 buffers[BUFFERS][BYTES];

void guest_main(u32 magic, void *info)
{
    u32 used = 0, length;

    read_boot(&boot, magic, info);
    find_devices(boot.command_line);
    queue.device = find(VIRTIO_ENTROPY);
    if (!queue.device)
        fail("no entropy device (--rng gives one)", 1);
    negotiate(queue.device, 0);                         /* no EVENT_IDX: flags say who wants to be told */
    set_up_queue(queue.device, &queue, 0);
    start(queue.device);
    want_interrupts(&queue, 0);
    /* [batch] */
    for (u32 i = 0; i < BUFFERS; i++) {
        queue.table[i] = (struct descriptor){ (u64)(unsigned long)buffers[i], BYTES, F_WRITE, 0 };
        submit(&queue, i);
    }
    notify(&queue);
    while (used < BUFFERS)
        if (take(&queue, &length) >= 0)
            used++;
    /* [/batch] */
    put_decimal(used), put(" buffers used, notifications sent: "), put_decimal(queue.notifications), put("\n");
    done();
}
