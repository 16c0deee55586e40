#include "console.h"

#include <string.h>

_Static_assert(PYVMM_CONSOLE_BATCH == sizeof ((struct pyvmm_console *)0)->used / sizeof(struct pyvmm_used), "console.h");
_Static_assert(PYVMM_CONSOLE_IOVECS == sizeof ((struct pyvmm_console *)0)->iov / sizeof(struct iovec), "console.h");

int pyvmm_console_gather(struct pyvmm_console *console, struct pyvmm_queue *queue)
{
    int taken = pyvmm_pop(queue, console->chains, PYVMM_CONSOLE_BATCH, console->iov, PYVMM_CONSOLE_IOVECS);
    int count;

    console->filled = 0;
    for (count = 0; count < taken; count++) {
        const struct pyvmm_chain *chain = &console->chains[count];
        const struct iovec *iov = console->iov + chain->first;

        if (chain->readable_length > console->size - console->filled)
            break;
        for (const struct iovec *end = iov + chain->readable; iov < end; iov++) {
            memcpy(console->buffer + console->filled, iov->iov_base, iov->iov_len);
            console->filled += (uint32_t)iov->iov_len;
        }
        console->used[count] = (struct pyvmm_used){ chain->head, 0 };
    }
    if (count < taken)
        pyvmm_unpop(queue, console->chains + count, taken - count);
    return count;
}

void pyvmm_console_give_back(struct pyvmm_console *console, struct pyvmm_queue *queue, int count)
{
    pyvmm_push(queue, console->used, count);
}

/* Of three bytes, 12 bits; the multiplier is 2^32 over the golden ratio. */
static uint32_t hash(uint32_t bytes)
{
    return bytes * 0x9e3779b1u >> 20;
}

void pyvmm_words_prepare(struct pyvmm_words *words)
{
    for (uint32_t number = 0; number < words->count; number++) {
        const uint8_t *word = words->words[number];

        words->starts[hash(word[0] | (uint32_t)word[1] << 8 | (uint32_t)word[2] << 16)] = 1;
    }
}

int pyvmm_words_found(const struct pyvmm_words *words, const uint8_t *text, size_t length)
{
    uint32_t three = 0;

    for (size_t end = 0; end < length; end++) {
        three = three >> 8 | (uint32_t)text[end] << 16;
        if (!words->starts[hash(three)] || end < 2)
            continue;
        for (uint32_t number = 0; number < words->count; number++)
            if (words->lengths[number] <= length - (end - 2) &&
                !memcmp(text + end - 2, words->words[number], words->lengths[number]))
                return 1;
    }
    return 0;
}
