"""What a Linux kernel says when it cannot go on, and what to do about it, one line each.

Imports nothing. The messages are the kernel's own, as of Linux 5.10 to 6.12 (init/, kernel/panic.c, lib/decompress*.c,
arch/x86/boot/compressed/) and, where said, those of Debian's initramfs-tools. What is said is likely, not certain.
"""

from __future__ import annotations

_IMAGE = "the bzImage is damaged or cut short: compare its size or checksum with where it came from"
_NO_CPIO = "the initrd is no cpio archive that this kernel can read"
_INIT = "see that the initrd has an executable /init (`cpio -t` lists it), or name another with --append init=/PATH"
_ROOT = (
    "there is no root file system: give --initrd FILE, a cpio archive with an executable /init, or check root= on the "
    "command line; if an initrd is given, the kernel has said further up what it makes of it"
)
_FAULT = "a fault in the kernel or in a driver; the lines below say where, and the first one counts"


class Hint:
    """One row: `message` is what the kernel's line contains, with `also` if that is given, `advice` what to do.

    `waits` says that the kernel goes on waiting after this line, perhaps for ever, while it looks idle.
    """

    __slots__ = ("advice", "also", "message", "waits")

    def __init__(self, message: bytes, advice: str, *, also: bytes = b"", waits: bool = False) -> None:
        self.message = message
        self.advice = advice
        self.also = also
        self.waits = waits


HINTS = (
    # --- The root file system (init/do_mounts.c) -------------------------------------------------------------------
    Hint(
        b"Waiting for root device",
        "the root file system is to come from a disk that is not there: check root= on the command line, or give "
        "--initrd FILE",
        waits=True,
    ),
    Hint(
        b"VFS: Cannot open root device",
        _ROOT,
    ),
    Hint(
        b"VFS: Unable to mount root fs",
        _ROOT,
    ),
    Hint(
        b"Gave up waiting for root",
        "the initrd (initramfs-tools) found no disk with the root file system: check root= on the command line",
        waits=True,
    ),
    # --- The initramfs (init/initramfs.c) --------------------------------------------------------------------------
    Hint(
        b"junk within compressed archive",
        f"{_NO_CPIO}: something follows the compressed part, or it is cut short; pack it with `cpio -o -H newc`, then "
        "gzip",
    ),
    Hint(
        b"invalid magic at start of compressed archive",
        f"{_NO_CPIO}: it begins as neither cpio nor any compression that it knows; pack it with `cpio -o -H newc`",
    ),
    Hint(b"no cpio magic", f"{_NO_CPIO}: pack it with `cpio -o -H newc` (the kernel takes the format newc alone)"),
    Hint(
        b"compression method",
        f"{_NO_CPIO}: this kernel was built without that compression (CONFIG_RD_GZIP and the like); give the archive "
        "uncompressed",
    ),
    Hint(b"Initramfs unpacking failed: write error", "there is too little memory for the initrd: give more with --mem"),
    Hint(b"Initramfs unpacking failed", f"{_NO_CPIO}, or it is cut short: pack it with `cpio -o -H newc`"),
    # --- The first program (init/main.c) ---------------------------------------------------------------------------
    Hint(b"No working init found", f"the root file system has no init that runs: {_INIT}"),
    Hint(b"failed: -2, ignoring", f"the initrd has no /init: {_INIT}"),
    Hint(
        b"(error -2)",
        "a program, or the interpreter or dynamic loader that it needs, is not in the root file system: link it "
        "statically, or add what `ldd` names",
        also=b"init",
    ),
    Hint(
        b"(error -8)",
        "init is no program that this kernel runs: wrong architecture, or a script without `#!`",
        also=b"init",
    ),
    Hint(b"(error -13)", "init may not be executed: `chmod +x` it before packing the initrd", also=b"init"),
    Hint(
        b"unable to open an initial console",
        "the kernel has no console for init: name one that exists (console=ttyS0), and give the initrd a /dev/console",
    ),
    Hint(
        b"Attempted to kill init! exitcode=0x00000004",
        "init met an instruction that this processor, or this host's KVM, does not have: build it for a plainer one",
    ),
    Hint(b"Attempted to kill init! exitcode=0x0000000b", "init crashed with a segmentation fault (signal 11)"),
    Hint(
        b"Attempted to kill init!",
        "the first program ended, which it may not: let /init end with `exec` of a shell, `poweroff -f` or "
        "`reboot -f`; the exit code is its status times 256",
    ),
    # --- Memory ----------------------------------------------------------------------------------------------------
    Hint(b"System is deadlocked on memory", "the guest has too little memory: give more with --mem"),
    Hint(b"Out of memory and no killable processes", "the guest has too little memory: give more with --mem"),
    # --- The decompressor in a bzImage (arch/x86/boot/compressed, lib/decompress_*.c) ------------------------------
    Hint(b"ran out of input data", _IMAGE),
    Hint(b"data is corrupt", _IMAGE),
    Hint(b"invalid compressed format", _IMAGE),
    Hint(b"crc error", _IMAGE),
    Hint(b"Kernel is not a valid ELF file", _IMAGE),
    Hint(b"-- System halted", "the bzImage could not unpack itself: what it says before this is the reason"),
    # --- Faults ----------------------------------------------------------------------------------------------------
    Hint(b"unable to handle", _FAULT),
    Hint(b"NULL pointer dereference", _FAULT),
    Hint(b"IO-APIC + timer doesn't work", "the kernel's timer interrupt does not arrive: try --append noapic"),
    Hint(
        b"soft lockup",
        "a processor of the guest did nothing but one thing for long: the host is overloaded, or the guest's kernel "
        "loops",
    ),
)
