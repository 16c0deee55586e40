"""The options of `pyvmm run`, as one table, and the parser that reads argv by it.

May import config, errors and progress. argparse costs 7 ms at every start, so it is only built, from the same table,
for `--help`. The rules: argv is split at the first `--` before anything else; names are never abbreviated; an
optional value is only taken as `--flag=value`; of an option given twice the last counts, unless it is repeatable;
where a value has sub-options, commas separate them and a doubled comma is a comma.
"""

from __future__ import annotations

from pyvmm.cli.progress import LEVELS
from pyvmm.config import (
    FAIL_ON,
    FLAT_MODES,
    KERNEL_ENTRIES,
    KERNEL_FORMATS,
    LONGEST_NUMBER,
    MAX_CPUS,
    ON_PANIC,
    parse_address,
    parse_duration,
    parse_size,
)
from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

FLAG, VALUE, OPTIONAL = "flag", "value", "optional"


class Option:
    """One row of the table.

    name        without its dashes; `short` is one letter or ""
    kind        FLAG (no value), VALUE (`--x V`, `--x=V`, `-xV`, `-x V`) or OPTIONAL (`--x` or `--x=V`)
    metavar     how help calls the value
    convert     makes the value of the text; raises UsageError
    repeatable  whether each occurrence counts; the value is then a list
    help        one sentence
    """

    __slots__ = ("convert", "help", "kind", "metavar", "name", "repeatable", "short")

    def __init__(
        self,
        name: str,
        help: str,
        *,
        short: str = "",
        kind: str = VALUE,
        metavar: str = "",
        convert: Callable[[str], object] = str,
        repeatable: bool = False,
    ) -> None:
        self.name = name
        self.help = help
        self.short = short
        self.kind = kind
        self.metavar = metavar
        self.convert = convert
        self.repeatable = repeatable


class Arguments:
    """What argv says: `values` by option name (only what was given), `positional`, and the words after `--`.

    `command` is None where there is no `--`.
    """

    __slots__ = ("command", "positional", "values")

    def __init__(self, values: dict[str, object], positional: list[str], command: list[str] | None) -> None:
        self.values = values
        self.positional = positional
        self.command = command


def parse(table: Sequence[Option], argv: Sequence[str]) -> Arguments:
    """Read `argv` by `table`. Raises UsageError, which names the option."""
    words = list(argv)
    command = None
    if "--" in words:
        end = words.index("--")
        words, command = words[:end], words[end + 1 :]
    names = {f"--{option.name}": option for option in table}
    names |= {f"-{option.short}": option for option in table if option.short}
    values: dict[str, object] = {}
    positional: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if not word.startswith("-") or word == "-":
            positional.append(word)
            continue
        name: str
        value: str | None
        if word.startswith("--"):
            name, equals, text = word.partition("=")
            value = text if equals else None
        else:
            name, value = word[:2], word[2:] or None
        option = names.get(name)
        if option is None:
            raise UsageError(f"unknown option {name}")
        if option.kind == FLAG and value is not None:
            raise UsageError(f"{name} takes no value, but has {value!r}")
        if option.kind == VALUE and value is None:
            if position == len(words):
                raise UsageError(f"{name} needs a value: {name} {option.metavar}")
            value = words[position]
            position += 1
            if value.partition("=")[0] in names and value.startswith("--"):
                raise UsageError(f"{name} needs a value before {value} (if that is the value: --{option.name}={value})")
        _store(values, option, name, value)
    return Arguments(values, positional, command)


def _store(values: dict[str, object], option: Option, name: str, text: str | None) -> None:
    value: object = True
    if text is not None:
        try:
            value = option.convert(text)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
    if option.repeatable:
        found = values.setdefault(option.name, [])
        assert isinstance(found, list)
        found.append(value)
    else:
        values[option.name] = value


def split_commas(text: str) -> list[str]:
    """The parts of `text` between single commas; a doubled comma is a comma in a part."""
    # NUL cannot be in a program's arguments.
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


def describe(program: str, table: Sequence[Option], positional: str, text: str) -> argparse.ArgumentParser:
    """An argparse parser of the same table, for its help; never for parsing.

    `positional` is how the usage line calls what is no option, `text` the sentence above the options.
    """
    import argparse

    parser = argparse.ArgumentParser(
        prog=program,
        description=text,
        allow_abbrev=False,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30),
    )
    parser.add_argument("kernel", metavar=positional, nargs="?", help="what is booted")
    for option in table:
        names = [f"-{option.short}"] if option.short else []
        names.append(f"--{option.name}")
        help = option.help.replace("%", "%%")
        if option.kind == FLAG:
            parser.add_argument(*names, action="store_true", help=help)
        else:
            nargs = "?" if option.kind == OPTIONAL else None
            parser.add_argument(*names, metavar=option.metavar, nargs=nargs, help=help)
    return parser


# --- The table of `pyvmm run` ------------------------------------------------------------------------------------


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


def _escape(text: str) -> object:
    from pyvmm.backends.terminal import parse_escape

    parse_escape(text)
    return text


RUN = (
    Option("mem", "RAM: 512M, 1G; a bare number is MiB (default 128M)", short="m", metavar="SIZE", convert=parse_size),
    Option("cpus", "number of vCPUs (default 1)", short="c", metavar="N", convert=_count),
    Option("cpu", "CPU features: host, then +NAME or -NAME, as in host,-cx16", metavar="host[,-NAME]..."),
    Option("append", "kernel command line; given again, it goes on", short="a", metavar="STR", repeatable=True),
    Option("initrd", "initial RAM disk, or first multiboot module", short="i", metavar="FILE"),
    Option(
        "disk",
        "a disk, /dev/vda and so on: an image or block device; overlay: what is written is forgotten at the end",
        short="d",
        metavar="PATH[,ro][,overlay][,cache=writeback|none|unsafe][,queues=N][,serial=S]",
        convert=_device("parse_disk"),
        repeatable=True,
    ),
    Option(
        "net",
        "a network, eth0 and so on: user is passt's, without privilege; socket joins VMs on this host",
        short="n",
        metavar="user|tap[=NAME]|socket=PATH|none[,mac=M][,mtu=N][,hostfwd=tcp::2222-:22][,pcap=F][,no-spoof]",
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
        "fault",
        "a fault on purpose, as blk0:error,op=write,rate=0.1 (docs/faults.md)",
        metavar="DEVICE:KIND[,WHEN]...",
        convert=_device("parse_fault"),
        repeatable=True,
    ),
    Option("fault-seed", "what decides where faults with a rate fall (default 0)", metavar="N", convert=_number),
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
    Option("escape", "escape key on a terminal: ^A, ^], ... or none (default ^A)", metavar="KEY", convert=_escape),
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
    Option("report", "write how the run ended to FILE, as JSON", metavar="FILE"),
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
