"""All that KVM knows of a vCPU and of a VM, as plain values, and back: what a snapshot has of them.

Imports its neighbours in kvm/ and state. KVM API document (Documentation/virt/kvm/api.rst), section 4. Structures are
saved as the bytes that the kernel has in them: their layout is its ABI, and their sizes are checked.

The vCPUs stand still, each with its last instruction completed (see `runloop`). What follows the order of the calls:

    saving     the MP state comes first, since asking for it has KVM work off an INIT or SIPI that waits; MSRs come
               behind the registers, so that the time stamp counter is read last
    restoring  CPUID decides which bits there are. Special registers have the APIC base and the mode, without which the
               local APIC cannot be set, and MSRs come behind that, because a TSC deadline counts only in an APIC whose
               timer is in that mode, and only beside the right time stamp counter. Events come last: the other calls
               drop them
"""

from __future__ import annotations

from pyvmm.errors import KvmError
from pyvmm.kvm.constants import (
    KVM_CAP_SREGS2,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
)
from pyvmm.kvm.entries import CpuidEntry
from pyvmm.kvm.msrs import IA32_TSC, IA32_TSC_DEADLINE, name
from pyvmm.kvm.native import ffi
from pyvmm.layout import IOAPIC_PINS
from pyvmm.state import U32, U64, Bytes, Number, Pair, Several, StateError, judged

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.state import Kind

CHIPS = {"pic": KVM_IRQCHIP_PIC_MASTER, "pic2": KVM_IRQCHIP_PIC_SLAVE, "ioapic": KVM_IRQCHIP_IOAPIC}
LARGEST = 1 << 20
"""Bytes of one structure at most, the XSAVE area among them."""
MOST_MSRS, MOST_LEAVES = 4096, 1024
_STRUCTURE = Bytes(limit=LARGEST)
_VCPU: dict[str, Kind] = {
    "mp_state": Number(255),
    "cpuid": Several(Several(U32, 7, exact=True), MOST_LEAVES),
    **dict.fromkeys(("regs", "sregs", "xsave", "xcrs", "debugregs", "lapic", "events"), _STRUCTURE),
    "msrs": Several(Pair(U32, U64), MOST_MSRS),
}
_VM: dict[str, Kind] = {**dict.fromkeys((*CHIPS, "pit"), _STRUCTURE), "clock": U64}
_CPUID = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")


def _bytes(structure: Any) -> str:
    return bytes(ffi.buffer(structure)).hex()


def _fill(structure: Any, data: bytes, what: str) -> Any:
    """`structure` with `data` in it. Raises StateError unless it has as many bytes."""
    with memoryview(ffi.buffer(structure)) as target:
        if len(target) != len(data):
            raise StateError(f"{what} has {len(data)} bytes (expected {len(target)} on this host)")
        target[:] = data
    return structure


# --- A vCPU --------------------------------------------------------------------------------------------------------


def save_vcpu(vcpu: VcpuFd, msrs: Iterable[int], cpuid: Iterable[CpuidEntry]) -> dict[str, Any]:
    """The state of `vcpu`: `msrs` are those that make up one (Kvm.msr_index_list), `cpuid` is what it was given.

    Raises KvmError.
    """
    sregs2 = vcpu.vm.check_extension(KVM_CAP_SREGS2)
    return {
        "mp_state": vcpu.get_mp_state(),
        "cpuid": [[getattr(entry, field) for field in _CPUID] for entry in cpuid],
        "regs": _bytes(vcpu.get_regs()),
        "sregs": _bytes(vcpu.get_sregs2() if sregs2 else vcpu.get_sregs()),
        "xsave": _bytes(vcpu.get_xsave()),
        "xcrs": _bytes(vcpu.get_xcrs()),
        "debugregs": _bytes(vcpu.get_debugregs()),
        "lapic": _bytes(vcpu.get_lapic()),
        "msrs": [[index, value] for index, value in _read_msrs(vcpu, list(msrs)).items()],
        "events": _bytes(vcpu.get_vcpu_events()),
    }


def _read_msrs(vcpu: VcpuFd, wanted: list[int]) -> dict[int, int]:
    """Those of `wanted` that KVM gives: the list has some that only other processors have (4.3)."""
    found: dict[int, int] = {}
    while wanted:
        values = vcpu.get_msrs(wanted)
        found |= values
        del wanted[: len(values) + 1]  # the one behind is refused
    return found


def judge_vcpu(state: Any, what: str) -> dict[str, Any]:
    """`state` of a vCPU, as `restore_vcpu` wants it. Raises StateError."""
    return judged(what, state, _VCPU)


def cpuid_of(state: dict[str, Any]) -> list[CpuidEntry]:
    """What the vCPU's CPUID instruction answers, from what `judge_vcpu` gave."""
    return [CpuidEntry(*row) for row in state["cpuid"]]


def restore_vcpu(vcpu: VcpuFd, state: dict[str, Any]) -> None:
    """Be as `judge_vcpu` found `state`. `vcpu` has just been made. Raises StateError, KvmError."""
    what = f"vCPU {vcpu.index}"
    vcpu.set_cpuid2(cpuid_of(state))
    vcpu.set_mp_state(state["mp_state"])
    vcpu.set_regs(_fill(vcpu.get_regs(), state["regs"], f"{what}: regs"))
    if vcpu.vm.check_extension(KVM_CAP_SREGS2):
        vcpu.set_sregs2(_fill(vcpu.get_sregs2(), state["sregs"], f"{what}: sregs"))
    else:
        vcpu.set_sregs(_fill(vcpu.get_sregs(), state["sregs"], f"{what}: sregs"))
    vcpu.set_xsave(_fill(vcpu.get_xsave(), state["xsave"], f"{what}: xsave"))
    vcpu.set_xcrs(_fill(vcpu.get_xcrs(), state["xcrs"], f"{what}: xcrs"))
    vcpu.set_debugregs(_fill(vcpu.get_debugregs(), state["debugregs"], f"{what}: debugregs"))
    vcpu.set_lapic(_fill(vcpu.get_lapic(), state["lapic"], f"{what}: lapic"))
    _write_msrs(vcpu, state["msrs"], what)
    vcpu.set_vcpu_events(_fill(vcpu.get_vcpu_events(), state["events"], f"{what}: events"))


def _write_msrs(vcpu: VcpuFd, msrs: Sequence[tuple[int, int]], what: str) -> None:
    """Set `msrs`, those that count time last. One that KVM refuses may stay as it is if it has the value already."""
    order = {IA32_TSC: 1, IA32_TSC_DEADLINE: 2}
    left = sorted(msrs, key=lambda msr: order.get(msr[0], 0))
    while left:
        try:
            vcpu.set_msrs(dict(left))
            return
        except ValueError as error:
            refused = next((at for at, (index, _) in enumerate(left) if f"MSR {index:#x}" in str(error)), None)
            if refused is None:
                raise
            index, value = left[refused]
            if vcpu.get_msrs([index]).get(index) != value:
                raise StateError(f"{what}: this host's KVM refuses {value:#x} for {name(index)}") from None
            del left[: refused + 1]


# --- A VM ----------------------------------------------------------------------------------------------------------


def save_vm(vm: VmFd) -> dict[str, Any]:
    """The interrupt controllers, the PIT and the clock of `vm`. Raises KvmError."""
    chips = {which: _bytes(vm.get_irqchip(chip)) for which, chip in CHIPS.items()}
    return {**chips, "pit": _bytes(vm.get_pit2()), "clock": int(vm.get_clock().clock)}


def judge_vm(state: Any) -> dict[str, Any]:
    """`state` of a VM, as `restore_vm` wants it. Raises StateError."""
    return judged("VM", state, _VM)


def restore_vm(vm: VmFd, state: dict[str, Any]) -> None:
    """Be as `judge_vm` found `state`; the vCPUs have been restored. Raises StateError, KvmError.

    The chips come behind the local APICs: what waits in the I/O APIC is delivered again. Then every line is low, and
    the devices that hold theirs up raise it again. One that stayed up, as of a pulse that was saved between its two
    edges, would swallow the next pulse.
    """
    high = 0
    for which, chip in CHIPS.items():
        saved = _fill(vm.get_irqchip(chip), state[which], f"VM: {which}")
        if saved.chip_id != chip:
            raise StateError(f"VM: {which} is the state of another chip")
        vm.set_irqchip(saved)
        high |= saved.chip.ioapic.irr if which == "ioapic" else saved.chip.pic.last_irr << 8 * (which == "pic2")
    for gsi in range(IOAPIC_PINS):
        if high >> gsi & 1:
            vm.irq_line(gsi, False)
    vm.set_pit2(_fill(vm.get_pit2(), state["pit"], "VM: pit"))
    vm.set_clock(ffi.new("struct kvm_clock_data *", {"clock": state["clock"]}))


def tell_stopped(vcpus: Iterable[VcpuFd]) -> None:
    """Tell guests with kvmclock that they were stopped, so that their watchdogs stay calm (4.70)."""
    for vcpu in vcpus:
        try:
            vcpu.kvmclock_ctrl()
        except KvmError:
            return  # EINVAL: it does not use kvmclock
