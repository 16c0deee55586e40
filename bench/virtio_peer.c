/*
 * What the virtio-bench guest's network device is connected to: takes the frames that it sends and, when
 * one of them says so, sends frames back. It does nothing else, so that it is not what is measured.
 *
 *     virtio_peer listen PATH     wait for one VMM on a unix stream socket, end when it goes
 *     virtio_peer tsc             print the speed of the time-stamp counter in kHz
 *
 * On the socket each frame follows its length, four bytes, most significant first.
 */
#include <arpa/inet.h>
#include <err.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

enum { BUFFER = 1 << 18, LARGEST = 1514, ETHERTYPE = 0x88b5, BATCH = 64 };

/* As in guest-images/virtio-bench: how many frames of which size are to come. */
struct order { uint8_t to[6], from[6]; uint16_t ethertype; uint32_t count, size; } __attribute__((packed));

static uint8_t received[BUFFER], frames[BATCH * (4 + LARGEST)];
static uint32_t pending, size;      /* frames still to be sent, and their size */
static uint8_t guest[6];

/* A batch of frames in `frames`; how many bytes. */
static size_t next_batch(void)
{
    uint32_t count = pending < BATCH ? pending : BATCH;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *at = frames + i * (4 + size);
        uint32_t length = htonl(size);
        memcpy(at, &length, 4);
        memset(at + 4, 0, size);
        memcpy(at + 4, guest, 6);
        memcpy(at + 10, "\x52\x01\x01\x01\x01\x01", 6);
        at[16] = ETHERTYPE >> 8;
        at[17] = ETHERTYPE & 0xff;
    }
    pending -= count;
    return count * (4 + size);
}

static void take(const uint8_t *frame, size_t length)
{
    const struct order *order = (const void *)frame;
    if (length < sizeof *order || ntohs(order->ethertype) != ETHERTYPE || !order->count)
        return;
    if (order->size < 60 || order->size > LARGEST)
        errx(1, "frames of %u bytes are ordered", order->size);
    memcpy(guest, order->from, 6);
    pending += order->count;
    size = order->size;
}

static void serve(int vmm)
{
    size_t held = 0, sent = 0, filled = 0;

    for (;;) {
        if (sent == filled && pending)
            filled = next_batch(), sent = 0;
        struct pollfd events = { vmm, (short)(POLLIN | (sent < filled ? POLLOUT : 0)), 0 };
        if (poll(&events, 1, -1) < 0)
            err(1, "poll");
        if (events.revents & POLLOUT) {
            ssize_t done = send(vmm, frames + sent, filled - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            sent += done > 0 ? (size_t)done : 0;
        }
        if (!(events.revents & (POLLIN | POLLHUP | POLLERR)))
            continue;
        ssize_t got = read(vmm, received + held, BUFFER - held);
        if (got <= 0)
            return;
        held += (size_t)got;
        size_t at = 0;
        while (held - at >= 4) {
            uint32_t length;
            memcpy(&length, received + at, 4);
            length = ntohl(length);
            if (length > BUFFER - 4)
                errx(1, "a frame of %u bytes", length);
            if (held - at < 4 + length)
                break;
            take(received + at + 4, length);
            at += 4 + length;
        }
        memmove(received, received + at, held - at);
        held -= at;
    }
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* The counter and the clock at one moment: of many tries the one that took least. */
static double moment(uint64_t *counter)
{
    double best = 1, time = 0;
    for (int i = 0; i < 100; i++) {
        double before = seconds();
        uint64_t now = __rdtsc();
        double after = seconds();
        if (after - before < best) {
            best = after - before;
            time = (before + after) / 2;
            *counter = now;
        }
    }
    return time;
}

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "tsc")) {
        uint64_t first, last;
        double began = moment(&first);
        usleep(100000);
        double ended = moment(&last);
        printf("%.0f\n", (double)(last - first) / (ended - began) / 1e3);
        return 0;
    }
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    if (argc != 3 || strcmp(argv[1], "listen") || strlen(argv[2]) >= sizeof address.sun_path)
        errx(2, "usage: virtio_peer listen PATH | tsc");
    strcpy(address.sun_path, argv[2]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (void *)&address, sizeof address) || listen(listener, 1))
        err(1, "%s", argv[2]);
    int vmm = accept(listener, NULL, NULL);
    if (vmm < 0)
        err(1, "accept");
    serve(vmm);
    return 0;
}
