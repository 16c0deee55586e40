"""Words to a view: what a user types behind `pyvmm inspect VM`, at gdb's `monitor`, and with the console's keys.

Imports the views and errors. An address is a number, a register, a symbol, or one of these and a number: 0x1000, rip,
rsp+16, start_kernel.
"""

from __future__ import annotations

from pyvmm.debug.views.contents import DUMP, INSTRUCTIONS, disassembly, disassembly_data, hexdump, hexdump_data
from pyvmm.debug.views.devices import devices, devices_data
from pyvmm.debug.views.exits import exits, exits_data
from pyvmm.debug.views.irqchip import irqchip, irqchip_data
from pyvmm.debug.views.lapic import lapic, lapic_data
from pyvmm.debug.views.memorymap import memory_map, memory_map_data
from pyvmm.debug.views.pit import pit, pit_data
from pyvmm.debug.views.queues import queues, queues_data
from pyvmm.debug.views.registers import registers, registers_data
from pyvmm.debug.views.subject import state_of, vcpu_of
from pyvmm.debug.views.tables import descriptor_tables, descriptor_tables_data
from pyvmm.debug.views.walk import page_walk, page_walk_data
from pyvmm.errors import MissingExtraError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from pyvmm.debug.views.subject import Subject

LONGEST = 20
"""Digits of a number at most."""


class View:
    """`usage` is what may follow the name, `help` what it shows; `least` to `most` words follow."""

    __slots__ = ("help", "least", "most", "usage")

    def __init__(self, usage: str, help: str, least: int = 0, most: int = 0) -> None:
        self.usage = usage
        self.help = help
        self.least = least
        self.most = most


VIEWS = {
    "registers": View("[all]", "registers, bit by bit; all: those of the FPU and SSE too", 0, 1),
    "paging": View("[ADDR]", "the page-table walk of ADDR (default rip), level by level", 0, 1),
    "memory": View("", "what lies where in guest-physical memory, and at which port"),
    "tables": View("", "GDT, LDT and IDT, entry by entry"),
    "devices": View("", "registers of the devices, and virtio features, by name"),
    "queues": View("", "virtqueues: indices, what waits and what is in flight"),
    "irqchip": View("", "the PICs and the I/O APIC: what is masked, requested, in service, and each pin's entry"),
    "lapic": View("[N]", "the local APIC of vCPU N (default: the one looked at)", 0, 1),
    "pit": View("", "the PIT's channels: mode, count, access, gate"),
    "exits": View("", "the last exits of each vCPU, and counts"),
    "dump": View("ADDR [LEN]", f"LEN bytes (default {DUMP}) in hexadecimal", 1, 2),
    "disasm": View("[ADDR] [N]", f"N instructions (default {INSTRUCTIONS}) from ADDR (default rip) on", 0, 2),
    "all": View("", "all but dump"),
}
USAGE = "\n".join(f"{name + ' ' + view.usage:<20}{view.help}" for name, view in VIEWS.items())
IN_ALL = ("registers", "paging", "disasm", "tables", "memory", "devices", "queues", "irqchip", "lapic", "pit", "exits")


def look(vm: Subject, words: Sequence[str], *, vcpu: int = 0, physical: bool = False) -> list[str]:
    """The lines of the view that `words` ask for, its name first. `physical`: the address to dump is no linear one.

    Raises UsageError, in one line, for what cannot be meant, MissingExtraError for a disassembly without capstone, and
    PyvmmError for a vCPU that cannot be read.
    """
    name = _judge(words, physical)
    if name == "all":
        return [line for one in IN_ALL for line in (f"== {one}", *_try(vm, one, vcpu), "")][:-1]
    return _lines(vm, name, words[1:], vcpu, physical)


def look_data(vm: Subject, words: Sequence[str], *, vcpu: int = 0, physical: bool = False) -> Any:
    """The same for programs, as JSON types. Raises what `look` does."""
    name = _judge(words, physical)
    if name == "all":
        return {one: _try_data(vm, one, vcpu) for one in IN_ALL}
    return _data(vm, name, words[1:], vcpu, physical)


def _judge(words: Sequence[str], physical: bool) -> str:
    name = words[0] if words else ""
    view = VIEWS.get(name)
    if view is None:
        raise UsageError(f"unknown view {name!r} (expected {', '.join(VIEWS)})")
    given = len(words) - 1
    if not view.least <= given <= view.most:
        raise UsageError(f"{name}: {given} arguments (expected {(name + ' ' + view.usage).rstrip()})")
    if name == "registers" and given and words[1] != "all":
        raise UsageError(f"registers: {words[1]!r} (expected all or nothing)")
    if physical and name != "dump":
        raise UsageError(f"{name}: physical addresses are for dump")
    return name


def _lines(vm: Subject, name: str, words: Sequence[str], vcpu: int, physical: bool) -> list[str]:
    shown: list[str] = _show(vm, name, words, vcpu, physical, 0)
    return shown


def _data(vm: Subject, name: str, words: Sequence[str], vcpu: int, physical: bool) -> Any:
    return _show(vm, name, words, vcpu, physical, 1)


def _show(vm: Subject, name: str, words: Sequence[str], vcpu: int, physical: bool, form: int) -> Any:
    """The view `name` in the form of that number in FORMS."""
    show: Any = FORMS[name][form]
    vcpu_of(vm, vcpu)
    if name == "registers":
        return show(vm, vcpu, bool(words))
    if name == "paging":
        return show(vm, vcpu, _first(vm, words, vcpu))
    if name == "dump":
        return show(vm, *_range(vm, words, vcpu, DUMP), vcpu=vcpu, physical=physical)
    if name == "disasm":
        return show(vm, *_range(vm, words, vcpu, INSTRUCTIONS), vcpu=vcpu)
    if name == "lapic":
        return show(vm, number(words[0]) if words else vcpu)
    return show(vm, vcpu) if name == "tables" else show(vm)


FORMS = {
    "registers": (registers, registers_data),
    "paging": (page_walk, page_walk_data),
    "memory": (memory_map, memory_map_data),
    "tables": (descriptor_tables, descriptor_tables_data),
    "devices": (devices, devices_data),
    "queues": (queues, queues_data),
    "irqchip": (irqchip, irqchip_data),
    "lapic": (lapic, lapic_data),
    "pit": (pit, pit_data),
    "exits": (exits, exits_data),
    "dump": (hexdump, hexdump_data),
    "disasm": (disassembly, disassembly_data),
}
"""Each view as lines of text and as data for JSON."""


def _try(vm: Subject, name: str, vcpu: int) -> list[str]:
    """One of several: a disassembler that is missing spoils not all the rest."""
    try:
        return _lines(vm, name, (), vcpu, False)
    except MissingExtraError as error:
        return [str(error)]


def _try_data(vm: Subject, name: str, vcpu: int) -> Any:
    try:
        return _data(vm, name, (), vcpu, False)
    except MissingExtraError:
        return None


def _first(vm: Subject, words: Sequence[str], vcpu: int) -> int:
    return locate(vm, words[0] if words else "rip", vcpu)


def _range(vm: Subject, words: Sequence[str], vcpu: int, length: int) -> tuple[int, int]:
    return _first(vm, words, vcpu), number(words[1]) if len(words) > 1 else length


def number(text: str) -> int:
    """A number as C writes it: 64, 0x40. Raises UsageError."""
    digits, base = (text[2:], 16) if text[:2].lower() == "0x" else (text, 10)
    try:
        if not digits.isascii() or not digits.isalnum() or len(digits) > LONGEST:
            raise ValueError
        value = int(digits, base)
    except ValueError:
        raise UsageError(f"{text[:40]!r} is not a number (expected for example 64 or 0x40)") from None
    return value


def locate(vm: Subject, text: str, vcpu: int) -> int:
    """The linear address that `text` means. RIP and RSP are taken with their segments. Raises UsageError."""
    base, plus, offset = text.partition("+")
    start = _start(vm, base, vcpu)
    if start is None:
        raise UsageError(
            f"{text[:40]!r} is no address (expected a number, a register or a symbol, as 0x1000 or rip+16)"
        )
    address = start + (number(offset) if plus else 0)
    if address >> 64:
        raise UsageError(f"{text[:40]!r} is over 64 bits")
    return address


def _start(vm: Subject, text: str, vcpu: int) -> int | None:
    if text[:1].isdigit():
        return number(text)
    state, name = state_of(vm, vcpu), text.lower()
    if state.whole:
        if name in ("rip", "rsp"):
            return state.linear_rip if name == "rip" else state.linear_rsp
        assert state.regs is not None and state.control is not None
        for registers in (state.regs, state.control):
            if name in registers:
                return registers[name]
        if name in ("gdt", "idt"):
            return getattr(state, name).base  # type: ignore[no-any-return]
    return vm.address_of(text)
