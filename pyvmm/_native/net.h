/*
 * The C side of pyvmm.virtio.net (virtio 1.3, 5.1): frames between a pair of queues and the descriptor of a back-end,
 * many with one call. What is plain is done here: whole frames with their checksum in them, that fit. Everything else,
 * and every error, stays where it is, and Python, whose path is the reference, sees it next.
 */
#ifndef PYVMM_NET_H
#define PYVMM_NET_H

#include "rings.h"

#define PYVMM_NET_BATCH 256     /* chains taken at a time */
#define PYVMM_NET_IOVECS 1024   /* and the buffers that they have together */
#define PYVMM_NET_FEW 4         /* chains taken where the next one may be for Python */
#define PYVMM_NET_FIRST 32      /* and before the driver is told of the first ones: an interrupt takes its time */

/* How a call ends. */
#define PYVMM_NET_NO_CHAIN 0    /* none is available, and the driver will notify of the next */
#define PYVMM_NET_NO_FRAME 1    /* the back-end has none, and there is a buffer for the next */
#define PYVMM_NET_FULL 2        /* the back-end is full: a frame is in hand */
#define PYVMM_NET_MORE 3        /* the budget is used up */
#define PYVMM_NET_PYTHON 4      /* what comes next is for Python to judge: a chain, a frame, an error of the back-end */
#define PYVMM_NET_TELL 5        /* the driver wants to be told of what it got, and there may be more for it */

/* Frames that a device's driver wants without a further look. */
#define PYVMM_NET_ALL 1
#define PYVMM_NET_OWN 2         /* to `station` */
#define PYVMM_NET_BROADCAST 4

/* The back-end: a stream socket where each frame follows its length (4 bytes, big-endian), or a tap. */
struct pyvmm_frames {
    int32_t fd;                 /* non-blocking */
    int32_t failure;            /* the error number that reading or writing ended with, or 0 */
    uint8_t stream;
    uint8_t header;             /* bytes of virtio_net_hdr (5.1.6) before each frame: 12 or 0 */
    uint8_t *buffer;            /* what was read: `start` to `end` has not been handed out */
    uint32_t size;              /* more than two frames of a stream, or one of a tap */
    uint32_t start;
    uint32_t end;
    uint32_t sent;              /* of the frame in hand, its length before it included */
};

struct pyvmm_net {
    uint8_t station[6];         /* the address that received frames are for */
    uint8_t source[6];          /* the one that sent frames must have, if `check_source` */
    uint8_t check_source;
    uint8_t wanted;             /* PYVMM_NET_ALL, ... */
    uint8_t mergeable;          /* VIRTIO_NET_F_MRG_RXBUF */
    uint32_t longest;           /* bytes of a received frame */
    uint8_t wary;               /* the last call of either kind ended at a frame for Python: take few chains at first */
    uint8_t told;               /* whether the driver has been told in this turn: then the next time is its end */
    uint64_t moved;             /* frames sent or received by the call */
    /* After PYVMM_NET_FULL: the head of the frame in hand, and where in `stage` it is, as the back-end takes it. */
    uint16_t head;
    uint32_t frame;
    uint32_t length;
    uint8_t *stage;             /* frames on their way out; `stage_size` bytes, room for the longest at least */
    uint32_t stage_size;
    /* For the time of a call. */
    uint32_t ends[256];
    struct pyvmm_chain chains[256];
    struct pyvmm_used used[256];
    struct iovec iov[1024];
};

/* Send what the driver has made available, up to about `budget` frames. Nothing is in hand. */
int pyvmm_net_transmit(struct pyvmm_net *net, struct pyvmm_queue *queue, struct pyvmm_frames *frames, int budget);

/* Fill the driver's buffers with what the back-end has, up to about `budget` frames. */
int pyvmm_net_receive(struct pyvmm_net *net, struct pyvmm_queue *queue, struct pyvmm_frames *frames, int budget);

#endif
