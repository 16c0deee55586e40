"""The rules that a processor holds a guest's state against when it enters it.

Imports state and boot. Follows the Intel SDM volume 3C, 27.3.1 ("Checks on the guest state area"): 27.3.1.1 control
registers, 27.3.1.2 segment registers, 27.3.1.3 descriptor-table registers, 27.3.1.4 RIP and RFLAGS. Only rules that
KVM's register ioctls let a user of KVM break are here, and where a rule depends on whether the processor can run
real mode ("unrestricted guest") the milder form is taken.
"""

from __future__ import annotations

from pyvmm.boot.segments import Segment
from pyvmm.cpubits import (
    CR0_CD,
    CR0_NW,
    CR0_PE,
    CR0_PG,
    CR3_LAM,
    CR4_LA57,
    CR4_PAE,
    CR4_PCIDE,
    EFER_LMA,
    EFER_LME,
    RFLAGS_MUST_BE_0,
    RFLAGS_RESERVED,
    RFLAGS_VM,
)
from pyvmm.debug.state import VcpuState

CODE, READABLE_OR_WRITABLE, ACCESSED = 8, 2, 1
"""Bits of a code or data segment's type (SDM volume 3A, 3.4.5.1)."""


def invalid_guest_state(state: VcpuState) -> list[str]:
    """Every rule of VM entry that `state` (which is `whole`) breaks, one phrase each."""
    return [*_control(state), *_segments(state), *_tables(state), *_flow(state)]


def _control(state: VcpuState) -> list[str]:
    cr0, cr4, efer = state.reg("cr0"), state.reg("cr4"), state.reg("efer")
    rules = (
        (cr0 & CR0_PG and not cr0 & CR0_PE, "CR0.PG is set without CR0.PE"),
        (cr0 & CR0_NW and not cr0 & CR0_CD, "CR0.NW is set without CR0.CD"),
        (efer & EFER_LMA and not cr4 & CR4_PAE, "EFER.LMA is set without CR4.PAE"),
        (efer & EFER_LMA and not cr0 & CR0_PG, "EFER.LMA is set without CR0.PG"),
        (bool(efer & EFER_LMA) != bool(efer & EFER_LME and cr0 & CR0_PG), "EFER.LMA is not LME and CR0.PG"),
        (cr4 & CR4_PCIDE and not efer & EFER_LMA, "CR4.PCIDE is set outside IA-32e mode"),
        ((state.reg("cr3") & ~CR3_LAM) >> 52, "CR3 has bits set above 51"),
    )
    return [text for broken, text in rules if broken]


def _segments(state: VcpuState) -> list[str]:
    problems: list[str] = []
    virtual_8086 = bool(state.reg("rflags") & RFLAGS_VM)
    for name in ("cs", "ss", "ds", "es", "fs", "gs"):
        segment = state.segments[name]
        if virtual_8086:
            if segment.base != segment.selector << 4 or segment.limit != 0xFFFF:
                problems.append(f"{name.upper()} is not a segment of virtual-8086 mode")
        elif name == "cs" or not segment.unusable:
            problems += [f"{name.upper()} {text}" for text in _segment(name, segment, state)]
    return problems + _system_segments(state)


def _segment(name: str, segment: Segment, state: VcpuState) -> list[str]:
    code = segment.type & CODE
    # A real-mode CS is read/write data (type 3) where the processor runs real mode itself.
    kinds = {
        "cs": segment.type in (9, 11, 13, 15) or (segment.type == 3 and segment.dpl == 0),
        "ss": segment.type in (3, 7),
    }
    good = kinds.get(name, segment.type & ACCESSED and (not code or segment.type & READABLE_OR_WRITABLE))
    rules = (
        (not segment.s, "is a system segment"),
        (segment.s and not good, f"has type {segment.type}, which it may not have"),
        (not segment.present, "is not present"),
        (name == "cs" and segment.l and segment.db and state.reg("efer") & EFER_LMA, "has both L and D set"),
        (segment.limit & 0xFFF != 0xFFF and segment.g, "counts in pages (G), but its limit does not end on one"),
        (segment.limit >> 20 and not segment.g, "has a limit over 1 MiB without G"),
        (name in ("cs", "ss", "ds", "es") and segment.base >> 32, "has a base over 32 bits"),
    )
    return [text for broken, text in rules if broken]


def _system_segments(state: VcpuState) -> list[str]:
    tr, ldt = state.segments["tr"], state.segments["ldt"]
    long = state.reg("efer") & EFER_LMA
    rules = (
        (tr.unusable, "TR is unusable"),
        (tr.type != 11 and (long or tr.type != 3), f"TR has type {tr.type}, not that of a busy TSS"),
        (tr.s, "TR is no system segment"),
        (not tr.present, "TR is not present"),
        (not ldt.unusable and (ldt.type != 2 or ldt.s), f"LDTR has type {ldt.type}, not that of an LDT"),
        (not ldt.unusable and not ldt.present, "LDTR is not present"),
    )
    return [text for broken, text in rules if broken]


def _tables(state: VcpuState) -> list[str]:
    problems = []
    width = 57 if state.reg("cr4") & CR4_LA57 else 48
    for name, table in (("GDTR", state.gdt), ("IDTR", state.idt)):
        if table.limit >> 16:
            problems.append(f"{name} has a limit over 16 bits")
        if table.base >> width - 1 not in (0, (1 << 65 - width) - 1):
            problems.append(f"{name} has a base that is not canonical")
    return problems


def _flow(state: VcpuState) -> list[str]:
    rip, rflags, efer = state.reg("rip"), state.reg("rflags"), state.reg("efer")
    rules = (
        (not rflags & RFLAGS_RESERVED, "RFLAGS bit 1 is clear"),
        (rflags & RFLAGS_MUST_BE_0, f"RFLAGS has reserved bits set ({rflags & RFLAGS_MUST_BE_0:#x})"),
        (rflags & RFLAGS_VM and efer & EFER_LMA, "RFLAGS.VM is set in IA-32e mode"),
        (rflags & RFLAGS_VM and not state.reg("cr0") & CR0_PE, "RFLAGS.VM is set without CR0.PE"),
        (state.code_bits != 64 and rip >> 32, "RIP is over 32 bits outside 64-bit mode"),
    )
    return [text for broken, text in rules if broken]
