"""What could still wake a guest that has halted with interrupts on: a timer, a device's line, input.

Imports KVM's constants. Follows the Intel SDM volume 3A: 11.4 and 11.5 (local APIC, LVT and timer), the 82093AA data
sheet, 3.2.4 (IOAPIC redirection entries), the 8259A data sheet (mask register) and the 8254's (modes). When in doubt
something is armed: a guest may be called stuck only where nothing can come any more.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.kvm.constants import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from pyvmm.kvm.msrs import IA32_TSC_DEADLINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    class Interrupted(Protocol):
        """A vCPU with a local APIC; `pyvmm.kvm.VcpuFd` is one."""

        def get_lapic(self) -> Any: ...

        def get_msrs(self, indices: list[int]) -> dict[int, int]: ...

    class Chips(Protocol):
        """The VM's interrupt controllers and its PIT; `pyvmm.kvm.VmFd` has them."""

        def get_irqchip(self, chip: int) -> Any: ...

        def get_pit2(self) -> Any: ...


IRR, SVR, LVT_TIMER, LVT_LINT0 = 0x200, 0x0F0, 0x320, 0x350
TIMER_INITIAL, TIMER_CURRENT = 0x380, 0x390
"""Offsets of the local APIC's registers (SDM volume 3A, table 11-1)."""
SVR_ENABLED = 1 << 8
LVT_MASKED = 1 << 16
LVT_PERIODIC, LVT_DEADLINE = 1 << 17, 2 << 17
LVT_TIMER_MODE = 3 << 17
REDIRECTION_MASKED = 1 << 16
PIT_LINES = (0, 2)
"""Pins of the IOAPIC that the PIT may be on: 0 as KVM routes it, 2 as PCs wire it."""
PIT_UNSET = 0xFF
"""KVM's mode of a PIT channel that nobody has programmed."""
PIT_LONGEST = 0x10000
"""What a count of 0 is. With such a one-shot Linux leaves a PIT that it wants no more of (its pit_shutdown)."""
PIT_PERIODIC = (2, 3, 6, 7)
"""Rate generator and square wave; 6 and 7 are the same (8254 data sheet, "Mode Definitions")."""


def armed(vcpu: Interrupted, chips: Chips, lines: Mapping[int, bool]) -> tuple[str, ...]:
    """What may wake a halted `vcpu`, a phrase each; empty if nothing can.

    `lines` says of each device's interrupt line whether that device would raise it if something happened. Lines that
    are not in it count as soon as the guest has unmasked them at the IOAPIC. Raises KvmError.
    """
    apic = bytes(vcpu.get_lapic().regs)
    found = []
    if any(_register(apic, IRR + 16 * at) for at in range(8)):
        found.append("an interrupt that is pending")
    if _register(apic, SVR) & SVR_ENABLED and _timer(vcpu, apic):
        found.append("the local APIC's timer")
    open_lines = _open_lines(chips, apic)
    if any(at in open_lines for at in PIT_LINES) and _pit(chips.get_pit2().channels[0]):
        found.append("the PIT")
    for line in sorted(open_lines):
        if line in lines:
            if lines[line]:
                found.append("serial input" if line == layout.SERIAL_IRQ else f"interrupt line {line}")
        elif open_lines[line] and line not in PIT_LINES:
            found.append(f"interrupt line {line}")
    return tuple(found)


def _register(apic: bytes, offset: int) -> int:
    return int.from_bytes(apic[offset : offset + 4], "little")


def _timer(vcpu: Interrupted, apic: bytes) -> bool:
    entry = _register(apic, LVT_TIMER)
    if entry & LVT_MASKED:
        return False
    mode = entry & LVT_TIMER_MODE
    if mode == LVT_DEADLINE:
        return vcpu.get_msrs([IA32_TSC_DEADLINE]).get(IA32_TSC_DEADLINE, 1) != 0
    if mode == LVT_PERIODIC:
        return _register(apic, TIMER_INITIAL) != 0
    return _register(apic, TIMER_CURRENT) != 0


def _open_lines(chips: Chips, apic: bytes) -> dict[int, bool]:
    """Lines that reach a processor, and of each whether by the IOAPIC, whose pins are masked until a guest wants one.

    The PICs reach the boot processor through its LINT0, or past a local APIC that is switched off.
    """
    found: dict[int, bool] = {}
    if not _register(apic, SVR) & SVR_ENABLED or not _register(apic, LVT_LINT0) & LVT_MASKED:
        for chip, first in ((KVM_IRQCHIP_PIC_MASTER, 0), (KVM_IRQCHIP_PIC_SLAVE, 8)):
            mask = chips.get_irqchip(chip).chip.pic.imr
            found.update((first + at, False) for at in range(8) if not mask >> at & 1)
    pins = chips.get_irqchip(KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl
    found.update((at, True) for at, entry in enumerate(pins) if not entry & REDIRECTION_MASKED)
    return found


def _pit(channel: Any) -> bool:
    """Whether channel 0 may still have an edge to give.

    KVM tells neither when a one-shot began nor whether it is over: the time in the structure is that of the other
    channels (Linux, arch/x86/kvm/i8254.c, pit_load_count).
    """
    mode = int(channel.mode)
    if mode == PIT_UNSET:
        return False
    return mode in PIT_PERIODIC or int(channel.count) != PIT_LONGEST
