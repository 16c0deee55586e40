"""What a guest's CPUID instruction answers, against what was asked for; the MSRs that a vCPU starts with."""

from __future__ import annotations

import pytest

from pyvmm.cli import probe
from pyvmm.kvm import Kvm
from pyvmm.kvm.cpufeatures import feature_bits, parse_cpu
from pyvmm.kvm.cpuid import KVM_SIGNATURE, has_feature, select_features, with_topology
from pyvmm.kvm.exits import Pio
from pyvmm.kvm.msrs import IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE, REPORTED, initial_msrs
from pyvmm.kvm.setup import apply_state
from pyvmm.memory import GuestMemory

pytestmark = pytest.mark.needs("kvm")

READ = bytes.fromhex(
    "0f a2"  # cpuid
    "e6 80"  # out 0x80, al
)


def ask(leaf: int, subleaf: int = 0, *, cpu: str = "host", vcpu: int = 0, vcpus: int = 1) -> dict[str, int]:
    """What the instruction answers in ring 0 of that vCPU."""
    memory = GuestMemory.allocate([(0, probe.RAM)])
    try:
        probe._fill(memory, READ)
        with Kvm() as kvm, kvm.create_vm() as vm:
            vm.set_user_memory_region(0, 0, memory.regions[0].view)
            features = select_features(kvm.supported_cpuid(), parse_cpu(cpu))
            one = vm.create_vcpu(vcpu)
            one.set_cpuid2(with_topology(features, vcpu, vcpus))
            state = probe._state(0, 0)
            state.rax, state.rcx = leaf, subleaf
            apply_state(one, state)
            assert isinstance(one.run(), Pio)
            regs = one.get_regs()
            return {name: getattr(regs, f"r{name[1:]}") for name in ("eax", "ebx", "ecx", "edx")}
    finally:
        memory.close()


@pytest.mark.parametrize(("vcpu", "vcpus"), [(0, 1), (0, 4), (3, 4), (200, 255)])
def test_a_vcpu_sees_its_own_apic_id(vcpu: int, vcpus: int) -> None:
    assert ask(1, vcpu=vcpu, vcpus=vcpus)["ebx"] >> 24 == vcpu
    if ask(0)["eax"] >= 0xB:
        cores = ask(0xB, 1, vcpu=vcpu, vcpus=vcpus)
        assert (cores["ebx"], cores["ecx"], cores["edx"]) == (vcpus, 0x201, vcpu)


def test_the_hypervisor_shows_itself_as_kvm() -> None:
    assert ask(1)["ecx"] >> 31 == 1
    found = ask(0x40000000)
    name = b"".join(found[register].to_bytes(4, "little") for register in ("ebx", "ecx", "edx"))
    assert name == KVM_SIGNATURE


@pytest.mark.parametrize("name", ["cx16", "kvm_pv_unhalt", "kvm_pv_tlb_flush", "kvmclock"])
def test_a_feature_shows_until_it_is_taken_away(name: str) -> None:
    with Kvm() as kvm:
        if not has_feature(kvm.supported_cpuid(), name):
            pytest.skip(f"this host's KVM does not have {name}")
    for leaf, subleaf, register, bit in feature_bits()[name]:
        assert ask(leaf, subleaf)[register] >> bit & 1 == 1
        assert ask(leaf, subleaf, cpu=f"host,-{name}")[register] >> bit & 1 == 0


def test_initial_msrs_are_taken() -> None:
    with Kvm() as kvm, kvm.create_vm() as vm:
        listed = kvm.msr_index_list()
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(with_topology(select_features(kvm.supported_cpuid(), {}), 0, 1))
        before = vcpu.get_msrs([IA32_MISC_ENABLE])[IA32_MISC_ENABLE]
        vcpu.set_msrs(dict(initial_msrs(before)))
        after = vcpu.get_msrs([IA32_MISC_ENABLE, IA32_MTRR_DEF_TYPE])
        assert after == {IA32_MISC_ENABLE: before | 1, IA32_MTRR_DEF_TYPE: 0x806}
        shown = [index for index in REPORTED if index in listed]
        assert vcpu.get_msrs(shown).keys() == set(shown)
        assert len(shown) >= len(REPORTED) - 2
