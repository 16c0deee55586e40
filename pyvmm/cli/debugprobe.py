"""What of debugging this host's KVM can do, tried out with guests of a few bytes: a part of `pyvmm doctor`.

May import probe and kvm. What the gdb stub relies on is in `kvm/host.py`; a test holds the two together. KVM API, 4.87
(KVM_SET_GUEST_DEBUG); debug registers: Intel SDM volume 3B, 18.2.
"""

from __future__ import annotations

from pyvmm.cli.probe import CODE, STACK, probe_guest
from pyvmm.kvm.constants import (
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
)
from pyvmm.kvm.exits import KVM_INTERNAL_ERROR_EMULATION, Debug, InternalError
from pyvmm.kvm.host import INT3, Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm.kvm.exits import Exit
    from pyvmm.kvm.vcpu import VcpuFd

RINGS = (0, 3)
DATA = STACK
"""What the guest writes to."""
# 64-bit code; the comments are its assembly.
STORE = bytes.fromhex(
    "90"  # nop
    "88 03"  # mov %al, (%rbx)
    "90"  # nop
    "ee"  # out %al, (%dx)
)
LEFT = bytes.fromhex("90 ee")  # nop; out %al, (%dx), behind what is planted
HIT_0 = 1 << 0
"""In DR6: the condition of DR0."""
DR7 = 1 << 10 | 1 << 9 | 1 << 1
"""Bit 10 is always 1; GE and G0."""
WRITES = 0b01 << 16
"""R/W0: data writes, of one byte."""


def abilities() -> dict[str, list[int]]:
    """For each of DebugAbilities' rings: those in which it works. Raises KvmUnavailableError, KvmError."""
    trap = Host().debug.trap
    hardware = KVM_GUESTDBG_USE_HW_BP
    return {
        "step": _rings(STORE, KVM_GUESTDBG_SINGLESTEP, (), lambda exit, _: _debug(exit, CODE + 1)),
        "hardware": _rings(STORE, hardware, _registers(CODE + 1, DR7), lambda exit, _: _debug(exit, CODE + 1, HIT_0)),
        "watch": _rings(STORE, hardware, _registers(DATA, DR7 | WRITES), lambda exit, _: _debug(exit, CODE + 3, HIT_0)),
        "planted": _rings(bytes([trap]) + LEFT, KVM_GUESTDBG_USE_SW_BP if trap == INT3 else 0, (), _trapped),
    }


def _rings(code: bytes, control: int, registers: Sequence[int], hit: Callable[[Exit, VcpuFd], bool]) -> list[int]:
    found = []
    for ring in RINGS:
        with probe_guest(code, ring, DATA) as vcpu:
            if control:
                vcpu.guest_debug(control | KVM_GUESTDBG_ENABLE, registers)
            if hit(vcpu.run(), vcpu):
                found.append(ring)
    return found


def _registers(address: int, dr7: int) -> list[int]:
    return [address, 0, 0, 0, 0, 0, 0, dr7]


def _debug(exit: Exit, pc: int, cause: int = 0) -> bool:
    return isinstance(exit, Debug) and exit.pc == pc and exit.dr6 & cause == cause


def _trapped(exit: Exit, vcpu: VcpuFd) -> bool:
    if isinstance(exit, InternalError):
        return exit.suberror == KVM_INTERNAL_ERROR_EMULATION and vcpu.get_regs().rip == CODE
    return isinstance(exit, Debug) and exit.pc == CODE
