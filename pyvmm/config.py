"""What a VM is made of, and how sizes and times are written.

Imports errors, layout and hardware. A `VmConfig` is plain data, checked when it is made; nothing is opened or created
for it.
"""

from __future__ import annotations

import os

from pyvmm import layout
from pyvmm.errors import UsageError
from pyvmm.hardware import DATAPATHS, Disk, Net, Port, one_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    from pyvmm.hardware import Balloon, Rng, Share, Vsock
    from pyvmm.virtio.device import VirtioDevice

_SIZE_UNITS = {"K": 10, "M": 20, "G": 30, "T": 40}
_TIME_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

KERNEL_FORMATS = ("auto", "flat", "elf", "multiboot", "pvh", "linux", "bzimage")
KERNEL_ENTRIES = ("auto", "bzimage", "payload")
ON_PANIC = ("exit", "wait", "pause")
TRANSPORTS = ("auto", "mmio", "pci")
EXITS = ("fast", "plain")
FAIL_ON = ("oops", "warn")
FLAT_MODES = ("real", "protected", "long")
AGENT_PORTS = ("org.qemu.guest_agent.0", "org.pyvmm.exec.0")
"""The ports of an agent in the guest: the one that distributions' agents look for, and our own one's beside it."""
MAX_CPUS = 255
"""xAPIC identifiers are 8 bits and 0xff is the broadcast (Intel SDM volume 3A, 11.4.6)."""
DEFAULT_MEMORY = 128 << 20
LONGEST_NUMBER = 100
"""Digits. Python itself refuses to read numbers of more than 4,300, with another error."""
MAX_TIMEOUT = 1e9
"""Seconds, 31 years. The interpreter's own waiting ends at 9.2e9."""


def parse_size(text: str) -> int:
    """Bytes from `512M`, `1G`, `64K` (powers of 1024; an optional B or iB follows) or a bare number of MiB.

    Raises UsageError on anything else.
    """
    digits = text.strip().upper().removesuffix("B").removesuffix("I")
    shift = 20
    if digits and digits[-1] in _SIZE_UNITS:
        shift = _SIZE_UNITS[digits[-1]]
        digits = digits[:-1]
    if not (digits.isascii() and digits.isdigit() and len(digits) < LONGEST_NUMBER):
        raise UsageError(f"{text!r} is not a size (expected for example 512M, 1G or a number of MiB)")
    return int(digits) << shift


def format_size(size: int) -> str:
    """`size` bytes in the largest unit that divides it: 536870912 is 512M."""
    for unit in ("T", "G", "M", "K"):
        shift = _SIZE_UNITS[unit]
        if size and size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size} bytes"


def parse_duration(text: str) -> float:
    """Seconds from `30s`, `500ms`, `2m`, `1h` or a bare number of seconds. Raises UsageError on anything else."""
    number, scale = text.strip(), 1.0
    for unit in sorted(_TIME_UNITS, key=len, reverse=True):
        if number.endswith(unit):
            number, scale = number[: -len(unit)], _TIME_UNITS[unit]
            break
    if not (number.isascii() and number.replace(".", "", 1).isdigit()):
        raise UsageError(f"{text!r} is not a duration (expected for example 30s, 500ms or 2m)")
    seconds = float(number) * scale
    if seconds <= 0:
        raise UsageError(f"{text!r}: a time limit must be longer than nothing")
    return seconds


def parse_address(text: str) -> int:
    """A guest-physical address from hexadecimal (0x...) or decimal. Raises UsageError on anything else."""
    try:
        address = int(text, 0)
    except ValueError:
        address = -1
    if address < 0:
        raise UsageError(f"{text!r} is not an address (expected for example 0x100000)")
    return address


class VmConfig:
    """The parts of one VM.

    kernel           path of what is booted
    kernel_format    "auto" (by content) or one of KERNEL_FORMATS
    flat_mode        for flat binaries: "real", "protected" or "long"; None is real mode
    load_addr        for flat binaries: gpa of the first byte; None is the mode's usual place
    kernel_entry     how a bzImage is entered: "bzimage" (it unpacks itself), "payload" (pyvmm unpacks it), or "auto"
    host_quirks      whether a Linux command line gets the words that this host's KVM needs, and whether instructions
                     that it refuses are completed
    initrd           path of an initial RAM disk or first module, or None
    append           command line given to the kernel
    mem              bytes of RAM, a multiple of 4 KiB (a string is read by `parse_size`)
    cpus             number of vCPUs, 1 to 255
    cpu              CPU features: "host", then ",+name" or ",-name"
    timeout          seconds after which the run is ended with status 124, or None (a string: `parse_duration`)
    stuck            seconds without progress after which the run is ended with status 123, or None (a string:
                     `parse_duration`)
    stuck_at_boot    the same, only until a program in the guest has written something
    on_panic         one of ON_PANIC: end the run with status 122, go on, or let the vCPUs stand still
    fail_on          which of FAIL_ON in the guest's console make a run fail that ended well
    symbols          path of a vmlinux or System.map with the guest kernel's symbols, or None: those of the kernel
    memory_backing   one of pyvmm.memory.BACKINGS
    disks            each a `pyvmm.Disk`, or just a path
    net              a `pyvmm.Net`, several of them, or None
    ports            `pyvmm.Port`s of the virtio console
    agent            whether the guest gets the ports for an agent, which `VM.exec` and its like need
    rng              a `pyvmm.Rng`, or None
    shares           `pyvmm.Share`s
    vsock            a `pyvmm.Vsock`, or None
    balloon          a `pyvmm.Balloon`, or None
    virtio           virtio devices of one's own, `pyvmm.VirtioDevice`s: made for this VM, which closes them
    transport        how the guest finds its virtio devices, one of TRANSPORTS: "auto" is what its kernel can use
    name             what other programs call the VM while it runs, or "": they do not learn of it
    faults           rules of faults on purpose, as `--fault` has them
    fault_seed       what decides on which requests they fall, where a rule has a rate
    datapath         who moves the data of virtio devices: "native", which is C as far as it can, or "python" alone
    lint             whether the guest's virtio drivers are judged (`VM.findings`); Python then moves all data and sees
                     all exits, whatever `datapath` and `exits` say
    exits            "fast": a loop in C deals with accesses that a device leaves to it; "plain": Python sees them all
    switch_interval  seconds for sys.setswitchinterval() while VMs run, or None to leave it alone

    Raises UsageError, which names the field.
    """

    __slots__ = (
        "agent",
        "append",
        "balloon",
        "cpu",
        "cpus",
        "datapath",
        "disks",
        "exits",
        "fail_on",
        "fault_seed",
        "faults",
        "flat_mode",
        "host_quirks",
        "initrd",
        "kernel",
        "kernel_entry",
        "kernel_format",
        "lint",
        "load_addr",
        "mem",
        "memory_backing",
        "name",
        "nets",
        "on_panic",
        "ports",
        "rng",
        "shares",
        "stuck",
        "stuck_at_boot",
        "switch_interval",
        "symbols",
        "timeout",
        "transport",
        "virtio",
        "vsock",
    )

    def __init__(
        self,
        kernel: str | os.PathLike[str],
        *,
        kernel_format: str = "auto",
        flat_mode: str | None = None,
        load_addr: int | None = None,
        kernel_entry: str = "auto",
        host_quirks: bool = True,
        initrd: str | os.PathLike[str] | None = None,
        append: str = "",
        mem: int | str = DEFAULT_MEMORY,
        cpus: int = 1,
        cpu: str = "host",
        timeout: float | str | None = None,
        stuck: float | str | None = None,
        stuck_at_boot: float | None = None,
        on_panic: str = "exit",
        fail_on: Sequence[str] = (),
        symbols: str | os.PathLike[str] | None = None,
        memory_backing: str = "anonymous",
        disks: Sequence[Disk | str | os.PathLike[str]] = (),
        net: Net | Sequence[Net] | None = None,
        ports: Sequence[Port] = (),
        agent: bool = False,
        rng: Rng | None = None,
        shares: Sequence[Share] = (),
        vsock: Vsock | None = None,
        balloon: Balloon | None = None,
        virtio: Sequence[VirtioDevice] = (),
        transport: str = "auto",
        name: str = "",
        faults: Sequence[str] = (),
        fault_seed: int = 0,
        datapath: str = "native",
        exits: str = "fast",
        lint: bool = False,
        switch_interval: float | None = 50e-6,
    ) -> None:
        self.kernel = os.fspath(kernel)
        self.kernel_format = one_of("kernel format", kernel_format, KERNEL_FORMATS)
        self.flat_mode = None if flat_mode is None else one_of("flat mode", flat_mode, FLAT_MODES)
        self.load_addr = load_addr
        self.kernel_entry = one_of("kernel entry", kernel_entry, KERNEL_ENTRIES)
        self.host_quirks = host_quirks
        self.initrd = None if initrd is None else os.fspath(initrd)
        self.append = append
        self.mem = parse_size(mem) if isinstance(mem, str) else mem
        self.cpus = cpus
        self.cpu = cpu
        self.timeout = parse_duration(timeout) if isinstance(timeout, str) else timeout
        self.stuck = parse_duration(stuck) if isinstance(stuck, str) else stuck
        self.stuck_at_boot = stuck_at_boot
        self.on_panic = one_of("choice for a panic", on_panic, ON_PANIC)
        self.fail_on = tuple(one_of("complaint to fail on", name, FAIL_ON) for name in fail_on)
        self.symbols = None if symbols is None else os.fspath(symbols)
        self.memory_backing = memory_backing
        self.disks = tuple(disk if isinstance(disk, Disk) else Disk(disk) for disk in disks)
        self.nets = () if net is None else (net,) if isinstance(net, Net) else tuple(net)
        self.agent = agent
        self.ports = (*(Port(name) for name in AGENT_PORTS if agent), *ports)
        self.rng = rng
        self.shares = tuple(shares)
        self.vsock = vsock
        self.balloon = balloon
        self.virtio = tuple(virtio)
        self.transport = one_of("transport", transport, TRANSPORTS)
        self.name = name
        self.faults = tuple(faults)
        self.fault_seed = fault_seed
        self.datapath = one_of("data path", datapath, DATAPATHS)
        self.exits = one_of("way with exits", exits, EXITS)
        self.lint = lint
        self.switch_interval = switch_interval
        self._check()

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str], **others: Any) -> Self:
        """What the file `path` describes (docs/config.md), with `others` in place of what it says.

        Paths in it begin at its own folder. Raises UsageError, which names file and line.
        """
        from pyvmm.configfile import read_settings

        settings = read_settings(path) | others
        if "kernel" not in settings:
            raise UsageError(f"{os.fspath(path)}: kernel is missing")
        return cls(**settings)

    def _check(self) -> None:
        if not layout.MIN_RAM <= self.mem <= layout.MAX_RAM:
            raise UsageError(
                f"memory of {format_size(self.mem)}: expected {format_size(layout.MIN_RAM)} "
                f"to {format_size(layout.MAX_RAM)}"
            )
        if self.mem % layout.PAGE:
            raise UsageError(f"memory of {self.mem} bytes: expected a multiple of {layout.PAGE}")
        if not 1 <= self.cpus <= MAX_CPUS:
            raise UsageError(f"{self.cpus} CPUs: expected 1 to {MAX_CPUS}")
        if self.load_addr is not None and self.load_addr < 0:
            raise UsageError(f"load address {self.load_addr}: expected 0 or more")
        if self.timeout is not None and not 0 < self.timeout <= MAX_TIMEOUT:
            raise UsageError(f"time limit of {self.timeout:g} s: expected more than 0, at most {MAX_TIMEOUT:g}")
        tags = [share.tag for share in self.shares]
        if len(set(tags)) < len(tags):
            raise UsageError(f"two shares are called {max(tags, key=tags.count)!r}")
        if self.balloon is not None and self.balloon.size > self.mem:
            raise UsageError(f"a balloon of {format_size(self.balloon.size)} in {format_size(self.mem)} of memory")
        for name in ("stuck", "stuck_at_boot", "switch_interval"):
            seconds = getattr(self, name)
            if seconds is not None and seconds <= 0:
                raise UsageError(f"{name} of {seconds} s: expected more than 0")
