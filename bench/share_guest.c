/* The first and only program of the guest that `python -m bench share` boots: operations on a 9p share, timed.
 *
 * The kernel's command line sets share_count, share_entries and share_mib, which come as environment variables.
 * For each measurement it prints `begin NAME`, and then `end NAME OPERATIONS NANOSECONDS`, or `FAILED: ` and why. In
 * the share are `data`, a file of share_mib MiB, and `entries`, a directory of share_entries files. It starts no
 * other process, so that nothing but the operations counts. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, SMALL = 64 << 10, LARGE = 1 << 20, BYTE = 0x5a };
static const char options[] = "trans=virtio,version=9p2000.L,msize=262144,cache=none";
static char buffer[LARGE] __attribute__((aligned(4096)));
static struct timespec began;

static void finish(void)
{
    fflush(stdout);
    reboot(RB_POWER_OFF);
    for (;;)
        pause();
}

static void fail(const char *what)
{
    printf("FAILED: %s: %s\n", what, strerror(errno));
    finish();
}

static void must(int is_well, const char *what)
{
    if (!is_well)
        fail(what);
}

static long number(const char *name)
{
    const char *text = getenv(name);
    long value = text ? atol(text) : 0;
    errno = EINVAL;
    must(value > 0, name);
    return value;
}

static void begin(const char *name)
{
    printf("begin %s\n", name);
    clock_gettime(CLOCK_MONOTONIC, &began);
}

static void end(const char *name, long operations)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long spent = (now.tv_sec - began.tv_sec) * 1000000000LL + now.tv_nsec - began.tv_nsec;
    printf("end %s %ld %lld\n", name, operations, spent);
}

static int opened(const char *name, int flags)
{
    int fd = open(name, flags, 0644);
    must(fd >= 0, name);
    return fd;
}

static void do_create(const char *name, const char *other)
{
    (void)other;
    close(opened(name, O_CREAT | O_EXCL | O_WRONLY));
}

static void do_stat(const char *name, const char *other)
{
    struct stat found;
    (void)other;
    must(!stat(name, &found), name);
}

static void do_open(const char *name, const char *other)
{
    (void)other;
    close(opened(name, O_RDONLY));
}

static void do_rename(const char *name, const char *other)
{
    must(!rename(name, other), name);
}

static void do_unlink(const char *name, const char *other)
{
    (void)name;
    must(!unlink(other), other);
}

/* One operation on each of `count` files. */
static void metadata(const char *what, void (*operation)(const char *, const char *), long count)
{
    char name[32], other[32];
    begin(what);
    for (long at = 0; at < count; at++) {
        snprintf(name, sizeof name, "file%ld", at);
        snprintf(other, sizeof other, "other%ld", at);
        operation(name, other);
    }
    end(what, count);
}

static void list(long passes, long entries)
{
    begin("list");
    for (long pass = 0; pass < passes; pass++) {
        long found = 0;
        DIR *folder = opendir("entries");
        must(folder != NULL, "entries");
        while (readdir(folder))
            found++;
        closedir(folder);
        errno = ERANGE;
        must(found == entries + 2, "entries are missing, or there are too many"); /* with . and .. */
    }
    end("list", passes * entries);
}

static void stream(const char *what, int flags, size_t size, long bytes)
{
    int fd = opened("data", flags);
    memset(buffer, flags == O_RDONLY ? 0 : BYTE, size);
    begin(what);
    for (long at = 0; at < bytes; at += size) {
        ssize_t done = flags == O_RDONLY ? read(fd, buffer, size) : write(fd, buffer, size);
        must(done == (ssize_t)size, what);
        must(buffer[0] == BYTE && buffer[size - 1] == BYTE, "other bytes than were written");
    }
    end(what, bytes / size);
    close(fd);
}

static void random_reads(long count, long bytes)
{
    int fd = opened("data", O_RDONLY);
    uint32_t state = 1;
    begin("randread:4096");
    for (long at = 0; at < count; at++) {
        state = state * 1664525 + 1013904223; /* Numerical Recipes' generator: the same places in every guest */
        must(pread(fd, buffer, BLOCK, (off_t)((state >> 8) % (bytes / BLOCK)) * BLOCK) == BLOCK, "randread");
    }
    end("randread:4096", count);
    close(fd);
}

static void synced_writes(long count, long bytes)
{
    int fd = opened("data", O_WRONLY);
    must(!fsync(fd), "fsync"); /* what has been written before is none of the measurement's */
    begin("fsync:4096");
    for (long at = 0; at < count; at++)
        must(pwrite(fd, buffer, BLOCK, at * BLOCK % bytes) == BLOCK && !fsync(fd), "fsync");
    end("fsync:4096", count);
    close(fd);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    long count = number("share_count"), entries = number("share_entries"), bytes = number("share_mib") << 20;
    must(!mount("host", "/mnt", "9p", 0, options), "mount");
    must(!mkdir("/mnt/work", 0755) && !chdir("/mnt/work"), "work");
    metadata("create", do_create, count);
    metadata("stat", do_stat, count);
    metadata("open", do_open, count);
    metadata("rename", do_rename, count);
    metadata("unlink", do_unlink, count);
    must(!chdir("/mnt") && !rmdir("work"), "work");
    list((count + 19) / 20, entries);
    stream("write:65536", O_WRONLY, SMALL, bytes);
    stream("write:1048576", O_WRONLY, LARGE, bytes);
    stream("read:65536", O_RDONLY, SMALL, bytes);
    stream("read:1048576", O_RDONLY, LARGE, bytes);
    random_reads(count, bytes);
    synced_writes(count, bytes);
    finish();
}
