/*
 * Runs a command and prints what the kernel accounted for it: one line of JSON to the descriptor FD. A process's peak memory counts what it shared with its parent before exec(), so the parent
 * must be small: this program rather than a Python interpreter.
 *
 *     launch FD COMMAND [ARGUMENT ...]
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec * 1e-6;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        errx(2, "usage: launch FD COMMAND [ARGUMENT ...]");
    struct timespec began, ended;
    clock_gettime(CLOCK_MONOTONIC, &began);
    pid_t child = fork();
    if (child < 0)
        err(125, "fork");
    if (child == 0) {
        execvp(argv[2], argv + 2);
        err(127, "%s", argv[2]);
    }
    int status;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) < 0)
        err(125, "wait4");
    clock_gettime(CLOCK_MONOTONIC, &ended);
    dprintf(atoi(argv[1]), "{\"status\": %d, \"wall\": %.9f, \"user\": %.6f, \"system\": %.6f, \"peak_kib\": %ld}\n",
            WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status),
            (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) * 1e-9,
            seconds(usage.ru_utime), seconds(usage.ru_stime), usage.ru_maxrss);
    return 0;
}
