"""KVM's capabilities on x86: number, name, since which Linux, and what pyvmm uses each for.

May import pyvmm.errors. Numbers are those of `KVM_CAP_*` in include/uapi/linux/kvm.h, which are ABI; what each means
is in the KVM API document, sections 6 to 8. `since` is the first Linux whose KVM for x86 reports the capability (for
some, the number had been taken earlier by another architecture).

`docs/doctor.md` shows how a user sees this table.
"""

from __future__ import annotations

from pyvmm.errors import KvmUnavailableError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class HasExtensions(Protocol):
        """What this module asks of a KVM descriptor."""

        def check_extension(self, cap: int) -> int: ...


class Capability:
    """One row: `use` is "" where pyvmm does not need it; `required` ones are needed by every run."""

    __slots__ = ("name", "number", "required", "since", "use")

    def __init__(self, number: int, name: str, since: str, use: str = "", required: bool = False) -> None:
        self.number = number
        self.name = name
        self.since = since
        self.use = use
        self.required = required

    def __repr__(self) -> str:
        return f"Capability({self.number}, {self.name!r})"


_REQUIRED = True

CAPABILITIES = (
    Capability(0, "KVM_CAP_IRQCHIP", "2.6.25", "interrupt controllers in the kernel", _REQUIRED),
    Capability(1, "KVM_CAP_HLT", "2.6.25"),
    Capability(2, "KVM_CAP_MMU_SHADOW_CACHE_CONTROL", "2.6.25"),
    Capability(3, "KVM_CAP_USER_MEMORY", "2.6.25", "guest RAM in pyvmm's own memory", _REQUIRED),
    Capability(4, "KVM_CAP_SET_TSS_ADDR", "2.6.25", "room for KVM's own TSS (Intel)", _REQUIRED),
    Capability(6, "KVM_CAP_VAPIC", "2.6.25"),
    Capability(7, "KVM_CAP_EXT_CPUID", "2.6.25", "choosing the guest's CPUID", _REQUIRED),
    Capability(8, "KVM_CAP_CLOCKSOURCE", "2.6.26"),
    Capability(9, "KVM_CAP_NR_VCPUS", "2.6.26", "advice on how many vCPUs run well"),
    Capability(10, "KVM_CAP_NR_MEMSLOTS", "2.6.26", "how many memory regions a VM may have"),
    Capability(11, "KVM_CAP_PIT", "2.6.26"),
    Capability(14, "KVM_CAP_MP_STATE", "2.6.26", "starting and stopping further CPUs", _REQUIRED),
    Capability(15, "KVM_CAP_COALESCED_MMIO", "2.6.27", "posting writes to memory-mapped registers"),
    Capability(16, "KVM_CAP_SYNC_MMU", "2.6.27"),
    Capability(21, "KVM_CAP_DESTROY_MEMORY_REGION_WORKS", "2.6.29"),
    Capability(22, "KVM_CAP_USER_NMI", "2.6.29", "sending a guest an NMI"),
    Capability(23, "KVM_CAP_SET_GUEST_DEBUG", "2.6.30", "breakpoints and single steps"),
    Capability(24, "KVM_CAP_REINJECT_CONTROL", "2.6.30"),
    Capability(25, "KVM_CAP_IRQ_ROUTING", "2.6.30", "choosing where interrupts go", _REQUIRED),
    Capability(26, "KVM_CAP_IRQ_INJECT_STATUS", "2.6.30"),
    Capability(30, "KVM_CAP_JOIN_MEMORY_REGIONS_WORKS", "2.6.30"),
    Capability(31, "KVM_CAP_MCE", "2.6.31"),
    Capability(32, "KVM_CAP_IRQFD", "2.6.31", "interrupts from a file descriptor", _REQUIRED),
    Capability(33, "KVM_CAP_PIT2", "2.6.31", "the PC's timer in the kernel", _REQUIRED),
    Capability(34, "KVM_CAP_SET_BOOT_CPU_ID", "2.6.32"),
    Capability(35, "KVM_CAP_PIT_STATE2", "2.6.32", "saving the PC's timer"),
    Capability(36, "KVM_CAP_IOEVENTFD", "2.6.32", "notifications without an exit to pyvmm", _REQUIRED),
    Capability(37, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "2.6.32", "room for KVM's own page table", _REQUIRED),
    Capability(38, "KVM_CAP_XEN_HVM", "2.6.33"),
    Capability(39, "KVM_CAP_ADJUST_CLOCK", "2.6.33", "saving the guest's clock"),
    Capability(40, "KVM_CAP_INTERNAL_ERROR_DATA", "2.6.33", "details of KVM's internal errors in reports"),
    Capability(41, "KVM_CAP_VCPU_EVENTS", "2.6.33", "saving pending exceptions and interrupts"),
    Capability(44, "KVM_CAP_HYPERV", "2.6.34"),
    Capability(49, "KVM_CAP_INTR_SHADOW", "2.6.34"),
    Capability(50, "KVM_CAP_DEBUGREGS", "2.6.34", "saving the debug registers"),
    Capability(51, "KVM_CAP_X86_ROBUST_SINGLESTEP", "2.6.34"),
    Capability(55, "KVM_CAP_XSAVE", "2.6.36", "saving the vector registers"),
    Capability(56, "KVM_CAP_XCRS", "2.6.36", "saving XCR0"),
    Capability(59, "KVM_CAP_ASYNC_PF", "2.6.38"),
    Capability(60, "KVM_CAP_TSC_CONTROL", "2.6.39", "giving a guest another time stamp rate"),
    Capability(61, "KVM_CAP_GET_TSC_KHZ", "2.6.39", "reading the time stamp rate"),
    Capability(66, "KVM_CAP_MAX_VCPUS", "3.2", "how many vCPUs a VM may have"),
    Capability(72, "KVM_CAP_TSC_DEADLINE_TIMER", "3.3", "the local APIC's TSC deadline mode"),
    Capability(74, "KVM_CAP_SYNC_REGS", "4.17", "registers at an exit without a system call"),
    Capability(76, "KVM_CAP_KVMCLOCK_CTRL", "3.5"),
    Capability(77, "KVM_CAP_SIGNAL_MSI", "3.5", "message-signalled interrupts"),
    Capability(81, "KVM_CAP_READONLY_MEM", "3.7", "read-only memory regions"),
    Capability(82, "KVM_CAP_IRQFD_RESAMPLE", "3.7", "level interrupts from a file descriptor"),
    Capability(89, "KVM_CAP_DEVICE_CTRL", "3.10", "creating devices inside KVM"),
    Capability(95, "KVM_CAP_EXT_EMUL_CPUID", "3.13", "listing what KVM's emulator adds to CPUID"),
    Capability(96, "KVM_CAP_HYPERV_TIME", "3.14"),
    Capability(98, "KVM_CAP_ENABLE_CAP_VM", "3.15", "switching capabilities on for a VM"),
    Capability(100, "KVM_CAP_IOEVENTFD_NO_LENGTH", "3.15"),
    Capability(105, "KVM_CAP_CHECK_EXTENSION_VM", "3.17"),
    Capability(116, "KVM_CAP_DISABLE_QUIRKS", "4.1"),
    Capability(117, "KVM_CAP_X86_SMM", "4.2"),
    Capability(118, "KVM_CAP_MULTI_ADDRESS_SPACE", "4.2"),
    Capability(121, "KVM_CAP_SPLIT_IRQCHIP", "4.4"),
    Capability(122, "KVM_CAP_IOEVENTFD_ANY_LENGTH", "4.4", "notifications by a write of any width"),
    Capability(123, "KVM_CAP_HYPERV_SYNIC", "4.5"),
    Capability(128, "KVM_CAP_MAX_VCPU_ID", "4.7"),
    Capability(129, "KVM_CAP_X2APIC_API", "4.8"),
    Capability(136, "KVM_CAP_IMMEDIATE_EXIT", "4.11", "stopping a vCPU without losing a race", _REQUIRED),
    Capability(143, "KVM_CAP_X86_DISABLE_EXITS", "4.17"),
    Capability(153, "KVM_CAP_GET_MSR_FEATURES", "4.17", "listing what the processor reports in MSRs"),
    Capability(157, "KVM_CAP_NESTED_STATE", "4.20"),
    Capability(162, "KVM_CAP_COALESCED_PIO", "4.20", "posting writes to ports"),
    Capability(164, "KVM_CAP_EXCEPTION_PAYLOAD", "4.20"),
    Capability(168, "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", "5.2"),
    Capability(173, "KVM_CAP_PMU_EVENT_FILTER", "5.3"),
    Capability(182, "KVM_CAP_HALT_POLL", "5.8"),
    Capability(183, "KVM_CAP_ASYNC_PF_INT", "5.8"),
    Capability(184, "KVM_CAP_LAST_CPU", "5.9"),
    Capability(185, "KVM_CAP_SMALLER_MAXPHYADDR", "5.9"),
    Capability(187, "KVM_CAP_STEAL_TIME", "5.10"),
    Capability(188, "KVM_CAP_X86_USER_SPACE_MSR", "5.10", "showing accesses to unknown MSRs"),
    Capability(189, "KVM_CAP_X86_MSR_FILTER", "5.10", "choosing which MSRs are shown"),
    Capability(190, "KVM_CAP_ENFORCE_PV_FEATURE_CPUID", "5.10"),
    Capability(192, "KVM_CAP_DIRTY_LOG_RING", "5.11"),
    Capability(193, "KVM_CAP_X86_BUS_LOCK_EXIT", "5.11"),
    Capability(195, "KVM_CAP_SET_GUEST_DEBUG2", "5.13"),
    Capability(200, "KVM_CAP_SREGS2", "5.14"),
    Capability(201, "KVM_CAP_EXIT_HYPERCALL", "5.14"),
    Capability(203, "KVM_CAP_BINARY_STATS_FD", "5.14", "KVM's own statistics"),
    Capability(204, "KVM_CAP_EXIT_ON_EMULATION_FAILURE", "5.14", "the bytes of an instruction KVM cannot emulate"),
    Capability(207, "KVM_CAP_VM_GPA_BITS", "5.17"),
    Capability(208, "KVM_CAP_XSAVE2", "5.17", "saving vector registers larger than 4 KiB"),
    Capability(209, "KVM_CAP_SYS_ATTRIBUTES", "5.17"),
    Capability(212, "KVM_CAP_PMU_CAPABILITY", "5.18"),
    Capability(213, "KVM_CAP_DISABLE_QUIRKS2", "5.18"),
    Capability(214, "KVM_CAP_VM_TSC_CONTROL", "5.19"),
    Capability(218, "KVM_CAP_X86_TRIPLE_FAULT_EVENT", "6.0"),
    Capability(219, "KVM_CAP_X86_NOTIFY_VMEXIT", "6.0"),
    Capability(220, "KVM_CAP_VM_DISABLE_NX_HUGE_PAGES", "6.0"),
    Capability(223, "KVM_CAP_DIRTY_LOG_RING_ACQ_REL", "6.1"),
    Capability(226, "KVM_CAP_PMU_EVENT_MASKED_EVENTS", "6.3"),
    Capability(231, "KVM_CAP_USER_MEMORY2", "6.8"),
    Capability(232, "KVM_CAP_MEMORY_FAULT_INFO", "6.8"),
    Capability(233, "KVM_CAP_MEMORY_ATTRIBUTES", "6.8"),
    Capability(234, "KVM_CAP_GUEST_MEMFD", "6.8"),
    Capability(235, "KVM_CAP_VM_TYPES", "6.8"),
)


def missing_required(kvm: HasExtensions) -> list[Capability]:
    """The capabilities every run needs and `kvm` (anything with `check_extension`) does not report."""
    return [row for row in CAPABILITIES if row.required and not kvm.check_extension(row.number)]


def check_required(kvm: HasExtensions) -> None:
    """Raise KvmUnavailableError, one line naming each missing capability and the Linux that brought it."""
    missing = missing_required(kvm)
    if missing:
        named = ", ".join(f"{row.name} ({row.use}; since Linux {row.since})" for row in missing)
        raise KvmUnavailableError(f"this kernel's KVM lacks {named}")
