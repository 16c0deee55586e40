"""The CPUID of a guest: what KVM supports, less and more of what was asked for, with a topology for each vCPU.

May import pyvmm.errors and its neighbours. Follows Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; and the
KVM API document on KVM_GET_SUPPORTED_CPUID (4.46), which leaves four things to the caller: the APIC ids and the
topology, the TSC deadline timer, the hypervisor bit on older kernels, and dropping what the guest shall not see.

The topology is the plainest there is: one package, every vCPU a core with one thread, and APIC ids 0, 1, 2 and so on.
"""

from __future__ import annotations

from pyvmm.errors import UsageError
from pyvmm.kvm.constants import KVM_CPUID_FLAG_SIGNIFCANT_INDEX
from pyvmm.kvm.cpufeatures import AMD_REPEATED_BITS, feature_bits
from pyvmm.kvm.entries import CpuidEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CPUID_1_ECX_HYPERVISOR = 1 << 31  # never a real processor's (SDM: reserved, 0); says that leaf 0x40000000 exists
CPUID_1_ECX_TSC_DEADLINE = 1 << 24
CPUID_1_EDX_HT = 1 << 28  # EBX[23:16] of leaf 1 counts
CMP_LEGACY = 1 << 1  # 0x80000001 ECX, AMD: more than one core, and HT does not mean threads

LEAF_CACHES = 0x4
LEAF_TOPOLOGY = 0xB
LEAF_TOPOLOGY_V2 = 0x1F
LEAF_EXTENDED = 0x80000001
LEAF_SIZES = 0x80000008
LEAF_AMD_CACHES = 0x8000001D
LEAF_AMD_TOPOLOGY = 0x8000001E
LEAF_AMD_TOPOLOGY_V2 = 0x80000026

# Level types of leaf 0xB, ECX[15:8]
LEVEL_INVALID = 0
LEVEL_SMT = 1
LEVEL_CORE = 2

KVM_SIGNATURE = b"KVMKVMKVM\0\0\0"  # EBX, ECX, EDX of leaf 0x40000000 (KVM CPUID document)
AMD_VENDORS = (b"AuthenticAMD", b"HygonGenuine")


def vendor(entries: Iterable[CpuidEntry], leaf: int = 0) -> bytes:
    """The twelve bytes by which leaf 0 names the processor's maker, or 0x40000000 the hypervisor; b"" if absent."""
    for entry in entries:
        if entry.function == leaf:
            order = (entry.ebx, entry.ecx, entry.edx) if leaf else (entry.ebx, entry.edx, entry.ecx)
            return b"".join(register.to_bytes(4, "little") for register in order)
    return b""


def has_feature(entries: Iterable[CpuidEntry], name: str) -> bool:
    """Whether these entries show feature `name`, spelt as in `cpufeatures` (all of its bits)."""
    found = {(entry.function, entry.index): entry for entry in entries}
    return all(
        (leaf, subleaf) in found and getattr(found[leaf, subleaf], register) >> bit & 1
        for leaf, subleaf, register, bit in feature_bits()[name]
    )


def select_features(
    supported: Iterable[CpuidEntry],
    wanted: Mapping[str, bool],
    *,
    without: Iterable[str] = (),
    tsc_deadline: bool = False,
) -> list[CpuidEntry]:
    """A guest's CPUID without its topology, as new entries.

    supported     what KVM_GET_SUPPORTED_CPUID lists
    wanted        features asked for (`cpufeatures.parse_cpu`): True to have, False to go without
    without       names of features that this host's quirks take away unless they are asked for
    tsc_deadline  whether KVM_CAP_TSC_DEADLINE_TIMER is there: KVM's own APIC has that timer, but older kernels do not
                  list it

    Raises UsageError for a feature that is asked for and that KVM cannot give.
    """
    entries = [_copy(entry) for entry in supported if entry.function != LEAF_AMD_TOPOLOGY_V2]
    for entry in entries:
        if entry.function == 1:
            entry.ecx |= CPUID_1_ECX_HYPERVISOR
            if tsc_deadline:
                entry.ecx |= CPUID_1_ECX_TSC_DEADLINE
    missing = [name for name, on in wanted.items() if on and not has_feature(entries, name)]
    if missing:
        named = ", ".join(f"'{name}'" for name in missing)
        raise UsageError(f"--cpu: this host's KVM cannot give a guest {named}")
    repeats = vendor(entries) in AMD_VENDORS
    for name in (*without, *(name for name, on in wanted.items() if not on)):
        if not wanted.get(name, False):
            _clear(entries, name, repeats)
    return entries


def with_topology(entries: Iterable[CpuidEntry], vcpu: int, vcpus: int) -> list[CpuidEntry]:
    """The CPUID of vCPU `vcpu` (0 to `vcpus` - 1), as new entries, from what `select_features` gave."""
    entries = [_copy(entry) for entry in entries]
    amd = vendor(entries) in AMD_VENDORS
    id_bits = (vcpus - 1).bit_length()  # of an APIC id: the cores of the one package
    highest = next((entry.eax for entry in entries if entry.function == 0), 0)  # basic leaf
    topology_leaves = {entry.function for entry in entries} & {LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2}
    for entry in entries:
        leaf = entry.function
        if leaf == 1:
            ids = vcpus if amd else 1 << id_bits  # AMD counts logical processors, Intel the ids they could have
            entry.ebx = entry.ebx & 0xFFFF | min(ids, 255) << 16 | vcpu << 24
            entry.edx = _with(entry.edx, CPUID_1_EDX_HT, vcpus > 1)
        elif leaf == LEAF_CACHES and entry.eax & 0x1F:
            # EAX[31:26] is the greatest core id in the package, which has six bits
            entry.eax = _cache_sharing(entry.eax, id_bits) & 0x03FFFFFF | min((1 << id_bits) - 1, 63) << 26
        elif leaf == LEAF_EXTENDED and amd:
            entry.ecx = _with(entry.ecx, CMP_LEGACY, vcpus > 1)
        elif leaf == LEAF_SIZES and amd:
            entry.ecx = entry.ecx & ~0xF0FF | id_bits << 12 | vcpus - 1  # ApicIdSize, NC
        elif leaf == LEAF_AMD_CACHES and entry.eax & 0x1F:
            entry.eax = _cache_sharing(entry.eax, id_bits)
        elif leaf == LEAF_AMD_TOPOLOGY:
            entry.eax, entry.ebx, entry.ecx = vcpu, vcpu & 0xFF, 0  # APIC id; core id, one thread; node 0 of 1
    if highest >= LEAF_TOPOLOGY:
        topology_leaves.add(LEAF_TOPOLOGY)
    rest = [entry for entry in entries if entry.function not in topology_leaves]
    return rest + [level for leaf in sorted(topology_leaves) for level in _levels(leaf, vcpu, vcpus, id_bits)]


def _levels(leaf: int, vcpu: int, vcpus: int, id_bits: int) -> list[CpuidEntry]:
    """Leaf 0xB or 0x1F: the thread level, the core level, and the invalid one that ends the list."""
    flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return [
        CpuidEntry(leaf, 0, flags, eax=0, ebx=1, ecx=0 | LEVEL_SMT << 8, edx=vcpu),
        CpuidEntry(leaf, 1, flags, eax=id_bits, ebx=vcpus, ecx=1 | LEVEL_CORE << 8, edx=vcpu),
        CpuidEntry(leaf, 2, flags, eax=0, ebx=0, ecx=2 | LEVEL_INVALID << 8, edx=vcpu),
    ]


def _cache_sharing(eax: int, id_bits: int) -> int:
    """EAX of a cache's subleaf: levels 1 and 2 are a core's own, level 3 belongs to all (EAX[25:14], less one)."""
    level = eax >> 5 & 7
    return eax & ~(0xFFF << 14) | ((1 << id_bits) - 1 if level >= 3 else 0) << 14


def _clear(entries: Iterable[CpuidEntry], name: str, repeats: bool) -> None:
    for leaf, subleaf, register, bit in feature_bits()[name]:
        for entry in entries:
            if entry.function == leaf and entry.index == subleaf:
                setattr(entry, register, getattr(entry, register) & ~(1 << bit))
            elif repeats and (leaf, register) == (1, "edx") and entry.function == LEAF_EXTENDED:
                entry.edx &= ~(1 << bit & AMD_REPEATED_BITS)


def _with(value: int, mask: int, on: bool) -> int:
    return value | mask if on else value & ~mask


def _copy(entry: CpuidEntry) -> CpuidEntry:
    return CpuidEntry(entry.function, entry.index, entry.flags, entry.eax, entry.ebx, entry.ecx, entry.edx)
