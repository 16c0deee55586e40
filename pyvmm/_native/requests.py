"""KVM's ioctl requests, the one table of them: name, direction, number, argument, section, kernel.

Plain data, read by build_kvm.py alone; at run time the numbers are constants of `pyvmm._native._kvm.lib`. Section: of
the KVM API document (Documentation/virt/kvm/api.rst). `since` is the kernel whose <linux/kvm.h> is the first to have
the request, where that is later than 4.18, the oldest header that pyvmm builds against.
"""

from __future__ import annotations

NONE, WRITE, READ = 0, 1, 2
"""Who reads whose memory, seen from user space: asm-generic/ioctl.h, _IOC_NONE, _IOC_WRITE, _IOC_READ."""

KVMIO = 0xAE
"""The type byte of every KVM request: linux/kvm.h."""

# name, direction, number, argument type or None, section, since
REQUESTS: tuple[tuple[str, int, int, str | None, str, str], ...] = (
    # /dev/kvm
    ("KVM_GET_API_VERSION", NONE, 0x00, None, "4.1", ""),
    ("KVM_CREATE_VM", NONE, 0x01, None, "4.2", ""),
    ("KVM_GET_MSR_INDEX_LIST", READ | WRITE, 0x02, "struct kvm_msr_list", "4.3", ""),
    ("KVM_CHECK_EXTENSION", NONE, 0x03, None, "4.4", ""),
    ("KVM_GET_VCPU_MMAP_SIZE", NONE, 0x04, None, "4.5", ""),
    ("KVM_GET_SUPPORTED_CPUID", READ | WRITE, 0x05, "struct kvm_cpuid2", "4.46", ""),
    ("KVM_GET_EMULATED_CPUID", READ | WRITE, 0x09, "struct kvm_cpuid2", "4.88", ""),
    ("KVM_GET_MSR_FEATURE_INDEX_LIST", READ | WRITE, 0x0A, "struct kvm_msr_list", "4.3", ""),
    # VM
    ("KVM_CREATE_VCPU", NONE, 0x41, None, "4.7", ""),
    ("KVM_GET_DIRTY_LOG", WRITE, 0x42, "struct kvm_dirty_log", "4.8", ""),
    ("KVM_SET_USER_MEMORY_REGION", WRITE, 0x46, "struct kvm_userspace_memory_region", "4.35", ""),
    ("KVM_SET_TSS_ADDR", NONE, 0x47, None, "4.36", ""),
    ("KVM_SET_IDENTITY_MAP_ADDR", WRITE, 0x48, "uint64_t", "4.40", ""),
    ("KVM_CREATE_IRQCHIP", NONE, 0x60, None, "4.24", ""),
    ("KVM_IRQ_LINE", WRITE, 0x61, "struct kvm_irq_level", "4.25", ""),
    ("KVM_GET_IRQCHIP", READ | WRITE, 0x62, "struct kvm_irqchip", "4.26", ""),
    ("KVM_SET_IRQCHIP", READ, 0x63, "struct kvm_irqchip", "4.27", ""),
    ("KVM_IRQ_LINE_STATUS", READ | WRITE, 0x67, "struct kvm_irq_level", "4.25", ""),
    ("KVM_REGISTER_COALESCED_MMIO", WRITE, 0x67, "struct kvm_coalesced_mmio_zone", "4.116", ""),
    ("KVM_UNREGISTER_COALESCED_MMIO", WRITE, 0x68, "struct kvm_coalesced_mmio_zone", "4.116", ""),
    ("KVM_SET_GSI_ROUTING", WRITE, 0x6A, "struct kvm_irq_routing", "4.52", ""),
    ("KVM_REINJECT_CONTROL", NONE, 0x71, None, "4.99", ""),
    ("KVM_IRQFD", WRITE, 0x76, "struct kvm_irqfd", "4.75", ""),
    ("KVM_CREATE_PIT2", WRITE, 0x77, "struct kvm_pit_config", "4.71", ""),
    ("KVM_SET_BOOT_CPU_ID", NONE, 0x78, None, "4.41", ""),
    ("KVM_IOEVENTFD", WRITE, 0x79, "struct kvm_ioeventfd", "4.59", ""),
    ("KVM_SET_CLOCK", WRITE, 0x7B, "struct kvm_clock_data", "4.30", ""),
    ("KVM_GET_CLOCK", READ, 0x7C, "struct kvm_clock_data", "4.29", ""),
    ("KVM_GET_PIT2", READ, 0x9F, "struct kvm_pit_state2", "4.72", ""),
    ("KVM_SET_PIT2", WRITE, 0xA0, "struct kvm_pit_state2", "4.73", ""),
    ("KVM_SIGNAL_MSI", WRITE, 0xA5, "struct kvm_msi", "4.71", ""),
    ("KVM_CLEAR_DIRTY_LOG", READ | WRITE, 0xC0, "struct kvm_clear_dirty_log", "4.117", "5.0"),
    ("KVM_X86_SET_MSR_FILTER", WRITE, 0xC6, "struct kvm_msr_filter", "4.97", "5.10"),
    ("KVM_CREATE_DEVICE", READ | WRITE, 0xE0, "struct kvm_create_device", "4.79", ""),
    # device
    ("KVM_SET_DEVICE_ATTR", WRITE, 0xE1, "struct kvm_device_attr", "4.80", ""),
    ("KVM_GET_DEVICE_ATTR", WRITE, 0xE2, "struct kvm_device_attr", "4.80", ""),
    ("KVM_HAS_DEVICE_ATTR", WRITE, 0xE3, "struct kvm_device_attr", "4.81", ""),
    # vCPU; ENABLE_CAP, SET_TSC_KHZ, GET_TSC_KHZ and GET_STATS_FD are requests of the VM too
    ("KVM_RUN", NONE, 0x80, None, "4.10", ""),
    ("KVM_GET_REGS", READ, 0x81, "struct kvm_regs", "4.11", ""),
    ("KVM_SET_REGS", WRITE, 0x82, "struct kvm_regs", "4.12", ""),
    ("KVM_GET_SREGS", READ, 0x83, "struct kvm_sregs", "4.13", ""),
    ("KVM_SET_SREGS", WRITE, 0x84, "struct kvm_sregs", "4.14", ""),
    ("KVM_TRANSLATE", READ | WRITE, 0x85, "struct kvm_translation", "4.15", ""),
    ("KVM_INTERRUPT", WRITE, 0x86, "struct kvm_interrupt", "4.16", ""),
    ("KVM_GET_MSRS", READ | WRITE, 0x88, "struct kvm_msrs", "4.18", ""),
    ("KVM_SET_MSRS", WRITE, 0x89, "struct kvm_msrs", "4.19", ""),
    ("KVM_SET_SIGNAL_MASK", WRITE, 0x8B, "struct kvm_signal_mask", "4.21", ""),
    ("KVM_GET_FPU", READ, 0x8C, "struct kvm_fpu", "4.22", ""),
    ("KVM_SET_FPU", WRITE, 0x8D, "struct kvm_fpu", "4.23", ""),
    ("KVM_GET_LAPIC", READ, 0x8E, "struct kvm_lapic_state", "4.57", ""),
    ("KVM_SET_LAPIC", WRITE, 0x8F, "struct kvm_lapic_state", "4.58", ""),
    ("KVM_SET_CPUID2", WRITE, 0x90, "struct kvm_cpuid2", "4.20", ""),
    ("KVM_GET_CPUID2", READ | WRITE, 0x91, "struct kvm_cpuid2", "4.20", ""),
    ("KVM_GET_MP_STATE", READ, 0x98, "struct kvm_mp_state", "4.38", ""),
    ("KVM_SET_MP_STATE", WRITE, 0x99, "struct kvm_mp_state", "4.39", ""),
    ("KVM_NMI", NONE, 0x9A, None, "4.64", ""),
    ("KVM_SET_GUEST_DEBUG", WRITE, 0x9B, "struct kvm_guest_debug", "4.87", ""),
    ("KVM_GET_VCPU_EVENTS", READ, 0x9F, "struct kvm_vcpu_events", "4.31", ""),
    ("KVM_SET_VCPU_EVENTS", WRITE, 0xA0, "struct kvm_vcpu_events", "4.32", ""),
    ("KVM_GET_DEBUGREGS", READ, 0xA1, "struct kvm_debugregs", "4.33", ""),
    ("KVM_SET_DEBUGREGS", WRITE, 0xA2, "struct kvm_debugregs", "4.34", ""),
    ("KVM_SET_TSC_KHZ", NONE, 0xA2, None, "4.55", ""),
    ("KVM_GET_TSC_KHZ", NONE, 0xA3, None, "4.56", ""),
    ("KVM_ENABLE_CAP", WRITE, 0xA3, "struct kvm_enable_cap", "4.37", ""),
    ("KVM_GET_XSAVE", READ, 0xA4, "struct kvm_xsave", "4.42", ""),
    ("KVM_SET_XSAVE", WRITE, 0xA5, "struct kvm_xsave", "4.43", ""),
    ("KVM_GET_XCRS", READ, 0xA6, "struct kvm_xcrs", "4.44", ""),
    ("KVM_SET_XCRS", WRITE, 0xA7, "struct kvm_xcrs", "4.45", ""),
    ("KVM_KVMCLOCK_CTRL", NONE, 0xAD, None, "4.70", ""),
    ("KVM_GET_SREGS2", READ, 0xCC, "struct kvm_sregs2", "4.131", "5.14"),
    ("KVM_SET_SREGS2", WRITE, 0xCD, "struct kvm_sregs2", "4.132", "5.14"),
    ("KVM_GET_STATS_FD", NONE, 0xCE, None, "4.133", "5.14"),
    ("KVM_GET_XSAVE2", READ, 0xCF, "struct kvm_xsave", "4.134", "5.17"),
)

# Parts of the structures in kvm_abi.h that headers after 4.18 brought: part -> a macro that came with it. A part is a
# structure's name or the path of a field, which stands for everything below it too.
NEWER_PARTS: dict[str, str] = {
    "kvm_sregs2": "KVM_GET_SREGS2",
    "kvm_msr_filter_range": "KVM_X86_SET_MSR_FILTER",
    "kvm_msr_filter": "KVM_X86_SET_MSR_FILTER",
    "kvm_clear_dirty_log": "KVM_CLEAR_DIRTY_LOG",
    "kvm_stats_header": "KVM_GET_STATS_FD",
    "kvm_stats_desc": "KVM_GET_STATS_FD",
    "kvm_stats_desc.bucket_size": "KVM_STATS_TYPE_LINEAR_HIST",
    "kvm_xsave.extra": "KVM_GET_XSAVE2",
    "kvm_vcpu_events.exception.pending": "KVM_VCPUEVENT_VALID_PAYLOAD",
    "kvm_vcpu_events.exception_has_payload": "KVM_VCPUEVENT_VALID_PAYLOAD",
    "kvm_vcpu_events.exception_payload": "KVM_VCPUEVENT_VALID_PAYLOAD",
    "kvm_vcpu_events.triple_fault": "KVM_VCPUEVENT_VALID_TRIPLE_FAULT",
    "kvm_clock_data.realtime": "KVM_CLOCK_REALTIME",
    "kvm_clock_data.host_tsc": "KVM_CLOCK_REALTIME",
    "kvm_coalesced_mmio_zone.pio": "KVM_CAP_COALESCED_PIO",
    "kvm_coalesced_mmio.pio": "KVM_CAP_COALESCED_PIO",
    "kvm_hyperv_exit": "KVM_EXIT_HYPERV_SYNDBG",  # grew by syndbg
    "kvm_xen_exit": "KVM_EXIT_XEN",
    "kvm_run.hyperv": "KVM_EXIT_HYPERV_SYNDBG",
    "kvm_run.fail_entry": "KVM_CAP_LAST_CPU",  # grew by cpu
    "kvm_run.emulation_failure": "KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES",
    "kvm_run.system_event": "KVM_CAP_SYSTEM_EVENT_DATA",  # grew by ndata and data
    "kvm_run.msr": "KVM_EXIT_X86_RDMSR",
    "kvm_run.xen": "KVM_EXIT_XEN",
    "kvm_run.notify": "KVM_EXIT_NOTIFY",
    "kvm_run.memory_fault": "KVM_EXIT_MEMORY_FAULT",
}
