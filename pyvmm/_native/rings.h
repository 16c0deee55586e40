/*
 * The C side of pyvmm.virtio: the split virtqueue from the device's side (virtio 1.3, 2.7), as pyvmm/virtio/queue.py
 * has it, which is the reference: the same checks in the same order, the same ring afterwards. No Python, no KVM, no
 * memory of its own. What a structure points to belongs to Python, which has judged the ring when it was enabled; the
 * guest runs at the same time, so each of its fields is read once, and what was read is judged.
 *
 * A queue is used by one thread at a time. What is not as it should be stays where it is, untouched: Python walks the
 * same chain again and says what is wrong.
 *
 * build_rings.py hands this file to cffi, which knows no preprocessor but `#define NAME number`.
 */
#ifndef PYVMM_RINGS_H
#define PYVMM_RINGS_H

#include <stdint.h>
#include <sys/uio.h>

/* Guest RAM: `length` bytes from guest-physical `gpa` on are at `host`. */
struct pyvmm_region {
    uint64_t gpa;
    uint64_t length;
    uint8_t *host;
};

/* What is wrong with a ring: why a chain was not taken. In the order of the checks. */
#define PYVMM_AVAIL_JUMPS 1        /* the available index is more than `size` ahead */
#define PYVMM_HEAD_RANGE 2         /* a head that the table does not have */
#define PYVMM_HEAD_IN_FLIGHT 3     /* a head that was not given back yet */
#define PYVMM_INDIRECT_REFUSED 4   /* an indirect descriptor, which was not negotiated */
#define PYVMM_INDIRECT_NESTED 5    /* one in an indirect table */
#define PYVMM_INDIRECT_NEXT 6      /* one with NEXT */
#define PYVMM_INDIRECT_LENGTH 7    /* an indirect table of no, or of half a descriptor */
#define PYVMM_INDIRECT_LONG 8      /* one with more descriptors than the queue has */
#define PYVMM_INDIRECT_NOT_RAM 9   /* one that is not in guest RAM */
#define PYVMM_CHAIN_LOOPS 10       /* more descriptors than the queue has */
#define PYVMM_CHAIN_LONG 11        /* more than 2^32 bytes */
#define PYVMM_BUFFER_NOT_RAM 12    /* a buffer that is not in guest RAM */
#define PYVMM_CHAIN_ORDER 13       /* a readable buffer after a writable one */
#define PYVMM_NEXT_RANGE 14        /* a next descriptor that the table does not have */
#define PYVMM_KINDS 15             /* one more than the last kind */
#define PYVMM_NO_ROOM 15           /* nothing wrong: a chain of more buffers than there is room for */

/* One enabled virtqueue. The three positions and `in_flight` are those of Python's Virtqueue. */
struct pyvmm_queue {
    const struct pyvmm_region *regions;
    uint32_t region_count;
    uint32_t size;
    uint8_t *table;         /* the descriptor table, `size` of 16 bytes */
    uint16_t *avail;        /* flags, index, ring[size], used_event */
    uint16_t *used;         /* flags, index, ring[size] of 8 bytes, avail_event */
    uint8_t *in_flight;     /* for each head, whether it was taken and not given back */
    uint16_t next_avail;
    uint16_t next_used;
    uint16_t notified;      /* the used index when the driver was last told, or found not to want it */
    uint8_t event_idx;      /* negotiated features: VIRTIO_F_EVENT_IDX, VIRTIO_F_INDIRECT_DESC */
    uint8_t indirect;
    uint64_t errors[15];    /* how often each kind was met; PYVMM_KINDS of them */
};

/* A chain taken: `readable` iovecs from number `first` on, then `writable` ones. Empty buffers are left out. */
struct pyvmm_chain {
    uint16_t head;
    uint16_t readable;
    uint16_t writable;
    uint32_t first;
    uint64_t readable_length;   /* bytes */
    uint64_t writable_length;
};

/* An element of the used ring (2.7.8): the chain's head, and how many bytes were written to it. */
struct pyvmm_used {
    uint32_t id;
    uint32_t length;
};

/*
 * Take up to `limit` chains that are available, their buffers in `iov`, which has room for `room` of them. How many; 0
 * if there is none. A batch ends before a chain that is wrong or has no room; if that is the very first, -kind.
 */
int pyvmm_pop(struct pyvmm_queue *queue, struct pyvmm_chain *chains, int limit, struct iovec *iov, int room);

/* Make the last `count` chains taken available again; `chains` are these, in the order they were taken. */
void pyvmm_unpop(struct pyvmm_queue *queue, const struct pyvmm_chain *chains, int count);

/* Give `count` chains back: first the elements, then, in one store, the index that tells of them (2.7.8.2). */
void pyvmm_push(struct pyvmm_queue *queue, const struct pyvmm_used *elements, int count);

/* Whether the driver is to be told of what was pushed since the last call (2.7.7). */
int pyvmm_wants_interrupt(struct pyvmm_queue *queue);

/* Tell the driver that it need not notify (2.7.10). */
void pyvmm_suppress(struct pyvmm_queue *queue);

/* Ask it to notify from the next chain on; whether one has come already. */
int pyvmm_listen(struct pyvmm_queue *queue);

#endif
