"""The options of `pyvmm run`, as one table.

May import config, hardware, errors, options and progress; what reads the devices is imported where such an option is
given.
"""

from __future__ import annotations

import os

from pyvmm.cli.options import FLAG, OPTIONAL, Option, split_commas
from pyvmm.cli.progress import LEVELS
from pyvmm.config import (
    EXITS,
    FAIL_ON,
    FLAT_MODES,
    KERNEL_ENTRIES,
    KERNEL_FORMATS,
    LONGEST_NUMBER,
    MAX_CPUS,
    ON_PANIC,
    TRANSPORTS,
    parse_address,
    parse_duration,
    parse_size,
)
from pyvmm.errors import UsageError
from pyvmm.hardware import DATAPATHS
from pyvmm.memory import BACKINGS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER):
        raise UsageError(f"{text!r} is not a number")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < LONGEST_NUMBER):
        raise UsageError(f"{text!r} is not a number (expected 1 to {MAX_CPUS})")
    return int(text)


def _one_of(choices: Sequence[str]) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in choices:
            raise UsageError(f"{text!r} is unknown (expected {', '.join(choices)})")
        return text

    return convert


def _single(text: str) -> str:
    """A value that has no sub-options so far."""
    value, *others = split_commas(text)
    if others:
        raise UsageError(f"unknown sub-option {others[0]!r} (a comma in a path is written twice)")
    return value


def _file(text: str) -> str:
    path = _single(text)
    if not path or os.path.isdir(path):
        raise UsageError(f"{path!r} is no name of a file")
    return path


def _several_of(choices: Sequence[str]) -> Callable[[str], list[str]]:
    one = _one_of(choices)
    return lambda text: [one(part) for part in split_commas(text)]


def _stuck(text: str) -> float | None:
    return None if text == "never" else parse_duration(text)


def _device(reader: str) -> Callable[[str], object]:
    """The function called `reader` of the module that reads devices, imported when there is one to read."""

    def convert(text: str) -> object:
        from pyvmm.cli import devices

        return getattr(devices, reader)(text)

    return convert


def _gdb(text: str) -> object:
    from pyvmm.debug.gdb.server import parse_where

    parse_where(text)
    return text


def _stop(text: str) -> str:
    """Where the prompt is to open, checked. Raises UsageError."""
    from pyvmm.debug.shell.stops import Stop

    return Stop(text).text


def escape_key(text: str) -> object:
    """The name of an escape key, checked. Raises UsageError."""
    from pyvmm.backends.terminal import parse_escape

    parse_escape(text)
    return text


RUN = (
    Option(
        "config",
        "a VM's configuration as TOML (docs/config.md); options win over it, repeatable ones add to it",
        metavar="FILE",
    ),
    Option("mem", "RAM: 512M, 1G; a bare number is MiB (default 128M)", short="m", metavar="SIZE", convert=parse_size),
    Option("cpus", "number of vCPUs (default 1)", short="c", metavar="N", convert=_count),
    Option("cpu", "CPU features: host, then +NAME or -NAME, as in host,-cx16", metavar="host[,-NAME]..."),
    Option("append", "kernel command line; given again, it goes on", short="a", metavar="STR", repeatable=True),
    Option("initrd", "initial RAM disk, or first multiboot module", short="i", metavar="FILE"),
    Option(
        "disk",
        "a disk, /dev/vda and so on: an image or block device; overlay: what is written is forgotten at the end",
        short="d",
        metavar="PATH[,ro][,overlay][,cache=writeback|none|unsafe][,queues=N][,serial=S][,datapath=python]",
        convert=_device("parse_disk"),
        repeatable=True,
    ),
    Option(
        "net",
        "a network, eth0 and so on: user is passt's, without privilege; socket joins VMs on this host",
        short="n",
        metavar="user|tap[=NAME]|socket=PATH|none[,mac=M][,mtu=N][,hostfwd=tcp::2222-:22][,pcap=F][,no-spoof][,datapath=python]",
        convert=_device("parse_net"),
        repeatable=True,
    ),
    Option(
        "publish",
        "a port of the host that leads to one of the guest's; makes a user network if there is none",
        short="p",
        metavar="[ADDR:]HOST:GUEST[/udp]",
        convert=_device("parse_publish"),
        repeatable=True,
    ),
    Option(
        "port",
        "a named port of the virtio console, connected to unix:PATH, file:PATH or pty",
        metavar="NAME=WHERE",
        convert=_device("parse_port"),
        repeatable=True,
    ),
    Option(
        "rng",
        "a source of random numbers, /dev/hwrng; RATE limits it in bytes a second",
        kind=OPTIONAL,
        metavar="RATE",
        convert=_device("parse_rng"),
    ),
    Option(
        "share",
        "a directory that the guest mounts by 9p under the name T; it never gets out of it",
        metavar="DIR,tag=T[,ro]",
        convert=_device("parse_share"),
        repeatable=True,
    ),
    Option(
        "vsock",
        "sockets between guest and host: who connects to unix socket PATH says CONNECT PORT; the guest reaches PATH_N",
        metavar="PATH[,cid=N]",
        convert=_device("parse_vsock"),
    ),
    Option(
        "balloon",
        "a balloon in the guest's memory, empty or of SIZE at first; pyvmm balloon changes it",
        kind=OPTIONAL,
        metavar="SIZE",
        convert=_device("parse_balloon"),
    ),
    Option(
        "transport",
        f"how the guest finds these devices: {', '.join(TRANSPORTS)} (auto: what its kernel can use; default auto)",
        metavar="T",
        convert=_one_of(TRANSPORTS),
    ),
    Option("name", "what the other verbs call this VM while it runs (default vm-PID)", metavar="NAME"),
    Option(
        "fault",
        "a fault on purpose, as blk0:error,op=write,rate=0.1 (docs/faults.md)",
        metavar="DEVICE:KIND[,WHEN]...",
        convert=_device("parse_fault"),
        repeatable=True,
    ),
    Option("fault-seed", "what decides where faults with a rate fall (default 0)", metavar="N", convert=_number),
    Option(
        "memory-backing",
        f"{', '.join(BACKINGS)} (memfd: other processes can map it; hugetlb: the host's huge pages)",
        metavar="HOW",
        convert=_one_of(BACKINGS),
    ),
    Option(
        "datapath",
        f"{', '.join(DATAPATHS)} (native: C moves the data of disks and networks; python: Python does)",
        metavar="HOW",
        convert=_one_of(DATAPATHS),
    ),
    Option(
        "exits",
        f"{', '.join(EXITS)} (fast: a loop in C deals with what devices leave to it; plain: Python sees every exit)",
        metavar="HOW",
        convert=_one_of(EXITS),
    ),
    Option(
        "lint",
        "tell what the guest's virtio drivers do against the specification; everything then goes through Python",
        kind=FLAG,
    ),
    Option(
        "kernel-format",
        f"{', '.join(KERNEL_FORMATS)} (default auto: by content)",
        metavar="F",
        convert=_one_of(KERNEL_FORMATS),
    ),
    Option(
        "kernel-entry",
        f"who unpacks a Linux bzImage: {', '.join(KERNEL_ENTRIES)} (bzimage: itself; payload: pyvmm; default auto)",
        metavar="ENTRY",
        convert=_one_of(KERNEL_ENTRIES),
    ),
    Option("no-host-quirks", "leave out what helps guests on this host's KVM", kind=FLAG),
    Option(
        "flat-mode",
        f"mode in which a flat binary starts: {', '.join(FLAT_MODES)} (default real)",
        metavar="MODE",
        convert=_one_of(FLAT_MODES),
    ),
    Option(
        "load-addr",
        "where a flat binary is loaded (default 0x7c00 in real mode, else 0x100000)",
        metavar="ADDR",
        convert=parse_address,
    ),
    Option(
        "console",
        "what the guest's serial port is connected to: stdio, pty, file:PATH, unix:PATH (default stdio)",
        metavar="WHERE",
        convert=_single,
    ),
    Option("escape", "escape key on a terminal: ^A, ^], ... or none (default ^A)", metavar="KEY", convert=escape_key),
    Option(
        "timeout",
        "end the run after this time with status 124: 30s, 500ms, 2m",
        metavar="TIME",
        convert=parse_duration,
    ),
    Option(
        "stuck",
        "end a run without progress after this time with status 123: 30s, never (default never on a terminal, else "
        "30s until a program in the guest writes)",
        metavar="TIME",
        convert=_stuck,
    ),
    Option(
        "on-panic",
        f"when the guest's kernel panics: {', '.join(ON_PANIC)} (exit: status 122; pause: stand still; default exit)",
        metavar="WHAT",
        convert=_one_of(ON_PANIC),
    ),
    Option(
        "fail-on",
        f"end with status 122 if the guest's kernel has complained: {', '.join(FAIL_ON)}",
        metavar="WHAT[,WHAT]",
        convert=_several_of(FAIL_ON),
    ),
    Option("symbols", "the kernel's vmlinux or System.map, for names in reports", metavar="FILE"),
    Option("agent", "give the guest the ports of an agent, for pyvmm exec; -- CMD has them anyway", kind=FLAG),
    Option(
        "root",
        "with -- CMD: a directory of the host's as root file system, with the current folder; overlay: what is "
        "written is forgotten (default /,overlay where a KERNEL is named and no --initrd)",
        metavar="DIR[,ro|overlay]|none",
    ),
    Option(
        "rwdir",
        "with -- CMD: a directory that the guest has at its own path and may change",
        metavar="DIR",
        repeatable=True,
    ),
    Option(
        "modules",
        "with -- CMD: modules for KERNEL: the guest's /lib/modules is DIR/lib/modules, made by "
        "make modules_install INSTALL_MOD_PATH=DIR",
        metavar="DIR",
    ),
    Option(
        "env",
        "with -- CMD: a variable for the command; without =VALUE its value here",
        metavar="NAME[=VALUE]",
        repeatable=True,
    ),
    Option("user", "with -- CMD: the guest's user that it runs as, a name or number (default root)", metavar="USER"),
    Option("verbose", "with -- CMD: show the guest's console on standard error", short="v", kind=FLAG),
    Option(
        "gdb",
        "wait for gdb before the first instruction: target remote :1234 (docs/debugging.md)",
        kind=OPTIONAL,
        metavar="PORT|unix:PATH",
        convert=_gdb,
    ),
    Option(
        "shell",
        "a Python prompt with the stopped VM in hand, at EXIT: entry (default), serial.THR, 0x3f8, hlt, mmio, any ... "
        "(docs/inspect.md)",
        kind=OPTIONAL,
        metavar="EXIT",
        convert=_stop,
    ),
    Option(
        "explain",
        "tell each exit in words on standard error, or those of some devices: instruction, register, bits, section "
        "(docs/explain.md)",
        kind=OPTIONAL,
        metavar="DEVICE[,DEVICE]...",
        convert=split_commas,
    ),
    Option("report", "write how the run ended to FILE, as JSON", metavar="FILE"),
    Option(
        "trace",
        "record every exit, access, queue event and interrupt in FILE: JSON lines, or for .json what Perfetto opens "
        "(docs/trace.md)",
        metavar="FILE",
        convert=_file,
    ),
    Option("stats", "show exits, time and memory on standard error at the end", kind=FLAG),
    Option("dry-run", "load the kernel, show what is placed where, and end", kind=FLAG),
    Option(
        "log",
        f"what is told on standard error: {', '.join(LEVELS)} (default warn)",
        metavar="LEVEL",
        convert=_one_of(LEVELS),
    ),
    Option("help", "show this help", short="h", kind=FLAG),
    Option("version", "show the version", kind=FLAG),
)
