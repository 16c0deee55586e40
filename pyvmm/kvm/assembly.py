"""Making a VM and its vCPUs: the ioctls in the order that KVM wants, up to the first instruction.

Imports its neighbours in kvm/ and layout. KVM API document (Documentation/virt/kvm/api.rst), section 4.
"""

from __future__ import annotations

from pyvmm import layout
from pyvmm.kvm.constants import (
    KVM_CAP_EXIT_ON_EMULATION_FAILURE,
    KVM_CAP_TSC_DEADLINE_TIMER,
    KVM_PIT_SPEAKER_DUMMY,
)
from pyvmm.kvm.cpufeatures import parse_cpu
from pyvmm.kvm.cpuid import select_features, with_topology
from pyvmm.kvm.msrs import IA32_MISC_ENABLE, initial_msrs
from pyvmm.kvm.setup import apply_state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.kvm.entries import CpuidEntry
    from pyvmm.kvm.setup import CpuState
    from pyvmm.kvm.system import Kvm
    from pyvmm.kvm.vcpu import VcpuFd
    from pyvmm.kvm.vm import VmFd
    from pyvmm.memory import Region

REQUIRED = (0, 3, 4, 7, 14, 25, 32, 33, 36, 37, 136)
"""The numbers of what caps.py says that every run needs: to ask for these takes nothing of that table."""

LVT_LINT0 = 0x350
LVT_LINT1 = 0x360
"""Offsets of the local APIC's registers for its two pins (Intel SDM volume 3A, table 11-1)."""
LVT_DELIVERY_NMI = 0b100 << 8
LVT_DELIVERY_EXTINT = 0b111 << 8
LVT_MASKED = 1 << 16
"""Delivery modes and the mask bit of an LVT entry (SDM volume 3A, figure 11-8)."""


def create_vm(kvm: Kvm) -> VmFd:
    """A VM with in-kernel interrupt controllers and PIT; neither RAM nor a vCPU yet.

    Raises KvmUnavailableError where KVM lacks what every run needs, KvmError where an ioctl fails.
    """
    if not all(map(kvm.check_extension, REQUIRED)):
        from pyvmm.kvm.caps import check_required

        check_required(kvm)
    vm = kvm.create_vm()
    try:
        # Before any vCPU: where an Intel host without unrestricted guest keeps its real-mode crutches (4.35, 4.64).
        vm.set_identity_map_addr(layout.KVM_IDENTITY_MAP)
        vm.set_tss_addr(layout.KVM_TSS)
        vm.create_irqchip()
        vm.create_pit2(KVM_PIT_SPEAKER_DUMMY)
        if vm.check_extension(KVM_CAP_EXIT_ON_EMULATION_FAILURE):
            vm.enable_cap(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)
    except BaseException:
        vm.close()
        raise
    return vm


def add_memory(vm: VmFd, regions: Iterable[Region]) -> None:
    """Let `regions` be the RAM of `vm`. Raises KvmError. The first one can take KVM milliseconds, which it waits."""
    for region in regions:
        vm.set_user_memory_region(region.slot, region.gpa, region.view)


def create_vcpus(
    kvm: Kvm, vm: VmFd, count: int, cpu: str, without: Iterable[str], boot: CpuState
) -> tuple[VcpuFd, ...]:
    """`count` vCPUs of `vm`: the first in state `boot`, the others waiting for INIT and SIPI.

    `cpu` names the features as on the command line; those in `without` are shown only if it asks for them. The vCPUs
    are closed with `vm`. Raises UsageError for a feature that is not there, KvmError where an ioctl fails.
    """
    vcpus = []
    for index, cpuid in enumerate(guest_cpuid(kvm, vm, count, cpu, without)):
        vcpu = vm.create_vcpu(index)
        vcpus.append(vcpu)
        vcpu.set_cpuid2(cpuid)
        vcpu.set_msrs(dict(initial_msrs(vcpu.get_msrs([IA32_MISC_ENABLE])[IA32_MISC_ENABLE])))
    _wire_local_apic(vcpus[0])
    apply_state(vcpus[0], boot)
    return tuple(vcpus)


def guest_cpuid(kvm: Kvm, vm: VmFd, count: int, cpu: str, without: Iterable[str]) -> list[list[CpuidEntry]]:
    """What the CPUID instruction shall answer on each of `count` vCPUs; see `create_vcpus`.

    What KVM_GET_CPUID2 gives afterwards may be more: it has what KVM adds, on some hosts features that nobody wants.
    """
    features = select_features(
        kvm.supported_cpuid(),
        parse_cpu(cpu),
        without=without,
        tsc_deadline=bool(vm.check_extension(KVM_CAP_TSC_DEADLINE_TIMER)),
    )
    return [with_topology(features, index, count) for index in range(count)]


def _wire_local_apic(vcpu: VcpuFd) -> None:
    """Virtual wire mode, as firmware leaves the boot processor: LINT0 is the PIC's interrupt, LINT1 the NMI.

    MultiProcessor Specification 1.4, 3.6.2.2. The other processors' pins are masked by the INIT that starts them.
    """
    state = vcpu.get_lapic()
    for offset, mode in ((LVT_LINT0, LVT_DELIVERY_EXTINT), (LVT_LINT1, LVT_DELIVERY_NMI)):
        entry = int.from_bytes(bytes(state.regs[offset : offset + 4]), "little")
        entry = entry & ~(LVT_DELIVERY_EXTINT | LVT_MASKED) | mode
        state.regs[offset : offset + 4] = entry.to_bytes(4, "little")
    vcpu.set_lapic(state)
