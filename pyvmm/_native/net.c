#define _GNU_SOURCE
#include "net.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define HEADER 12           /* bytes of virtio_net_hdr (5.1.6) */
#define NUM_BUFFERS 10      /* where in it num_buffers is, 2 bytes */
#define SHORTEST 14         /* bytes of an Ethernet header */
#define LONGEST 65589       /* 5.1.6.3 */
#define STATION 6
#define PREFIX 4            /* bytes of the length before a frame of a stream */

_Static_assert(PYVMM_NET_BATCH == sizeof ((struct pyvmm_net *)0)->chains / sizeof(struct pyvmm_chain), "as in net.h");
_Static_assert(PYVMM_NET_IOVECS == sizeof ((struct pyvmm_net *)0)->iov / sizeof(struct iovec), "as in net.h");

static const uint8_t broadcast[STATION] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };

/* A place in a run of buffers, which go on for as long as they are asked to. */
struct cursor {
    const struct iovec *iov;
    size_t at;
};

/* The next stretch of at most `length` bytes that lies in one buffer: how many, and where they are. The cursor goes on. */
static size_t stretch(struct cursor *cursor, size_t length, uint8_t **where)
{
    size_t left = cursor->iov->iov_len - cursor->at;

    *where = (uint8_t *)cursor->iov->iov_base + cursor->at;
    if (length < left) {
        cursor->at += length;
        return length;
    }
    cursor->iov++;
    cursor->at = 0;
    return left;
}

static void get(struct cursor *from, uint8_t *to, size_t length)
{
    uint8_t *where;

    for (size_t part; length; to += part, length -= part) {
        part = stretch(from, length, &where);
        memcpy(to, where, part);
    }
}

static void put(struct cursor *to, const uint8_t *from, size_t length)
{
    uint8_t *where;

    for (size_t part; length; from += part, length -= part) {
        part = stretch(to, length, &where);
        memcpy(where, from, part);
    }
}

/* --- Transmission (5.1.6.2) --------------------------------------------------------------------------------------- */

/*
 * Copy the frame of `chain` to `to`, as the back-end takes it, and judge the copy. How many bytes that are; 0 if there
 * is no room for it; -1 if it is not a plain one.
 */
static int64_t stage(const struct pyvmm_net *net, const struct pyvmm_frames *frames, const struct pyvmm_chain *chain,
                     uint8_t *to, uint32_t room)
{
    uint32_t before = frames->stream ? PREFIX : frames->header;
    struct cursor from = { net->iov + chain->first, 0 };
    uint8_t header[HEADER];
    uint32_t length;

    if (chain->readable_length < HEADER + SHORTEST || chain->readable_length > HEADER + LONGEST)
        return -1;
    length = (uint32_t)chain->readable_length - HEADER;
    if (before + length > room)
        return 0;
    get(&from, header, HEADER);
    get(&from, to + before, length);
    if (header[0] || header[1]) /* flags, gso_type: something is left to be done */
        return -1;
    if (net->check_source && memcmp(to + before + STATION, net->source, STATION))
        return -1;
    if (frames->stream) {
        uint8_t prefix[PREFIX] = { (uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8),
                                   (uint8_t)length };
        memcpy(to, prefix, PREFIX);
    } else {
        memset(to, 0, before);
    }
    return before + length;
}

/* One system call; bytes that were taken, 0 if the back-end is full, -1 after an error that ends it. */
static int64_t send_some(struct pyvmm_frames *frames, const uint8_t *data, size_t length)
{
    ssize_t done;

    do
        done = frames->stream ? send(frames->fd, data, length, MSG_DONTWAIT | MSG_NOSIGNAL)
                              : write(frames->fd, data, length);
    while (done < 0 && errno == EINTR);
    if (done >= 0)
        return done;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
        return 0;
    /* What a tap answers to a frame that the host does not take: it is lost. */
    if (!frames->stream && (errno == EINVAL || errno == EIO || errno == EMSGSIZE || errno == ENOBUFS || errno == ENOMEM))
        return (int64_t)length;
    frames->failure = errno;
    return -1;
}

/* Send `count` frames, which end in `stage` where `ends` says. How many have been sent whole. */
static int send_frames(struct pyvmm_net *net, struct pyvmm_frames *frames, int count)
{
    uint32_t sent = 0;
    int whole = 0;

    while (whole < count) {
        uint32_t end = frames->stream ? net->ends[count - 1] : net->ends[whole];
        int64_t done = send_some(frames, net->stage + sent, end - sent);

        if (done <= 0)
            break;
        /* A tap takes a frame whole. */
        sent = frames->stream ? sent + (uint32_t)done : end;
        while (whole < count && net->ends[whole] <= sent)
            whole++;
    }
    frames->sent = sent - (whole ? net->ends[whole - 1] : 0);
    return whole;
}

int pyvmm_net_transmit(struct pyvmm_net *net, struct pyvmm_queue *queue, struct pyvmm_frames *frames, int budget)
{
    net->moved = 0;
    pyvmm_suppress(queue);
    for (;;) {
        int limit = net->wary ? PYVMM_NET_FEW : PYVMM_NET_BATCH;
        int taken = pyvmm_pop(queue, net->chains, limit, net->iov, PYVMM_NET_IOVECS);
        uint32_t filled = 0;
        int64_t bytes = 1;
        int count, whole;

        if (taken < 0)
            return PYVMM_NET_PYTHON;
        if (taken == 0) {
            if (!pyvmm_listen(queue))
                return PYVMM_NET_NO_CHAIN;
            pyvmm_suppress(queue);
            if (--budget <= 0)
                return PYVMM_NET_MORE;
            continue;
        }
        for (count = 0; count < taken; count++) {
            bytes = stage(net, frames, &net->chains[count], net->stage + filled, net->stage_size - filled);
            if (bytes <= 0)
                break;
            filled += (uint32_t)bytes;
            net->ends[count] = filled;
            net->used[count] = (struct pyvmm_used){ net->chains[count].head, 0 };
        }
        whole = send_frames(net, frames, count);
        pyvmm_push(queue, net->used, whole);
        net->moved += (uint32_t)whole;
        if (whole < count) {
            uint32_t begin = whole ? net->ends[whole - 1] : 0;
            uint32_t before = frames->stream ? PREFIX : 0;

            pyvmm_unpop(queue, net->chains + whole + 1, taken - whole - 1);
            net->head = net->chains[whole].head;
            net->frame = begin + before;
            net->length = net->ends[whole] - begin - before;
            return PYVMM_NET_FULL;
        }
        pyvmm_unpop(queue, net->chains + count, taken - count);
        net->wary = bytes < 0;
        if (bytes < 0)
            return PYVMM_NET_PYTHON;
        budget -= count;
        if (budget <= 0)
            return PYVMM_NET_MORE;
    }
}

/* --- Reception (5.1.6.4) ------------------------------------------------------------------------------------------ */

/*
 * The frame that begins at `at` in the buffer, if it is whole there: where the next one begins, `length` without what
 * goes before it. 0 if it is not; -1 if it has a length that no frame has.
 */
static int64_t whole_frame(const struct pyvmm_frames *frames, uint32_t at, uint32_t *length)
{
    const uint8_t *prefix = frames->buffer + at;
    uint32_t waiting = frames->end - at;

    if (!frames->stream) {
        *length = waiting > frames->header ? waiting - frames->header : 0;
        return waiting ? frames->end : 0;
    }
    if (waiting < PREFIX)
        return 0;
    *length = (uint32_t)prefix[0] << 24 | (uint32_t)prefix[1] << 16 | (uint32_t)prefix[2] << 8 | prefix[3];
    if (*length < SHORTEST || *length > LONGEST)
        return -1;
    return waiting - PREFIX >= *length ? at + PREFIX + *length : 0;
}

/* Read ahead: 1, or 0 if there is nothing to be read, or -1 if that is for Python to see. */
static int read_ahead(struct pyvmm_frames *frames)
{
    ssize_t got;

    if (frames->start == frames->end) {
        frames->start = frames->end = 0;
    } else if (frames->start > frames->size / 2) {
        frames->end -= frames->start;
        memmove(frames->buffer, frames->buffer + frames->start, frames->end);
        frames->start = 0;
    }
    do
        got = frames->stream ? recv(frames->fd, frames->buffer + frames->end, frames->size - frames->end, MSG_DONTWAIT)
                             : read(frames->fd, frames->buffer + frames->end, frames->size - frames->end);
    while (got < 0 && errno == EINTR);
    if (got > 0) {
        frames->end += (uint32_t)got;
        return 1;
    }
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (got < 0)
        frames->failure = errno;
    return -1;
}

static int is_wanted(const struct pyvmm_net *net, const uint8_t *frame, uint32_t length)
{
    if (length < SHORTEST || length > net->longest)
        return 0;
    if (net->wanted & PYVMM_NET_ALL)
        return 1;
    if (!memcmp(frame, broadcast, STATION))
        return net->wanted & PYVMM_NET_BROADCAST;
    return net->wanted & PYVMM_NET_OWN && !memcmp(frame, net->station, STATION);
}

/* Take another chain behind the `taken` ones; how many there are then. */
static int take_another(struct pyvmm_net *net, struct pyvmm_queue *queue, int taken)
{
    struct pyvmm_chain *last = net->chains + taken - 1;
    uint32_t used = last->first + last->readable + last->writable;

    if (taken == PYVMM_NET_BATCH ||
        pyvmm_pop(queue, net->chains + taken, 1, net->iov + used, (int)(PYVMM_NET_IOVECS - used)) != 1)
        return taken;
    net->chains[taken].first = used;
    return taken + 1;
}

/*
 * Put a frame into the chains from number `at` on, of `*taken`, more of which are taken if it needs them. How many it
 * fills; 0 if it does not fit, or a chain is not as it should be: nothing has been written then.
 */
static int fill(struct pyvmm_net *net, struct pyvmm_queue *queue, int at, int *taken, const uint8_t *frame,
                uint32_t length)
{
    uint8_t header[HEADER] = { 0 };
    uint64_t room = 0;
    uint32_t left = HEADER + length;
    int count = 0;

    do {
        if (count && !net->mergeable)
            return 0;
        if (at + count == *taken && (*taken = take_another(net, queue, *taken)) == at + count)
            return 0;
        if (net->chains[at + count].writable_length < HEADER)
            return 0;
        room += net->chains[at + count++].writable_length;
    } while (room < left);
    header[NUM_BUFFERS] = (uint8_t)count;
    header[NUM_BUFFERS + 1] = (uint8_t)(count >> 8);
    for (int number = at; number < at + count; number++) {
        const struct pyvmm_chain *chain = &net->chains[number];
        struct cursor to = { net->iov + chain->first + chain->readable, 0 };
        uint32_t part = left < chain->writable_length ? left : (uint32_t)chain->writable_length;
        uint32_t before = number == at ? HEADER : 0;

        put(&to, header, before);
        put(&to, frame, part - before);
        frame += part - before;
        left -= part;
        net->used[number] = (struct pyvmm_used){ chain->head, part };
    }
    return count;
}

/* Hand out the frames in the buffer, for which the chains `taken` have been taken; whether Python sees the next one. */
static int deliver(struct pyvmm_net *net, struct pyvmm_queue *queue, struct pyvmm_frames *frames, int taken)
{
    uint32_t before = frames->stream ? PREFIX : frames->header;
    int at = 0, count = 1;

    while (at < taken) {
        uint32_t length;
        int64_t next = whole_frame(frames, frames->start, &length);
        const uint8_t *frame = frames->buffer + frames->start + before;

        if (next <= 0)
            break;
        if (!frames->stream && before && (frame[-HEADER] || frame[1 - HEADER]))
            count = 0;
        else if (!is_wanted(net, frame, length))
            count = 0;
        else
            count = fill(net, queue, at, &taken, frame, length);
        if (!count)
            break;
        at += count;
        frames->start = (uint32_t)next;
        net->moved++;
    }
    pyvmm_push(queue, net->used, at);
    pyvmm_unpop(queue, net->chains + at, taken - at);
    return !count;
}

/* Whether the driver is to be told of what was pushed; nobody tells it yet. */
static int wants_to_know(struct pyvmm_queue *queue)
{
    uint16_t notified = queue->notified;
    int wants = pyvmm_wants_interrupt(queue);

    queue->notified = notified;
    return wants;
}

/* No frame has come: look at the buffer for the next one now, as Python does, which takes it in advance. */
static int await_frame(struct pyvmm_net *net, struct pyvmm_queue *queue)
{
    int taken = pyvmm_pop(queue, net->chains, 1, net->iov, PYVMM_NET_IOVECS);

    if (taken > 0)
        pyvmm_unpop(queue, net->chains, taken);
    return taken > 0 && net->chains[0].writable_length >= HEADER ? PYVMM_NET_NO_FRAME : PYVMM_NET_PYTHON;
}

int pyvmm_net_receive(struct pyvmm_net *net, struct pyvmm_queue *queue, struct pyvmm_frames *frames, int budget)
{
    net->moved = 0;
    pyvmm_suppress(queue);
    /* Whatever the driver does meanwhile, this ends. */
    for (int left = budget; left > 0 && net->moved < (uint64_t)budget; left--) {
        int limit = net->wary ? PYVMM_NET_FEW : net->told ? PYVMM_NET_BATCH : PYVMM_NET_FIRST;
        uint32_t at = frames->start, length;
        int64_t next = 0;
        int waiting = 0;

        /* No frame is read before there is a buffer for it: so whoever sends them is slowed down. */
        if (__atomic_load_n(&queue->avail[1], __ATOMIC_ACQUIRE) == queue->next_avail) {
            if (!pyvmm_listen(queue))
                return PYVMM_NET_NO_CHAIN;
            pyvmm_suppress(queue);
            continue;
        }
        while (waiting < limit && (next = whole_frame(frames, at, &length)) > 0) {
            at = (uint32_t)next;
            waiting++;
        }
        if (waiting == 0) {
            int got = next < 0 ? -1 : read_ahead(frames);

            if (got <= 0)
                return got ? PYVMM_NET_PYTHON : await_frame(net, queue);
            continue;
        }
        waiting = pyvmm_pop(queue, net->chains, waiting, net->iov, PYVMM_NET_IOVECS);
        if (waiting < 0)
            return PYVMM_NET_PYTHON;
        net->wary = waiting > 0 && deliver(net, queue, frames, waiting);
        if (net->wary)
            return PYVMM_NET_PYTHON;
        if (!net->told) {
            net->told = 1;
            if (wants_to_know(queue))
                return PYVMM_NET_TELL;
        }
    }
    return PYVMM_NET_MORE;
}
