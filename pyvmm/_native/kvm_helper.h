/*
 * The C side of pyvmm.kvm: the system calls that Python has no safe or fast way to make. No state, no Python, no KVM
 * structures. Every function returns a result that is not negative, or minus an error number.
 */
#ifndef PYVMM_KVM_HELPER_H
#define PYVMM_KVM_HELPER_H

#include <stdint.h>

/* ioctl(2) with a number, or with a pointer, as its argument; started again when a signal interrupts it. */
int pyvmm_ioctl(int fd, unsigned long request, unsigned long value);
int pyvmm_ioctl_ptr(int fd, unsigned long request, void *argument);

/*
 * Give one real-time signal that nobody uses an empty handler, and return its number. The handler is there so that
 * the signal makes KVM_RUN return rather than end the process. Calling it again finds the same signal.
 */
int pyvmm_kick_install(void);

/*
 * One KVM_RUN. A signal makes it return -EINTR. `*runner` becomes the id of the calling thread, which from then on can
 * be kicked by `signal_number`, whatever signals it had blocked.
 */
int pyvmm_run(int vcpu_fd, int *runner, int signal_number);

/*
 * Send the kick to thread `*runner` of this process; nobody, and no error, if it is 0 or has ended. The caller has set
 * immediate_exit before: either this sees the thread that is about to enter KVM_RUN, or KVM sees the flag.
 */
int pyvmm_kick(const int *runner, int signal_number);

/*
 * One locked instruction: compare the `size` bytes at `address` (8 or 16 of them) with `expected`, store `desired`
 * there if they are equal, and put what was found into `expected`; the low half first. Returns whether they were equal;
 * -EINVAL for another size, for 16 bytes that are not aligned, and for 8 bytes that cross a cache line.
 */
int pyvmm_cmpxchg(void *address, int size, uint64_t *expected, const uint64_t *desired);

#endif
