/*
 * The C side of pyvmm.virtio.console (virtio 1.3, 5.3): the output of many chains, gathered into one buffer. What is
 * longer than that, and what is wrong with a ring, is left to Python, whose path is the reference. And a search for
 * words in all that output, for whoever reads along.
 */
#ifndef PYVMM_CONSOLE_H
#define PYVMM_CONSOLE_H

#include "rings.h"

#define PYVMM_CONSOLE_BATCH 64      /* chains taken at a time */
#define PYVMM_CONSOLE_IOVECS 256    /* and the buffers that they have together */

struct pyvmm_console {
    uint8_t *buffer;            /* `size` bytes, of which the last call has filled `filled` */
    uint32_t size;
    uint32_t filled;
    struct pyvmm_chain chains[64];
    struct pyvmm_used used[64];
    struct iovec iov[256];
};

/*
 * Take chains whose output fits into the buffer, and copy it there. How many; 0 if there is none, or the next one is
 * for Python to take.
 */
int pyvmm_console_gather(struct pyvmm_console *console, struct pyvmm_queue *queue);

/* Give back the `count` chains that were gathered last. */
void pyvmm_console_give_back(struct pyvmm_console *console, struct pyvmm_queue *queue, int count);

/* Words of 3 to 32 bytes; `starts` is for the search. */
struct pyvmm_words {
    uint32_t count;
    uint8_t lengths[64];
    uint8_t words[64][32];
    uint8_t starts[4096];       /* for each hash whether a word's first three bytes have it */
};

/* Fill `starts`. */
void pyvmm_words_prepare(struct pyvmm_words *words);

/* Whether one of them is in the `length` bytes of `text`. */
int pyvmm_words_found(const struct pyvmm_words *words, const uint8_t *text, size_t length);

#endif
