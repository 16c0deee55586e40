"""Names of CPU features, and where in CPUID each one is: what `--cpu host,-cx16,+x2apic` speaks of.

May import pyvmm.errors. Names are Linux's (arch/x86/include/asm/cpufeatures.h, as /proc/cpuinfo shows them), with
QEMU's where Linux has none, and aliases where both differ; `-`, `_` and `.` are the same in a name. Bits are those of
Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; for leaf 0x40000001 the KVM CPUID document
(Documentation/virt/kvm/x86/cpuid.rst).
"""

from __future__ import annotations

from pyvmm.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm.kvm.entries import CpuidEntry

    Bit = tuple[int, int, str, int]
    """Leaf, subleaf, register, bit number."""

# Leaf, subleaf and register, then the names of bits 0 to 31 in order; `.` is a bit that is reserved, is no feature, or
# is KVM's to keep.
_REGISTERS = """
0x1.0.edx fpu vme de pse tsc msr pae mce cx8 apic . sep mtrr pge mca cmov pat pse36 pn clflush . dts acpi mmx fxsr sse
    sse2 ss ht tm ia64 pbe
0x1.0.ecx pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm . pcid dca sse4_1
    sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave . avx f16c rdrand hypervisor
0x6.0.eax . . arat
0x7.0.ebx fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx rdt_a
    avx512f avx512dq rdseed adx smap avx512ifma . clflushopt clwb intel_pt avx512pf avx512er avx512cd sha_ni avx512bw
    avx512vl
0x7.0.ecx prefetchwt1 avx512vbmi umip pku . waitpkg avx512_vbmi2 user_shstk gfni vaes vpclmulqdq avx512_vnni
    avx512_bitalg tme avx512_vpopcntdq . la57 . . . . . rdpid . bus_lock_detect cldemote . movdiri movdir64b enqcmd
    sgx_lc pks
0x7.0.edx . . avx512_4vnniw avx512_4fmaps fsrm uintr . . avx512_vp2intersect srbds_ctrl md_clear rtm_always_abort .
    tsx_force_abort serialize . tsxldtrk . pconfig arch_lbr ibt . amx_bf16 avx512_fp16 amx_tile amx_int8 spec_ctrl
    intel_stibp flush_l1d arch_capabilities core_capabilities intel_ssbd
0x7.1.eax sha512 sm3 sm4 . avx_vnni avx512_bf16 lass cmpccxadd . . fzrm fsrs fsrc . . . . fred lkgs wrmsrns . amx_fp16
    hreset avx_ifma . . lam
0x7.1.edx . . . . avx_vnni_int8 avx_ne_convert . . amx_complex . avx_vnni_int16 . . . prefetchiti
0x7.2.edx psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no
0xd.1.eax xsaveopt xsavec xgetbv1 xsaves xfd
0x80000001.0.edx . . . . . . . . . . . syscall . . . . . . . mp nx . mmxext . . fxsr_opt pdpe1gb rdtscp . lm 3dnowext
    3dnow
0x80000001.0.ecx lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt
    . lwp fma4 tce . nodeid_msr . tbm topoext perfctr_core perfctr_nb . bpext ptsc perfctr_llc mwaitx
0x80000007.0.edx . . . . . . . . invtsc
0x80000008.0.ebx clzero irperf xsaveerptr . rdpru . . . . wbnoinvd . . ibpb . ibrs stibp . stibp_always_on . . . . . .
    ssbd virt_ssbd ssb_no cppc amd_psfd btc_no
0x8000000a.0.edx npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists . . pausefilter .
    pfthreshold avic . v_vmsave_vmload vgif
0x80000021.0.eax no_nested_data_bp . lfence_rdtsc . . . null_sel_clr_base . autoibrs . . . . . . . . . . . prefetchi .
    . . . . . sbpb ibpb_brtype srso_no
0x40000001.0.eax kvmclock kvm_nopiodelay kvm_mmu kvmclock kvm_asyncpf kvm_steal_time kvm_pv_eoi kvm_pv_unhalt .
    kvm_pv_tlb_flush kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control kvm_pv_sched_yield kvm_asyncpf_int
    kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control . . . . . . kvmclock_stable_bit
0x40000001.0.edx kvm_hint_dedicated
"""

_ALIASES = {
    "ffxsr": "fxsr_opt",
    "i64": "lm",
    "lzcnt": "abm",
    "rdrnd": "rdrand",
    "avx512_vbmi": "avx512vbmi",
    "avx512_ifma": "avx512ifma",
    "nodeid": "nodeid_msr",
    "nrips": "nrip_save",
    "constant_tsc": "invtsc",
    "nonstop_tsc": "invtsc",
    "sha": "sha_ni",
    "shstk": "user_shstk",
    "sse3": "pni",
    "tsc_deadline": "tsc_deadline_timer",
    "auto_ibrs": "autoibrs",
    "lfence_always_serializing": "lfence_rdtsc",
    "xd": "nx",
}

# AMD repeats these bits of leaf 1 EDX in leaf 0x80000001 EDX (APM volume 3, E.4.2): they change together.
AMD_REPEATED_BITS = 0x0183F3FF

KVMS_OWN = ("hypervisor", "tsc_deadline_timer", "ht", "cmp_legacy")
"""Those of a topology, and those that KVM gives a guest whether or not it lists them (see `cpuid`)."""

_table: dict[str, tuple[Bit, ...]] = {}


def feature_bits() -> dict[str, tuple[Bit, ...]]:
    """Every known feature: its name to the bits it is (more than one where one name switches several)."""
    if not _table:
        place: tuple[int, int, str] = (0, 0, "")
        bit = 0
        for word in _REGISTERS.split():
            if word.startswith("0x"):
                leaf, subleaf, register = word.split(".")
                place, bit = (int(leaf, 16), int(subleaf), register), 0
                continue
            if word != ".":
                _table[word] = (*_table.get(word, ()), (*place, bit))
            bit += 1
    return _table


def missing_features(shown: Iterable[CpuidEntry], supported: Iterable[CpuidEntry]) -> list[str]:
    """The names of features that `shown` has and `supported` has not, as far as KVM gives those away to guests."""
    have, want = ({(entry.function, entry.index): entry for entry in entries} for entries in (supported, shown))
    missing = []
    for name, bits in feature_bits().items():
        for leaf, subleaf, register, bit in bits:
            wanted, here = want.get((leaf, subleaf)), have.get((leaf, subleaf))
            if wanted is None or not getattr(wanted, register) >> bit & 1 or name in KVMS_OWN:
                continue
            if here is None or not getattr(here, register) >> bit & 1:
                missing.append(name)
                break
    return missing


def canonical(name: str) -> str:
    """The table's spelling of a feature's name, or the name itself, in lower case with `_`, where it has none."""
    name = name.strip().lower().replace("-", "_").replace(".", "_")
    return _ALIASES.get(name, name)


def parse_cpu(text: str) -> dict[str, bool]:
    """Read `--cpu`: `host`, then `,+name` or `,-name`; what is named last counts.

    Returns the features asked for by name, True to have it and False to go without. Raises UsageError, which names the
    part that is wrong and, for a misspelt feature, those that look alike.
    """
    model, *changes = text.split(",")
    if model.strip() != "host":
        raise UsageError(f"--cpu {text!r}: it begins with the model, and the only one is 'host'")
    wanted: dict[str, bool] = {}
    for change in changes:
        sign, name = change.strip()[:1], canonical(change.strip()[1:])
        if sign not in ("+", "-") or not name:
            raise UsageError(f"--cpu {text!r}: {change!r} is neither +FEATURE nor -FEATURE")
        if name not in feature_bits():
            raise UsageError(f"--cpu: no CPU feature is called {change.strip()[1:]!r}{_look_alikes(name)}")
        wanted[name] = sign == "+"
    return wanted


def _look_alikes(name: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, [*feature_bits(), *_ALIASES], n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""
