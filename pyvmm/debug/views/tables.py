"""GDT, LDT and IDT, decoded entry by entry.

Imports subject, descriptors and the names of bits. Follows the Intel SDM volume 3A: 3.4.5 and 3.5 (segment and system
descriptors, which take two slots in IA-32e mode: 3.5.2), 6.10 to 6.14 (gates); volume 3B: 21.1.4 (real mode's vector
table).
"""

from __future__ import annotations

from pyvmm.boot.segments import Segment
from pyvmm.boot.x86 import SEGMENT_REGISTERS
from pyvmm.debug import bits, render
from pyvmm.debug.descriptors import TASK_GATE, Gate
from pyvmm.debug.views.subject import place, whole_state_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm.debug.state import VcpuState
    from pyvmm.debug.views.subject import Subject

MOST = 256
"""Entries shown of a table. A GDT may have 8,192."""
TABLE_BYTES = 1 << 16
"""A table register's limit has 16 bits; what KVM holds may be anything."""
TWO_SLOTS = (2, 9, 11, 12)
"""System descriptors that have a second slot in IA-32e mode: LDT, TSS, call gate."""
VECTORS = 256


class Rows:
    """A table's entries, as text and as JSON types: those that are not empty, `MOST` at most."""

    def __init__(self, title: str, base: int, limit: int) -> None:
        self.title = title
        self.base = base
        self.limit = limit
        self.found: list[tuple[str, dict[str, Any]]] = []
        self.empty = self.left_out = 0
        self.note = ""

    def add(self, line: str, data: dict[str, Any]) -> None:
        if len(self.found) < MOST:
            self.found.append((line, data))
        else:
            self.left_out += 1

    def lines(self) -> list[str]:
        lines = [f"{self.title}: base {self.base:#x} limit {self.limit:#x}"]
        lines += [f"  {line}" for line, _ in self.found]
        if not self.found and not self.empty and not self.note:
            lines.append("  no entry fits")
        if self.left_out:
            lines.append(f"  ... and {self.left_out} more")
        if self.empty:
            lines.append(f"  {self.empty} empty")
        return [*lines, f"  {self.note}"] if self.note else lines

    def data(self) -> dict[str, Any]:
        return {
            "base": hex(self.base),
            "limit": hex(self.limit),
            "entries": [data for _, data in self.found],
            "left_out": self.left_out,
            "empty": self.empty,
            "note": self.note or None,
        }


def descriptor_tables(vm: Subject, vcpu: int = 0) -> list[str]:
    """The tables of vCPU number `vcpu`. Raises UsageError, PyvmmError for a vCPU that cannot be read."""
    return [line for table in _tables(vm, whole_state_of(vm, vcpu)).values() for line in table.lines()]


def descriptor_tables_data(vm: Subject, vcpu: int = 0) -> dict[str, Any]:
    """The same for programs: `gdt`, `idt`, and `ldt` where there is one. Raises what `descriptor_tables` does."""
    return {name: table.data() for name, table in _tables(vm, whole_state_of(vm, vcpu)).items()}


def _tables(vm: Subject, state: VcpuState) -> dict[str, Rows]:
    if state.mode == "real":
        return {"idt": _vectors(vm, state)}
    found = {"gdt": _segments(vm, state, "GDT", state.gdt.base, state.gdt.limit, 0)}
    ldt = state.segments["ldt"]
    if not ldt.unusable and ldt.present and ldt.selector & ~3:
        found["ldt"] = _segments(vm, state, f"LDT (selector {ldt.selector:#x})", ldt.base, ldt.limit, 4)
    return found | {"idt": _gates(vm, state)}


def _read(vm: Subject, state: VcpuState, rows: Rows, most: int = TABLE_BYTES) -> bytes:
    wanted = min(rows.limit + 1, most)
    raw = state.paging.read(vm.memory, rows.base, wanted)
    if len(raw) < wanted:
        rows.note = f"from {rows.base + len(raw):#x} on it is not in mapped RAM"
    return raw


def _segments(vm: Subject, state: VcpuState, title: str, base: int, limit: int, local: int) -> Rows:
    rows = Rows(title, base, limit)
    raw = _read(vm, state, rows)
    at = 0
    while at + 8 <= len(raw):
        slot, at = at, at + 8
        value = int.from_bytes(raw[slot:at], "little")
        if not value:
            rows.empty += 1
            continue
        segment = Segment.from_descriptor(value, slot | local)
        if state.mode == "long" and not segment.s and segment.type in TWO_SLOTS:
            segment.base |= int.from_bytes(raw[at : at + 4], "little") << 32
            at += 8
        used = _used(state, slot | local)
        text = f"base {segment.base:#x} limit {segment.limit:#x}  {render.segment_text(segment)}"
        if not segment.s and segment.type & 4:  # a gate, which has no base and no limit
            gate = Gate(raw[slot : slot + 8])
            text = f"{gate.kind} to {gate.selector:#x}:{gate.offset:#x}, DPL {gate.dpl}"
            text += "" if gate.present else ", not present"
        rows.add(
            f"{slot | local:#06x}  {text}{f'  <- {used}' if used else ''}",
            {
                **render.segment_dict(segment),
                "dpl": segment.dpl,
                "present": bool(segment.present),
                "used": used.split(),
            },
        )
    return rows


def _used(state: VcpuState, selector: int) -> str:
    """The segment registers that have been loaded from it."""
    names = (name for name in SEGMENT_REGISTERS if name in state.segments)
    return " ".join(
        name.upper()
        for name in names
        if state.segments[name].selector & ~3 == selector and not state.segments[name].unusable
    )


def _gates(vm: Subject, state: VcpuState) -> Rows:
    size = 16 if state.mode == "long" else 8
    rows = Rows("IDT", state.idt.base, state.idt.limit)
    raw = _read(vm, state, rows, VECTORS * size)
    for vector in range(len(raw) // size):
        entry = raw[vector * size : (vector + 1) * size]
        if not any(entry):
            rows.empty += 1
            continue
        gate = Gate(entry)
        where = f"{gate.selector:#x}" + ("" if gate.type == TASK_GATE else f":{gate.offset:#x}")
        parts = [f"DPL {gate.dpl}", f"IST {gate.ist}" if gate.ist else "", "" if gate.present else "not present"]
        at = "" if gate.type == TASK_GATE else place(vm, gate.offset)
        kind = gate.kind if gate.is_gate else f"no gate: {gate.kind}"
        rows.add(
            f"{_vector(vector)}{where}{at}  {kind}, {', '.join(filter(None, parts))}",
            {
                "vector": vector,
                "name": bits.exception_name(vector),
                "type": kind,
                "selector": hex(gate.selector),
                "offset": hex(gate.offset),
                "symbol": vm.symbol(gate.offset) or None,
                "dpl": gate.dpl,
                "ist": gate.ist,
                "present": gate.present,
            },
        )
    return rows


def _vectors(vm: Subject, state: VcpuState) -> Rows:
    rows = Rows("interrupt vectors of real mode", state.idt.base, state.idt.limit)
    raw = _read(vm, state, rows, VECTORS * 4)
    for vector in range(len(raw) // 4):
        offset, segment = (int.from_bytes(raw[at : at + 2], "little") for at in (vector * 4, vector * 4 + 2))
        if not offset and not segment:
            rows.empty += 1
            continue
        rows.add(
            f"{_vector(vector)}{segment:04x}:{offset:04x}",
            {"vector": vector, "name": bits.exception_name(vector), "selector": hex(segment), "offset": hex(offset)},
        )
    return rows


def _vector(vector: int) -> str:
    name = bits.EXCEPTIONS.get(vector, "")
    return f"{vector:3} {name:<25} "
