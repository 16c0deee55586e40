"""Which KVM this host has, and what follows from it for a guest. The one place, with emulate.py, that knows quirks.

Imports os alone. Most hosts have Intel VT-x or AMD-V behind /dev/kvm and no quirks at all; the quirks below were
measured on Linux 6.18 with `kvm_pvm`, a KVM that needs neither. Everything here is read from /proc and /sys: nothing
runs a guest (`pyvmm doctor` does, in probe.py), and a run only asks which module is there.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

DEVICE = "/dev/kvm"


class HostView:
    """What may be looked at to judge a host: the file system below `root`, and who asks.

    Tests give another root, user, `opener` (as os.open) and `ioctl` (as fcntl.ioctl, with a number).
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "/",
        *,
        uname: os.uname_result | None = None,
        opener: Callable[[str, int], int] = os.open,
        ioctl: Callable[[int, int, int], int] | None = None,
        uid: int | None = None,
        user: str = "",
        groups: frozenset[int] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.root = os.fspath(root)
        self.uname = uname or os.uname()
        self.uid = os.geteuid() if uid is None else uid
        self.groups = frozenset((os.getegid(), *os.getgroups())) if groups is None else groups
        self.environ = environ
        self._user = user
        self._opener = opener
        self._ioctl = ioctl

    def path(self, path: str) -> str:
        """Where `path`, an absolute one, is below the root."""
        return os.path.join(self.root, path.lstrip("/"))

    def exists(self, path: str) -> bool:
        return os.path.exists(self.path(path))

    def names(self, path: str) -> list[str]:
        """What the directory `path` holds, in order; nothing if it cannot be read."""
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []

    def read(self, path: str, limit: int = 1 << 20) -> str:
        """The beginning of a text file, at most `limit` bytes; "" if it cannot be read."""
        try:
            with open(self.path(path), "rb", buffering=0) as file:
                return (file.read(limit) or b"").decode("utf-8", "replace")
        except OSError:
            return ""

    def stat(self, path: str) -> os.stat_result:
        return os.stat(self.path(path))

    def open(self, path: str, flags: int) -> int:
        return self._opener(self.path(path), flags | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        if self._ioctl is None:
            import fcntl

            return fcntl.ioctl(fd, request, argument)
        return self._ioctl(fd, request, argument)

    def user(self) -> str:
        """The name of who asks, or the number where there is no name."""
        if not self._user:
            import pwd

            try:
                self._user = pwd.getpwuid(self.uid).pw_name
            except KeyError:
                self._user = str(self.uid)
        return self._user

    def group(self, gid: int) -> tuple[str, bool]:
        """A group's name by /etc/group (its number where it has none), and whether that lists the user."""
        for line in self.read("/etc/group").splitlines():
            name, _, rest = line.partition(":")
            _, number, members = (rest.split(":") + ["", "", ""])[:3]
            if number == str(gid):
                return name, self.user() in members.split(",")
        return str(gid), False

    def cpuinfo(self, key: str) -> str:
        """A field of the first processor in /proc/cpuinfo; "" if it is not there."""
        for line in self.read("/proc/cpuinfo", 1 << 14).splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
        return ""

    def cpu_flags(self) -> frozenset[str]:
        return frozenset(self.cpuinfo("flags").split())


class Quirks:
    """What a host's KVM does otherwise than VT-x and AMD-V do: a sentence each, "" where it does not.

    Iterating gives (name, sentence) of those there are.
    """

    __slots__ = (
        "ring0_emulated",
        "real_mode_emulated",
        "shadow_paging",
        "instructions_refused",
        "hypercalls_hang",
        "syscall_stays",
        "cpuid_fixed",
        "ports_by_bitmap",
        "debug_limited",
        "protected_mode_limited",
    )
    ring0_emulated: str
    real_mode_emulated: str
    shadow_paging: str
    instructions_refused: str
    hypercalls_hang: str
    syscall_stays: str
    cpuid_fixed: str
    ports_by_bitmap: str
    debug_limited: str
    protected_mode_limited: str

    def __init__(self, **sentences: str) -> None:
        for name in self.__slots__:
            setattr(self, name, sentences.pop(name, ""))
        if sentences:
            raise TypeError(f"no quirk is called {', '.join(sentences)}")

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for name in self.__slots__:
            sentence = getattr(self, name)
            if sentence:
                yield name, sentence


INT3, INT1 = 0xCC, 0xF1
"""Instructions of one byte that stop a processor (SDM volume 2A, INT n/INTO/INT3/INT1)."""


class DebugAbilities:
    """What KVM_SET_GUEST_DEBUG can do on a host: for each ability the rings, of 0 and 3, in which it works.

    step       single steps
    hardware   execution breakpoints in debug registers
    watch      data watchpoints in debug registers
    planted    a planted instruction comes to user space: as an exit for it, or as one that KVM refuses
    trap       which one is planted: INT3; where KVM's emulator runs ring 0, INT1, which it refuses in every mode,
               whereas it does what INT3 says in real mode
    real_trap  the one for real mode
    """

    __slots__ = ("hardware", "planted", "real_trap", "step", "trap", "watch")

    def __init__(
        self,
        step: tuple[int, ...] = (0, 3),
        hardware: tuple[int, ...] = (0, 3),
        watch: tuple[int, ...] = (0, 3),
        planted: tuple[int, ...] = (0, 3),
        *,
        trap: int = INT3,
        real_trap: int = INT3,
    ) -> None:
        self.step = step
        self.hardware = hardware
        self.watch = watch
        self.planted = planted
        self.trap = trap
        self.real_trap = real_trap


_PVM = {
    "ring0_emulated": (
        "Ring 0 and real mode run in KVM's instruction emulator, at one to four million instructions a second; ring 3 "
        "runs at full speed."
    ),
    "instructions_refused": (
        "The emulator lacks some instructions. pyvmm completes int3, popcnt, cmpxchg16b and a few more; a guest that "
        "meets another in ring 0 ends there: xsave, SSE arithmetic, AVX and more. Build ring-0 code with "
        "-mgeneral-regs-only."
    ),
    "hypercalls_hang": (
        "A hypercall from ring 0 never returns, so the KVM features that make Linux use one are not shown to guests."
    ),
    "syscall_stays": (
        "SYSCALL from ring 3 arrives at the kernel's entry still in ring 3: an unpatched Linux does not get past its "
        "first program."
    ),
    "cpuid_fixed": (
        "The guest sees most CPUID bits as the processor has them, whatever --cpu says; cx16 and KVM's own features "
        "can be taken away."
    ),
    "ports_by_bitmap": "Ports in ring 3 need a zero bit in the TSS's I/O bitmap: IOPL is ignored.",
    "debug_limited": (
        "In ring 0 single steps and hardware execution breakpoints work, data watchpoints and int3 do not; in ring 3 "
        "hardware breakpoints do not."
    ),
    "protected_mode_limited": (
        "32-bit protected mode has neither paging (setting CR0.PG outside long mode raises #GP) nor interrupts (iret "
        "is not emulated there): a 32-bit kernel that needs either ends early."
    ),
    "shadow_paging": "Page tables are shadowed: changing them is slow.",
}

_PVM_LINUX_OPTIONS = (
    # Features whose instructions the emulator refuses or is slow at. Linux uses them in ring 0 where CPUID has them,
    # and CPUID cannot take them away here. Names are understood from Linux 5.19 on. Not `noxsave`: Linux hands that on
    # to init as an argument, and `init=/bin/sh` would look for a script of that name. The second half is what its
    # cryptography and checksums look for.
    "clearcpuid=xsave,smap,smep,umip,popcnt,erms,fsrm,cx16,ssse3,sse4_1,sse4_2,aes,pclmulqdq,sha_ni",
    # What they add at every entry to the kernel would be emulated.
    "mitigations=off",
)
_PVM_WITHOUT = ("cx16", "kvm_pv_unhalt", "kvm_pv_ipi", "kvm_pv_sched_yield", "kvm_pv_tlb_flush")


class Host:
    """The KVM of one host.

    module         "intel", "amd" or "pvm" for /sys/module/kvm_*; another such module's name; "" where none shows
    quirks         what is different here
    debug          what of debugging works here; `pyvmm doctor` tries it out
    without        CPU features that a guest is better off without here (names of `cpufeatures`)
    linux_options  words that a Linux guest needs on its command line here
    """

    __slots__ = ("_view", "debug", "linux_options", "module", "quirks", "without")

    def __init__(self, view: HostView | None = None) -> None:
        """Look at the host; a few look-ups in /sys, no guest, no /dev/kvm."""
        self._view = view = view or HostView()
        self.module = backing_module(view)
        self.without: tuple[str, ...] = ()
        self.linux_options: tuple[str, ...] = ()
        self.debug = DebugAbilities()
        sentences: dict[str, str] = {}
        if self.module == "pvm":
            sentences = _PVM
            self.without = _PVM_WITHOUT
            self.linux_options = _PVM_LINUX_OPTIONS
            self.debug = DebugAbilities((0,), (0,), (), (0,), trap=INT1, real_trap=INT1)
        elif self.module in ("intel", "amd"):
            sentences = _hardware_quirks(view, self.module)
            if "real_mode_emulated" in sentences:
                self.debug = DebugAbilities(real_trap=INT1)
        self.quirks = Quirks(**sentences)

    @property
    def nested(self) -> bool:
        """Whether this host is itself a virtual machine (CPUID leaf 1 ECX bit 31, as /proc/cpuinfo shows it)."""
        return "hypervisor" in self._view.cpu_flags()


def backing_module(view: HostView) -> str:
    """Which module answers at /dev/kvm.

    Only one can; but one that is built into the kernel shows in /sys/module even where it found nothing to drive, so
    where several show, the processor's flags decide.
    """
    present = [name[4:] for name in view.names("/sys/module") if name.startswith("kvm_")]
    if len(present) > 1:
        flags = view.cpu_flags()
        driven = {"intel": "vmx" in flags, "amd": "svm" in flags}
        present = [name for name in present if driven.get(name, True)]
    return present[0] if present else ""


def _hardware_quirks(view: HostView, module: str) -> dict[str, str]:
    def off(parameter: str) -> bool:
        return view.read(f"/sys/module/kvm_{module}/parameters/{parameter}").strip() in ("N", "0")

    sentences = {}
    if module == "intel" and off("unrestricted_guest"):
        sentences["real_mode_emulated"] = (
            "Real mode runs in KVM's instruction emulator: kvm_intel's unrestricted_guest is off."
        )
    paging = "ept" if module == "intel" else "npt"
    if off(paging):
        sentences["shadow_paging"] = (
            f"Page tables are shadowed, so changing them is slow: kvm_{module}'s {paging} is off."
        )
    return sentences
