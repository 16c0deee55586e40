/*
 * Drives pyvmm/_native/run_loop.c on pages that this program fills, under sanitizers and without KVM. Prints "ok" at the
 * end; every failed check names its line and ends the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "run_loop.h"

#define PAGES 8192
#define DATA 4096
#define BASE 0x3f8

/* A VM of which C sees a UART-like window at ports BASE and on, and a pair of 32-bit registers in memory. */
struct rig {
    struct pyvmm_hot hot;
    struct pyvmm_ring ring;
    struct pyvmm_window ports, registers;
    struct pyvmm_places *port_places, *mmio_places;
};

struct cpu {
    struct pyvmm_vcpu vcpu;
    uint8_t *page;
};

static struct pyvmm_places *places(uint64_t base, uint64_t length, struct pyvmm_window *window)
{
    /* Two more, so that there is something to search. */
    struct pyvmm_places *made = calloc(1, sizeof(*made) + 3 * sizeof(made->place[0]));

    CHECK(made);
    made->count = 3;
    made->place[0] = (struct pyvmm_place){base - 16, 1, window};
    made->place[1] = (struct pyvmm_place){base, length, window};
    made->place[2] = (struct pyvmm_place){base + 16, 1, window};
    return made;
}

static struct rig *new_rig(void)
{
    struct rig *rig = calloc(1, sizeof(*rig));

    CHECK(rig);
    rig->ports.width = 1;
    rig->ports.ring = &rig->ring;
    rig->ports.writes[0] = PYVMM_POST;
    rig->ports.reads[5] = PYVMM_SHADOW;
    rig->ports.writes[7] = PYVMM_IGNORE;
    rig->ports.device = 3;
    rig->registers.width = 4;
    rig->registers.reads[0] = PYVMM_SHADOW;
    rig->registers.writes[4] = PYVMM_CLEAR;
    rig->port_places = rig->hot.ports = places(BASE, 8, &rig->ports);
    rig->mmio_places = rig->hot.mmio = places(0xd0000060, 8, &rig->registers);
    rig->hot.rings[0] = &rig->ring;
    rig->hot.timer = -1;
    rig->hot.armed = rig->hot.flushed = 1;
    return rig;
}

static void free_rig(struct rig *rig)
{
    free(rig->port_places);
    free(rig->mmio_places);
    free(rig);
}

static void new_cpu(struct cpu *cpu, struct rig *rig)
{
    memset(cpu, 0, sizeof(*cpu));
    cpu->page = aligned_alloc(4096, PAGES);
    CHECK(cpu->page);
    memset(cpu->page, 0, PAGES);
    cpu->vcpu.fd = -1;
    cpu->vcpu.page = (struct kvm_run *)cpu->page;
    cpu->vcpu.page_size = PAGES;
    cpu->vcpu.hot = &rig->hot;
}

static int port(struct cpu *cpu, int is_write, uint16_t at, unsigned size, uint32_t count, const void *data)
{
    cpu->vcpu.page->exit_reason = KVM_EXIT_IO;
    cpu->vcpu.page->io = (struct kvm_run_io){is_write ? KVM_EXIT_IO_OUT : 0, (uint8_t)size, at, count, DATA};
    if (data)
        memcpy(cpu->page + DATA, data, size * count);
    return pyvmm_serve(&cpu->vcpu);
}

static int mmio(struct cpu *cpu, int is_write, uint64_t at, unsigned size, uint64_t value)
{
    cpu->vcpu.page->exit_reason = KVM_EXIT_MMIO;
    cpu->vcpu.page->mmio.phys_addr = at;
    cpu->vcpu.page->mmio.len = size;
    cpu->vcpu.page->mmio.is_write = (uint8_t)is_write;
    memcpy(cpu->vcpu.page->mmio.data, &value, 8);
    return pyvmm_serve(&cpu->vcpu);
}

static void one_at_a_time(void)
{
    struct rig *rig = new_rig();
    struct pyvmm_writes writes;
    struct cpu cpu;
    uint8_t text[PYVMM_RING + 100];
    uint32_t value;

    new_cpu(&cpu, rig);
    for (size_t i = 0; i < sizeof(text); i++)
        text[i] = (uint8_t)i;

    /* A write is posted once, whatever it is next to; what is not its register's width is Python's. */
    CHECK(pyvmm_take(&rig->ring, &writes) == 0);
    CHECK(port(&cpu, 1, BASE, 1, 1, "a") == PYVMM_SERVED);
    CHECK(port(&cpu, 1, BASE, 2, 1, "bc") == (PYVMM_PORT_WRITE | PYVMM_POSTED));
    CHECK(cpu.vcpu.address == BASE && cpu.vcpu.size == 2 && cpu.vcpu.value == ('b' | 'c' << 8));
    CHECK(cpu.vcpu.data_at == DATA);
    CHECK(port(&cpu, 1, BASE - 16, 1, 1, "d") == PYVMM_SERVED); /* the same window, elsewhere */
    CHECK(port(&cpu, 1, BASE - 16, 2, 1, "xx") == (PYVMM_PORT_WRITE | PYVMM_POSTED));
    CHECK(port(&cpu, 1, BASE - 15, 1, 1, "x") == (PYVMM_PORT_WRITE | PYVMM_POSTED));
    CHECK(port(&cpu, 1, BASE + 1, 1, 1, "x") == (PYVMM_PORT_WRITE | PYVMM_POSTED));
    CHECK(port(&cpu, 1, BASE + 8, 1, 1, "x") == (PYVMM_PORT_WRITE | PYVMM_POSTED));
    CHECK(port(&cpu, 0, BASE, 1, 1, NULL) == (PYVMM_PORT_READ | PYVMM_POSTED));
    CHECK(port(&cpu, 1, BASE, 1, 3, "efg") == PYVMM_SERVED);
    CHECK(pyvmm_take(&rig->ring, &writes) == 5 && writes.count == 5 && memcmp(writes.data, "adefg", 5) == 0);
    CHECK(writes.size == 1 && writes.offset == 0 && writes.device == 3);
    CHECK(pyvmm_take(&rig->ring, &writes) == 0);
    CHECK(port(&cpu, 1, BASE + 1, 1, 1, "x") == PYVMM_PORT_WRITE);
    CHECK(cpu.vcpu.port_accesses == 3 && cpu.vcpu.mmio_accesses == 0);

    /* A row ends where the register changes. */
    rig->ports.writes[1] = PYVMM_POST;
    CHECK(port(&cpu, 1, BASE, 1, 1, "a") == PYVMM_SERVED);
    CHECK(port(&cpu, 1, BASE + 1, 1, 1, "b") == PYVMM_SERVED);
    CHECK(port(&cpu, 1, BASE + 1, 1, 1, "c") == PYVMM_SERVED);
    CHECK(pyvmm_take(&rig->ring, &writes) == 1 && writes.offset == 0);
    CHECK(pyvmm_take(&rig->ring, &writes) == 2 && writes.offset == 1 && memcmp(writes.data, "bc", 2) == 0);

    /* What the device has withdrawn, what somebody else is posting, and what nobody would flush, is not posted. */
    CHECK(pyvmm_act(&rig->ports, 1, 0, 0) == 0 && port(&cpu, 1, BASE, 1, 1, "x") == PYVMM_PORT_WRITE);
    CHECK(pyvmm_act(&rig->ports, 1, PYVMM_OFFSETS, 0) == -EINVAL && pyvmm_act(&rig->ports, 0, -1, 0) == -EINVAL);
    CHECK(pyvmm_act(&rig->ports, 1, 0, PYVMM_POST) == 0);
    rig->ring.busy = 1;
    CHECK(port(&cpu, 1, BASE, 1, 1, "x") == PYVMM_PORT_WRITE);
    rig->ring.busy = 0;
    rig->hot.flushed = 0;
    CHECK(port(&cpu, 1, BASE, 1, 1, "x") == (PYVMM_PORT_WRITE | PYVMM_WAKE));
    CHECK(port(&cpu, 1, BASE, 1, 2, "xx") == (PYVMM_OTHER | PYVMM_WAKE));
    rig->hot.flushed = 1;
    CHECK(pyvmm_take(&rig->ring, &writes) == 0);

    /* All of a string or nothing of it; the counters wrap. */
    rig->ring.posted = rig->ring.taken = UINT32_MAX - 100;
    CHECK(port(&cpu, 1, BASE, 1, PYVMM_RING + 1, text) == PYVMM_OTHER);
    CHECK(port(&cpu, 1, BASE, 1, PYVMM_RING - 1, text) == PYVMM_SERVED);
    CHECK(port(&cpu, 1, BASE, 1, 2, "xy") == (PYVMM_OTHER | PYVMM_POSTED));
    CHECK(port(&cpu, 1, BASE, 1, 1, "z") == PYVMM_SERVED);
    CHECK(port(&cpu, 1, BASE, 1, 1, "!") == (PYVMM_PORT_WRITE | PYVMM_POSTED) && cpu.vcpu.value == '!');
    CHECK(pyvmm_take(&rig->ring, &writes) == PYVMM_RING);
    CHECK(memcmp(writes.data, text, PYVMM_RING - 1) == 0 && writes.data[PYVMM_RING - 1] == 'z');
    rig->ring.posted += PYVMM_RING + 1; /* which no vCPU does */
    CHECK(pyvmm_take(&rig->ring, &writes) == 0);
    rig->ring.posted = rig->ring.taken;

    /* Slots. */
    CHECK(pyvmm_slot(&rig->ports, 0, 0x61) == 0);
    CHECK(port(&cpu, 0, BASE + 5, 1, 1, NULL) == PYVMM_SERVED && cpu.page[DATA] == 0x61);
    CHECK(port(&cpu, 0, BASE + 5, 1, 2, NULL) == PYVMM_OTHER);
    CHECK(port(&cpu, 1, BASE + 5, 1, 1, "x") == PYVMM_PORT_WRITE);
    CHECK(port(&cpu, 1, BASE + 7, 1, 4, "xxxx") == PYVMM_SERVED && rig->ports.ignored == 4);
    CHECK(port(&cpu, 0, BASE + 7, 1, 1, NULL) == PYVMM_PORT_READ);
    pyvmm_slot(&rig->registers, 0, 7);
    CHECK(mmio(&cpu, 0, 0xd0000060, 4, UINT64_MAX) == PYVMM_SERVED);
    memcpy(&value, cpu.vcpu.page->mmio.data, 4);
    CHECK(value == 7 && cpu.vcpu.page->mmio.data[4] == 0xff);
    CHECK(mmio(&cpu, 1, 0xd0000064, 4, 5) == PYVMM_SERVED && rig->registers.slot == 2);
    for (unsigned size = 0; size <= 9; size++)
        for (uint64_t at = 0xd0000058; at < 0xd0000070; at++)
            if (size != 4 || at != 0xd0000064)
                CHECK(mmio(&cpu, 1, at, size, 2) == (size == 0 || size > 8 ? PYVMM_OTHER : PYVMM_MMIO_WRITE));
    CHECK(rig->registers.slot == 2 && cpu.vcpu.mmio_accesses == 2);
    CHECK(mmio(&cpu, 1, 0xd0000064, 8, 2) == PYVMM_MMIO_WRITE && cpu.vcpu.value == 2);
    CHECK(cpu.vcpu.data_at == (uintptr_t)cpu.vcpu.page->mmio.data - (uintptr_t)cpu.page);

    /* What no KVM hands out, and what leaves the helper out of it. */
    CHECK(port(&cpu, 1, BASE, 0, 1, "x") == PYVMM_OTHER && port(&cpu, 1, BASE, 8, 1, "12345678") == PYVMM_OTHER);
    CHECK(port(&cpu, 1, BASE, 1, 0, "x") == PYVMM_OTHER);
    cpu.vcpu.page->io.count = 1;
    for (cpu.vcpu.page->io.data_offset = PAGES; cpu.vcpu.page->io.data_offset; cpu.vcpu.page->io.data_offset <<= 1)
        CHECK(pyvmm_serve(&cpu.vcpu) == PYVMM_OTHER);
    CHECK(port(&cpu, 1, BASE, 4, PAGES / 4, NULL) == PYVMM_OTHER);
    cpu.vcpu.page->exit_reason = 5;
    CHECK(pyvmm_serve(&cpu.vcpu) == PYVMM_OTHER);
    cpu.vcpu.hot = NULL;
    CHECK(port(&cpu, 1, BASE, 1, 1, "x") == PYVMM_PORT_WRITE);
    cpu.vcpu.hot = &rig->hot;
    rig->hot.ports = NULL;
    CHECK(port(&cpu, 1, BASE, 1, 1, "x") == PYVMM_PORT_WRITE);
    CHECK(pyvmm_vcpu_run(&cpu.vcpu) == -EBADF);
    free(cpu.page);
    free_rig(rig);
}

/* The log tells of what was served, in order, with marks for what Python saw. */
static void log_of_accesses(void)
{
    struct rig *rig = new_rig();
    struct cpu cpu;
    const struct pyvmm_access *log;

    new_cpu(&cpu, rig);
    log = cpu.vcpu.log;
    pyvmm_slot(&rig->ports, 0, 0x60);
    port(&cpu, 1, BASE, 1, 1, "a");
    port(&cpu, 0, BASE, 1, 1, NULL);
    cpu.vcpu.tracing = cpu.vcpu.sync_regs = 1;
    cpu.vcpu.page->s.regs.regs.rip = 0x1234;
    port(&cpu, 0, BASE + 5, 1, 1, NULL);
    CHECK(cpu.vcpu.logged == 3);
    CHECK(!log[0].seen && log[0].kind == PYVMM_PORT_WRITE && log[0].value == 'a' && log[0].tsc == 0);
    CHECK(log[1].seen);
    CHECK(!log[2].seen && log[2].kind == PYVMM_PORT_READ && log[2].address == BASE + 5 && log[2].value == 0x60);
    CHECK(log[2].rip == 0x1234 && log[2].tsc != 0 && log[2].size == 1 && log[2].count == 1);
    cpu.vcpu.logged = UINT32_MAX;
    port(&cpu, 0, BASE + 5, 1, 1, NULL);
    CHECK(cpu.vcpu.logged == 0 && log[PYVMM_LOG - 1].value == 0x60);
    free(cpu.page);
    free_rig(rig);
}

static void timer(void)
{
    struct rig *rig = new_rig();
    struct cpu cpu;
    struct pollfd fds;
    uint64_t expired;

    new_cpu(&cpu, rig);
    fds = (struct pollfd){.fd = rig->hot.timer = pyvmm_timer(), .events = POLLIN};
    CHECK(fds.fd >= 0);
    rig->hot.armed = 0;
    for (int round = 0; round < 3; round++) {
        CHECK(poll(&fds, 1, 0) == 0);
        CHECK(port(&cpu, 1, BASE, 1, 1, "a") == PYVMM_SERVED && rig->hot.armed);
        CHECK(port(&cpu, 1, BASE, 1, 1, "b") == PYVMM_SERVED);
        CHECK(poll(&fds, 1, 1000) == 1);
        CHECK(read(fds.fd, &expired, 8) == 8 && expired == 1);
        CHECK(pyvmm_disarm(&rig->hot) == 0 && !rig->hot.armed);
    }
    /* A timer that cannot be set: this write was posted, others are not. */
    rig->hot.timer = -1;
    CHECK(port(&cpu, 1, BASE, 1, 1, "c") == PYVMM_SERVED && !rig->hot.flushed);
    CHECK(port(&cpu, 1, BASE, 1, 1, "d") == (PYVMM_PORT_WRITE | PYVMM_WAKE | PYVMM_POSTED));
    CHECK(pyvmm_timer_expire(fds.fd) == 0 && poll(&fds, 1, 1000) == 1);
    CHECK(pyvmm_timer_expire(-1) == -EBADF);
    close(fds.fd);
    free(cpu.page);
    free_rig(rig);
}

/* --- Threads: two vCPUs post and clear, a third party takes, withdraws and sets --------------------------------- */

#define POSTS 100000

struct producer {
    struct rig *rig;
    uint8_t tag; /* 0 or 128, above a counter of 7 bits */
    uint32_t synchronous;
    pthread_mutex_t *lock;
    uint32_t *next;
};

static void taken(struct rig *rig, uint32_t *next)
{
    struct pyvmm_writes writes;

    while (pyvmm_take(&rig->ring, &writes) > 0)
        for (uint32_t i = 0; i < writes.count; i++) {
            uint32_t *expected = &next[writes.data[i] >> 7];

            CHECK((writes.data[i] & 127) == (*expected & 127));
            (*expected)++;
        }
}

static void *produce(void *argument)
{
    struct producer *self = argument;
    struct cpu cpu;

    new_cpu(&cpu, self->rig);
    for (uint32_t i = 0; i < POSTS; i++) {
        uint8_t value = self->tag | (i & 127);

        if (port(&cpu, 1, BASE, 1, 1, &value) != PYVMM_SERVED) {
            /* As Python does it: the device's lock, what was posted, then this one. */
            pthread_mutex_lock(self->lock);
            taken(self->rig, self->next);
            CHECK((self->next[self->tag >> 7]++ & 127) == (value & 127));
            pthread_mutex_unlock(self->lock);
            self->synchronous++;
        }
        if (i % 16 == 0)
            CHECK(mmio(&cpu, 1, 0xd0000064, 4, self->tag ? 2 : 1) == PYVMM_SERVED);
    }
    free(cpu.page);
    return NULL;
}

static void threads(void)
{
    struct rig *rig = new_rig();
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    uint32_t next[2] = {0, 0};
    struct producer producers[2] = {{rig, 0, 0, &lock, next}, {rig, 128, 0, &lock, next}};
    pthread_t thread[2];
    uint32_t rounds = 0, posted;

    for (int i = 0; i < 2; i++)
        CHECK(pthread_create(&thread[i], NULL, produce, &producers[i]) == 0);
    for (int left = 1; left; rounds++) {
        pthread_mutex_lock(&lock);
        taken(rig, next);
        if (rounds % 4 == 0) {
            /* Withdrawn: what was posted is in the ring now, and nothing more gets in. */
            CHECK(pyvmm_act(&rig->ports, 1, 0, 0) == 0);
            taken(rig, next);
            posted = __atomic_load_n(&rig->ring.posted, __ATOMIC_ACQUIRE);
            sched_yield();
            CHECK(posted == __atomic_load_n(&rig->ring.posted, __ATOMIC_ACQUIRE));
            CHECK(pyvmm_act(&rig->ports, 1, 0, PYVMM_POST) == 0);
        }
        left = next[0] < POSTS || next[1] < POSTS;
        pthread_mutex_unlock(&lock);
        pyvmm_slot(&rig->registers, 0, 4);
        CHECK(__atomic_load_n(&rig->registers.slot, __ATOMIC_SEQ_CST) & 4); /* nobody else's to clear */
        pyvmm_slot(&rig->registers, 4, 3);
        CHECK(!(__atomic_load_n(&rig->registers.slot, __ATOMIC_SEQ_CST) & 4));
    }
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(thread[i], NULL) == 0);
    taken(rig, next);
    CHECK(next[0] == POSTS && next[1] == POSTS);
    CHECK(producers[0].synchronous < POSTS); /* some were posted */
    free_rig(rig);
}

int main(void)
{
    alarm(60);
    one_at_a_time();
    log_of_accesses();
    timer();
    threads();
    puts("ok");
    return 0;
}
