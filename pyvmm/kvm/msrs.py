"""Model-specific registers: the ones pyvmm sets, and the names of those a report may show.

Imports nothing. Indexes and bits are those of Intel SDM volume 4, chapter 2, and AMD APM volume 2, appendix A; KVM's
own ones of the KVM MSR document (Documentation/virt/kvm/x86/msr.rst).
"""

from __future__ import annotations

IA32_TSC = 0x10
IA32_APIC_BASE = 0x1B
IA32_MISC_ENABLE = 0x1A0
IA32_PAT = 0x277
IA32_MTRR_DEF_TYPE = 0x2FF
IA32_TSC_DEADLINE = 0x6E0
EFER = 0xC0000080
STAR = 0xC0000081
LSTAR = 0xC0000082
CSTAR = 0xC0000083
SFMASK = 0xC0000084
FS_BASE = 0xC0000100
GS_BASE = 0xC0000101
KERNEL_GS_BASE = 0xC0000102
TSC_AUX = 0xC0000103

X2APIC_FIRST = 0x800  # one MSR for each 16 bytes of the local APIC's registers (SDM volume 3A, 11.12.1.2)
X2APIC_LAST = 0x8FF

NAMES = {
    IA32_TSC: "IA32_TSC",
    IA32_APIC_BASE: "IA32_APIC_BASE",
    0x3A: "IA32_FEATURE_CONTROL",
    0x3B: "IA32_TSC_ADJUST",
    0x48: "IA32_SPEC_CTRL",
    0x49: "IA32_PRED_CMD",
    0x8B: "IA32_BIOS_SIGN_ID",
    0xCE: "MSR_PLATFORM_INFO",
    0xE7: "IA32_MPERF",
    0xE8: "IA32_APERF",
    0xFE: "IA32_MTRRCAP",
    0x10A: "IA32_ARCH_CAPABILITIES",
    0x140: "MISC_FEATURE_ENABLES",
    0x174: "IA32_SYSENTER_CS",
    0x175: "IA32_SYSENTER_ESP",
    0x176: "IA32_SYSENTER_EIP",
    0x179: "IA32_MCG_CAP",
    0x17A: "IA32_MCG_STATUS",
    0x17B: "IA32_MCG_CTL",
    0x198: "IA32_PERF_STATUS",
    0x199: "IA32_PERF_CTL",
    0x19B: "IA32_THERM_INTERRUPT",
    0x19C: "IA32_THERM_STATUS",
    IA32_MISC_ENABLE: "IA32_MISC_ENABLE",
    0x1D9: "IA32_DEBUGCTL",
    IA32_PAT: "IA32_PAT",
    IA32_MTRR_DEF_TYPE: "IA32_MTRR_DEF_TYPE",
    0x345: "IA32_PERF_CAPABILITIES",
    0x38D: "IA32_FIXED_CTR_CTRL",
    0x38E: "IA32_PERF_GLOBAL_STATUS",
    0x38F: "IA32_PERF_GLOBAL_CTRL",
    0x600: "IA32_DS_AREA",
    0x606: "MSR_RAPL_POWER_UNIT",
    IA32_TSC_DEADLINE: "IA32_TSC_DEADLINE",
    0xD90: "IA32_BNDCFGS",
    0xDA0: "IA32_XSS",
    EFER: "EFER",
    STAR: "STAR",
    LSTAR: "LSTAR",
    CSTAR: "CSTAR",
    SFMASK: "SFMASK",
    FS_BASE: "FS_BASE",
    GS_BASE: "GS_BASE",
    KERNEL_GS_BASE: "KERNEL_GS_BASE",
    TSC_AUX: "TSC_AUX",
    0xC0000104: "TSC_RATIO",
    0xC0010010: "SYSCFG",
    0xC0010015: "HWCR",
    0xC001001F: "NB_CFG",
    0xC0010055: "INT_PENDING",
    0xC0010114: "VM_CR",
    0xC0010117: "VM_HSAVE_PA",
    0xC001011F: "VIRT_SPEC_CTRL",
    0xC0010140: "OSVW_ID_LENGTH",
    0xC0010141: "OSVW_STATUS",
    0xC0011020: "LS_CFG",
    0xC0011029: "DE_CFG",
    0x11: "MSR_KVM_WALL_CLOCK",
    0x12: "MSR_KVM_SYSTEM_TIME",
    0x4B564D00: "MSR_KVM_WALL_CLOCK_NEW",
    0x4B564D01: "MSR_KVM_SYSTEM_TIME_NEW",
    0x4B564D02: "MSR_KVM_ASYNC_PF_EN",
    0x4B564D03: "MSR_KVM_STEAL_TIME",
    0x4B564D04: "MSR_KVM_PV_EOI_EN",
    0x4B564D05: "MSR_KVM_POLL_CONTROL",
    0x4B564D06: "MSR_KVM_ASYNC_PF_INT",
    0x4B564D07: "MSR_KVM_ASYNC_PF_ACK",
    0x4B564D08: "MSR_KVM_MIGRATION_CONTROL",
}

REPORTED = (
    IA32_APIC_BASE, IA32_MISC_ENABLE, IA32_PAT, EFER, STAR, LSTAR, CSTAR, SFMASK, KERNEL_GS_BASE, 0x174, 0x175, 0x176,
)  # fmt: skip
"""What a crash report shows; all are in every KVM_GET_MSR_INDEX_LIST of a 64-bit host."""

MISC_ENABLE_FAST_STRING = 1 << 0
MTRR_ENABLE = 1 << 11
MTRR_WRITE_BACK = 6


def name(index: int) -> str:
    """What an MSR is called in the manuals; its number in hex where this module does not know it."""
    if X2APIC_FIRST <= index <= X2APIC_LAST:
        return f"X2APIC+{index - X2APIC_FIRST:#x}"
    return NAMES.get(index) or f"MSR {index:#x}"


def initial_msrs(misc_enable: int) -> list[tuple[int, int]]:
    """(index, value) of what firmware would have set before a kernel runs and KVM's reset leaves otherwise.

    misc_enable  the vCPU's IA32_MISC_ENABLE, whose other bits are KVM's

    - fast strings: without the bit, Linux on an Intel processor takes `rep movsb` for slow (early_init_intel)
    - MTRRs on, all memory write-back: while they are off, memory counts as uncached, and Linux gives up the PAT too
    """
    return [
        (IA32_MISC_ENABLE, misc_enable | MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK),
    ]
