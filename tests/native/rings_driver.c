/*
 * Drives pyvmm/_native/rings.c and block.c by themselves: under sanitizers with random bytes ("random N"), with a
 * driver in a thread of its own ("threads N"), and as libFuzzer's target where FUZZER is defined; "seeds FOLDER" makes
 * what that begins with. To be compiled with -Dpreadv=driver_preadv -Dpwritev=driver_pwritev.
 *
 * Bytes become guest memory, which lies in mappings of just its size, and what is done to a queue in it. Whatever they
 * are: no access outside, no buffer outside of RAM, an error changes nothing, what was taken is given back.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "check.h"
#include "block.h"
#include "rings.h"

#define LOW 0x1800 /* bytes of RAM at 0: rings, tables, buffers */
#define HIGH 0x400 /* and at HIGH_GPA */
#define HIGH_GPA 0x10000
#define MOST 16 /* entries of a queue */
#define AVAIL 0x100
#define USED 0x140
#define SECTORS 4
#define SECTOR 512

/* RAM in two regions, a queue in the first, and a disk. */
struct world {
    uint8_t *ram[2];
    struct pyvmm_region regions[2];
    struct pyvmm_queue queue;
    struct pyvmm_block *block;
};

/* --- The host's reads and writes, which move less than they are asked to, or fail --------------------------------- */

static uint32_t mischief = 1;
static useconds_t slowness; /* microseconds that each takes at least */

static int part_of(const struct iovec *iov, int count, struct iovec *part)
{
    if (slowness)
        usleep(slowness);
    mischief = mischief * 1664525 + 1013904223;
    *part = iov[0];
    switch (mischief >> 24 & 7) {
    case 0:
        errno = EINTR;
        return -1;
    case 1:
    case 2:
        part->iov_len = (part->iov_len + 1) / 2;
        return 1;
    case 3:
        return 1;
    default:
        return count;
    }
}

ssize_t driver_preadv(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec part;

    count = part_of(iov, count, &part);
    return count < 0 ? -1 : syscall(SYS_preadv, fd, count == 1 ? &part : iov, count, offset, 0);
}

ssize_t driver_pwritev(int fd, const struct iovec *iov, int count, off_t offset)
{
    struct iovec part;

    count = part_of(iov, count, &part);
    return count < 0 ? -1 : syscall(SYS_pwritev, fd, count == 1 ? &part : iov, count, offset, 0);
}

/* --- A queue and a disk ------------------------------------------------------------------------------------------ */

static int new_disk(void)
{
    static const uint8_t blank[SECTOR];
    int fd = memfd_create("disk", MFD_CLOEXEC);

    CHECK(fd >= 0);
    for (int sector = 0; sector < SECTORS; sector++)
        CHECK(pwrite(fd, blank, SECTOR, sector * SECTOR) == SECTOR);
    return fd;
}

static void make(struct world *world, uint32_t size, int fd)
{
    static const uint64_t lengths[2] = {LOW, HIGH};

    memset(world, 0, sizeof *world);
    for (int number = 0; number < 2; number++) {
        CHECK(posix_memalign((void **)&world->ram[number], 4096, lengths[number]) == 0);
        memset(world->ram[number], 0, lengths[number]);
        world->regions[number].gpa = number ? HIGH_GPA : 0;
        world->regions[number].length = lengths[number];
        world->regions[number].host = world->ram[number];
    }
    world->queue.regions = world->regions;
    world->queue.region_count = 2;
    world->queue.size = size;
    world->queue.table = world->ram[0];
    world->queue.avail = (uint16_t *)(world->ram[0] + AVAIL);
    world->queue.used = (uint16_t *)(world->ram[0] + USED);
    world->queue.in_flight = calloc(size, 1);
    world->block = calloc(1, sizeof *world->block);
    CHECK(world->queue.in_flight && world->block);
    world->block->fd = fd;
    world->block->align = 1;
    world->block->sectors = SECTORS;
    world->block->writable = 1;
    world->block->patience = 1000;
}

static void destroy(struct world *world)
{
    free(world->ram[0]);
    free(world->ram[1]);
    free(world->queue.in_flight);
    free(world->block);
}

static int taken(const struct world *world)
{
    int count = 0;

    for (uint32_t head = 0; head < world->queue.size; head++) {
        CHECK(world->queue.in_flight[head] <= 1);
        count += world->queue.in_flight[head];
    }
    return count;
}

static int in_ram(const struct world *world, const struct iovec *buffer)
{
    for (int number = 0; number < 2; number++) {
        const uint8_t *start = world->regions[number].host;
        const uint8_t *end = start + world->regions[number].length;
        const uint8_t *base = buffer->iov_base;

        if (base >= start && base < end && buffer->iov_len <= (size_t)(end - base))
            return 1;
    }
    return 0;
}

/* Take some, look at them, and give them back one way or the other, as `how` says. */
static void take(struct world *world, uint8_t how)
{
    struct pyvmm_chain chains[2 * MOST];
    struct pyvmm_used used[2 * MOST];
    struct iovec iov[64];
    struct pyvmm_queue before = world->queue;
    int limit = 1 + how % MOST;
    int room = how & 0x40 ? 64 : 3;
    int count = pyvmm_pop(&world->queue, chains, limit, iov, room);
    uint32_t first = 0;

    CHECK(count >= -PYVMM_NO_ROOM && count <= limit);
    if (count <= 0) {
        memcpy(before.errors, world->queue.errors, sizeof before.errors);
        CHECK(memcmp(&before, &world->queue, sizeof before) == 0);
        CHECK(taken(world) == 0);
        return;
    }
    CHECK(taken(world) == count);
    for (int number = 0; number < count; number++) {
        uint64_t readable = 0, writable = 0;

        CHECK(chains[number].first == first && chains[number].head < world->queue.size);
        for (int part = 0; part < chains[number].readable + chains[number].writable; part++) {
            const struct iovec *buffer = &iov[first + (uint32_t)part];

            CHECK(buffer->iov_len > 0 && in_ram(world, buffer));
            *(part < chains[number].readable ? &readable : &writable) += buffer->iov_len;
        }
        CHECK(readable == chains[number].readable_length && writable == chains[number].writable_length);
        CHECK(readable + writable <= 1ULL << 32);
        first += (uint32_t)chains[number].readable + chains[number].writable;
        CHECK(first <= (uint32_t)room);
        used[number].id = chains[number].head;
        used[number].length = (uint32_t)writable;
    }
    if (how & 0x80)
        limit = count / 2;
    else
        limit = count;
    pyvmm_push(&world->queue, used, limit);
    pyvmm_unpop(&world->queue, chains + limit, count - limit);
    CHECK(taken(world) == 0 && world->queue.next_used == (uint16_t)(before.next_used + limit));
    CHECK(world->queue.used[1] == world->queue.next_used && world->queue.next_avail == (uint16_t)(before.next_avail + limit));
}

/* Requests that were served. */
static long served;

static void serve(struct world *world, uint8_t how)
{
    uint16_t before = world->queue.next_used;
    int limit = 1 + how % (2 * MOST);
    int result;

    world->block->align = how & 0x40 ? SECTOR : 1;
    world->block->writable = how >> 7;
    result = pyvmm_block_serve(world->block, &world->queue, limit);
    CHECK(result >= PYVMM_BLOCK_EMPTY && result <= PYVMM_BLOCK_AGAIN);
    CHECK(world->block->served >= 0 && world->block->served <= limit && taken(world) == 0);
    CHECK((uint16_t)(world->queue.next_used - before) == world->block->served);
    CHECK(lseek(world->block->fd, 0, SEEK_END) == SECTORS * SECTOR);
    served += world->block->served;
}

/* Bytes: how the queue is, then RAM's, then a byte for each step; what is missing is 0. */
static void play(const uint8_t *data, size_t length, int fd)
{
    struct world world;
    size_t low;

    if (length < 16)
        return;
    make(&world, 1u << data[0] % 5, fd);
    world.queue.event_idx = data[1] & 1;
    world.queue.indirect = data[1] >> 1 & 1;
    world.queue.next_avail = (uint16_t)(data[2] | data[3] << 8);
    world.queue.next_used = world.queue.notified = (uint16_t)(data[4] | data[5] << 8);
    low = length - 16 < LOW ? length - 16 : LOW;
    memcpy(world.ram[0], data + 16, low);
    memcpy(world.ram[1], data + 16, length - 16 < HIGH ? length - 16 : HIGH);
    for (int step = 6; step < 16; step++) {
        uint8_t how = data[step];

        /* What is available is mostly plausible, or nothing behind the first check would be reached. */
        if (how & 1)
            world.queue.avail[1] = (uint16_t)(world.queue.next_avail + (how >> 1) % (world.queue.size + 1));
        if (how & 2)
            take(&world, how);
        else
            serve(&world, how);
        pyvmm_wants_interrupt(&world.queue);
        pyvmm_suppress(&world.queue);
        pyvmm_listen(&world.queue);
    }
    destroy(&world);
}

#ifdef FUZZER

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t length)
{
    static int fd = -1;

    if (fd < 0)
        fd = new_disk();
    play(data, length, fd);
    return 0;
}

#else

static uint64_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
    return *state >> 33;
}

static void store16(uint8_t *at, uint64_t value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

/* A request with its header, as a driver writes it, or nearly so: random bytes alone are never one. */
static void request(uint8_t *ram, int entry, uint64_t *state)
{
    uint8_t *header = ram + 0x400 + 16 * entry;
    uint32_t lengths[3] = {16, SECTOR, 1};
    uint32_t gpas[3] = {(uint32_t)(header - ram), 0x800, 0x500 + (uint32_t)entry};
    int writing = (int)(next_random(state) & 1);

    memset(header, 0, 16);
    header[0] = (uint8_t)writing;
    header[8] = (uint8_t)(next_random(state) % (SECTORS + 1));
    if (next_random(state) % 8 == 0)
        lengths[next_random(state) % 3] += (uint32_t)(next_random(state) % 600);
    if (next_random(state) % 16 == 0)
        gpas[1] = next_random(state) & 1 ? HIGH_GPA : LOW - SECTOR;
    for (int part = 0; part < 3; part++) {
        uint8_t *descriptor = ram + 16 * ((3 * entry + part) % MOST);

        memset(descriptor, 0, 16);
        memcpy(descriptor, &gpas[part], 4);
        memcpy(descriptor + 8, &lengths[part], 4);
        store16(descriptor + 12, (part < 2 ? 1u : 0u) | (part == 2 || (part == 1 && !writing) ? 2u : 0u));
        store16(descriptor + 14, (uint64_t)(3 * entry + part + 1) % MOST);
    }
}

#define LENGTH (16 + LOW)

/* Mostly a queue of five requests, and otherwise noise. */
static void random_bytes(uint8_t *data, int number, uint64_t *state)
{
    for (size_t at = 0; at < LENGTH; at++)
        data[at] = (uint8_t)next_random(state);
    if (number % 4 == 3)
        return;
    data[0] = 4;
    for (int entry = 0; entry < 5; entry++)
        request(data + 16, entry, state);
    for (int slot = 0; slot < MOST; slot++)
        store16(data + 16 + AVAIL + 4 + 2 * slot, next_random(state) % 16 ? 3 * (next_random(state) % 5) : MOST);
}

static void play_random(int count)
{
    uint8_t data[LENGTH];
    uint64_t state = 1;
    int fd = new_disk();

    for (int number = 0; number < count; number++) {
        random_bytes(data, number, &state);
        play(data, sizeof data, fd);
    }
    CHECK(served > count);
    close(fd);
}

static void write_seeds(const char *folder)
{
    uint8_t data[LENGTH];
    uint64_t state = 2;

    for (int number = 0; number < 32; number++) {
        char path[4096];
        FILE *file;

        random_bytes(data, number, &state);
        snprintf(path, sizeof path, "%s/%d", folder, number);
        file = fopen(path, "w");
        CHECK(file && fwrite(data, 1, sizeof data, file) == sizeof data && fclose(file) == 0);
    }
}

/* --- A device's thread and a driver's ---------------------------------------------------------------------------- */

struct pair {
    struct world world;
    int doorbell;
    _Atomic int over;
};

/* The device: serve when rung, until told to end. */
static void *device(void *argument)
{
    struct pair *pair = argument;
    uint64_t rung;

    while (!atomic_load(&pair->over)) {
        int result;

        CHECK(read(pair->doorbell, &rung, sizeof rung) == sizeof rung);
        do {
            result = pyvmm_block_serve(pair->world.block, &pair->world.queue, 2 * MOST);
            CHECK(result != PYVMM_BLOCK_PYTHON);
        } while (result != PYVMM_BLOCK_EMPTY);
    }
    return NULL;
}

/* What the driver has asked for. */
struct asked {
    int write;
    int sector;
};

#define PARTS 4 /* descriptors of each request: header, data in two pieces, status */

static struct asked ask(uint8_t *ram, int entry, uint8_t fill, uint64_t *state)
{
    struct asked asked = {(int)(next_random(state) & 1), (int)(next_random(state) % SECTORS)};
    uint32_t data = 0x800 + SECTOR * (uint32_t)entry;
    uint32_t gpas[PARTS] = {0x400 + 16 * (uint32_t)entry, data, data + 100, 0x500 + (uint32_t)entry};
    static const uint32_t lengths[PARTS] = {16, 100, SECTOR - 100, 1};

    memset(ram + gpas[0], 0, 16);
    ram[gpas[0]] = (uint8_t)asked.write;
    ram[gpas[0] + 8] = (uint8_t)asked.sector;
    ram[gpas[3]] = 0xa5;
    memset(ram + data, fill, SECTOR);
    for (int part = 0; part < PARTS; part++) {
        uint8_t *descriptor = ram + 16 * (PARTS * entry + part);

        memset(descriptor, 0, 16);
        memcpy(descriptor, &gpas[part], 4);
        memcpy(descriptor + 8, &lengths[part], 4);
        store16(descriptor + 12, (part < 3 ? 1u : 0u) | (part == 3 || (part && !asked.write) ? 2u : 0u));
        store16(descriptor + 14, (uint64_t)(PARTS * entry + part + 1));
    }
    return asked;
}

/* Whether all of the sector's bytes are `fill`. */
static int is_filled(const uint8_t *sector, uint8_t fill)
{
    return sector[0] == fill && memcmp(sector, sector + 1, SECTOR - 1) == 0;
}

/* The driver: up to four requests at a time. It rings only if the device wants that, and waits for the answers. */
static void threads(int count)
{
    struct pair pair = {.over = 0};
    uint8_t disk[SECTORS] = {0};
    uint64_t state = 7, one = 1;
    uint16_t available = 0, seen = 0;
    uint16_t *avail, *used;
    pthread_t thread;
    int rings = 0;

    make(&pair.world, MOST, new_disk());
    avail = pair.world.queue.avail;
    used = pair.world.queue.used;
    pair.doorbell = eventfd(0, EFD_CLOEXEC);
    CHECK(pair.doorbell >= 0 && pthread_create(&thread, NULL, device, &pair) == 0);
    while (available < count) {
        uint8_t *ram = pair.world.ram[0];
        struct asked asked[4];
        uint8_t fill[4];
        int batch = 1 + (int)(next_random(&state) % 4);

        for (int entry = 0; entry < batch; entry++) {
            fill[entry] = (uint8_t)next_random(&state);
            asked[entry] = ask(ram, entry, fill[entry], &state);
            __atomic_store_n(&avail[2 + available % MOST], (uint16_t)(PARTS * entry), __ATOMIC_RELAXED);
            __atomic_store_n(&avail[1], ++available, __ATOMIC_RELEASE);
            __atomic_thread_fence(__ATOMIC_SEQ_CST);
            if (!(__atomic_load_n(&used[0], __ATOMIC_ACQUIRE) & 1)) {
                CHECK(write(pair.doorbell, &one, sizeof one) == sizeof one);
                rings++;
            }
        }
        /* A notification that is lost would have this wait for ever. */
        for (int look = 0; __atomic_load_n(&used[1], __ATOMIC_ACQUIRE) != available; look++)
            if (look > 1000)
                sched_yield();
        for (int entry = 0; entry < batch; entry++, seen++) {
            CHECK(used[2 + 4 * (seen % MOST)] == PARTS * entry && ram[0x500 + entry] == 0);
            if (asked[entry].write)
                disk[asked[entry].sector] = fill[entry];
            CHECK(is_filled(ram + 0x800 + SECTOR * entry, disk[asked[entry].sector]));
        }
    }
    atomic_store(&pair.over, 1);
    CHECK(write(pair.doorbell, &one, sizeof one) == sizeof one);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(rings > 0);
    close(pair.doorbell);
    close(pair.world.block->fd);
    destroy(&pair.world);
}

/* A disk that is slow: the driver learns of each request when it is done, and does not wait for the others. */
static void slow(void)
{
    struct world world;
    uint64_t state = 9;

    make(&world, MOST, new_disk());
    slowness = 1000;
    for (int entry = 0; entry < 4; entry++) {
        ask(world.ram[0], entry, 0, &state);
        world.queue.avail[2 + entry] = (uint16_t)(PARTS * entry);
    }
    world.queue.avail[1] = 4;
    for (uint16_t done = 1; done <= 4; done++) {
        CHECK(pyvmm_block_serve(world.block, &world.queue, MOST) == PYVMM_BLOCK_TELL);
        CHECK(world.block->served == 1 && world.queue.used[1] == done && taken(&world) == 0);
    }
    world.queue.avail[0] = 1; /* no interrupts: but a call ends all the same */
    world.queue.avail[1] = 12;
    for (int entry = 0; entry < 8; entry++)
        world.queue.avail[2 + 4 + entry] = (uint16_t)(PARTS * (entry % 4));
    CHECK(pyvmm_block_serve(world.block, &world.queue, MOST) == PYVMM_BLOCK_AGAIN);
    CHECK(world.block->served >= 1 && world.block->served < 8);
    slowness = 0;
    close(world.block->fd);
    destroy(&world);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    if (strcmp(argv[1], "threads") == 0) {
        threads(atoi(argv[2]));
        slow();
    } else if (strcmp(argv[1], "seeds") == 0) {
        write_seeds(argv[2]);
    } else {
        play_random(atoi(argv[2]));
    }
    puts("ok");
    return 0;
}

#endif
