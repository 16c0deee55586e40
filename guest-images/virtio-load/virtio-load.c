/*
 * Keeps a disk, a network interface and two consoles busy, and looks at everything that comes back: for tests that
 * save it somewhere in the middle. Each round writes and reads sectors, whose contents say which round wrote them,
 * sends a frame with a number of its own to a peer that sends everything back, and prints a line on each console.
 * A completion that comes twice or not at all ends it, and so does an interrupt that is lost or wrong data. A frame
 * that does not come back is sent anew, under another number: networks may lose some. It ends when `q` is typed, by
 * saying what it has done. (virtio 1.3: 5.1, 5.2, 5.3; `flags` on the command line does without EVENT_IDX.)
 */
#include "interrupts.h"
#include "ioapic.h"
#include "virtio.h"

enum { VECTOR = 0x40, SPURIOUS_VECTOR = 0xff };
enum { SECTOR = 512, SECTORS = 64, DEPTH = 8, READ = 0, WRITE = 1 };
enum { RECEIVE = 0, TRANSMIT = 1 };                     /* queues of an interface, and of a console's first port */
enum { BUFFERS = 16, NET_HEADER = 12, FRAME = 128, BUFFER = 1536, TYPE = 0x88b5 };
enum { SERIAL_INTERRUPT_ENABLE = SERIAL + 1, SERIAL_MODEM_CONTROL = SERIAL + 4, INTERRUPTS_CONNECTED = 8 };
enum { PATIENCE = 3000000, ECHO_PATIENCE = 10000 };     /* turns of a loop: some seconds, and some milliseconds */

static struct boot boot;
static struct queue disk, receive, transmit, console;
static volatile u32 interrupts;
static u32 requests, frames, echoes, lines;

/* Of each slot of the disk, three descriptors: */
static struct { u32 type, reserved; u64 sector; } headers[DEPTH];
static u32 data[DEPTH][SECTOR / 4];
static volatile u8 statuses[DEPTH];
static u8 in_flight[DEPTH];
static u32 written_by[SECTORS];                         /* the round that wrote each sector, 0 for none */

static u8 buffers[BUFFERS][BUFFER], frame[NET_HEADER + FRAME];

__attribute__((interrupt)) static void on_interrupt(UNUSED void *unused)
{
    for (u32 i = 0; i < device_count; i++)
        acknowledge(&devices[i]);
    interrupts++;
    *lapic(LAPIC_END_OF_INTERRUPT) = 0;
}

__attribute__((interrupt)) static void on_spurious(UNUSED void *unused) {}

/* Waits until something is used, told by an interrupt; 0 if nothing was in so many turns. */
static int wait_for(struct queue *queue, u32 patience)
{
    want_interrupts(queue, 1);
    while (queue->used.index == queue->seen) {
        u32 before = interrupts;
        __asm__ volatile("sti");
        while (interrupts == before && patience)
            patience--;
        __asm__ volatile("cli");
        if (!patience)
            return 0;
    }
    want_interrupts(queue, 0);
    return 1;
}

/* --- The disk --------------------------------------------------------------------------------------------------- */

static u32 word(u32 sector, u32 round, u32 at) { return sector * 2654435761u + round * 40503u + at; }

static void request(u32 slot, u32 type, u32 sector, u32 round)
{
    headers[slot].type = type;
    headers[slot].sector = sector;
    statuses[slot] = 0xff;
    for (u32 i = 0; i < SECTOR / 4; i++)
        data[slot][i] = type == WRITE ? word(sector, round, i) : 0xdeadbeef;
    disk.table[3 * slot] = (struct descriptor){ (u64)&headers[slot], 16, F_NEXT, 3 * slot + 1 };
    disk.table[3 * slot + 1] =
        (struct descriptor){ (u64)data[slot], SECTOR, F_NEXT | (type == READ ? F_WRITE : 0), 3 * slot + 2 };
    disk.table[3 * slot + 2] = (struct descriptor){ (u64)&statuses[slot], 1, F_WRITE, 0 };
    in_flight[slot] = 1;
    submit(&disk, 3 * slot);
}

/* Sees all requests done, each once. */
static void finish(void)
{
    notify(&disk);
    for (u32 left = DEPTH; left;) {
        u32 length;
        int used = take(&disk, &length);
        if (used < 0) {
            if (!wait_for(&disk, PATIENCE))
                fail("a request is lost, or its interrupt", 1);
            continue;
        }
        if (used % 3 || used / 3 >= DEPTH || !in_flight[used / 3])
            fail("a request is completed twice", 1);
        if (statuses[used / 3])
            fail("a request failed", 1);
        in_flight[used / 3] = 0;
        left--;
        requests++;
    }
}

static void use_disk(u32 round)
{
    for (u32 i = 0; i < DEPTH; i++) {
        u32 sector = (round * DEPTH + i) % SECTORS;
        request(i, WRITE, sector, round);
        written_by[sector] = round;
    }
    finish();
    for (u32 i = 0; i < DEPTH; i++)
        request(i, READ, (round * 13 + i * 5) % SECTORS, 0);
    finish();
    for (u32 i = 0; i < DEPTH; i++) {
        u32 sector = (round * 13 + i * 5) % SECTORS;
        for (u32 at = 0; written_by[sector] && at < SECTOR / 4; at++)
            if (data[i][at] != word(sector, written_by[sector], at))
                fail("a sector is not what was written", 1);
    }
}

/* --- The network ------------------------------------------------------------------------------------------------ */

static void provide(u32 slot)
{
    receive.table[slot] = (struct descriptor){ (u64)buffers[slot], BUFFER, F_WRITE, 0 };
    submit(&receive, slot);
}

/* What byte `at` of frame `number` is; its number comes after the addresses and the type. */
static u8 octet(u32 number, u32 at)
{
    if (at < 6)
        return 0xff;
    if (at < 12)
        return 0x52;
    if (at < 14)
        return TYPE >> 8 * (13 - at);
    return at < 18 ? number >> 8 * (at - 14) : number * 31 + at;
}

static void send(void)
{
    u32 length;

    frames++;
    for (u32 i = 0; i < FRAME; i++)
        frame[NET_HEADER + i] = octet(frames, i);
    transmit.table[0] = (struct descriptor){ (u64)frame, sizeof frame, 0, 0 };
    submit(&transmit, 0);
    notify(&transmit);
    if (!wait_for(&transmit, PATIENCE))
        fail("a frame is not taken, or its interrupt is lost", 1);
    if (take(&transmit, &length) != 0 || transmit.used.index != transmit.seen)
        fail("a frame is taken twice", 1);
}

/* Waits for the last frame to come back; others may come before. */
static int returned(void)
{
    for (;;) {
        u32 length, number = 0;
        int slot = take(&receive, &length);
        if (slot < 0) {
            if (!wait_for(&receive, ECHO_PATIENCE))
                return 0;
            continue;
        }
        const u8 *got = buffers[slot] + NET_HEADER;
        for (u32 i = 0; i < 4; i++)
            number |= (u32)got[14 + i] << 8 * i;
        if (length != NET_HEADER + FRAME || !number || number > frames)
            fail("a frame of nobody's", 1);
        for (u32 i = 0; i < FRAME; i++)
            if (got[i] != octet(number, i))
                fail("a frame is damaged", 1);
        provide(slot);
        notify(&receive);
        if (number == frames) {
            echoes++;
            return 1;
        }
    }
}

/* --- The consoles ----------------------------------------------------------------------------------------------- */

static char *digits(char *end, u32 value)
{
    do
        *--end = '0' + value % 10;
    while (value /= 10);
    return end;
}

static void print(u32 round)
{
    static char line[16];
    char *start = digits(line + 14, round);
    u32 length;

    line[14] = '\n';
    *--start = ' ';
    *--start = 's';
    line[15] = 0;
    put(start);
    if (!console.device)
        return;
    *start = 'v';
    console.table[0] = (struct descriptor){ (u64)start, line + 15 - start, 0, 0 };
    submit(&console, 0);
    notify(&console);
    if (!wait_for(&console, PATIENCE) || take(&console, &length) != 0)
        fail("a line is lost, or its interrupt", 1);
    lines++;
}

/* Input only comes to a guest that wants to be interrupted by it, here on a pin that stays masked. */
static void listen(void)
{
    outb(SERIAL_MODEM_CONTROL, INTERRUPTS_CONNECTED);
    outb(SERIAL_INTERRUPT_ENABLE, DATA_READY);
}

static int told_to_end(void) { return inb(SERIAL_LINE_STATUS) & DATA_READY && inb(SERIAL) == 'q'; }

/* --- All of it -------------------------------------------------------------------------------------------------- */

static struct virtio *bring_up(u32 kind, u64 features)
{
    struct virtio *device = find(kind);

    if (device) {
        if (device->registers)
            route(device->gsi, VECTOR, 0);
        else if (!use_messages(&device->pci, VECTOR))
            fail("no messages", 1);
        negotiate(device, features);
    }
    return device;
}

void guest_main(u32 magic, void *info)
{
    u64 features = RING_EVENT_IDX;
    u32 round = 0;

    read_boot(&boot, magic, info);
    for (const char *text = boot.command_line; text && *text; text = next_word(text))
        if (starts_with(text, "flags"))
            features = 0;
    find_devices(boot.command_line);
    remap_pics(0x20);                   /* all lines stay masked: interrupts come through the I/O APIC */
    set_gate(VECTOR, on_interrupt);
    set_gate(SPURIOUS_VECTOR, on_spurious);
    load_idt();
    *lapic(LAPIC_SPURIOUS) = LAPIC_SOFTWARE_ENABLE | SPURIOUS_VECTOR;

    struct virtio *store = bring_up(VIRTIO_BLOCK, features), *net = bring_up(VIRTIO_NET, features);
    struct virtio *screen = bring_up(VIRTIO_CONSOLE, features);
    if (!store || !net) {
        put("a disk and a network interface are needed\n");
        done();
    }
    set_up_queue(store, &disk, 0);
    start(store);
    set_up_queue(net, &receive, RECEIVE);
    set_up_queue(net, &transmit, TRANSMIT);
    start(net);
    for (u32 i = 0; i < BUFFERS; i++)
        provide(i);
    notify(&receive);
    if (screen) {
        set_up_queue(screen, &console, TRANSMIT);
        start(screen);
    }
    listen();
    while (!told_to_end()) {
        round++;
        use_disk(round);
        do
            send();
        while (!returned());
        print(round);
    }
    put("rounds ");
    put_decimal(round);
    put(" requests ");
    put_decimal(requests);
    put(" frames ");
    put_decimal(frames);
    put(" echoes ");
    put_decimal(echoes);
    put(" lines ");
    put_decimal(lines);
    put("\n");
    done();
}
