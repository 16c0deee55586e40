"""Lesson 10: clocks. Complete the three functions; `pyvmm lesson check 10` tells what is still wrong."""

PIT_HZ = 1193182


def kvmclock(record, tsc):
    """Nanoseconds by kvmclock at the TSC value `tsc`; None if `record` is just being changed.

    `record` are the 32 bytes that KVM keeps in the guest's memory, little-endian (Linux,
    Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW):
        version, u32                  odd while it is changed
        padding, u32
        tsc_timestamp, u64            at this TSC value ...
        system_time, u64              ... it was this many nanoseconds
        tsc_to_system_mul, u32        nanoseconds a cycle, in units of 2 to the power -32 ...
        tsc_shift, signed 8 bits      ... after cycles were shifted left by so many bits (right, if negative)
        flags, u8, and 2 bytes of padding
    """
    ...


def counter(elapsed, reload):
    """What a guest reads from the PIT's channel in mode 2, `elapsed` nanoseconds after it was loaded.

    The counter starts at `reload` (1 to 65536; a guest writes 0 for 65536), loses one with each tick of PIT_HZ,
    and after 1 comes `reload` again (8254 data sheet, mode 2). The answer has 16 bits: 65536 reads as 0.
    """
    ...


def calibrate(samples):
    """The TSC's rate in kHz from `samples`, measured in a guest: each is (milliseconds of the PIT, cycles of the TSC).

    The guest was stopped during some of them. Whole kHz, rounded down.
    """
    ...
