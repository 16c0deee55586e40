#define _GNU_SOURCE
#include "run_loop.h"

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <time.h>

#include "kvm_helper.h"

/* How long a posted write may wait: what the timer and the thread behind it add stays well below 10 ms in all. */
#define FLUSH_NS 5000000

/* --- Rings ------------------------------------------------------------------------------------------------------- */

static int set_timer(int timer, long ns)
{
    struct itimerspec when = {.it_value = {.tv_nsec = ns}};

    return timerfd_settime(timer, 0, &when, NULL) < 0 ? -errno : 0;
}

int pyvmm_timer(void)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);

    return fd < 0 ? -errno : fd;
}

int pyvmm_timer_expire(int timer)
{
    return set_timer(timer, 1);
}

/*
 * Append `count` elements of `size` bytes to the window's ring. Returns whether it has: nobody waits here, neither for
 * another vCPU nor for room.
 */
static int post(struct pyvmm_hot *hot, struct pyvmm_window *window, unsigned offset, unsigned size, uint32_t count,
                const uint8_t *data)
{
    struct pyvmm_ring *ring = window->ring;
    uint32_t posted;
    int room;

    if (__atomic_exchange_n(&ring->busy, 1, __ATOMIC_SEQ_CST))
        return 0;
    posted = ring->posted;
    room = count <= PYVMM_RING - (posted - __atomic_load_n(&ring->taken, __ATOMIC_ACQUIRE));
    /* Once more, now that pyvmm_act would wait: what the device has withdrawn is not posted. */
    room = room && __atomic_load_n(&window->writes[offset], __ATOMIC_SEQ_CST) == PYVMM_POST;
    if (room) {
        for (uint32_t i = 0; i < count; i++) {
            struct pyvmm_entry *entry = &ring->entries[(posted + i) % PYVMM_RING];

            entry->value = 0;
            memcpy(&entry->value, data + (size_t)i * size, size);
            entry->offset = (uint16_t)(window->offset + offset);
            entry->size = (uint8_t)size;
            entry->device = window->device;
        }
        __atomic_store_n(&ring->posted, posted + count, __ATOMIC_RELEASE);
    }
    /* A full fence: what is posted is seen before `armed` is read. */
    __atomic_exchange_n(&ring->busy, 0, __ATOMIC_SEQ_CST);
    /* Whoever waits for the timer first clears `armed`, then takes: so it takes this, or the timer is set again. */
    if (room && !__atomic_load_n(&hot->armed, __ATOMIC_SEQ_CST) &&
        !__atomic_exchange_n(&hot->armed, 1, __ATOMIC_SEQ_CST) && set_timer(hot->timer, FLUSH_NS) < 0)
        __atomic_store_n(&hot->flushed, 0, __ATOMIC_SEQ_CST); /* a sandbox may forbid it */
    return room;
}

int pyvmm_take(struct pyvmm_ring *ring, struct pyvmm_writes *writes)
{
    uint32_t taken = ring->taken;
    uint32_t length = __atomic_load_n(&ring->posted, __ATOMIC_ACQUIRE) - taken;
    const struct pyvmm_entry *first = &ring->entries[taken % PYVMM_RING];
    uint32_t count;

    if (length == 0 || length > PYVMM_RING)
        return 0;
    for (count = 0; count < length; count++) {
        const struct pyvmm_entry *entry = &ring->entries[(taken + count) % PYVMM_RING];

        if (entry->offset != first->offset || entry->size != first->size || entry->device != first->device ||
            entry->size > sizeof(entry->value))
            break;
        memcpy(writes->data + (size_t)count * entry->size, &entry->value, entry->size);
    }
    writes->count = count;
    writes->offset = first->offset;
    writes->size = first->size;
    writes->device = first->device;
    __atomic_store_n(&ring->taken, taken + count, __ATOMIC_RELEASE);
    return (int)count;
}

int pyvmm_disarm(struct pyvmm_hot *hot)
{
    __atomic_store_n(&hot->armed, 0, __ATOMIC_SEQ_CST);
    return 0;
}

int pyvmm_act(struct pyvmm_window *window, int is_write, int offset, int action)
{
    if (offset < 0 || offset >= PYVMM_OFFSETS)
        return -EINVAL;
    __atomic_store_n(&(is_write ? window->writes : window->reads)[offset], (uint8_t)action, __ATOMIC_SEQ_CST);
    /* Not for long: whoever is busy writes into the ring, and does nothing else. */
    while (is_write && action != PYVMM_POST && window->ring && __atomic_load_n(&window->ring->busy, __ATOMIC_SEQ_CST))
        sched_yield();
    return 0;
}

int pyvmm_slot(struct pyvmm_window *window, uint32_t clear, uint32_t set)
{
    uint32_t old = __atomic_load_n(&window->slot, __ATOMIC_RELAXED);

    while (!__atomic_compare_exchange_n(&window->slot, &old, (old & ~clear) | set, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED))
        ;
    return 0;
}

/* --- Accesses ---------------------------------------------------------------------------------------------------- */

/* The place that holds all `size` bytes at `address`, or NULL. */
static const struct pyvmm_place *find(const struct pyvmm_places *places, uint64_t address, unsigned size)
{
    uint32_t low = 0, high = places ? places->count : 0;

    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        const struct pyvmm_place *place = &places->place[middle];

        if (address < place->base)
            high = middle;
        else if (address - place->base >= place->length)
            low = middle + 1;
        else
            return place->length - (address - place->base) >= size ? place : NULL;
    }
    return NULL;
}

/*
 * Do what the register's action says to `count` elements of `size` bytes at `data`. Returns PYVMM_SERVED, or
 * PYVMM_OTHER, perhaps with PYVMM_WAKE, where it has done nothing.
 */
static int act(struct pyvmm_hot *hot, const struct pyvmm_places *places, uint64_t address, unsigned size, int is_write,
               uint32_t count, uint8_t *data)
{
    const struct pyvmm_place *place = find(places, address, size);
    struct pyvmm_window *window;
    unsigned offset;
    uint32_t value = 0;

    if (!place || size != place->window->width || size > sizeof(value))
        return PYVMM_OTHER;
    window = place->window;
    offset = (unsigned)(address - place->base);
    if (offset >= PYVMM_OFFSETS || offset % size)
        return PYVMM_OTHER;
    switch (__atomic_load_n(&(is_write ? window->writes : window->reads)[offset], __ATOMIC_SEQ_CST)) {
    case PYVMM_POST:
        if (!is_write || !window->ring)
            return PYVMM_OTHER;
        if (!__atomic_load_n(&hot->flushed, __ATOMIC_ACQUIRE))
            return PYVMM_WAKE;
        return post(hot, window, offset, size, count, data) ? PYVMM_SERVED : PYVMM_OTHER;
    case PYVMM_SHADOW:
        if (is_write || count != 1)
            return PYVMM_OTHER;
        value = __atomic_load_n(&window->slot, __ATOMIC_SEQ_CST);
        memcpy(data, &value, size);
        return PYVMM_SERVED;
    case PYVMM_CLEAR:
        if (!is_write || count != 1)
            return PYVMM_OTHER;
        memcpy(&value, data, size);
        __atomic_fetch_and(&window->slot, ~value, __ATOMIC_SEQ_CST);
        return PYVMM_SERVED;
    case PYVMM_IGNORE:
        if (!is_write)
            return PYVMM_OTHER;
        __atomic_fetch_add(&window->ignored, count, __ATOMIC_RELAXED);
        return PYVMM_SERVED;
    default:
        return PYVMM_OTHER;
    }
}

static struct pyvmm_access *log_entry(struct pyvmm_vcpu *vcpu)
{
    return &vcpu->log[vcpu->logged++ % PYVMM_LOG];
}

static void log_access(struct pyvmm_vcpu *vcpu, int kind, uint64_t address, unsigned size, uint32_t count,
                       const uint8_t *data)
{
    struct pyvmm_access *access = log_entry(vcpu);
    uint64_t bytes = (uint64_t)size * count;

    access->address = address;
    access->value = 0;
    memcpy(&access->value, data, bytes < sizeof(access->value) ? (size_t)bytes : sizeof(access->value));
    access->count = count;
    access->size = (uint8_t)size;
    access->kind = (uint8_t)kind;
    access->seen = 0;
    access->tsc = access->rip = 0;
    if (vcpu->tracing) {
        access->tsc = __builtin_ia32_rdtsc();
        if (vcpu->sync_regs)
            access->rip = vcpu->page->s.regs.regs.rip;
    }
}

/* Log that Python sees an exit, and say which and what else it should know. */
static int for_python(struct pyvmm_vcpu *vcpu, const struct pyvmm_hot *hot, int kind)
{
    log_entry(vcpu)->seen = 1;
    for (int i = 0; hot && i < PYVMM_RINGS && hot->rings[i]; i++)
        if (__atomic_load_n(&hot->rings[i]->posted, __ATOMIC_ACQUIRE) !=
            __atomic_load_n(&hot->rings[i]->taken, __ATOMIC_ACQUIRE))
            return kind | PYVMM_POSTED;
    return kind;
}

/* The access that is in the page. */
struct found {
    int kind; /* PYVMM_OTHER: there is none, or nothing that makes sense */
    unsigned size;
    uint32_t count;
    uint64_t address;
    uint8_t *data;
};

static inline struct found look(const struct pyvmm_vcpu *vcpu)
{
    struct kvm_run *page = vcpu->page;
    struct found found = {.kind = PYVMM_OTHER, .count = 1};

    if (page->exit_reason == KVM_EXIT_IO) {
        struct kvm_run_io io = page->io;

        if (io.size == 0 || io.size > 4 || io.count == 0 || io.data_offset > vcpu->page_size ||
            (uint64_t)io.size * io.count > vcpu->page_size - io.data_offset)
            return found;
        found.kind = io.direction == KVM_EXIT_IO_OUT ? PYVMM_PORT_WRITE : PYVMM_PORT_READ;
        found.address = io.port;
        found.size = io.size;
        found.count = io.count;
        found.data = (uint8_t *)page + io.data_offset;
    } else if (page->exit_reason == KVM_EXIT_MMIO) {
        if (page->mmio.len == 0 || page->mmio.len > sizeof(page->mmio.data))
            return found;
        found.kind = page->mmio.is_write ? PYVMM_MMIO_WRITE : PYVMM_MMIO_READ;
        found.address = page->mmio.phys_addr;
        found.size = page->mmio.len;
        found.data = page->mmio.data;
    }
    return found;
}

int pyvmm_serve(struct pyvmm_vcpu *vcpu)
{
    struct pyvmm_hot *hot = __atomic_load_n(&vcpu->hot, __ATOMIC_ACQUIRE);
    struct found found = look(vcpu);
    int kind = found.kind, done = PYVMM_OTHER;

    if (kind == PYVMM_OTHER)
        return for_python(vcpu, hot, PYVMM_OTHER);
    /* A string that the log has no room for is not told of whole: then Python sees it. */
    if (hot && (!vcpu->tracing || found.count <= sizeof(vcpu->value) / found.size))
        done = act(hot, kind <= PYVMM_PORT_READ ? __atomic_load_n(&hot->ports, __ATOMIC_ACQUIRE)
                                                : __atomic_load_n(&hot->mmio, __ATOMIC_ACQUIRE),
                   found.address, found.size, kind == PYVMM_PORT_WRITE || kind == PYVMM_MMIO_WRITE, found.count,
                   found.data);
    if (done == PYVMM_SERVED) {
        if (kind <= PYVMM_PORT_READ)
            vcpu->port_accesses++;
        else
            vcpu->mmio_accesses++;
        log_access(vcpu, kind, found.address, found.size, found.count, found.data);
        return PYVMM_SERVED;
    }
    if (found.count != 1)
        return for_python(vcpu, hot, PYVMM_OTHER) | done;
    vcpu->address = found.address;
    vcpu->size = found.size;
    vcpu->data_at = (uint32_t)(found.data - (uint8_t *)vcpu->page);
    vcpu->value = 0;
    memcpy(&vcpu->value, found.data, found.size);
    return for_python(vcpu, hot, kind) | done;
}

/* --- Tracing ------------------------------------------------------------------------------------------------------ */

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Data of an access that the record has no room for stands in whole records behind it. */
static void keep_data(struct pyvmm_record *record, const uint8_t *data)
{
    size_t bytes = (size_t)record->size * record->count;

    memcpy(bytes > sizeof(record->value) ? (void *)(record + 1) : (void *)&record->value, data, bytes);
}

/* The exit that was recorded last has been handled, by `flags`: an answer is in the page until KVM_RUN takes it. */
static void trace_handled(struct pyvmm_vcpu *vcpu, uint8_t flags)
{
    struct pyvmm_record *record = vcpu->open;

    if (!record)
        return;
    vcpu->open = NULL;
    if ((record->flags & (PYVMM_TRACE_ACCESS | PYVMM_TRACE_WRITE)) == PYVMM_TRACE_ACCESS)
        keep_data(record, vcpu->open_data);
    record->handle = now() - record->t;
    flags = (uint8_t)(flags | (record->flags & ~PYVMM_TRACE_OPEN));
    __atomic_store_n(&record->flags, flags, __ATOMIC_RELEASE);
}

/* KVM_RUN is about to be called. Returns whether it may: not before there is room for what comes. */
static int trace_enter(struct pyvmm_vcpu *vcpu)
{
    trace_handled(vcpu, 0);
    if (vcpu->trace_room && vcpu->traced + PYVMM_TRACE_ROOM > vcpu->trace_room)
        return 0;
    vcpu->entered = now();
    return 1;
}

/* KVM_RUN has come back with `result`. A killed process leaves what it has recorded: the kind is stored last. */
static void trace_exit(struct pyvmm_vcpu *vcpu, int result)
{
    uint64_t t = now();
    struct pyvmm_record *record;
    struct found found = {.kind = PYVMM_OTHER};
    uint64_t bytes;

    if (vcpu->traced + PYVMM_TRACE_ROOM > vcpu->trace_room) {
        vcpu->trace->lost++;
        return;
    }
    record = &vcpu->trace->records[vcpu->traced++];
    record->reason = KVM_EXIT_INTR;
    if (result == 0 || result == -EFAULT)
        record->reason = vcpu->page->exit_reason > UINT8_MAX ? UINT8_MAX : (uint8_t)vcpu->page->exit_reason;
    record->flags = PYVMM_TRACE_OPEN;
    record->t = t;
    record->run = t - vcpu->entered;
    record->rip = vcpu->sync_regs ? vcpu->page->s.regs.regs.rip : 0;
    record->tsc = __builtin_ia32_rdtsc();
    if (result == 0)
        found = look(vcpu);
    bytes = (uint64_t)found.size * found.count;
    if (found.kind != PYVMM_OTHER && bytes <= (PYVMM_TRACE_ROOM - 1) * sizeof(*record)) {
        record->flags |= PYVMM_TRACE_ACCESS;
        if (found.kind > PYVMM_PORT_READ)
            record->flags |= PYVMM_TRACE_MMIO;
        record->address = found.address;
        record->size = (uint8_t)found.size;
        record->count = found.count;
        if (bytes > sizeof(record->value))
            vcpu->traced += (uint32_t)((bytes + sizeof(*record) - 1) / sizeof(*record));
        vcpu->open_data = found.data;
        if (found.kind == PYVMM_PORT_WRITE || found.kind == PYVMM_MMIO_WRITE) {
            record->flags |= PYVMM_TRACE_WRITE;
            keep_data(record, found.data);
        }
    }
    vcpu->open = record;
    __atomic_store_n(&record->kind, PYVMM_TRACE_EXIT, __ATOMIC_RELEASE);
}

int pyvmm_vcpu_run(struct pyvmm_vcpu *vcpu)
{
    int result;

    if (vcpu->trace && !trace_enter(vcpu))
        return PYVMM_NO_EXIT;
    result = pyvmm_run(vcpu->fd, &vcpu->runner, vcpu->signal_number);
    for (;;) {
        if (vcpu->trace)
            trace_exit(vcpu, result);
        if (result < 0) {
            if (result == -EFAULT) /* which may be an exit, KVM_EXIT_MEMORY_FAULT */
                log_entry(vcpu)->seen = 1;
            return result;
        }
        result = pyvmm_serve(vcpu);
        if (result != PYVMM_SERVED)
            return result;
        if (vcpu->trace) {
            trace_handled(vcpu, PYVMM_TRACE_BY_C);
            if (!trace_enter(vcpu))
                return PYVMM_NO_EXIT;
        }
        if (vcpu->tracing && vcpu->logged - __atomic_load_n(&vcpu->told, __ATOMIC_RELAXED) >= PYVMM_LOG - 1)
            return PYVMM_NO_EXIT;
        /* The thread is the one that pyvmm_run has written down. */
        result = ioctl(vcpu->fd, PYVMM_KVM_RUN, 0UL);
        result = result < 0 ? -errno : result;
    }
}
