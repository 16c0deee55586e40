#include "rings.h"

#include <stddef.h>
#include <string.h>

#define DESC_F_NEXT 1
#define DESC_F_WRITE 2
#define DESC_F_INDIRECT 4
#define NO_INTERRUPT 1
#define NO_NOTIFY 1
#define CHAIN_LIMIT (1ULL << 32)

/* Indexes into the two rings seen as 16-bit words. */
#define FLAGS 0
#define INDEX 1
#define RING 2

struct descriptor {
    uint64_t gpa;
    uint32_t length;
    uint16_t flags;
    uint16_t next;
};

_Static_assert(sizeof(struct descriptor) == 16, "a descriptor (2.7.5)");
_Static_assert(sizeof(struct pyvmm_used) == 8, "an element of the used ring (2.7.8)");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "rings are little-endian");

static uint16_t load(const uint16_t *field)
{
    return __atomic_load_n(field, __ATOMIC_ACQUIRE);
}

static void store(uint16_t *field, uint16_t value)
{
    __atomic_store_n(field, value, __ATOMIC_RELEASE);
}

/* One look at the descriptor: the empty statement keeps the compiler from taking another later. */
static struct descriptor fetch(const uint8_t *table, uint32_t at)
{
    struct descriptor copy;

    memcpy(&copy, table + (size_t)at * sizeof copy, sizeof copy);
    __asm__ volatile("" ::: "memory");
    return copy;
}

/* Where `length` bytes from `gpa` on are, which lie wholly in one region; NULL if they do not. */
static uint8_t *in_ram(const struct pyvmm_queue *queue, uint64_t gpa, uint32_t length)
{
    for (uint32_t number = 0; number < queue->region_count; number++) {
        const struct pyvmm_region *region = &queue->regions[number];

        if (gpa >= region->gpa && gpa - region->gpa < region->length)
            return length <= region->length - (gpa - region->gpa) ? region->host + (gpa - region->gpa) : NULL;
    }
    return NULL;
}

static int check_indirect(const struct pyvmm_queue *queue, const struct descriptor *entry, int inside)
{
    if (!queue->indirect)
        return PYVMM_INDIRECT_REFUSED;
    if (inside)
        return PYVMM_INDIRECT_NESTED;
    if (entry->flags & DESC_F_NEXT)
        return PYVMM_INDIRECT_NEXT;
    if (entry->length == 0 || entry->length % sizeof *entry)
        return PYVMM_INDIRECT_LENGTH;
    if (entry->length > sizeof *entry * queue->size)
        return PYVMM_INDIRECT_LONG;
    return 0;
}

/* Follow the chain that begins at `chain->head` (2.7.5, 2.7.5.3); 0, or what is wrong. Nothing is taken yet. */
static int walk(const struct pyvmm_queue *queue, struct pyvmm_chain *chain, struct iovec *iov, int room)
{
    const uint8_t *table = queue->table;
    uint32_t entries = queue->size;
    uint32_t left = queue->size;
    uint32_t at = chain->head;
    uint64_t total = 0;
    int inside = 0;

    for (;;) {
        struct descriptor entry = fetch(table, at);
        uint8_t *host;
        int kind;

        if (entry.flags & DESC_F_INDIRECT) {
            kind = check_indirect(queue, &entry, inside);
            if (kind)
                return kind;
            table = in_ram(queue, entry.gpa, entry.length);
            if (!table)
                return PYVMM_INDIRECT_NOT_RAM;
            entries = entry.length / sizeof entry;
            at = 0;
            inside = 1;
            continue;
        }
        if (left-- == 0)
            return PYVMM_CHAIN_LOOPS;
        total += entry.length;
        if (total > CHAIN_LIMIT)
            return PYVMM_CHAIN_LONG;
        if (entry.length) {
            host = in_ram(queue, entry.gpa, entry.length);
            if (!host)
                return PYVMM_BUFFER_NOT_RAM;
            if (entry.flags & DESC_F_WRITE) {
                chain->writable++;
                chain->writable_length += entry.length;
            } else if (chain->writable) {
                return PYVMM_CHAIN_ORDER;
            } else {
                chain->readable++;
                chain->readable_length += entry.length;
            }
            if (room-- == 0)
                return PYVMM_NO_ROOM;
            iov->iov_base = host;
            iov->iov_len = entry.length;
            iov++;
        }
        if (!(entry.flags & DESC_F_NEXT))
            return 0;
        if (entry.next >= entries)
            return PYVMM_NEXT_RANGE;
        at = entry.next;
    }
}

int pyvmm_pop(struct pyvmm_queue *queue, struct pyvmm_chain *chains, int limit, struct iovec *iov, int room)
{
    uint32_t mask = queue->size - 1;
    uint32_t first = 0;
    int kind = 0;
    int count;

    for (count = 0; count < limit; count++) {
        struct pyvmm_chain *chain = &chains[count];
        uint16_t waiting = (uint16_t)(load(&queue->avail[INDEX]) - queue->next_avail);

        if (waiting == 0)
            break;
        *chain = (struct pyvmm_chain){ .first = first };
        if (waiting > queue->size) {
            kind = PYVMM_AVAIL_JUMPS;
            break;
        }
        chain->head = load(&queue->avail[RING + (queue->next_avail & mask)]);
        if (chain->head >= queue->size)
            kind = PYVMM_HEAD_RANGE;
        else if (queue->in_flight[chain->head])
            kind = PYVMM_HEAD_IN_FLIGHT;
        else
            kind = walk(queue, chain, iov + first, room - (int)first);
        if (kind)
            break;
        first += (uint32_t)chain->readable + chain->writable;
        queue->in_flight[chain->head] = 1;
        queue->next_avail++;
    }
    if (count || !kind)
        return count;
    if (kind < PYVMM_KINDS)
        queue->errors[kind]++;
    return -kind;
}

void pyvmm_unpop(struct pyvmm_queue *queue, const struct pyvmm_chain *chains, int count)
{
    for (int number = 0; number < count; number++)
        queue->in_flight[chains[number].head] = 0;
    queue->next_avail = (uint16_t)(queue->next_avail - count);
}

void pyvmm_push(struct pyvmm_queue *queue, const struct pyvmm_used *elements, int count)
{
    uint32_t mask = queue->size - 1;

    for (int number = 0; number < count; number++) {
        uint16_t *element = &queue->used[RING + 4 * (queue->next_used & mask)];

        queue->in_flight[elements[number].id] = 0;
        memcpy(element, &elements[number], sizeof *elements);
        queue->next_used++;
    }
    store(&queue->used[INDEX], queue->next_used);
}

int pyvmm_wants_interrupt(struct pyvmm_queue *queue)
{
    uint16_t before = queue->notified;
    uint16_t event;

    if (queue->next_used == before)
        return 0;
    queue->notified = queue->next_used;
    /* The driver stores its wish and then looks at the index; here it is the other way round. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!queue->event_idx)
        return !(load(&queue->avail[FLAGS]) & NO_INTERRUPT);
    event = load(&queue->avail[RING + queue->size]);
    return (uint16_t)(queue->next_used - event - 1) < (uint16_t)(queue->next_used - before);
}

void pyvmm_suppress(struct pyvmm_queue *queue)
{
    /* With event indices, leaving the old one behind says so. */
    if (!queue->event_idx)
        store(&queue->used[FLAGS], NO_NOTIFY);
}

int pyvmm_listen(struct pyvmm_queue *queue)
{
    if (queue->event_idx)
        store(&queue->used[RING + 4 * queue->size], queue->next_avail);
    else
        store(&queue->used[FLAGS], 0);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return load(&queue->avail[INDEX]) != queue->next_avail;
}
