/*
 * The data planes of network and console by themselves, with a ring, guest memory and a back-end that are made up.
 * As a program: each case of `partial` and `short_reads`, then random ones, then "ok". With -DFUZZ libFuzzer's entry.
 * To be compiled with a sanitizer, which finds what is wrong with memory; the rest is asserted here.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static ssize_t fake_send(int fd, const void *data, size_t length, int flags);
static ssize_t fake_recv(int fd, void *buffer, size_t size, int flags);
static ssize_t fake_write(int fd, const void *data, size_t length);
static ssize_t fake_read(int fd, void *buffer, size_t size);

#define send fake_send
#define recv fake_recv
#define write fake_write
#define read fake_read
#include "net.c"
#undef send
#undef recv
#undef write
#undef read
#include "console.h"

enum { FD = 7, SIZE = 16, RAM = 1 << 17, TABLE = 0, AVAIL = 0x400, USED = 0x800, BUFFERS = 0x1000 };
enum { STAGE = 1 << 17, READ_AHEAD = 1 << 18, TAP = HEADER + LONGEST };

/* --- The back-end ------------------------------------------------------------------------------------------------- */

static const uint8_t *script;       /* what it gives, and for random cases also how it behaves */
static size_t script_left;
static size_t accepts, piece;       /* bytes that it still takes; the most that it takes or gives at once */
static int error;                   /* what comes then, instead of EAGAIN */
static uint8_t sent[1 << 18];
static size_t sent_length;

static ssize_t take(const void *data, size_t length)
{
    size_t part = length < piece ? length : piece;

    if (part > accepts)
        part = accepts;
    if (!part) {
        errno = error ? error : EAGAIN;
        return -1;
    }
    if (part > sizeof sent - sent_length)
        sent_length = 0;    /* of random cases nobody looks at it */
    memcpy(sent + sent_length, data, part);
    sent_length += part;
    accepts -= part;
    return (ssize_t)part;
}

static ssize_t give(void *buffer, size_t size)
{
    size_t part = size < piece ? size : piece;

    assert(size);
    if (part > script_left)
        part = script_left;
    if (!part) {
        errno = error ? error : EAGAIN;
        return error == ENODATA ? 0 : -1;   /* standing for the end of the stream */
    }
    memcpy(buffer, script, part);
    script += part;
    script_left -= part;
    return (ssize_t)part;
}

static ssize_t fake_send(int fd, const void *data, size_t length, int flags)
{
    assert(fd == FD && flags == (MSG_DONTWAIT | MSG_NOSIGNAL));
    return take(data, length);
}

static ssize_t fake_recv(int fd, void *buffer, size_t size, int flags)
{
    assert(fd == FD && flags == MSG_DONTWAIT);
    return give(buffer, size);
}

static ssize_t fake_write(int fd, const void *data, size_t length)
{
    assert(fd == FD);
    if (accepts < length) {
        errno = error ? error : EAGAIN;
        return -1;
    }
    return take(data, length) >= 0 ? (ssize_t)length : -1;
}

static ssize_t fake_read(int fd, void *buffer, size_t size)
{
    assert(fd == FD);
    return give(buffer, size);
}

/* --- A device and its driver -------------------------------------------------------------------------------------- */

static uint8_t *ram, *in_flight;
static struct pyvmm_region region;
static struct pyvmm_queue queue;
static struct pyvmm_net *net;
static struct pyvmm_console *console;
static struct pyvmm_frames frames;

/* Each on its own heap block, whose ends the sanitizer guards. */
static void begin(int stream, int header)
{
    ram = calloc(1, RAM);
    in_flight = calloc(1, SIZE);
    net = calloc(1, sizeof *net);
    region = (struct pyvmm_region){ 0, RAM, ram };
    queue = (struct pyvmm_queue){ .regions = &region, .region_count = 1, .size = SIZE, .table = ram + TABLE,
                                  .avail = (void *)(ram + AVAIL), .used = (void *)(ram + USED),
                                  .in_flight = in_flight, .event_idx = 1, .indirect = 1 };
    net->stage = malloc(STAGE);
    net->stage_size = STAGE;
    net->wanted = PYVMM_NET_ALL;
    net->mergeable = 1;
    net->told = 1;
    net->longest = LONGEST;
    frames = (struct pyvmm_frames){ .fd = FD, .stream = (uint8_t)stream, .header = (uint8_t)header,
                                    .size = stream ? READ_AHEAD : TAP };
    frames.buffer = malloc(frames.size);
    console = calloc(1, sizeof *console);
    console->size = 4096;
    console->buffer = malloc(console->size);
    sent_length = 0;
    script_left = 0;
    error = 0;
    accepts = piece = SIZE_MAX;
}

static void end(void)
{
    free(ram);
    free(in_flight);
    free(net->stage);
    free(net);
    free(frames.buffer);
    free(console->buffer);
    free(console);
}

static void put16(uint32_t at, uint16_t value)
{
    memcpy(ram + at, &value, 2);
}

static uint16_t get16(uint32_t at)
{
    uint16_t value;
    memcpy(&value, ram + at, 2);
    return value;
}

static void descriptor(uint16_t index, uint64_t gpa, uint32_t length, uint16_t flags, uint16_t next)
{
    uint8_t *at = ram + TABLE + 16 * index;
    memcpy(at, &gpa, 8);
    memcpy(at + 8, &length, 4);
    memcpy(at + 12, &flags, 2);
    memcpy(at + 14, &next, 2);
}

static void make_available(uint16_t head)
{
    uint16_t index = get16(AVAIL + 2);
    put16(AVAIL + 4 + 2u * (index % SIZE), head);
    put16(AVAIL + 2, (uint16_t)(index + 1));
}

/* A frame of `length` bytes, all `fill`, behind its header. */
static void offer_frame(uint16_t slot, uint32_t length, uint8_t fill)
{
    uint64_t gpa = BUFFERS + slot * 0x800u;
    memset(ram + gpa, 0, HEADER);
    memset(ram + gpa + HEADER, fill, length);
    descriptor(slot, gpa, HEADER + length, 0, 0);
    make_available(slot);
}

static int flying(void)
{
    int count = 0;
    for (int slot = 0; slot < SIZE; slot++)
        count += in_flight[slot];
    return count;
}

/* --- Each place at which a back-end can be full ------------------------------------------------------------------- */

static void partial(size_t room, size_t at_once, int ending, int stream)
{
    static const uint32_t lengths[] = { 14, 60, 33 };
    size_t before = stream ? PREFIX : HEADER, edges[4] = { 0 }, whole = 0;
    int result;

    begin(stream, stream ? 0 : HEADER);
    for (uint16_t slot = 0; slot < 3; slot++) {
        offer_frame(slot, lengths[slot], (uint8_t)('a' + slot));
        edges[slot + 1] = edges[slot] + before + lengths[slot];
    }
    accepts = room;
    piece = at_once;
    error = ending;
    result = pyvmm_net_transmit(net, &queue, &frames, 100);
    while (whole < 3 && edges[whole + 1] <= room)
        whole++;
    assert(net->moved == whole && get16(USED + 2) == whole);
    if (whole == 3) {
        assert(result == PYVMM_NET_NO_CHAIN && flying() == 0 && sent_length == edges[3]);
    } else {
        assert(result == PYVMM_NET_FULL && frames.failure == ending);
        assert(flying() == 1 && net->head == whole && queue.next_avail == whole + 1);
        assert(frames.sent == sent_length - edges[whole] && net->length == lengths[whole] + (stream ? 0 : HEADER));
        assert(net->stage[net->frame + (stream ? 0 : HEADER)] == 'a' + whole);
    }
    for (size_t at = 0; at < sent_length; at++) {
        size_t frame = at < edges[1] ? 0 : at < edges[2] ? 1 : 2, inside = at - edges[frame];
        assert(inside >= before ? sent[at] == 'a' + frame : sent[at] == (inside == 3 && stream ? lengths[frame] : 0));
    }
    end();
}

/* Three frames of a stream that comes in two parts, or byte by byte, to buffers of `buffer` bytes each. */
static void short_reads(size_t first, size_t at_once, uint32_t buffer, int ending)
{
    static const uint32_t lengths[] = { 14, 60, 33 };
    uint8_t stream[3 * PREFIX + 14 + 60 + 33];
    size_t filled = 0, total = 0;

    begin(1, 0);
    for (int frame = 0; frame < 3; frame++) {
        memcpy(stream + filled, (uint8_t[]){ 0, 0, 0, (uint8_t)lengths[frame] }, PREFIX);
        memset(stream + filled + PREFIX, 'a' + frame, lengths[frame]);
        filled += PREFIX + lengths[frame];
    }
    for (uint16_t slot = 0; slot < SIZE; slot++) {
        descriptor(slot, BUFFERS + slot * 0x800u, buffer, 2, 0);
        make_available(slot);
    }
    piece = at_once;
    script = stream;
    script_left = first;
    assert(pyvmm_net_receive(net, &queue, &frames, 1000) == PYVMM_NET_NO_FRAME);
    script_left = filled - first;
    error = ending;
    assert(pyvmm_net_receive(net, &queue, &frames, 1000) == (ending ? PYVMM_NET_PYTHON : PYVMM_NET_NO_FRAME));
    assert(frames.failure == (ending == ENODATA ? 0 : ending) && flying() == 0);
    for (uint16_t slot = 0, frame = 0; frame < 3; frame++) {
        uint32_t left = HEADER + lengths[frame];
        uint16_t count = get16(BUFFERS + slot * 0x800u + NUM_BUFFERS);

        assert(count == (left + buffer - 1) / buffer);
        for (int number = 0; number < count; number++, slot++) {
            uint32_t part = left < buffer ? left : buffer;
            uint32_t element[2];

            memcpy(element, ram + USED + 4 + 8 * slot, 8);
            assert(element[0] == slot && element[1] == part);
            for (uint32_t at = number ? 0 : HEADER; at < part; at++)
                assert(ram[BUFFERS + slot * 0x800u + at] == 'a' + frame);
            left -= part;
            total++;
        }
    }
    assert(get16(USED + 2) == total && queue.next_avail == total);
    end();
}

/* --- Any ring and any back-end ------------------------------------------------------------------------------------ */

static void any(const uint8_t *data, size_t size)
{
    uint8_t how[8] = { 0 };
    size_t rings;

    memcpy(how, data, size < sizeof how ? size : sizeof how);
    data += size < sizeof how ? size : sizeof how;
    size -= size < sizeof how ? size : sizeof how;
    begin(how[0] & 1, how[0] & 1 ? 0 : how[0] & 2 ? HEADER : 0);
    net->wanted = how[0] >> 2 & 7;
    net->mergeable = how[0] >> 5 & 1;
    net->check_source = how[0] >> 6 & 1;
    net->longest = how[1] & 1 ? LONGEST : 1514;
    net->told = how[2] & 1;
    queue.event_idx = how[1] >> 1 & 1;
    queue.indirect = how[1] >> 2 & 1;
    queue.next_avail = queue.next_used = queue.notified = (uint16_t)(how[2] << 8);
    accepts = how[1] & 8 ? SIZE_MAX : how[3] * 16u;
    piece = how[1] & 16 ? SIZE_MAX : 1 + how[4] * 8u;
    error = how[1] & 32 ? how[5] & 1 ? EPIPE : ENODATA : 0;
    rings = size < BUFFERS + 0x800 ? size : BUFFERS + 0x800;
    memcpy(ram, data, rings);
    if (how[1] & 64) {  /* a ring that has a chance */
        put16(AVAIL + 2, (uint16_t)(queue.next_avail + how[6] % (SIZE + 2)));
        for (uint32_t at = AVAIL + 4; at < AVAIL + 4 + 2 * SIZE; at += 2)
            put16(at, (uint16_t)(get16(at) % (SIZE + (how[7] & 1))));
    }
    script = data + rings;
    script_left = size - rings;
    for (int turn = 0; turn < 3; turn++) {
        int which = (how[7] >> 1) % 3, before = flying(), result;
        uint16_t used = queue.next_used;

        if (which == 0) {
            result = pyvmm_net_transmit(net, &queue, &frames, 40);
            assert(flying() == before + (result == PYVMM_NET_FULL));
            if (result == PYVMM_NET_FULL) {
                assert(net->frame + net->length <= STAGE && in_flight[net->head]);
                assert(frames.sent <= net->length + PREFIX);
                break;
            }
        } else if (which == 1) {
            result = pyvmm_net_receive(net, &queue, &frames, 40);
            assert(result != PYVMM_NET_FULL && flying() == before);
            assert(frames.start <= frames.end && frames.end <= frames.size);
        } else {
            result = pyvmm_console_gather(console, &queue);
            assert(result >= 0 && result <= SIZE && console->filled <= console->size && flying() == before + result);
            pyvmm_console_give_back(console, &queue, result);
            assert(flying() == before && (uint16_t)(queue.next_used - used) == result);
        }
    }
    end();
}

#ifdef FUZZ

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    any(data, size);
    return 0;
}

#else

static uint64_t next(void)
{
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* Bytes that are mostly what a ring could have in it. */
static size_t make_up(uint8_t *data, size_t limit)
{
    size_t size = BUFFERS + next() % (limit - BUFFERS);

    for (size_t at = 0; at < size; at++)
        data[at] = next() % 3 ? 0 : (uint8_t)next();
    for (int slot = 0; slot < SIZE; slot++) {
        uint8_t *at = data + 8 + TABLE + 16 * slot;
        uint64_t gpa = next() % 8 ? BUFFERS + next() % 0x4000 : next();
        uint32_t length = next() % 8 ? (uint32_t)(next() % 200) : (uint32_t)next();
        uint16_t flags = next() % 2 ? 0 : (uint16_t)(next() % 8), following = (uint16_t)(next() % (SIZE + 1));

        memcpy(at, &gpa, 8);
        memcpy(at + 8, &length, 4);
        memcpy(at + 12, &flags, 2);
        memcpy(at + 14, &following, 2);
        memcpy(data + 8 + AVAIL + 4 + 2 * slot, &(uint16_t){ (uint16_t)slot }, 2);
    }
    for (size_t at = 8 + BUFFERS + 0x800; at + 4 < size;) {     /* frames of a stream */
        uint32_t length = next() % 20 ? 14 + (uint32_t)(next() % 300) : (uint32_t)next();
        memcpy(data + at, (uint8_t[]){ (uint8_t)(length >> 24), (uint8_t)(length >> 16), (uint8_t)(length >> 8),
                                       (uint8_t)length }, 4);
        at += 4 + (size_t)length;
    }
    for (int at = 0; at < 8; at++)
        data[at] = (uint8_t)next();
    return size;
}

int main(void)
{
    static uint8_t data[BUFFERS + 0x4000];

    for (size_t room = 0; room <= 3 * HEADER + 14 + 60 + 33; room++)
        for (int ending = 0; ending <= EPIPE; ending += EPIPE) {
            partial(room, SIZE_MAX, ending, 1);
            partial(room, 1, ending, 1);
            partial(room, 7, ending, 1);
        }
    for (int whole = 0; whole <= 3; whole++)
        partial((size_t[]){ 0, HEADER + 14, 2 * HEADER + 14 + 60, SIZE_MAX }[whole], SIZE_MAX, 0, 0);
    for (size_t first = 0; first <= 3 * PREFIX + 14 + 60 + 33; first++)
        for (uint32_t buffer = HEADER; buffer < 100; buffer += 29) {
            short_reads(first, SIZE_MAX, buffer, 0);
            short_reads(first, 1, buffer, ECONNRESET);
            short_reads(first, 5, buffer, ENODATA);
        }
    for (int i = 0; i < 8000; i++)
        any(data, make_up(data, sizeof data));
    puts("ok");
    return 0;
}

#endif
