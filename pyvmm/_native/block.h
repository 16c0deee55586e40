/*
 * The block device's data plane (virtio 1.3, 5.2.6): reads and writes that are as they should be. All others stay in
 * the queue, and Python (pyvmm/virtio/block.py) judges and serves them: this never refuses a request, nor fails one.
 */
#ifndef PYVMM_BLOCK_H
#define PYVMM_BLOCK_H

#include "rings.h"

/* Why it came back. */
#define PYVMM_BLOCK_EMPTY 0   /* the driver has nothing more, and will notify */
#define PYVMM_BLOCK_PYTHON 1  /* the next chain is one for Python */
#define PYVMM_BLOCK_TELL 2    /* the driver is to be told of what was done */
#define PYVMM_BLOCK_AGAIN 3   /* enough for one call */

#define PYVMM_BLOCK_BATCH 64  /* requests taken together */
#define PYVMM_BLOCK_ROOM 1024 /* buffers of all of them; no more than one system call takes (UIO_MAXIOV) */

/*
 * One device's. Python sets all of the first part before a call, and may change `writable` meanwhile; the last part is
 * for C alone.
 */
struct pyvmm_block {
    int fd;
    uint32_t align;         /* what place, length and memory must be a multiple of: 1, or what O_DIRECT wants */
    uint64_t sectors;       /* how far requests may reach here, in units of 512 bytes */
    uint8_t writable;       /* whether writes may be done here, that is, without a flush behind each */
    uint32_t patience;      /* at most so many nanoseconds to wait for more requests before the driver has to notify */
    const struct pyvmm_queue *const *others; /* the device's other queues that are in use: none waits for that */
    uint32_t other_count;

    uint32_t window;        /* nanoseconds that it waits at the moment: long where that was, or would have been, worth it */
    uint64_t empty_since;   /* when (CLOCK_MONOTONIC, nanoseconds) it began to wait, if the driver has to notify; or 0 */
    int served;             /* requests that the last call has done */
    struct pyvmm_chain chains[64];
    struct pyvmm_used used[64];
    struct iovec iov[1024];
};

/* Serve up to `limit` requests of `queue`, whose notifications it suppresses until it is empty. PYVMM_BLOCK_... */
int pyvmm_block_serve(struct pyvmm_block *block, struct pyvmm_queue *queue, int limit);

#endif
