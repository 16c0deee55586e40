#define _GNU_SOURCE
#include "block.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define SECTOR 512
#define BLK_T_IN 0
#define BLK_T_OUT 1
#define BLK_S_OK 0

/* Nanoseconds, after which no further request is begun before ... */
#define PUSH_AFTER 400000      /* ... the driver sees those that are done: with small requests in memory, a batch */
#define RETURN_AFTER 4000000   /* ... the call ends, for which a reset or a pause waits */
#define WINDOW_LEAST 4000      /* and nanoseconds of a wait for more */

struct header {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
};

_Static_assert(sizeof(struct header) == 16, "struct virtio_blk_req up to its data (5.2.6)");

/* What a request moves: `count` buffers, `length` bytes from `offset` of the disk on. */
struct transfer {
    struct iovec *iov;
    int count;
    int write;
    uint64_t length;
    uint64_t offset;
};

/*
 * The transfer that `chain` asks for, and where its status goes; NULL if it is not for here. The buffers are cut to
 * what is data: header and status are the first and last bytes of all, however the driver has put them.
 */
static uint8_t *parse(struct pyvmm_block *block, const struct pyvmm_chain *chain, struct transfer *transfer)
{
    struct iovec *iov = &block->iov[chain->first];
    struct iovec *last = &iov[chain->readable + chain->writable - 1];
    struct header header;
    uint8_t *status;

    if (!chain->readable || !chain->writable || iov->iov_len < sizeof header)
        return NULL;
    memcpy(&header, iov->iov_base, sizeof header);
    __asm__ volatile("" ::: "memory"); /* the driver may change it: one look */
    transfer->write = header.type == BLK_T_OUT;
    if (header.type == BLK_T_IN && chain->readable_length == sizeof header) {
        transfer->iov = iov + chain->readable;
        transfer->count = chain->writable;
        transfer->length = chain->writable_length - 1;
    } else if (transfer->write && chain->writable_length == 1 && __atomic_load_n(&block->writable, __ATOMIC_ACQUIRE)) {
        int whole = iov->iov_len == sizeof header;

        iov->iov_base = (uint8_t *)iov->iov_base + sizeof header;
        iov->iov_len -= sizeof header;
        transfer->iov = iov + whole;
        transfer->count = chain->readable - whole;
        transfer->length = chain->readable_length - sizeof header;
    } else {
        return NULL;
    }
    if (transfer->length == 0 || transfer->length % SECTOR || header.sector > block->sectors ||
        transfer->length / SECTOR > block->sectors - header.sector)
        return NULL;
    transfer->offset = header.sector * SECTOR;
    status = (uint8_t *)last->iov_base + last->iov_len - 1;
    last->iov_len--;
    if (!transfer->write && !last->iov_len)
        transfer->count--;
    return status;
}

static int aligned(const struct transfer *transfer, uint32_t align)
{
    uint64_t bits = transfer->offset;

    for (int number = 0; number < transfer->count; number++)
        bits |= (uintptr_t)transfer->iov[number].iov_base | transfer->iov[number].iov_len;
    return bits % align == 0;
}

/* Have it done, however many calls the host wants for it; 0 if it cannot be done here. */
static int move(int fd, struct transfer *transfer)
{
    struct iovec *iov = transfer->iov;
    int count = transfer->count;
    uint64_t left = transfer->length;
    uint64_t offset = transfer->offset;

    for (;;) {
        ssize_t done = transfer->write ? pwritev(fd, iov, count, (off_t)offset) : preadv(fd, iov, count, (off_t)offset);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return 0;
        left -= (uint64_t)done;
        if (left == 0)
            return 1;
        offset += (uint64_t)done;
        while ((size_t)done >= iov->iov_len) {
            done -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        iov->iov_base = (uint8_t *)iov->iov_base + done;
        iov->iov_len -= (size_t)done;
    }
}

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int has_more(const struct pyvmm_queue *queue)
{
    return __atomic_load_n(&queue->avail[1], __ATOMIC_ACQUIRE) != queue->next_avail;
}

/*
 * How long to wait next time, now that the driver has notified: longer if the wait would have been worth while, within
 * what Python allows, and shorter if not.
 */
static void learn(struct pyvmm_block *block)
{
    if (now() - block->empty_since < block->patience)
        block->window = block->window * 2 < block->patience ? block->window * 2 : block->patience;
    else
        block->window /= 2;
    if (block->window < WINDOW_LEAST)
        block->window = block->patience < WINDOW_LEAST ? block->patience : WINDOW_LEAST;
    block->empty_since = 0;
}

/*
 * Whether another request comes soon: a driver that is busy need not notify then, which costs it an exit and this side
 * a sleep. No other queue waits for it.
 */
static int comes_soon(struct pyvmm_block *block, const struct pyvmm_queue *queue)
{
    uint64_t time = now();
    uint64_t until = time + block->window;

    block->empty_since = time;
    for (; time < until; time = now()) {
        for (int look = 0; look < 32; look++) {
            if (has_more(queue))
                return 1;
            __builtin_ia32_pause();
        }
        for (uint32_t number = 0; number < block->other_count; number++)
            if (has_more(block->others[number]))
                return 0;
    }
    return 0;
}

/* Serve a batch: EMPTY, PYTHON, or AGAIN: there may be more. */
static int batch(struct pyvmm_block *block, struct pyvmm_queue *queue, int limit)
{
    int count = pyvmm_pop(queue, block->chains, limit, block->iov, PYVMM_BLOCK_ROOM);
    int result = PYVMM_BLOCK_AGAIN;
    uint64_t until;
    int done = 0;

    if (count <= 0)
        return count < 0 ? PYVMM_BLOCK_PYTHON : PYVMM_BLOCK_EMPTY;
    until = now() + PUSH_AFTER;
    do {
        const struct pyvmm_chain *chain = &block->chains[done];
        struct transfer transfer;
        uint8_t *status = parse(block, chain, &transfer);

        if (!status || (block->align > 1 && !aligned(&transfer, block->align)) || !move(block->fd, &transfer)) {
            result = PYVMM_BLOCK_PYTHON;
            break;
        }
        *status = BLK_S_OK;
        block->used[done].id = chain->head;
        block->used[done].length = transfer.write ? 1 : (uint32_t)(transfer.length + 1);
        done++;
    } while (done < count && now() < until);
    pyvmm_unpop(queue, block->chains + done, count - done);
    if (done)
        pyvmm_push(queue, block->used, done);
    block->served += done;
    return result;
}

int pyvmm_block_serve(struct pyvmm_block *block, struct pyvmm_queue *queue, int limit)
{
    uint64_t until = now() + RETURN_AFTER;

    block->served = 0;
    if (block->empty_since)
        learn(block);
    pyvmm_suppress(queue);
    do {
        int room = limit - block->served;
        int result = batch(block, queue, room < PYVMM_BLOCK_BATCH ? room : PYVMM_BLOCK_BATCH);

        if (result == PYVMM_BLOCK_PYTHON)
            return result;
        if (pyvmm_wants_interrupt(queue))
            return PYVMM_BLOCK_TELL;
        if (result != PYVMM_BLOCK_EMPTY)
            continue;
        if (!comes_soon(block, queue)) {
            if (!pyvmm_listen(queue))
                return result;
            pyvmm_suppress(queue);
        }
        block->empty_since = 0;
    } while (block->served < limit && now() < until);
    return PYVMM_BLOCK_AGAIN;
}
