/*
 * Drives virtio devices as fast as they go, from ring 3, and says how much it got done. The command
 * line has the speed of the time-stamp counter, the time that each measurement takes, and what to
 * measure, in order:
 *     khz=N ms=N  [spread=N] WHAT:SIZE:DEPTH[:irq] ...
 * WHAT is read or write (blocks of SIZE bytes, here and there), seqread or seqwrite (one after the other),
 * send or receive (frames of SIZE bytes, by a peer that obeys `struct order`), print (SIZE bytes on port 0
 * of a console). DEPTH requests at a time are submitted, with one notification, and waited for: by looking
 * at the used ring with interrupts off or, with `irq`, by waiting for an interrupt. With `spread` before it, each
 * batch of a disk's is DEPTH requests on each of so many queues: those of the first disk, then of the next.
 *
 * For each a line when it begins and one when it ends:
 *     begin WHAT:SIZE:DEPTH
 *     end OPERATIONS CYCLES INTERRUPTS NOTIFICATIONS LOST
 */
#include "interrupts.h"
#include "ioapic.h"
#include "ring3.h"
#include "virtio.h"

enum { VECTOR = 0x40, SPURIOUS_VECTOR = 0xff, SECTOR = 512, POOL = 8 << 20, NET_HEADER = 12, SPREAD = 16 };
enum { BLOCK_READ = 0, BLOCK_WRITE = 1, RX = 0, TX = 1 };
#define BLOCK_FLUSH FEATURE(9)      /* without it a device must write through: virtio 1.3, 5.2.6.2 */
#define BLOCK_MQ FEATURE(12)
#define NET_MAC FEATURE(5)
enum { BLOCK_NUM_QUEUES = 34 };      /* offset in the configuration: virtio 1.3, 5.2.4 */

struct request { u32 type, reserved; u64 sector; };                     /* virtio 1.3, 5.2.6 */

/* A frame that tells the peer to send `count` frames of `size` bytes; ethertype for local experiments. */
struct order { u8 to[6], from[6]; u16 ethertype; u32 count, size; u8 padding[38]; } __attribute__((packed));
enum { ETHERTYPE = 0xb588, ORDERED = 1024 };        /* 0x88b5, byte-swapped; frames ordered at a time */

struct test { char what[12]; u32 size, depth; int interrupts; };

static struct boot boot;
static u8 pool[POOL] __attribute__((aligned(4096)));
static struct queue blocks[SPREAD], net[2], console;
static u32 block_queues, spread = 1;               /* of blocks: those that there are, and those in use */
static struct queue unused;                         /* the console's receiveq: it has no use here, but must be there */
static struct descriptor chains[SPREAD][SLOTS][3];
static struct request requests[SPREAD][SLOTS];
static u8 statuses[SPREAD][SLOTS];
static u64 sectors, deadline, khz = 2000000, ms = 100;
static u8 mac[6];

static struct virtio *volatile interrupting;
static volatile u32 interrupts;
static u32 answered;                                /* interrupts that someone has waited for */

static inline u64 now(void)
{
    u32 low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

/* Each device's handler would do just this; only one is used at a time, and none before the first measurement. */
__attribute__((interrupt)) static void on_interrupt(UNUSED void *frame)
{
    if (interrupting)
        acknowledge(interrupting);
    interrupts++;
    *lapic(LAPIC_END_OF_INTERRUPT) = 0;
}

__attribute__((interrupt)) static void on_spurious(UNUSED void *frame) {}

static void put_number(u64 value)
{
    if (value >= 10)
        put_number(value / 10);
    put_char('0' + value % 10);
}

/*
 * Waits until there may be used buffers: one is seen or, by interrupt, one has come since the last time.
 * 0 if that takes `limit_ms`.
 */
static int await(struct queue *queue, int by_interrupt, u32 limit_ms)
{
    u64 limit = now() + khz * limit_ms;

    while (by_interrupt ? interrupts == answered : queue->used.index == queue->seen) {
        if (now() >= limit)
            return 0;
        __asm__ volatile("pause");
    }
    answered = interrupts;
    return 1;
}

/* --- Requests ----------------------------------------------------------------------------------------------------- */

static u64 random(void)
{
    static u64 state = 0x9e3779b97f4a7c15;          /* xorshift64 */
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void prepare_block(const struct test *test, u32 number, u32 slot)
{
    static u64 next;
    int is_write = test->what[0] == 'w' || test->what[3] == 'w';
    u64 per_request = test->size / SECTOR, places = sectors / per_request;
    u64 place = test->what[0] == 's' ? next++ % places : random() % places;
    u64 data = (u64)pool + (u64)(number * test->depth + slot) * test->size;
    struct descriptor *chain = chains[number][slot];

    requests[number][slot] = (struct request){ is_write ? BLOCK_WRITE : BLOCK_READ, 0, place * per_request };
    statuses[number][slot] = 0xff;
    chain[0] = (struct descriptor){ (u64)&requests[number][slot], sizeof(struct request), F_NEXT, 1 };
    chain[1] = (struct descriptor){ data, test->size, is_write ? F_NEXT : F_NEXT | F_WRITE, 2 };
    chain[2] = (struct descriptor){ (u64)&statuses[number][slot], 1, F_WRITE, 0 };
    blocks[number].table[slot] = (struct descriptor){ (u64)chain, sizeof chains[0][0], F_INDIRECT, 0 };
}

static void prepare_frame(const struct test *test, u32 slot)
{
    u8 *frame = pool + (u64)slot * 4096 + NET_HEADER;

    for (u32 i = 0; i < NET_HEADER + sizeof(struct order); i++)
        frame[(int)i - NET_HEADER] = 0;
    for (u32 i = 0; i < 6; i++) {
        frame[i] = i ? 0x01 : 0x52;                 /* some other station */
        frame[6 + i] = mac[i];
    }
    ((struct order *)frame)->ethertype = ETHERTYPE;
    net[TX].table[slot] = (struct descriptor){ (u64)frame - NET_HEADER, NET_HEADER + test->size, 0, 0 };
}

static void prepare_text(const struct test *test, u32 slot)
{
    u8 *text = pool + (u64)slot * test->size;
    for (u32 i = 0; i < test->size; i++)
        text[i] = i % 64 == 63 ? '\n' : 'a' + i % 26;
    console.table[slot] = (struct descriptor){ (u64)text, test->size, 0, 0 };
}

/* --- Measurements ------------------------------------------------------------------------------------------------- */

/* Waits for a batch of `depth` requests, the ones of disk queue `number` if it is one of a disk. */
static void finish(const struct test *test, struct queue *queue, u32 number)
{
    for (u32 left = test->depth; left;) {
        u32 length;
        /* A device that looks for more by itself may have used some before this asked for an interrupt. */
        if (queue->used.index == queue->seen && !await(queue, test->interrupts, 5000))
            fail("a request was not completed, or its interrupt lost", 3);
        do {
            want_interrupts(queue, 0);
            for (int slot; (slot = take(queue, &length)) >= 0; left--)
                if (queue == &blocks[number] && statuses[number][slot])
                    fail("a block request failed", 3);
            want_interrupts(queue, test->interrupts);
        } while (queue->used.index != queue->seen);
    }
}

/* Submits batches until the time is up, from `queue` on to `count` of them; how many requests were done. */
static u64 batches(const struct test *test, struct queue *queue, u32 count)
{
    u64 operations = 0;

    do {
        for (u32 number = 0; number < count; number++) {
            for (u32 slot = 0; slot < test->depth; slot++) {
                if (queue == blocks)
                    prepare_block(test, number, slot);
                submit(&queue[number], slot);
            }
            answered = interrupts;
            want_interrupts(&queue[number], test->interrupts);
            notify(&queue[number]);
        }
        for (u32 number = 0; number < count; number++)
            finish(test, &queue[number], number);
        operations += test->depth * count;
    } while (now() < deadline);
    return operations;
}

static void order(u32 count, u32 size)
{
    struct order *order = (struct order *)(pool + NET_HEADER);
    u32 length;

    while (take(&net[TX], &length) >= 0)            /* the one before is long gone: its frames have come */
        ;
    order->count = count;
    order->size = size;
    submit(&net[TX], 0);
    notify(&net[TX]);
}

static void offer_buffer(u32 slot)
{
    net[RX].table[slot] = (struct descriptor){ (u64)pool + POOL / 2 + (u64)slot * 4096, 4096, F_WRITE, 0 };
    submit(&net[RX], slot);
}

/* Has the peer send frames, more before it runs out of orders, until the time is up; how many have come. */
static u64 frames(const struct test *test, u64 *lost)
{
    u64 operations = 0;
    u32 coming = 0;

    want_interrupts(&net[TX], 0);
    answered = interrupts - 1;                      /* look first: what is there already may not interrupt */
    for (;;) {
        u32 length;
        for (; now() < deadline && coming <= ORDERED; coming += ORDERED)
            order(ORDERED, test->size);
        if (!coming)
            return operations;
        if (!await(&net[RX], test->interrupts, 500)) {
            *lost += coming;
            if (!operations)
                fail("no frame came", 3);
            coming = 0;
            continue;
        }
        do {
            want_interrupts(&net[RX], 0);
            for (int slot; (slot = take(&net[RX], &length)) >= 0; offer_buffer(slot))
                if (length == NET_HEADER + test->size && coming) {      /* others are not ours */
                    operations++;
                    coming--;
                }
            notify(&net[RX]);
            want_interrupts(&net[RX], test->interrupts);
        } while (net[RX].used.index != net[RX].seen);
    }
}

static void measure(const char *word, const struct test *test)
{
    struct queue *queue = test->what[0] == 'p' ? &console : test->what[0] == 's' && test->what[2] == 'n' ? &net[TX]
                          : starts_with(test->what, "receive") ? &net[RX] : blocks;
    u64 operations, lost = 0, began;
    u32 notified, interrupted, count = queue == blocks ? spread : 1;

    if (!queue->device)
        fail("there is no such device", 2);
    if (test->depth > queue->size)
        fail("the queue is not that deep", 2);
    for (u32 slot = 0; slot < test->depth; slot++) {
        if (queue == &console)
            prepare_text(test, slot);
        if (queue == &net[TX] || queue == &net[RX])
            prepare_frame(test, slot);
    }
    interrupting = queue->device;
    acknowledge(interrupting);                      /* what nobody waited for */

    deadline = 0;                                   /* one batch, so that every page has been touched */
    if (queue != &net[RX])
        batches(test, queue, count);
    put("begin ");
    while (*word && *word != ' ')
        put_char(*word++);
    put("\n");
    for (began = now(); now() - began < 20 * khz;)  /* a VMM may let the serial port's output gather */
        __asm__ volatile("pause");
    interrupted = interrupts;
    notified = queue->notifications;
    began = now();
    deadline = began + ms * khz;
    operations = queue == &net[RX] ? frames(test, &lost) : batches(test, queue, count);
    began = now() - began;
    put("end ");
    put_number(operations);
    put_char(' ');
    put_number(began);
    put_char(' ');
    put_number(interrupts - interrupted);
    put_char(' ');
    put_number(queue->notifications - notified);
    put_char(' ');
    put_number(lost);
    put("\n");
}

static void measure_all(void)
{
    for (const char *word = boot.command_line; word && *word; word = next_word(word)) {
        const char *at = word;
        struct test test = { 0 };
        u32 bytes;

        for (u32 i = 0; i < sizeof test.what - 1 && *at >= 'a' && *at <= 'z'; i++)
            test.what[i] = *at++;
        if (starts_with(word, "khz="))
            khz = next_number(&at);
        if (starts_with(word, "ms="))
            ms = next_number(&at);
        if (starts_with(word, "spread=") && ((spread = next_number(&at)) == 0 || spread > block_queues))
            fail("the disks have not so many queues", 2);
        if (*at != ':')
            continue;
        test.size = next_number(&at);
        test.depth = next_number(&at);
        test.interrupts = starts_with(at, ":irq");
        bytes = test.what[0] == 's' && test.what[2] == 'n' ? 4096 : test.size;
        if (!test.size || !test.depth || test.depth > SLOTS || (u64)bytes * test.depth * spread > POOL / 2)
            fail("the sizes are not for this guest", 2);
        measure(word, &test);
    }
    for (u64 began = now(); now() - began < 50 * khz;)
        __asm__ volatile("pause");                  /* who measures may look at what the last one took */
    outl(DEBUG_EXIT, 0);
    for (;;)
        ;
}

/* --- Setting up, in ring 0 ---------------------------------------------------------------------------------------- */

static void set_up_disk(struct virtio *device)
{
    u32 queues;

    negotiate(device, RING_EVENT_IDX | RING_INDIRECT_DESC | BLOCK_FLUSH | BLOCK_MQ);
    queues = device->features & BLOCK_MQ ? config(device, BLOCK_NUM_QUEUES) : 1;
    for (u32 number = 0; number < queues && block_queues < SPREAD; number++)
        set_up_queue(device, &blocks[block_queues++], number);
    start(device);
    sectors = get(device, R_CONFIG) | (u64)get(device, R_CONFIG + 4) << 32;     /* all disks are alike */
    if (!(device->features & RING_INDIRECT_DESC))
        fail("no indirect descriptors", 2);
}

static void set_up_devices(void)
{
    struct virtio *device;

    for (u32 i = 0; i < device_count; i++)
        if (devices[i].kind == VIRTIO_BLOCK)
            set_up_disk(&devices[i]);
    if ((device = find(VIRTIO_NET))) {
        negotiate(device, RING_EVENT_IDX | NET_MAC);
        set_up_queue(device, &net[RX], RX);
        set_up_queue(device, &net[TX], TX);
        start(device);
        for (u32 i = 0; i < sizeof mac; i++)
            mac[i] = config(device, i);
        for (u32 slot = 0; slot < net[RX].size; slot++)
            offer_buffer(slot);
        want_interrupts(&net[RX], 0);
        notify(&net[RX]);
    }
    if ((device = find(VIRTIO_CONSOLE))) {
        negotiate(device, RING_EVENT_IDX);
        set_up_queue(device, &unused, 0);
        set_up_queue(device, &console, 1);
        start(device);
    }
}

void guest_main(u32 magic, void *info)
{
    read_boot(&boot, magic, info);
    find_devices(boot.command_line);
    remap_pics(0x20);                   /* all lines stay masked: interrupts come through the I/O APIC */
    set_gate(VECTOR, on_interrupt);
    set_gate(SPURIOUS_VECTOR, on_spurious);
    load_idt();
    *lapic(LAPIC_SPURIOUS) = LAPIC_SOFTWARE_ENABLE | SPURIOUS_VECTOR;
    for (u32 i = 0; i < device_count; i++)
        if (devices[i].registers)
            route(devices[i].gsi, VECTOR, 0);
        else if (!use_messages(&devices[i].pci, VECTOR))
            fail("a device has no messages", 2);
    set_up_devices();
    enter_ring3(measure_all);
}
