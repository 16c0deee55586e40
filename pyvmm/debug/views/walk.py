"""A linear address on its way through the page tables, drawn level by level.

Imports subject, the walker and the names of bits. Follows the Intel SDM volume 3A: 4.3 to 4.5 (the walk), 4.6 (rights),
4.7 (the error code of a page fault).
"""

from __future__ import annotations

from pyvmm.debug.views.subject import place, whole_state_of
from pyvmm.paging import ERROR_PRESENT, ERROR_RESERVED, LEVELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.views.subject import Subject
    from pyvmm.paging import Walk

SIZES = {1 << 12: "4 KiB", 1 << 21: "2 MiB", 1 << 22: "4 MiB", 1 << 30: "1 GiB"}


def page_walk(vm: Subject, vcpu: int, gva: int) -> list[str]:
    """How `vcpu` translates linear address `gva`. Raises UsageError, PyvmmError for a vCPU that cannot be read."""
    state = whole_state_of(vm, vcpu)
    walk = state.paging.walk(vm.memory, gva)
    kind = "no paging (CR0.PG is clear)" if state.paging.kind == "none" else f"{state.paging.kind} paging"
    lines = [f"linear address {gva:#x}{place(vm, gva)}, vCPU {vcpu}: {kind}"]
    if walk.entries:
        lines.append(f"  {_split(state.paging.kind, walk)}")
    if state.paging.kind != "none":
        lines.append(f"  CR3 {state.reg('cr3'):#x}")
    indent = "  "
    for entry in walk.entries:
        lines.append(f"{indent}`- {entry.describe()}")
        indent += "   "
    return lines + [f"{indent}`- {text}" for text in _end(vm, walk)]


def _split(kind: str, walk: Walk) -> str:
    """Which bits of the address choose which of the entries that were read, and which the byte in the page."""
    parts, top = [], {"32-bit": 31, "PAE": 31, "4-level": 47, "5-level": 56}[kind]
    for level, entry in zip(LEVELS[kind], walk.entries, strict=False):
        parts.append(f"bits {top}-{level.shift} = {level.name} {entry.index}")
        top = level.shift - 1
    if walk.page_size:
        parts.append(f"bits {top}-0 = offset {walk.gva & walk.page_size - 1:#x}")
    return ", ".join(parts)


def _end(vm: Subject, walk: Walk) -> list[str]:
    if walk.gpa is None:
        return [walk.problem, *_fault(walk)]
    page = f"page of {SIZES[walk.page_size]}, {', '.join(_rights(walk))}; " if walk.page_size else ""
    return [f"{page}gpa {walk.gpa:#x}, {_what(vm, walk.gpa)}"]


def _fault(walk: Walk) -> list[str]:
    if walk.fault is None:
        return []
    bits = " ".join(name for bit, name in ((ERROR_PRESENT, "P"), (ERROR_RESERVED, "RSVD")) if walk.fault & bit)
    return [f"an access is a page fault: error code {walk.fault:#x}{f' ({bits})' if bits else ''}, + 2 W, + 4 U"]


def _rights(walk: Walk) -> list[str]:
    return [
        "writable" if walk.writable else "read-only",
        "user" if walk.user else "supervisor",
        "executable" if walk.executable else "not executable",
    ]


def _what(vm: Subject, gpa: int) -> str:
    """What answers at `gpa`."""
    if vm.memory.contains(gpa, 1):
        return "RAM"
    for base, length, device in vm.machine.mmio.placed():
        if base <= gpa < base + length:
            return f"{device.name} + {gpa - base:#x}"
    return "no RAM: an access leaves to the VMM, which has nothing there"


def page_walk_data(vm: Subject, vcpu: int, gva: int) -> dict[str, Any]:
    """The walk for programs. Raises what `page_walk` does."""
    state = whole_state_of(vm, vcpu)
    walk = state.paging.walk(vm.memory, gva)
    return {
        "vcpu": vcpu,
        "gva": hex(gva),
        "symbol": vm.symbol(gva) or None,
        "paging": state.paging.kind,
        "cr3": hex(state.reg("cr3")),
        "entries": [
            {"level": it.level, "index": it.index, "gpa": hex(it.gpa), "value": hex(it.value), "flags": it.flags}
            for it in walk.entries
        ],
        "gpa": None if walk.gpa is None else hex(walk.gpa),
        "page": walk.page_size,
        "writable": walk.writable,
        "user": walk.user,
        "executable": walk.executable,
        "what": None if walk.gpa is None else _what(vm, walk.gpa),
        "problem": walk.problem or None,
        "error_code": walk.fault,
    }
