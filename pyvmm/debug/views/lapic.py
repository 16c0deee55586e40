"""The local APIC of a vCPU, which is KVM's own: its registers by name, the vectors that it holds, its timer.

Imports subject, render, the names of its registers and KVM's of MSRs. Follows the Intel SDM volume 3A, chapter 11:
11.4 (registers), 11.5.4 (timer), 11.8.4 (IRR, ISR, TMR), 11.12 (x2APIC). KVM tells of it as its page (KVM API, 4.57).
"""

from __future__ import annotations

from pyvmm.debug import render
from pyvmm.debug.chips import APIC, APIC_VECTORS
from pyvmm.debug.views.subject import of_kvm, state_of, vcpu_of
from pyvmm.debug.wakeups import LVT_DEADLINE, LVT_PERIODIC, LVT_TIMER_MODE, SVR_ENABLED
from pyvmm.errors import KvmError
from pyvmm.kvm.msrs import IA32_TSC, IA32_TSC_DEADLINE
from pyvmm.registers import Register

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pyvmm.debug.views.subject import Subject

BASE_X2APIC, BASE_ENABLED = 1 << 10, 1 << 11
ADDRESS = 0xF_FFFF_FFFF_F000
"""In IA32_APIC_BASE (SDM volume 3A, 11.4.4 and 11.12.1)."""
CMCI_ENTRY = 6
"""The "Max LVT entry" of a local APIC that has LVT_CMCI (SDM volume 3A, 11.4.8)."""
WHOLE = {
    register.name: Register(register.name, register.offset, f"SDM volume 3A, {section}", width=4)
    for register, section in ((APIC["LDR"], "11.12.10.2"), (APIC["ICR_HIGH"], "11.12.9"))
}
"""Those that are an ID of 32 bits in x2APIC mode, which has no DFR."""
TIMER_HZ = 1_000_000_000
"""What KVM's timer counts, before it is divided (Linux, arch/x86/kvm/lapic.h, APIC_BUS_CYCLE_NS)."""
PER_LINE = 16
"""Vectors, or ranges of them."""


class Apic:
    """The local APIC of `vcpu`; `base` is its IA32_APIC_BASE, None where that cannot be read. Raises KvmError."""

    __slots__ = ("_raw", "base")

    def __init__(self, vcpu: Any, base: int | None) -> None:
        self._raw = bytes(vcpu.get_lapic().regs)
        self.base = base

    def at(self, offset: int) -> int:
        """The 32 bits there."""
        return int.from_bytes(self._raw[offset : offset + 4], "little")

    def __getitem__(self, name: str) -> int:
        return self.at(APIC[name].offset)

    @property
    def mode(self) -> str:
        """By IA32_APIC_BASE (SDM volume 3A, 11.12.1)."""
        if self.base is None:
            return "unknown"
        if not self.base & BASE_ENABLED:
            return "disabled"
        return "x2APIC" if self.base & BASE_X2APIC else "xAPIC"

    @property
    def enabled(self) -> bool:
        """By software; else all its LVT entries stay masked (SDM volume 3A, 11.4.7.2)."""
        return bool(self["SVR"] & SVR_ENABLED)

    def registers(self) -> Iterator[tuple[Register, int]]:
        """Those that there are."""
        x2apic = self.mode == "x2APIC"
        for register in APIC:
            name, value = register.name, self.at(register.offset)
            if (name == "DFR" and x2apic) or (name == "LVT_CMCI" and self["VERSION"] >> 16 & 0xFF < CMCI_ENTRY):
                continue
            yield WHOLE.get(name, register) if x2apic else register, value

    def vectors(self, name: str) -> list[int]:
        """The vectors in IRR, ISR or TMR."""
        bits = sum(self.at(APIC_VECTORS[name] + 16 * part) << 32 * part for part in range(8))
        return [vector for vector in range(256) if bits >> vector & 1]

    @property
    def divisor(self) -> int:
        """Of the timer's clock: 1 to 128."""
        bits = self["TIMER_DIVIDE"]
        return 1 << ((bits & 3 | bits >> 1 & 4) + 1) % 8


def lapic(vm: Subject, vcpu: int = 0) -> list[str]:
    """The local APIC of vCPU number `vcpu`: a line for each register, then vectors and timer.

    Raises UsageError where there is no such vCPU.
    """
    apic, why = _apic(vm, vcpu)
    if apic is None:
        return [why]
    at = "" if apic.base is None else f" at {apic.base & ADDRESS:#x}"
    software = "" if apic.enabled else ", switched off in SVR"
    lines = [f"local APIC of vCPU {vcpu}{at}: mode {apic.mode}{software}"]
    lines += [f"  {register.describe(value)}" for register, value in apic.registers()]
    for name in APIC_VECTORS:
        found = render.ranges(apic.vectors(name), hex) or ["none"]
        rows = [", ".join(found[at : at + PER_LINE]) for at in range(0, len(found), PER_LINE)]
        lines += [f"  vectors in {name}: {rows[0]}", *(f"    {row}" for row in rows[1:])]
    return [*lines, f"  timer: {_timer(apic, vm.vcpus[vcpu])}"]


def lapic_data(vm: Subject, vcpu: int = 0) -> dict[str, Any] | None:
    """The same for programs; null where KVM does not give it. Raises UsageError."""
    apic, _ = _apic(vm, vcpu)
    if apic is None:
        return None
    deadline = _deadline(vm.vcpus[vcpu])[0] if apic["LVT_TIMER"] & LVT_TIMER_MODE == LVT_DEADLINE else None
    return {
        "vcpu": vcpu,
        "base": None if apic.base is None else hex(apic.base & ADDRESS),
        "mode": apic.mode,
        "enabled": apic.enabled,
        "registers": [render.register_dict(register, value) for register, value in apic.registers()],
        **{name.lower(): apic.vectors(name) for name in APIC_VECTORS},
        "timer": {
            "initial": apic["TIMER_INITIAL"],
            "current": apic["TIMER_CURRENT"],
            "divisor": apic.divisor,
            "deadline": None if deadline is None else hex(deadline),
        },
    }


def _apic(vm: Subject, vcpu: int) -> tuple[Apic | None, str]:
    which, control = vcpu_of(vm, vcpu), state_of(vm, vcpu).control
    return of_kvm(f"local APIC of vCPU {vcpu}", Apic, which, None if control is None else control["apic_base"])


def _timer(apic: Apic, vcpu: Any) -> str:
    mode = apic["LVT_TIMER"] & LVT_TIMER_MODE
    if mode == LVT_DEADLINE:
        deadline, now = _deadline(vcpu)
        if not deadline:
            return "no deadline" if deadline == 0 else "its deadline could not be read"
        return f"at TSC {deadline:#x}" + ("" if now is None else f", which is {now:#x} now")
    if not apic["TIMER_INITIAL"]:
        return "stopped"
    period, left = (_span(apic[name] * apic.divisor) for name in ("TIMER_INITIAL", "TIMER_CURRENT"))
    if mode == LVT_PERIODIC:
        return f"every {period}, {left} left"
    return f"once after {period}, " + (f"{left} left" if apic["TIMER_CURRENT"] else "which are over")


def _deadline(vcpu: Any) -> tuple[int | None, int | None]:
    """The deadline, 0 for none, and the TSC; None for what KVM does not give."""
    try:
        found = vcpu.get_msrs([IA32_TSC_DEADLINE, IA32_TSC])
    except KvmError:
        return None, None
    return found.get(IA32_TSC_DEADLINE), found.get(IA32_TSC)


def _span(cycles: int) -> str:
    """How long the timer takes for them, undivided."""
    seconds = cycles / TIMER_HZ
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= length:
            return f"{seconds / length:.4g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
