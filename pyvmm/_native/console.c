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
