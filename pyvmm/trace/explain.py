"""A run in words: what the guest did, which register that is, what its bits say, and where all that is specified.

Imports fields, debug's symbols and errors. Works on records as a trace has them; `narrator` makes them of a run as it
goes. A reader of a datasheet should find each thing again under the name that it has there.
"""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.trace.fields import clean, kind, number, place, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from pyvmm.trace.fields import Record

UNCLAIMED = "unclaimed"
"""What accesses that no device answers are filtered by."""
OTHERS = "other"
"""What exits that are no accesses are filtered by."""
KINDS = {"blk": "virtio-blk", "net": "virtio-net", "console": "virtio-console", "rng": "virtio-rng"} | {
    name: f"virtio-{name}" for name in ("9p", "vsock", "balloon")
}
"""What all devices are called whose names begin so and go on with a number."""

_API = "KVM API, 5"
EXITS = {
    "HLT": ("halts until an interrupt comes", "SDM volume 2A, HLT"),
    "SHUTDOWN": (
        "an exception while a double fault was being delivered: a triple fault, which resets a PC",
        "SDM volume 3A, 6.15, interrupt 8",
    ),
    "DEBUG": ("a breakpoint, or the end of a single step", "SDM volume 3B, 18.3"),
    "EXCEPTION": ("an exception that KVM hands out", "SDM volume 3A, 6.15"),
    "FAIL_ENTRY": ("the processor refused to enter the guest: its state cannot be", "SDM volume 3C, 27"),
    "INTERNAL_ERROR": ("KVM could not go on with an instruction", f"{_API}, KVM_EXIT_INTERNAL_ERROR"),
    "X86_RDMSR": ("reads a model-specific register that KVM leaves to pyvmm", "SDM volume 4, 2"),
    "X86_WRMSR": ("writes a model-specific register that KVM leaves to pyvmm", "SDM volume 4, 2"),
    "SYSTEM_EVENT": ("asks for the whole system to be reset or switched off", f"{_API}, KVM_EXIT_SYSTEM_EVENT"),
    "HYPERCALL": ("calls the hypervisor", f"{_API}, KVM_EXIT_HYPERCALL"),
    "SET_TPR": ("lowers its task priority", "SDM volume 3A, 11.8.3.1"),
    "TPR_ACCESS": ("uses the task priority register", "SDM volume 3A, 11.8.3.1"),
    "IRQ_WINDOW_OPEN": ("can take an interrupt again", f"{_API}, KVM_EXIT_IRQ_WINDOW_OPEN"),
    "NMI": ("a non-maskable interrupt of the host's", "SDM volume 3A, 6.7"),
    "IOAPIC_EOI": ("ends a level-triggered interrupt", "82093AA, 3.2.4"),
}
"""What an exit that is no access means, and the section about it."""
SILENT = ("INTR",)
"""Exits that are the host's doing: the guest has done nothing."""
EFFECTS = {
    "THR": "the character goes out",
    "QueueNotify": "the device looks into the queue",
    "DriverFeatures": "the driver takes these features",
    "InterruptACK": "the interrupt is dealt with",
    "EXIT": "the run ends with status (value << 1) | 1",
}
"""What a device does when a register is written, where the register's name and bits do not say it."""


class Words:
    """Makes words of records. `symbol(address)` names a function, "" where it is none."""

    def __init__(self, symbol: Callable[[int], str] = lambda address: "") -> None:
        self._symbol = symbol

    def line(self, record: Record, instruction: str = "") -> str:
        """The record in words, "" for what is not worth any. `instruction` is the one that led to the exit."""
        name = text(record, "kind")
        if name == "exit":
            return "" if record.get("reason") in SILENT else self._exit(record, instruction)
        return _event(record, name)

    def _exit(self, record: Record, instruction: str) -> str:
        where = f"vCPU {number(record, 'vcpu')}"
        rip = record.get("rip")
        if type(rip) is int and rip > 0:
            symbol = clean(self._symbol(rip))
            where += f" at {rip:#x}" + (f" ({symbol})" if symbol else "")
        did = f"{instruction} " if instruction else ""
        return f"{where}: {did}{_access(record) if 'space' in record else _other(record)}"


def _access(record: Record) -> str:
    write = record.get("write") is True
    device, words, spec = (text(record, name) for name in ("device", "words", "spec"))
    register, found, bits = words.partition(": ")
    who = f"{device}'s " if device else ""
    verb = "writes" if write else "reads"
    named = bool(text(record, "register")) or not device
    shown = who + (register if named and register else ", ".join(filter(None, (place(record), register))))
    line = f"{verb} {shown}{': ' if found else ''}{bits}"
    effect = EFFECTS.get(text(record, "register")) if write else None
    return line + (f"; {effect}" if effect else "") + (f" ({spec})" if spec else "")


def _other(record: Record) -> str:
    reason = text(record, "reason") or "?"
    what, section = EXITS.get(reason, (f"left KVM for {reason}", text(record, "spec") or f"{_API}, KVM_EXIT_{reason}"))
    details = text(record, "details")
    return f"{what}{': ' if details else ''}{details} ({section})"


def _event(record: Record, name: str) -> str:
    device, count = text(record, "device") or "a device", number(record, "count")
    chains = f"{count} chain{'s' * (count != 1)}"
    if name == "queue":
        queue = f"{device}, queue {number(record, 'queue')}"
        said = {
            "notify": "the driver notifies, the device looks into the available ring (virtio 1.3, 2.7.13.4)",
            "take": f"the device takes {chains} from the available ring (virtio 1.3, 2.7.6)",
            "complete": f"the device gives {chains} back in the used ring (virtio 1.3, 2.7.8)",
            "interrupt": "the device tells the driver of used buffers (virtio 1.3, 2.7.7)",
        }.get(text(record, "event"))
        return f"{queue}: {said}" if said else ""
    if name == "interrupt":
        level = record.get("level")
        how = {0: "lowers its interrupt line", 1: "raises its interrupt line"}.get(level if type(level) is int else -1)
        return f"{device}: {how or 'interrupts once'}, GSI or vector {number(record, 'gsi')}"
    if name in ("phase", "lifecycle"):
        return f"the run: {text(record, 'name') or text(record, 'state')}"
    if name == "end":
        return f"the run has ended: {text(record, 'reason')}, status {number(record, 'status')}"
    return f"{count} records were lost here" if name == "lost" else ""


class Folded:
    """Passes lines on, of equal ones in a row the first, and then how many there were. `say(line)` takes them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last = ""
        self._count = 0

    def add(self, line: str) -> None:
        """The next line."""
        if line == self._last:
            self._count += 1
            return
        self.flush()
        self._last = line
        self._say(line)

    def flush(self) -> None:
        """Nothing equal comes any more."""
        if self._count:
            self._say(f"  the same again, x {self._count}")
        self._last, self._count = "", 0


class Wanted:
    """Which records are wanted: those of the devices in `names`, all if there are none.

    A name is a device's, as "blk0", or a kind's, as "virtio-blk"; or UNCLAIMED, or OTHERS.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def check(self, known: Collection[str]) -> None:
        """Raises UsageError, which says what there is, for a name that none of the devices `known` has."""
        there = {*known, *filter(None, map(kind_of, known)), UNCLAIMED, OTHERS}
        for name in sorted(self._names - there):
            raise UsageError(f"nothing to explain is called {name!r} (there are {', '.join(sorted(there))})")

    def __call__(self, record: Record) -> bool:
        if not self._names:
            return True
        if record.get("kind") == "exit" and "space" not in record:
            return OTHERS in self._names
        name = kind(record) if record.get("kind") == "exit" else text(record, "device")
        return name in self._names or kind_of(name) in self._names


def kind_of(device: str) -> str:
    """The kind of a virtio device, "virtio-blk" for "blk0"; "" for any other."""
    return KINDS.get(device.rstrip("0123456789"), "") if device[-1:].isdigit() else ""


def explain(records: Iterator[Record], wanted: Wanted, words: Words, say: Callable[[str], None]) -> None:
    """Tell `say` in words what `records` say."""
    folded = Folded(say)
    for record in records:
        if wanted(record) and (line := words.line(record)):
            folded.add(line)
    folded.flush()
