/*
 * A libFuzzer harness of what the run loop in C does with an exit: the input is a VM's windows, then exits as KVM would
 * hand them out and as it never would. Nothing may be touched outside the pages, and nothing but its bits may change.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "run_loop.h"

#define PAGES 8192
#define WINDOWS 3

struct input {
    const uint8_t *at;
    size_t left;
};

static uint64_t take(struct input *input, size_t size)
{
    uint64_t value = 0;

    size = size < input->left ? size : input->left;
    memcpy(&value, input->at, size);
    input->at += size;
    input->left -= size;
    return value;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    struct pyvmm_hot hot = {.timer = -1, .armed = 1};
    struct pyvmm_vcpu *vcpu = calloc(1, sizeof(*vcpu));
    struct pyvmm_ring *ring = calloc(1, sizeof(*ring));
    struct pyvmm_window *windows = calloc(WINDOWS, sizeof(*windows));
    struct pyvmm_places *places = calloc(1, sizeof(*places) + WINDOWS * sizeof(places->place[0]));
    struct pyvmm_writes *writes = malloc(sizeof(*writes));
    uint8_t *page = malloc(PAGES);
    uint64_t base = 0;

    hot.flushed = take(&input, 1) & 1;
    hot.ports = hot.mmio = places;
    hot.rings[0] = ring;
    ring->posted = ring->taken = (uint32_t)take(&input, 4);
    places->count = WINDOWS;
    for (int i = 0; i < WINDOWS; i++) {
        static const uint8_t widths[] = {1, 2, 4, 8, 1, 4, 0, 3};

        for (int j = 0; j < PYVMM_OFFSETS; j++) {
            windows[i].reads[j] = (uint8_t)take(&input, 1) % 6;
            windows[i].writes[j] = (uint8_t)take(&input, 1) % 6;
        }
        windows[i].width = widths[take(&input, 1) % 8];
        windows[i].ring = i ? ring : NULL;
        base += take(&input, 1);
        places->place[i] = (struct pyvmm_place){base, take(&input, 1) % 12, &windows[i]};
        base += places->place[i].length;
    }
    vcpu->page = (struct kvm_run *)page;
    vcpu->page_size = PAGES;
    vcpu->hot = &hot;
    memset(page, 0x5a, PAGES);
    while (input.left) {
        uint32_t posted = ring->posted;
        int result;

        if (take(&input, 1) & 1) {
            vcpu->page->exit_reason = KVM_EXIT_IO;
            vcpu->page->io.direction = (uint8_t)take(&input, 1) & 1;
            vcpu->page->io.size = (uint8_t)take(&input, 1) % 9;
            vcpu->page->io.port = (uint16_t)take(&input, 2) % 1024;
            vcpu->page->io.count = (uint32_t)take(&input, 1) & 3 ? 1 : (uint32_t)take(&input, 4);
            vcpu->page->io.data_offset = take(&input, 1) & 3 ? 4096 : take(&input, 8);
        } else {
            vcpu->page->exit_reason = KVM_EXIT_MMIO;
            vcpu->page->mmio.phys_addr = take(&input, 1) & 7 ? take(&input, 2) % 1024 : take(&input, 8);
            vcpu->page->mmio.len = (uint32_t)(take(&input, 1) & 15);
            vcpu->page->mmio.is_write = (uint8_t)take(&input, 1) & 1;
        }
        vcpu->tracing = (uint8_t)take(&input, 1) & 1;
        result = pyvmm_serve(vcpu);
        if (result != PYVMM_SERVED && (result & ~(PYVMM_KIND | PYVMM_POSTED | PYVMM_WAKE) || ring->posted != posted))
            abort();
        if (ring->posted - ring->taken > PYVMM_RING || ring->busy)
            abort();
        if (take(&input, 1) % 4 == 0)
            while (pyvmm_take(ring, writes) > 0)
                if (writes->count > PYVMM_RING || writes->size > 4)
                    abort();
    }
    free(page);
    free(writes);
    free(places);
    free(windows);
    free(ring);
    free(vcpu);
    return 0;
}
