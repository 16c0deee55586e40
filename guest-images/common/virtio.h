/*
 * A driver for virtio devices and their split virtqueues: virtio 1.3, 4.2 and 4.1 (transports), 2.7 (rings)
 * and 3.1 (initialization). Devices are those that the command line names, as Linux has them:
 *     virtio_mmio.device=SIZE@ADDRESS:GSI
 * Where it names none, they are those on PCI's bus 0, whose registers virtio-pci.h finds by the names that
 * virtio-mmio has for them.
 *
 * A queue has up to SLOTS slots, each with a descriptor of its own, so nothing is ever allocated: who
 * uses the queue says which slot to submit and is told which slot was used.
 */
#pragma once
#include "boot.h"
#include "virtio-pci.h"

enum { VIRTIO_NET = 1, VIRTIO_BLOCK = 2, VIRTIO_CONSOLE = 3 };
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64 };
enum { F_NEXT = 1, F_WRITE = 2, F_INDIRECT = 4, NO_INTERRUPT = 1, NO_NOTIFY = 1 };

#define FEATURE(bit) (1ull << (bit))
#define RING_INDIRECT_DESC FEATURE(28)
#define RING_EVENT_IDX FEATURE(29)
#define VERSION_1 FEATURE(32)

enum { SLOTS = 256, MAX_DEVICES = 8 };

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct available { u16 flags, index, ring[SLOTS + 1]; };         /* behind the last entry: used_event */
struct used_element { u32 id, length; };
struct used { u16 flags, index; struct used_element ring[SLOTS + 1]; };  /* likewise: avail_event, 16 bits */

struct virtio {
    volatile u8 *registers;     /* of virtio-mmio; 0: it is on PCI */
    struct virtio_pci pci;
    u32 kind, gsi;
    u64 features;
};

struct queue {
    struct descriptor table[SLOTS] __attribute__((aligned(16)));
    volatile struct available available;
    volatile struct used used __attribute__((aligned(4)));
    struct virtio *device;
    volatile void *doorbell;    /* where it is notified */
    u16 number, size, seen;     /* its number in the device; its slots; used elements taken so far */
    u16 announced;              /* the available index up to which the device was notified */
    u32 notifications;          /* how many were really sent */
};

static struct virtio devices[MAX_DEVICES];
static u32 device_count;

/* The register that virtio-mmio has at `offset`; from R_CONFIG on, the device's configuration. */
static inline u32 get(const struct virtio *device, u32 offset)
{
    return device->registers ? *(volatile u32 *)(device->registers + offset) : virtio_pci_get(&device->pci, offset);
}

static inline void set(const struct virtio *device, u32 offset, u32 value)
{
    if (device->registers)
        *(volatile u32 *)(device->registers + offset) = value;
    else
        virtio_pci_set(&device->pci, offset, value);
}

/* A byte of the device's configuration. */
static UNUSED u8 config(const struct virtio *device, u32 offset)
{
    return device->registers ? device->registers[R_CONFIG + offset] : device->pci.config[offset];
}

/* Orders a store before a later load, which x86 does not by itself (Intel SDM volume 3A, 9.2.2). */
static inline void fence(void) { __asm__ volatile("mfence" ::: "memory"); }

static UNUSED int starts_with(const char *text, const char *start)
{
    while (*start && *text == *start)
        text++, start++;
    return !*start;
}

/* The word after the next blank, or 0. */
static UNUSED const char *next_word(const char *text)
{
    while (*text && *text != ' ')
        text++;
    while (*text == ' ')
        text++;
    return *text ? text : 0;
}

/* Devices that the command line names or, if it has no such word, those on PCI: by ports, or with ecam=ADDRESS. */
static UNUSED void find_devices(const char *command_line)
{
    int named = 0;

    for (const char *word = command_line; word && *word; word = next_word(word)) {
        const char *at = word;
        if (starts_with(word, "ecam=")) {
            pci_ecam = (volatile u8 *)(unsigned long)next_number(&at);
            pci_memory = 0xc0000000;                    /* where QEMU's microvm machine has room for registers */
        }
        if (!starts_with(word, "virtio_mmio.device=") || device_count == MAX_DEVICES)
            continue;
        named = 1;
        while (*at && *at != '@')
            at++;
        struct virtio *device = &devices[device_count];
        device->registers = (volatile u8 *)(unsigned long)next_number(&at);
        device->gsi = next_number(&at);
        if (get(device, R_MAGIC) == VIRTIO_MAGIC && get(device, R_VERSION) == 2) {
            device->kind = get(device, R_DEVICE_ID);
            device_count += device->kind != 0;
        }
    }
    for (u32 slot = 0; !named && slot < PCI_DEVICES && device_count < MAX_DEVICES; slot++) {
        struct virtio *device = &devices[device_count];
        device->registers = 0;
        device->kind = virtio_pci_find(&device->pci, slot);
        device->gsi = pci_read8(slot, PCI_INTERRUPT);
        device_count += device->kind != 0;
    }
}

/* The first device of a kind, or 0. */
static UNUSED struct virtio *find(u32 kind)
{
    for (u32 i = 0; i < device_count; i++)
        if (devices[i].kind == kind)
            return &devices[i];
    return 0;
}

/* Resets the device and negotiates what it offers of `wanted`; VERSION_1 always. */
static UNUSED void negotiate(struct virtio *device, u64 wanted)
{
    u64 offered;

    set(device, R_STATUS, 0);
    while (get(device, R_STATUS))
        ;
    set(device, R_STATUS, ACKNOWLEDGE);
    set(device, R_STATUS, ACKNOWLEDGE | DRIVER);
    set(device, R_FEATURES_SEL, 1);
    offered = (u64)get(device, R_FEATURES) << 32;
    set(device, R_FEATURES_SEL, 0);
    offered |= get(device, R_FEATURES);
    device->features = offered & (wanted | VERSION_1);
    for (u32 word = 0; word < 2; word++) {
        set(device, R_DRIVER_FEATURES_SEL, word);
        set(device, R_DRIVER_FEATURES, device->features >> 32 * word);
    }
    set(device, R_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (!(get(device, R_STATUS) & FEATURES_OK))
        fail("features refused", 2);
}

static UNUSED void set_up_queue(struct virtio *device, struct queue *queue, u32 number)
{
    const u64 parts[] = { (u64)(unsigned long)queue->table, (u64)(unsigned long)&queue->available,
                          (u64)(unsigned long)&queue->used };
    const u32 places[] = { R_QUEUE_DESC, R_QUEUE_DRIVER, R_QUEUE_DEVICE };

    queue->device = device;
    queue->number = number;
    set(device, R_QUEUE_SEL, number);
    queue->size = get(device, R_QUEUE_SIZE_MAX) < SLOTS ? get(device, R_QUEUE_SIZE_MAX) : SLOTS;
    if (!queue->size)
        fail("a queue is missing", 2);
    set(device, R_QUEUE_SIZE, queue->size);
    for (u32 i = 0; i < 3; i++) {
        set(device, places[i], parts[i]);
        set(device, places[i] + 4, parts[i] >> 32);
    }
    queue->doorbell = device->registers ? device->registers + R_QUEUE_NOTIFY : virtio_pci_queue(&device->pci, number);
    set(device, R_QUEUE_READY, 1);
}

static UNUSED void start(struct virtio *device) { set(device, R_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK); }

/* Makes the chain that begins at descriptor `slot` available; the device is not yet told. */
static inline UNUSED void submit(struct queue *queue, u32 slot)
{
    u16 index = queue->available.index;
    queue->available.ring[index & (queue->size - 1)] = slot;
    __asm__ volatile("" ::: "memory");          /* the entry, then the index: x86 keeps stores in order */
    queue->available.index = index + 1;
}

/* Tells the device of all that was submitted since the last time, if it wants to be told (2.7.10). */
static inline UNUSED void notify(struct queue *queue)
{
    u16 index = queue->available.index, before = queue->announced;
    int wanted;

    queue->announced = index;
    fence();                                    /* the index is there before its event is read */
    if (queue->device->features & RING_EVENT_IDX)
        wanted = (u16)(index - (u16)queue->used.ring[queue->size].id - 1) < (u16)(index - before);
    else
        wanted = !(queue->used.flags & NO_NOTIFY);
    if (wanted) {
        queue->notifications++;
        if (queue->device->registers)
            *(volatile u32 *)queue->doorbell = queue->number;
        else
            *(volatile u16 *)queue->doorbell = queue->number;
    }
}

/* Takes the next used element; its slot and, in *length, the bytes written. -1 where there is none. */
static inline UNUSED int take(struct queue *queue, u32 *length)
{
    if (queue->used.index == queue->seen)
        return -1;
    __asm__ volatile("" ::: "memory");          /* the index, then the element: x86 keeps loads in order */
    const volatile struct used_element *element = &queue->used.ring[queue->seen++ & (queue->size - 1)];
    *length = element->length;
    return element->id;
}

/* Asks for an interrupt with the next used buffer, or for none (2.7.7). */
static inline UNUSED void want_interrupts(struct queue *queue, int wanted)
{
    if (queue->device->features & RING_EVENT_IDX)
        queue->available.ring[queue->size] = wanted ? queue->seen : queue->seen + 0x8000u;      /* far away */
    else
        queue->available.flags = wanted ? 0 : NO_INTERRUPT;
    fence();                                    /* then look again: a buffer may have been used before */
}

/* What an interrupt handler does; nothing for a message, which says all there is to say. */
static inline UNUSED void acknowledge(const struct virtio *device)
{
    if (!device->pci.messages)
        set(device, R_INTERRUPT_ACK, get(device, R_INTERRUPT_STATUS));
}
