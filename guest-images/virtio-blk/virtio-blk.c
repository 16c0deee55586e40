/*
 * The least that a driver of a disk can be: it reads sector 0, shows the first line of it, and writes it to
 * sector 1 (virtio 1.3, 5.2.6). The command line says how it learns that a request is done:
 *     poll      by looking; the device is asked for no interrupts
 *     irq       by an interrupt for each request
 *     masked    the read's interrupt comes while its pin of the I/O APIC is masked, which forgets it
 *     window    the write is done between the interrupt handler's reading of InterruptStatus and its
 *               acknowledgement, which clears what the handler has not seen (not with messages)
 *     load      many reads at a time, by interrupts that are masked and unmasked all the while
 * In the last three an interrupt must come all the same, without any further look at the device. `flags` after any
 * of them does without EVENT_IDX. On PCI interrupts are messages, which are masked one by one, or with `intx` the
 * device's pin; with `move` the device's registers are put elsewhere between the two requests.
 */
#include "interrupts.h"
#include "ioapic.h"
#include "pit.h"
#include "virtio.h"

enum { VECTOR = 0x40, SPURIOUS_VECTOR = 0xff, SECTOR = 512, READ = 0, WRITE = 1 };
enum { READ_SLOT = 0, WRITE_SLOT = 3 };             /* three descriptors for each request */
enum { DEPTH = 16, BATCHES = 100 };                 /* of `load`: reads at a time, and how often */

static struct boot boot;
static struct queue queue;
static struct { u32 type, reserved; u64 sector; } headers[2];
static u8 data[SECTOR], statuses[2] = { 0xff, 0xff };
static volatile u32 interrupts;
static volatile int write_in_window;

static void prepare(u32 type, u32 slot)
{
    headers[type].type = type;
    headers[type].sector = type == READ ? 0 : 1;
    queue.table[slot] = (struct descriptor){ (u64)&headers[type], 16, F_NEXT, slot + 1 };
    queue.table[slot + 1] = (struct descriptor){ (u64)data, SECTOR, type == READ ? F_NEXT | F_WRITE : F_NEXT, slot + 2 };
    queue.table[slot + 2] = (struct descriptor){ (u64)&statuses[type], 1, F_WRITE, 0 };
    submit(&queue, slot);
}

static void request(u32 type)
{
    prepare(type, type == READ ? READ_SLOT : WRITE_SLOT);
    notify(&queue);
}

/* Masks or unmasks the queue's interrupt: its message, or the pin of the I/O APIC. */
static void mask(int masked)
{
    struct virtio *device = queue.device;

    if (device->pci.messages)
        mask_message(&device->pci, 0, masked);
    else
        route(device->gsi, VECTOR,
              (device->registers ? 0 : IOAPIC_LEVEL | IOAPIC_LOW) | (masked ? IOAPIC_MASKED : 0));
}

/* Looks until the request is done. */
static void poll(void)
{
    u32 length;
    for (u32 i = 0; take(&queue, &length) < 0; i++)
        if (i == 1000000000)                        /* seconds even where a look takes a nanosecond */
            fail("a request is not completed", 1);
}

__attribute__((interrupt)) static void on_interrupt(UNUSED void *frame)
{
    u32 status = 0;

    if (!queue.device->pci.messages)
        status = get(queue.device, R_INTERRUPT_STATUS);
    if (write_in_window) {
        write_in_window = 0;
        poll();                                     /* the read, which this is about */
        want_interrupts(&queue, 1);
        request(WRITE);
        for (u32 i = 0; queue.used.index == queue.seen && i < 1000000; i++)
            ;
        wait_10ms();                                /* and the interrupt is on its way, too */
    }
    if (queue.device->registers)
        set(queue.device, R_INTERRUPT_ACK, status);
    interrupts++;
    *lapic(LAPIC_END_OF_INTERRUPT) = 0;
}

__attribute__((interrupt)) static void on_spurious(UNUSED void *frame) {}

/* Waits until so many interrupts have come, for five seconds at most. */
static void expect(u32 count)
{
    __asm__ volatile("sti");
    for (u32 i = 0; interrupts < count && i < 500; i++)
        wait_10ms();
    __asm__ volatile("cli");
    if (interrupts < count)
        fail("an interrupt is lost", 1);
}

/* Reads by the batch. While nothing is used an interrupt is due, however often it is masked meanwhile. */
static void load(void)
{
    u32 length, waits = 0;

    for (u32 batch = 0; batch < BATCHES; batch++) {
        for (u32 i = 0; i < DEPTH; i++)
            prepare(READ, 3 * i);
        notify(&queue);
        for (u32 done = 0; done < DEPTH;) {
            u32 before = interrupts;
            want_interrupts(&queue, 1);
            if (queue.used.index == queue.seen) {
                __asm__ volatile("sti");
                for (u32 i = 0; interrupts == before; i++) {
                    if (i == 1000000)
                        fail("an interrupt is lost", 1);
                    mask(1);
                    for (u32 j = 0; j < waits % 50; j++)
                        __asm__ volatile("pause");
                    mask(0);
                    for (u32 j = 0; j < waits % 7 && interrupts == before; j++)
                        __asm__ volatile("pause");
                    waits++;
                }
                __asm__ volatile("cli");
            }
            while (take(&queue, &length) >= 0)
                done++;
        }
    }
}

/* Has the device answer somewhere else, with all that it is in the middle of. */
static void move(void)
{
    struct virtio_pci *pci = &queue.device->pci;
    volatile u8 *before = pci->common;
    int by_message = pci->messages != 0;

    pci_command(pci->slot, PCI_MEMORY, 0);
    for (u32 bar = 0; bar < 6; bar++)
        if (pci_read(pci->slot, PCI_BAR + 4 * bar))
            pci_place(pci->slot, bar);
    virtio_pci_find(pci, pci->slot);
    if (pci->common == before || before[C_STATUS] != 0xff)
        fail("the registers are where they were", 1);
    if (by_message)
        use_messages(pci, VECTOR);
    set(queue.device, R_QUEUE_SEL, 0);
    queue.doorbell = virtio_pci_queue(pci, 0);
}

static void set_up(int by_flags, int by_pin)
{
    queue.device = find(VIRTIO_BLOCK);
    if (!queue.device) {
        put("no disk (--disk FILE gives one, virtio_mmio.device=SIZE@ADDRESS:GSI says where)\n");
        done();
    }
    remap_pics(0x20);                   /* all lines stay masked: interrupts come through the I/O APIC */
    set_gate(VECTOR, on_interrupt);
    set_gate(SPURIOUS_VECTOR, on_spurious);
    load_idt();
    *lapic(LAPIC_SPURIOUS) = LAPIC_SOFTWARE_ENABLE | SPURIOUS_VECTOR;
    if (!queue.device->registers && !by_pin && !use_messages(&queue.device->pci, VECTOR))
        fail("no messages", 1);
    negotiate(queue.device, by_flags ? 0 : RING_EVENT_IDX);
    set_up_queue(queue.device, &queue, 0);
    start(queue.device);
}

void guest_main(u32 magic, void *info)
{
    read_boot(&boot, magic, info);
    const char *mode = "poll";
    int by_flags = 0, by_pin = 0, is_moving = 0;
    for (const char *word = boot.command_line; word && *word; word = next_word(word)) {
        if (starts_with(word, "irq") || starts_with(word, "masked") || starts_with(word, "window")
            || starts_with(word, "load"))
            mode = word;
        by_flags |= starts_with(word, "flags");
        by_pin |= starts_with(word, "intx");
        is_moving |= starts_with(word, "move");
    }
    find_devices(boot.command_line);
    set_up(by_flags, by_pin);

    int is_polling = *mode == 'p', is_masked = *mode == 'm';
    mask(is_masked);
    if (*mode == 'l') {
        load();
        put("every interrupt came\n");
        done();
    }
    write_in_window = *mode == 'w';
    want_interrupts(&queue, !is_polling);
    request(READ);
    if (is_polling || is_masked)
        poll();
    if (is_masked) {
        wait_10ms();                                /* an edge has come and gone */
        mask(0);
    }
    if (*mode == 'w') {
        expect(2);
        poll();
    } else {
        if (!is_polling)
            expect(1);
        if (*mode == 'i')
            poll();
        if (is_moving)
            move();
        want_interrupts(&queue, !is_polling);
        request(WRITE);
        if (!is_polling)
            expect(2);
        poll();
    }
    if (statuses[READ] || statuses[WRITE])
        fail("a request failed", 1);
    put("sector 0: ");
    for (u32 i = 0; i < SECTOR && data[i] >= ' ' && data[i] <= '~'; i++)
        put_char(data[i]);
    put("\ncopied to sector 1, ");
    put(interrupts ? "told by interrupts\n" : "without interrupts\n");
    done();
}
