"""Lesson 14: booting Linux, and removing exits. `pyvmm lesson check 14` tells what is still wrong."""

SECTOR = 512


class NotLinux(Exception):
    """The file is no bzImage."""


def setup_header(image):
    """What the bzImage in the bytes `image` says of itself: a dict (Linux, Documentation/arch/x86/boot.rst).

        "version"       of the boot protocol, 0x206, 2 bytes: 0x020f is 2.15
        "kernel"        where in the file the protected-mode kernel begins: behind the boot sector and setup_sects
                        (0x1f1, 1 byte; 0 means 4) sectors of 512 bytes
        "entry64"       whether there is a 64-bit entry: bit 0 of xloadflags (0x236, 2 bytes), from version 2.12 on

    Raises NotLinux unless the four bytes at 0x202 are "HdrS", and where the file ends before its kernel begins.
    """
    ...


def arm(vm, port, eventfds):
    """Let the guest ring bells without exits.

    A write of one byte with value N to `port` shall signal eventfds[N] (descriptors, one for each queue); a write of
    any other value shall be an exit as before. `vm` is a `pyvmm.kvm.VmFd`: see vm.ioeventfd().
    """
    ...
