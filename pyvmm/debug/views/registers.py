"""A vCPU's registers, all of them, by name and bit by bit.

Imports subject, bits, render and KVM's names of MSRs. Follows the Intel SDM: CR3 volume 3A, 2.5; IA32_STAR and IA32_PAT
volume 3A, 5.8.8 and 12.12.2; x87 and SSE volume 1, 8.1 and 10.2.3.
"""

from __future__ import annotations

from pyvmm.cpubits import CR4_PCIDE
from pyvmm.debug import bits, render
from pyvmm.debug.views.subject import place, state_of, vcpu_of
from pyvmm.errors import PyvmmError
from pyvmm.kvm import msrs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from pyvmm.debug.state import VcpuState
    from pyvmm.debug.views.subject import Subject

SHOWN = (
    *msrs.REPORTED, msrs.FS_BASE, msrs.GS_BASE, msrs.IA32_TSC, msrs.TSC_AUX, msrs.IA32_TSC_DEADLINE,
    msrs.IA32_MTRR_DEF_TYPE, 0x4B564D00, 0x4B564D01, 0x4B564D03, 0x12,
)  # fmt: skip
CODE_POINTERS = (msrs.LSTAR, msrs.CSTAR, 0x176)
"""MSRs that hold an address of code."""
MEMORY_TYPES = {0: "UC", 1: "WC", 4: "WT", 5: "WP", 6: "WB", 7: "UC-"}


def registers(vm: Subject, vcpu: int = 0, floating: bool = False) -> list[str]:
    """All registers of vCPU number `vcpu`; with `floating` those of the FPU and SSE too.

    What KVM does not give is left out, with its reason. Raises UsageError where there is no such vCPU.
    """
    state = state_of(vm, vcpu)
    at = vm.symbol(state.linear_rip) if state.whole else ""
    lines = list(render.state_lines(state, at))
    if not render.started(state):
        return lines
    which = vcpu_of(vm, vcpu)
    if state.control is not None:
        lines += _control(state)
    lines += _part("debug registers", lambda: _debug(which))
    lines += _part("MSRs", lambda: _msrs(vm, which))
    if floating:
        lines += _part("x87 and SSE registers", lambda: _floating(which))
    return lines


def registers_data(vm: Subject, vcpu: int = 0, floating: bool = False) -> dict[str, Any]:
    """The same for programs; a part that KVM does not give is null. Raises UsageError."""
    state = state_of(vm, vcpu)
    which = vcpu_of(vm, vcpu)
    found = render.state_dict(state, vm.symbol(state.linear_rip) if state.whole else "")
    found["debug"] = _value(lambda: {name: hex(value) for name, value in _debug_values(which).items()})
    found["msrs"] = _value(lambda: {msrs.name(index): hex(value) for index, value in _msr_values(which).items()})
    if floating:
        found["floating"] = _value(lambda: _floating_data(which))
    return found


def _part(what: str, lines: Callable[[], Iterator[str]]) -> list[str]:
    try:
        return list(lines())
    except (PyvmmError, OSError) as error:
        return [f"  {what} could not be read: {error}"]


def _value(read: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    try:
        return read()
    except (PyvmmError, OSError):
        return None


def _control(state: VcpuState) -> Iterator[str]:
    """What the names of bits do not say."""
    assert state.control is not None
    cr3, cr4, base = (state.control[name] for name in ("cr3", "cr4", "apic_base"))
    if state.paging.kind != "none":
        low = f"PCID {cr3 & 0xFFF}" if cr4 & CR4_PCIDE else bits.names(cr3 & 0x18, {3: "PWT", 4: "PCD"})
        yield f"  cr3 as a pointer: table at {state.paging.root:#x}{', ' if low else ''}{low}"
    flags = bits.names(base & 0xFFF, bits.APIC_BASE)
    yield f"  apic_base as a pointer: registers at {base & 0xF_FFFF_FFFF_F000:#x}, {flags}".rstrip(", ")


def _debug_values(vcpu: Any) -> dict[str, int]:
    found = vcpu.get_debugregs()
    values = {f"dr{number}": int(found.db[number]) for number in range(4)}
    return values | {"dr6": int(found.dr6), "dr7": int(found.dr7)}


def _debug(vcpu: Any) -> Iterator[str]:
    values = _debug_values(vcpu)
    yield "  " + "  ".join(f"{name} {values[name]:#x}" for name in ("dr0", "dr1", "dr2", "dr3"))
    # The bits that are fixed at 1 say nothing.
    yield f"  dr6  {values['dr6']:#010x}  {bits.names(values['dr6'] & 0xE00F, bits.DR6)}".rstrip()
    yield f"  dr7  {values['dr7']:#010x}  {bits.names(values['dr7'], bits.DR7, bits.DR7_UNNAMED)}".rstrip()


def _msr_values(vcpu: Any) -> dict[int, int]:
    """Each of SHOWN that KVM gives; one that it refuses would hide those behind it."""
    found: dict[int, int] = {}
    wanted = list(SHOWN)
    while wanted:
        some = vcpu.get_msrs(wanted)
        found |= some
        wanted = wanted[len(some) + 1 :]
    return found


def _msrs(vm: Subject, vcpu: Any) -> Iterator[str]:
    for index, value in _msr_values(vcpu).items():
        yield f"  {msrs.name(index):<23} {value:#018x}{_msr_words(vm, index, value)}"


def _msr_words(vm: Subject, index: int, value: int) -> str:
    words = ""
    if index == msrs.EFER:
        words = bits.names(value, bits.EFER)
    elif index == msrs.IA32_MISC_ENABLE:
        words = bits.names(value, bits.MISC_ENABLE)
    elif index == msrs.IA32_APIC_BASE:
        words = bits.names(value & 0xFFF, bits.APIC_BASE)
    elif index == msrs.SFMASK and value:
        words = f"SYSCALL clears {bits.rflags_names(value)}"
    elif index == msrs.STAR and value:
        words = f"SYSCALL loads CS {value >> 32 & 0xFFFC:#x}, SYSRET {(value >> 48) + 16 & 0xFFFF | 3:#x}"
    elif index == msrs.IA32_PAT:
        words = " ".join(MEMORY_TYPES.get(value >> at & 7, "?") for at in range(0, 64, 8))
    elif index in CODE_POINTERS and value:
        return place(vm, value)
    return f"  {words}" if words else ""


def _floating(vcpu: Any) -> Iterator[str]:
    fpu = vcpu.get_fpu()
    yield f"  fcw {int(fpu.fcw):#06x}  fsw {int(fpu.fsw):#06x}  ftw {int(fpu.ftwx):#04x} (one bit a register in use)"
    for number in range(8):
        yield f"  st{number}   {_number(fpu.fpr[number], 10):020x}"
    mxcsr = _mxcsr(vcpu)
    yield f"  mxcsr {mxcsr:#x}  {bits.names(mxcsr, bits.MXCSR, 3 << 13)}".rstrip()
    for number in range(16):
        yield f"  {f'xmm{number}':<5} {_number(fpu.xmm[number], 16):032x}"


def _mxcsr(vcpu: Any) -> int:
    """KVM_GET_FPU leaves it out: it is at byte 24 of the XSAVE area (SDM volume 1, 10.5.1)."""
    return int(vcpu.get_xsave().region[24 // 4])


def _floating_data(vcpu: Any) -> dict[str, Any]:
    fpu = vcpu.get_fpu()
    found = {name: hex(getattr(fpu, name)) for name in ("fcw", "fsw", "ftwx")} | {"mxcsr": hex(_mxcsr(vcpu))}
    found |= {f"st{number}": hex(_number(fpu.fpr[number], 10)) for number in range(8)}
    return found | {f"xmm{number}": hex(_number(fpu.xmm[number], 16)) for number in range(16)}


def _number(raw: Any, length: int) -> int:
    return int.from_bytes(bytes(raw[at] for at in range(length)), "little")
