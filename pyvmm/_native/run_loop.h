/*
 * The run loop in C: KVM_RUN again and again, dealing with the accesses that a device has left to it, until there is an
 * exit that Python must see. No memory of its own; what is not the plain common case is left as it is for Python.
 *
 * Any thread may change an action, a slot, a ring's `taken` or a vCPU's `hot` meanwhile.
 */
#ifndef PYVMM_RUN_LOOP_H
#define PYVMM_RUN_LOOP_H

#include <stdint.h>

#include "kvm_abi.h"
#include "run_abi.h"

/*
 * Run a vCPU until there is something for Python. Returns PYVMM_ numbers, or minus an error number as pyvmm_run does:
 * -EINTR after a kick, a signal, and while immediate_exit is set. The calling thread can be kicked, see kvm_helper.h.
 */
int pyvmm_vcpu_run(struct pyvmm_vcpu *vcpu);

/* What pyvmm_vcpu_run does with an exit, which is in the vCPU's page. Returns PYVMM_ numbers. */
int pyvmm_serve(struct pyvmm_vcpu *vcpu);

/*
 * Take the longest row of writes to one register that is at the ring's head; returns how many, 0 if it is empty. One
 * thread at a time.
 */
int pyvmm_take(struct pyvmm_ring *ring, struct pyvmm_writes *writes);

/*
 * Change the action for reads or writes at `offset` of a window; returns 0. When this returns, no vCPU is about to post
 * by the old one.
 */
int pyvmm_act(struct pyvmm_window *window, int is_write, int offset, int action);

/* Change a window's slot, atomically: clear the bits `clear`, then set the bits `set`; returns 0. */
int pyvmm_slot(struct pyvmm_window *window, uint32_t clear, uint32_t set);

/* A timerfd for `hot.timer`, closed on exec; reading it blocks until it expires. */
int pyvmm_timer(void);

/* Let the timer expire at once. */
int pyvmm_timer_expire(int timer);

/* The timer has expired: what is posted from here on sets it again. Then empty the rings. Returns 0. */
int pyvmm_disarm(struct pyvmm_hot *hot);

#endif
