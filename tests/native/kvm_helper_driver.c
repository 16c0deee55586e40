/*
 * Drives pyvmm/_native/kvm_helper.c under sanitizers. argv[1] is the KVM device, or "-" for the part without KVM.
 * Prints "ok" at the end; every failed check names its line and ends the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "kvm_abi.h"
#include "kvm_helper.h"

struct sleeper {
    int signal_number;
    int vcpu;
    int runner;
    int result;
    sem_t started;
};

static void *sleeper_main(void *argument)
{
    struct sleeper *self = argument;
    sigset_t all;

    sigfillset(&all); /* a thread that blocks every signal can be kicked all the same */
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    sem_post(&self->started);
    self->result = pyvmm_run(self->vcpu, &self->runner, self->signal_number);
    return NULL;
}

/* Kick a thread that runs a vCPU until it is back. Returns what pyvmm_run returned. */
static int kick_out(int signal_number, int vcpu)
{
    struct sleeper sleeper = {.signal_number = signal_number, .vcpu = vcpu};
    pthread_t thread;

    sem_init(&sleeper.started, 0, 0);
    CHECK(pthread_create(&thread, NULL, sleeper_main, &sleeper) == 0);
    sem_wait(&sleeper.started);
    for (;;) {
        struct timespec until;

        CHECK(pyvmm_kick(&sleeper.runner, signal_number) == 0);
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 10000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        if (pthread_timedjoin_np(thread, NULL, &until) == 0)
            break;
    }
    CHECK(sleeper.runner > 0);
    CHECK(pyvmm_kick(&sleeper.runner, signal_number) == 0); /* it has ended: nobody to kick */
    sem_destroy(&sleeper.started);
    return sleeper.result;
}

static void somebody_elses(int signal_number)
{
    (void)signal_number;
}

#define TURNS 200000

/* Adds 1 to both halves of a pair, or to one word, TURNS times, by compare-and-exchange. */
struct adder {
    uint64_t *counter;
    int size;
};

static void *adder_main(void *argument)
{
    struct adder *self = argument;
    uint64_t found[2] = {0, 0}, wanted[2];
    int equal;

    for (int i = 0; i < TURNS; i++) {
        do {
            wanted[0] = found[0] + 1;
            wanted[1] = found[1] + 1;
            equal = pyvmm_cmpxchg(self->counter, self->size, found, wanted);
            CHECK(equal == 0 || equal == 1);
        } while (!equal);
        found[0] = wanted[0];
        found[1] = wanted[1];
    }
    return NULL;
}

static void compare_exchange(void)
{
    static uint64_t line[16] __attribute__((aligned(64)));
    uint8_t *bytes = (uint8_t *)line;
    uint64_t expected[2] = {1, 2}, desired[2] = {3, 4}, word;

    line[0] = 1;
    line[1] = 2;
    line[2] = 99;
    CHECK(pyvmm_cmpxchg(line, 16, expected, desired) == 1);
    CHECK(line[0] == 3 && line[1] == 4 && line[2] == 99 && expected[0] == 1 && expected[1] == 2);
    desired[0] = 5;
    CHECK(pyvmm_cmpxchg(line, 16, expected, desired) == 0); /* expected 1 and 2 */
    CHECK(line[0] == 3 && line[1] == 4 && expected[0] == 3 && expected[1] == 4);
    expected[1] = 77;
    CHECK(pyvmm_cmpxchg(line, 16, expected, desired) == 0); /* one half is not enough */
    CHECK(line[0] == 3 && expected[1] == 4);
    CHECK(pyvmm_cmpxchg(bytes + 8, 16, expected, desired) == -EINVAL);
    CHECK(pyvmm_cmpxchg(bytes, 4, expected, desired) == -EINVAL);

    expected[1] = 77; /* means nothing for 8 bytes */
    CHECK(pyvmm_cmpxchg(line, 8, expected, desired) == 1);
    CHECK(line[0] == 5 && line[1] == 4 && expected[1] == 77);
    for (int at = 0; at < 64; at++) { /* within a cache line at any address */
        memset(bytes, 0, 128);
        expected[0] = 0;
        desired[0] = 0x1122334455667788;
        CHECK(pyvmm_cmpxchg(bytes + at, 8, expected, desired) == (at <= 56 ? 1 : -EINVAL));
        memcpy(&word, bytes + at, 8);
        CHECK(word == (at <= 56 ? desired[0] : 0));
    }

    for (int size = 8; size <= 16; size += 8) {
        struct adder adder = {line, size};
        pthread_t other;

        memset(line, 0, sizeof(line));
        CHECK(pthread_create(&other, NULL, adder_main, &adder) == 0);
        adder_main(&adder);
        CHECK(pthread_join(other, NULL) == 0);
        CHECK(line[0] == 2 * TURNS && line[1] == (size == 16 ? 2 * TURNS : 0));
    }
}

static void without_kvm(void)
{
    int number, pipe_fds[2], runner = 0;
    const int nobody = 1 << 22; /* above the highest id there can be (PID_MAX_LIMIT) */
    struct sigaction action;
    sigset_t kick;

    CHECK(pyvmm_ioctl(-1, FIONREAD, 0) == -EBADF);
    CHECK(pyvmm_ioctl_ptr(-1, FIONREAD, NULL) == -EBADF);
    CHECK(pipe(pipe_fds) == 0);
    CHECK(write(pipe_fds[1], "abc", 3) == 3);
    CHECK(pyvmm_ioctl_ptr(pipe_fds[0], FIONREAD, &number) == 0 && number == 3);
    CHECK(pyvmm_ioctl_ptr(pipe_fds[0], FIONREAD, NULL) == -EFAULT);
    CHECK(read(pipe_fds[0], &number, 3) == 3);

    /* A real-time signal that somebody uses is left alone. */
    memset(&action, 0, sizeof(action));
    action.sa_handler = somebody_elses;
    CHECK(sigaction(SIGRTMAX, &action, NULL) == 0);
    number = pyvmm_kick_install();
    CHECK(number >= SIGRTMIN && number < SIGRTMAX);
    CHECK(pyvmm_kick_install() == number);
    CHECK(sigaction(SIGRTMAX, NULL, &action) == 0 && action.sa_handler == somebody_elses);

    /* Whoever runs a vCPU is known by its kernel id, and takes the signal even if it had blocked it. */
    sigemptyset(&kick);
    sigaddset(&kick, number);
    CHECK(pthread_sigmask(SIG_BLOCK, &kick, NULL) == 0);
    CHECK(pyvmm_kick(&runner, number) == 0); /* nobody yet */
    CHECK(pyvmm_run(-1, &runner, number) == -EBADF);
    CHECK(runner == getpid());
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &kick) == 0 && !sigismember(&kick, number));
    CHECK(pyvmm_kick(&runner, 1000) == -EINVAL);
    CHECK(pyvmm_kick(&runner, number) == 0);
    CHECK(pyvmm_kick(&nobody, number) == 0);
    CHECK(kick_out(number, -1) == -EBADF);

    /* When all of them are in use, that is said. */
    action.sa_handler = somebody_elses;
    for (int i = SIGRTMIN; i <= SIGRTMAX; i++)
        CHECK(sigaction(i, &action, NULL) == 0);
    CHECK(pyvmm_kick_install() == -EBUSY);
    action.sa_handler = SIG_DFL;
    for (int i = SIGRTMIN; i <= SIGRTMAX; i++)
        CHECK(sigaction(i, &action, NULL) == 0);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
}

static void with_kvm(const char *path)
{
    /* out 0xe9, al; jmp $ */
    static const uint8_t code[] = {0xe6, 0xe9, 0xeb, 0xfe};
    int kvm = open(path, O_RDWR | O_CLOEXEC);
    int number = pyvmm_kick_install();
    int vm, vcpu, size, runner = 0;
    void *memory;
    struct kvm_run *run;
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = 0, .rflags = 2};
    struct kvm_userspace_memory_region region = {.memory_size = 4096};

    CHECK(kvm >= 0);
    vm = pyvmm_ioctl(kvm, CREATE_VM, 0);
    CHECK(vm >= 0);
    memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    memcpy(memory, code, sizeof(code));
    region.userspace_addr = (uintptr_t)memory;
    CHECK(pyvmm_ioctl_ptr(vm, SET_USER_MEMORY_REGION, &region) == 0);
    vcpu = pyvmm_ioctl(vm, CREATE_VCPU, 0);
    CHECK(vcpu >= 0);
    CHECK(pyvmm_ioctl(vm, CREATE_VCPU, 0) == -EEXIST);
    size = pyvmm_ioctl(kvm, GET_VCPU_MMAP_SIZE, 0);
    CHECK(size >= (int)sizeof(struct kvm_run));
    run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    CHECK(run != MAP_FAILED);
    CHECK(pyvmm_ioctl_ptr(vcpu, GET_SREGS, &sregs) == 0);
    sregs.cs.base = sregs.cs.selector = 0;
    CHECK(pyvmm_ioctl_ptr(vcpu, SET_SREGS, &sregs) == 0);
    CHECK(pyvmm_ioctl_ptr(vcpu, SET_REGS, &regs) == 0);
    CHECK(pyvmm_run(vcpu, &runner, number) == 0);
    CHECK(run->exit_reason == 2 && run->io.port == 0xe9 && run->io.count == 1);
    run->immediate_exit = 1;
    CHECK(pyvmm_run(vcpu, &runner, number) == -EINTR);
    run->immediate_exit = 0;
    CHECK(kick_out(number, vcpu) == -EINTR); /* out of an endless loop */
    munmap(run, (size_t)size);
    close(vcpu);
    close(vm);
    close(kvm);
    munmap(memory, 4096);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    alarm(20);
    compare_exchange();
    without_kvm();
    if (strcmp(argv[1], "-") != 0)
        with_kvm(argv[1]);
    puts("ok");
    return 0;
}
