/*
 * virtio over PCI (virtio 1.3, 4.1): where a device's registers are, and those of virtio-mmio (4.2.2)
 * translated, so that a driver need know only one transport's. Interrupts are a pin's, unless messages are asked for.
 */
#pragma once
#include "pci.h"

enum {
    VIRTIO_MAGIC = 0x74726976,
    R_MAGIC = 0x00, R_VERSION = 0x04, R_DEVICE_ID = 0x08, R_FEATURES = 0x10, R_FEATURES_SEL = 0x14,
    R_DRIVER_FEATURES = 0x20, R_DRIVER_FEATURES_SEL = 0x24, R_QUEUE_SEL = 0x30, R_QUEUE_SIZE_MAX = 0x34,
    R_QUEUE_SIZE = 0x38, R_QUEUE_READY = 0x44, R_QUEUE_NOTIFY = 0x50, R_INTERRUPT_STATUS = 0x60,
    R_INTERRUPT_ACK = 0x64, R_STATUS = 0x70, R_QUEUE_DESC = 0x80, R_QUEUE_DRIVER = 0x90,
    R_QUEUE_DEVICE = 0xa0, R_CONFIG = 0x100,
};
enum {
    PCI_VIRTIO = 0x1af4, PCI_FIRST_ID = 0x1040,         /* 4.1.2.1: without the transitional ones */
    COMMON_CFG = 1, NOTIFY_CFG, ISR_CFG, DEVICE_CFG,    /* types of capability, 4.1.4 */
    C_FEATURES_SEL = 0x00, C_FEATURES = 0x04, C_DRIVER_FEATURES_SEL = 0x08, C_DRIVER_FEATURES = 0x0c, C_STATUS = 0x14,
    C_QUEUE_SEL = 0x16, C_QUEUE_SIZE = 0x18, C_QUEUE_VECTOR = 0x1a, C_QUEUE_ENABLE = 0x1c, C_QUEUE_NOTIFY_OFF = 0x1e,
    C_QUEUE_DESC = 0x20, C_QUEUE_DRIVER = 0x28, C_QUEUE_DEVICE = 0x30,      /* of the common configuration, 4.1.4.3 */
};

struct virtio_pci {
    volatile u8 *common, *notify, *isr, *config, *table;    /* the last: of messages */
    u32 slot, multiplier, messages;
};

/* The kind of virtio device in `slot`, whose registers are then at hand; 0 if there is none. */
static UNUSED u32 virtio_pci_find(struct virtio_pci *device, u32 slot)
{
    u32 id = pci_read(slot, PCI_ID);

    if ((id & 0xffff) != PCI_VIRTIO || id >> 16 <= PCI_FIRST_ID)
        return 0;
    *device = (struct virtio_pci){ .slot = slot };
    pci_command(slot, PCI_MEMORY, 0);
    for (u32 at = 0; (at = pci_capability(slot, PCI_VENDOR_SPECIFIC, at));) {
        u8 type = pci_read8(slot, at + 3), bar = pci_read8(slot, at + 4);
        if (type < COMMON_CFG || type > DEVICE_CFG)
            continue;
        volatile u8 *place = pci_registers(slot, bar) + pci_read(slot, at + 8);
        if (type == NOTIFY_CFG)
            device->multiplier = pci_read(slot, at + 16);
        *(type == COMMON_CFG ? &device->common : type == NOTIFY_CFG ? &device->notify
          : type == ISR_CFG ? &device->isr : &device->config) = place;
    }
    if (!device->common || !device->notify || !device->isr)
        fail("a virtio device without registers", 2);
    pci_command(slot, 0, PCI_MEMORY | PCI_MASTER);
    return (id >> 16) - PCI_FIRST_ID;
}

/* Has queue `number`, which is selected, interrupt by its message if there are messages; where it is notified. */
static UNUSED volatile void *virtio_pci_queue(const struct virtio_pci *device, u32 number)
{
    volatile u16 *vector = (volatile u16 *)(device->common + C_QUEUE_VECTOR);

    if (device->messages) {
        *vector = number % device->messages;
        if (*vector != number % device->messages)
            fail("a queue gets no message", 2);         /* 4.1.5.1.2.1: says so by reading back as 0xffff */
    }
    return device->notify + *(volatile u16 *)(device->common + C_QUEUE_NOTIFY_OFF) * device->multiplier;
}

/* From now on, and for queues that are set up later, interrupts are messages: `vector` for all. 0 if it has none. */
static UNUSED int use_messages(struct virtio_pci *device, u8 vector)
{
    device->table = pci_messages(device->slot, vector, &device->messages);
    return device->messages != 0;
}

/* Masks or unmasks message `number`: what comes meanwhile is kept. */
static inline UNUSED void mask_message(const struct virtio_pci *device, u32 number, int masked)
{
    *(volatile u32 *)(device->table + MSIX_ENTRY * number + MSIX_CONTROL) = masked ? MSIX_MASKED : 0;
}

static UNUSED u32 virtio_pci_get(const struct virtio_pci *device, u32 offset)
{
    if (offset >= R_CONFIG)
        return *(volatile u32 *)(device->config + offset - R_CONFIG);
    switch (offset) {
    case R_FEATURES: return *(volatile u32 *)(device->common + C_FEATURES);
    case R_QUEUE_SIZE_MAX: return *(volatile u16 *)(device->common + C_QUEUE_SIZE);
    case R_INTERRUPT_STATUS: return *device->isr;       /* which acknowledges, too */
    case R_STATUS: return device->common[C_STATUS];
    }
    return 0;
}

static UNUSED void virtio_pci_set(const struct virtio_pci *device, u32 offset, u32 value)
{
    volatile u8 *common = device->common;

    switch (offset) {
    case R_FEATURES_SEL: *(volatile u32 *)(common + C_FEATURES_SEL) = value; break;
    case R_DRIVER_FEATURES_SEL: *(volatile u32 *)(common + C_DRIVER_FEATURES_SEL) = value; break;
    case R_DRIVER_FEATURES: *(volatile u32 *)(common + C_DRIVER_FEATURES) = value; break;
    case R_STATUS: common[C_STATUS] = value; break;
    case R_QUEUE_SEL: *(volatile u16 *)(common + C_QUEUE_SEL) = value; break;
    case R_QUEUE_SIZE: *(volatile u16 *)(common + C_QUEUE_SIZE) = value; break;
    case R_QUEUE_READY: *(volatile u16 *)(common + C_QUEUE_ENABLE) = value; break;
    case R_QUEUE_DESC: case R_QUEUE_DESC + 4:
        *(volatile u32 *)(common + C_QUEUE_DESC + offset - R_QUEUE_DESC) = value; break;
    case R_QUEUE_DRIVER: case R_QUEUE_DRIVER + 4:
        *(volatile u32 *)(common + C_QUEUE_DRIVER + offset - R_QUEUE_DRIVER) = value; break;
    case R_QUEUE_DEVICE: case R_QUEUE_DEVICE + 4:
        *(volatile u32 *)(common + C_QUEUE_DEVICE + offset - R_QUEUE_DEVICE) = value; break;
    }
}
