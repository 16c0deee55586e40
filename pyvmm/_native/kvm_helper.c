#define _GNU_SOURCE
#include "kvm_helper.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int pyvmm_ioctl(int fd, unsigned long request, unsigned long value)
{
    int result;

    do
        result = ioctl(fd, request, value);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}

int pyvmm_ioctl_ptr(int fd, unsigned long request, void *argument)
{
    return pyvmm_ioctl(fd, request, (unsigned long)argument);
}

/* What it does is done by being called: a system call that was waiting returns EINTR. */
static void kicked(int signal_number)
{
    (void)signal_number;
}

int pyvmm_kick_install(void)
{
    /* From above, because programs and libraries that want a real-time signal take them from below. */
    for (int number = SIGRTMAX; number >= SIGRTMIN; number--) {
        struct sigaction action;

        if (sigaction(number, NULL, &action) < 0)
            return -errno;
        if (action.sa_handler == kicked)
            return number;
        if (action.sa_handler != SIG_DFL)
            continue;
        action.sa_handler = kicked;
        action.sa_flags = 0; /* no SA_RESTART: KVM_RUN must come back */
        sigemptyset(&action.sa_mask);
        return sigaction(number, &action, NULL) < 0 ? -errno : number;
    }
    return -EBUSY;
}

int pyvmm_run(int vcpu_fd, int *runner, int signal_number)
{
    /* Asked anew each time: a thread's POSIX id may be that of one that has ended, its kernel id is its own. */
    int self = (int)syscall(SYS_gettid);
    int result;

    if (__atomic_load_n(runner, __ATOMIC_RELAXED) != self) {
        sigset_t kick;

        sigemptyset(&kick);
        sigaddset(&kick, signal_number);
        result = pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
        if (result)
            return -result;
        /* Before KVM reads immediate_exit; the other half is in pyvmm_kick. */
        __atomic_store_n(runner, self, __ATOMIC_SEQ_CST);
    }
    result = ioctl(vcpu_fd, PYVMM_KVM_RUN, 0UL);
    return result < 0 ? -errno : result;
}

int pyvmm_kick(const int *runner, int signal_number)
{
    int tid;

    /* After the caller's store of immediate_exit; the other half is in pyvmm_run. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    tid = __atomic_load_n(runner, __ATOMIC_RELAXED);
    if (tid == 0 || syscall(SYS_tgkill, getpid(), tid, signal_number) == 0 || errno == ESRCH)
        return 0;
    return -errno;
}

#define CACHE_LINE 64

int pyvmm_cmpxchg(void *address, int size, uint64_t *expected, const uint64_t *desired)
{
    uintptr_t at = (uintptr_t)address;
    uint8_t equal;

    /*
     * The instructions themselves: C has no 16-byte atomic without libatomic, which may use a lock that no guest knows
     * of, and calls an 8-byte one at an odd address undefined, which to the processor it is not.
     */
    if (size == 16 && at % 16 == 0)
        __asm__ volatile("lock cmpxchg16b (%[at])"
                         : "=@ccz"(equal), "+a"(expected[0]), "+d"(expected[1])
                         : [at] "r"(address), "b"(desired[0]), "c"(desired[1])
                         : "memory");
    else if (size == 8 && at % CACHE_LINE <= CACHE_LINE - 8)
        __asm__ volatile("lock cmpxchgq %[desired], (%[at])"
                         : "=@ccz"(equal), "+a"(expected[0])
                         : [at] "r"(address), [desired] "r"(desired[0])
                         : "memory");
    else
        return -EINVAL;
    return equal;
}
