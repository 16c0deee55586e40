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

int pyvmm_run(int vcpu_fd)
{
    int result = ioctl(vcpu_fd, PYVMM_KVM_RUN, 0UL);

    return result < 0 ? -errno : result;
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

int pyvmm_kick_enter(int signal_number)
{
    sigset_t kick;
    int error;

    sigemptyset(&kick);
    sigaddset(&kick, signal_number);
    error = pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
    return error ? -error : (int)syscall(SYS_gettid);
}

int pyvmm_kick(int tid, int signal_number)
{
    return syscall(SYS_tgkill, getpid(), tid, signal_number) < 0 ? -errno : 0;
}
