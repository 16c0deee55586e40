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

int pyvmm_serve(struct pyvmm_vcpu *vcpu)
{
    struct kvm_run *page = vcpu->page;
    struct pyvmm_hot *hot = __atomic_load_n(&vcpu->hot, __ATOMIC_ACQUIRE);
    uint64_t address;
    uint32_t count = 1;
    unsigned size;
    uint8_t *data;
    int is_write, kind, done;

    if (page->exit_reason == KVM_EXIT_IO) {
        struct kvm_run_io io = page->io;

        address = io.port;
        size = io.size;
        count = io.count;
        is_write = io.direction == KVM_EXIT_IO_OUT;
        kind = is_write ? PYVMM_PORT_WRITE : PYVMM_PORT_READ;
        if (size == 0 || size > 4 || count == 0 || io.data_offset > vcpu->page_size ||
            (uint64_t)size * count > vcpu->page_size - io.data_offset)
            return for_python(vcpu, hot, PYVMM_OTHER);
        data = (uint8_t *)page + io.data_offset;
    } else if (page->exit_reason == KVM_EXIT_MMIO) {
        address = page->mmio.phys_addr;
        size = page->mmio.len;
        is_write = page->mmio.is_write;
        kind = is_write ? PYVMM_MMIO_WRITE : PYVMM_MMIO_READ;
        if (size == 0 || size > sizeof(page->mmio.data))
            return for_python(vcpu, hot, PYVMM_OTHER);
        data = page->mmio.data;
    } else {
        return for_python(vcpu, hot, PYVMM_OTHER);
    }
    done = PYVMM_OTHER;
    /* A string that the log has no room for is not traced whole: then Python sees it. */
    if (hot && (!vcpu->tracing || count <= sizeof(vcpu->value) / size))
        done = act(hot, kind <= PYVMM_PORT_READ ? __atomic_load_n(&hot->ports, __ATOMIC_ACQUIRE)
                                                : __atomic_load_n(&hot->mmio, __ATOMIC_ACQUIRE),
                   address, size, is_write, count, data);
    if (done == PYVMM_SERVED) {
        if (kind <= PYVMM_PORT_READ)
            vcpu->port_accesses++;
        else
            vcpu->mmio_accesses++;
        log_access(vcpu, kind, address, size, count, data);
        return PYVMM_SERVED;
    }
    if (count != 1)
        return for_python(vcpu, hot, PYVMM_OTHER) | done;
    vcpu->address = address;
    vcpu->size = size;
    vcpu->data_at = (uint32_t)(data - (uint8_t *)page);
    vcpu->value = 0;
    memcpy(&vcpu->value, data, size);
    return for_python(vcpu, hot, kind) | done;
}

int pyvmm_vcpu_run(struct pyvmm_vcpu *vcpu)
{
    int result = pyvmm_run(vcpu->fd, &vcpu->runner, vcpu->signal_number);

    for (;;) {
        if (result < 0) {
            if (result == -EFAULT) /* which may be an exit, KVM_EXIT_MEMORY_FAULT */
                log_entry(vcpu)->seen = 1;
            return result;
        }
        result = pyvmm_serve(vcpu);
        if (result != PYVMM_SERVED)
            return result;
        if (vcpu->tracing && vcpu->logged - __atomic_load_n(&vcpu->told, __ATOMIC_RELAXED) >= PYVMM_LOG - 1)
            return PYVMM_NO_EXIT;
        /* The thread is the one that pyvmm_run has written down. */
        result = ioctl(vcpu->fd, PYVMM_KVM_RUN, 0UL);
        result = result < 0 ? -errno : result;
    }
}
